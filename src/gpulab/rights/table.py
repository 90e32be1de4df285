"""
The table: which command asks AWS for what, on which resources, under which conditions. Every policy we publish is made from it.

A row is one statement. `{owner}` in an ARN or a value is whose things are meant, `{owners}` whose things may be touched, which differs
where a teacher acts for a class; `{bucket}` is the bucket of a role's kept work. `policy.py` puts them in, `roles.py` asks for the parts of
the roles that gpulab itself makes.

Source:
    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html and its neighbours (November 2026)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gpulab.model.instance import TAG_BAKE, TAG_EXPIRES, TAG_IDLE, TAG_OWNER, TAG_USABLE

Conditions = Mapping[str, Mapping[str, Any]]


class Part(StrEnum):
    """Whose hands a right is for; each part is a policy of its own."""

    STUDENT = "student"
    SETUP = "setup"
    IMAGES = "images"
    GUARD = "guard"
    TEACHER = "teacher"
    COURSE = "course"
    INSTANCE = "instance"
    CLASS = "class"
    SCHEDULER = "scheduler"


class Whose(StrEnum):
    """Which tag `gpulab:owner` must be the owner's; the values are IAM's condition keys."""

    ANYBODYS = ""
    MADE = f"aws:RequestTag/{TAG_OWNER}"
    OWNED = f"aws:ResourceTag/{TAG_OWNER}"


class Limit(StrEnum):
    """What a course may narrow; the values are IAM's condition keys."""

    REGIONS = "aws:RequestedRegion"
    TYPES = "ec2:InstanceType"


@dataclass(frozen=True)
class Right:
    """
    One row.

    Attributes:
        name: Statement id: letters and digits, unique.
        actions: In IAM's words, which differ from the API's for S3 and budgets; no wildcard.
        on: ARNs, `*` inside them; `("*",)` where AWS knows no resource for these actions.
        commands: Of gpulab; `ssh`, `push`, `show`, `check` and `logs` ask for what `open` asks for. None where no command calls, but
            an instance or the scheduler.
        when: Conditions in IAM's own form, beside `whose` and `limits`.
    """

    name: str
    actions: tuple[str, ...]
    commands: frozenset[str]
    on: tuple[str, ...] = ("*",)
    whose: Whose = Whose.ANYBODYS
    limits: tuple[Limit, ...] = ()
    when: Conditions = field(default_factory=dict)
    part: Part = Part.STUDENT


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _ec2(*kinds: str) -> tuple[str, ...]:
    # Images and snapshots have no account in their ARN.
    return tuple(f"arn:aws:ec2:*:{'' if k in ('image', 'snapshot') else '*'}:{k}/*" for k in kinds)


def _created_by(*calls: str) -> Conditions:
    return {"StringEquals": {"ec2:CreateAction": list(calls)}}


def _passed_to(service: str) -> Conditions:
    return {"StringEquals": {"iam:PassedToService": service}}


_ALL = "up ls open stop extend rm sweep credit ledger doctor fleet close"
_SCHEDULE = ("arn:aws:scheduler:*:*:schedule/default/gpulab-end-{owners}-*",)
_KEPT = ("arn:aws:s3:::gpulab-*/{owner}/*",)
_KEPT_LIST = ("arn:aws:s3:::gpulab-*",)
_BELOW_OWNER: Conditions = {"StringLike": {"s3:prefix": "{owner}/*"}}
# Who has a folder there, and nothing of what lies in one.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/walkthrough1.html (November 2026)
_TOP_OF_BUCKET: Conditions = {"StringEquals": {"s3:prefix": "", "s3:delimiter": "/"}}
_BUDGET = ("arn:aws:budgets::*:budget/gpulab-*",)
_NO_LAUNCHES = "arn:aws:iam::*:policy/gpulab-no-launches-*"
_COURSE_END_ROLE = "arn:aws:iam::*:role/gpulab-end-course-*"
_COURSE_WORK_ROLE = "arn:aws:iam::*:role/gpulab-work-course-*"
_COURSE_WORK_PROFILE = "arn:aws:iam::*:instance-profile/gpulab-work-course-*"

STUDENT = (
    Right(
        "WhoAmI",
        ("sts:GetCallerIdentity",),
        _words("up ls stop rm sweep credit ledger doctor fleet close init image guard"),
    ),
    Right("WhyNot", ("sts:DecodeAuthorizationMessage",), _words("up doctor")),
    Right("FindInstances", ("ec2:DescribeInstances",), _words(_ALL + " image guard")),
    Right(
        "LookForOffers",
        ("ec2:DescribeImages", "ec2:DescribeSubnets"),
        _words("up image doctor fleet"),
    ),
    Right(
        "ReadQuotas",
        ("servicequotas:GetServiceQuota",),
        _words("up image doctor fleet"),
        on=("arn:aws:servicequotas:*:*:ec2/*",),
    ),
    Right("NameRegions", ("ec2:DescribeRegions",), _words("sweep")),
    Right(
        "LookForPrices",
        ("ec2:DescribeSpotPriceHistory",),
        _words("up image ls stop extend credit ledger prices sweep fleet close"),
    ),
    Right("ReadPriceList", ("pricing:GetProducts",), _words("up image prices fleet")),
    Right("ReadCredit", ("billing:GetCredits",), _words("up image credit init fleet")),
    # Of an account without credits its plan is asked too.
    Right(
        "ReadPlan", ("freetier:GetAccountPlanState",), _words("up image credit init doctor fleet")
    ),
    Right(
        "LookForOwn",
        (
            "ec2:DescribeKeyPairs",
            "ec2:DescribeSecurityGroupRules",
            "ec2:DescribeSecurityGroups",
        ),
        _words("up image open stop extend sweep doctor fleet close"),
    ),
    Right(
        "LookForLeftovers",
        (
            "ec2:DescribeAddresses",
            "ec2:DescribeImages",
            "ec2:DescribeSnapshots",
        ),
        _words("sweep"),
    ),
    Right("LookForEnds", ("scheduler:ListSchedules",), _words("sweep close")),
    Right(
        "LookForHistory",
        ("ec2:DescribeSpotInstanceRequests", "ec2:DescribeVolumes"),
        _words("up ls stop extend sweep ledger credit fleet close image"),
    ),
    Right(
        "FindImages",
        ("ssm:GetParameter",),
        _words("up image doctor fleet"),
        on=("arn:aws:ssm:*::parameter/aws/service/*",),
    ),
    Right(
        "LookForSpotRole",
        ("iam:GetRole",),
        _words("doctor init"),
        on=("arn:aws:iam::*:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot",),
    ),
    Right(
        "LaunchInstance",
        ("ec2:RunInstances",),
        _words("up image doctor fleet"),
        on=_ec2("instance"),
        whose=Whose.MADE,
        limits=(Limit.REGIONS, Limit.TYPES),
        when={"StringEquals": {"ec2:MetadataHttpTokens": "required"}},
    ),
    Right(
        "LaunchDisk",
        ("ec2:RunInstances",),
        _words("up image doctor fleet"),
        on=_ec2("volume"),
        whose=Whose.MADE,
        limits=(Limit.REGIONS,),
        when={"Bool": {"ec2:Encrypted": "true"}},
    ),
    Right(
        "LaunchSpot",
        ("ec2:RunInstances",),
        _words("up image doctor fleet"),
        on=_ec2("spot-instances-request"),
        whose=Whose.MADE,
        limits=(Limit.REGIONS,),
    ),
    Right(
        "LaunchUses",
        ("ec2:RunInstances",),
        _words("up image doctor fleet"),
        on=_ec2("image", "subnet", "security-group", "key-pair", "network-interface"),
    ),
    Right(
        "MakeTagged",
        ("ec2:CreateSecurityGroup", "ec2:ImportKeyPair"),
        _words("up image doctor fleet"),
        on=_ec2("security-group", "key-pair"),
        whose=Whose.MADE,
        limits=(Limit.REGIONS,),
    ),
    Right(
        "MakeGroupIn", ("ec2:CreateSecurityGroup",), _words("up image doctor fleet"), on=_ec2("vpc")
    ),
    Right(
        "TagWhatIsMade",
        ("ec2:CreateTags",),
        _words("up image open stop extend doctor fleet"),
        on=_ec2(
            "instance",
            "volume",
            "spot-instances-request",
            "security-group",
            "security-group-rule",
            "key-pair",
        ),
        when=_created_by(
            "RunInstances",
            "CreateSecurityGroup",
            "ImportKeyPair",
            "AuthorizeSecurityGroupIngress",
        ),
    ),
    Right(
        "MoveTheEnd",
        ("ec2:CreateTags",),
        _words("extend fleet"),
        on=_ec2("instance"),
        whose=Whose.OWNED,
        when={"ForAllValues:StringEquals": {"aws:TagKeys": [TAG_EXPIRES, TAG_IDLE]}},
    ),
    Right(
        "AdmitHere",
        ("ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress"),
        _words("up image open stop extend fleet"),
        on=_ec2("security-group"),
        whose=Whose.OWNED,
    ),
    Right(
        "AdmitByRule",
        ("ec2:AuthorizeSecurityGroupIngress",),
        _words("up image open stop extend fleet"),
        on=_ec2("security-group-rule"),
        whose=Whose.MADE,
    ),
    Right(
        "ReadConsole",
        ("ec2:GetConsoleOutput",),
        _words("up image open fleet close"),
        on=_ec2("instance"),
        whose=Whose.OWNED,
    ),
    Right(
        "EndInstances",
        ("ec2:TerminateInstances",),
        _words("stop sweep image fleet close"),
        on=_ec2("instance"),
        whose=Whose.OWNED,
    ),
    Right(
        "SweepOwn",
        (
            "ec2:CancelSpotInstanceRequests",
            "ec2:DeleteSnapshot",
            "ec2:DeleteVolume",
            "ec2:DeregisterImage",
            "ec2:ReleaseAddress",
        ),
        _words("sweep"),
        on=_ec2(
            "spot-instances-request",
            "snapshot",
            "volume",
            "image",
            "elastic-ip",
        ),
        whose=Whose.OWNED,
    ),
    Right(
        "RemoveSetup",
        ("ec2:DeleteKeyPair", "ec2:DeleteSecurityGroup"),
        _words("sweep close"),
        on=_ec2("key-pair", "security-group"),
        whose=Whose.OWNED,
    ),
    Right(
        "ScheduleEnds",
        ("scheduler:CreateSchedule", "scheduler:UpdateSchedule"),
        _words("up extend fleet guard image"),
        on=_SCHEDULE,
    ),
    Right(
        "ReadEnds",
        ("scheduler:GetSchedule",),
        _words("up open extend sweep fleet guard"),
        on=_SCHEDULE,
    ),
    Right(
        "RemoveEnds",
        ("scheduler:DeleteSchedule",),
        _words("stop sweep fleet close image"),
        on=_SCHEDULE,
    ),
    Right(
        "PassEndRole",
        ("iam:PassRole",),
        _words("up extend fleet guard image"),
        on=("arn:aws:iam::*:role/gpulab-end-{owner}",),
        when=_passed_to("scheduler.amazonaws.com"),
    ),
    Right(
        "PassWorkRole",
        ("iam:PassRole",),
        _words("up fleet image"),
        on=("arn:aws:iam::*:role/gpulab-work-{owner}",),
        when=_passed_to("ec2.amazonaws.com"),
    ),
    Right(
        "ListKeptWork",
        ("s3:ListBucket",),
        # Whoever asks for an instance that has ended is told where its work is.
        _words("open stop extend pull rm ls sweep ledger fleet close"),
        on=_KEPT_LIST,
        when=_BELOW_OWNER,
    ),
    Right(
        "ReadKeptWork",
        ("s3:GetObject", "s3:GetObjectVersion"),
        _words("up open stop extend pull rm ls sweep ledger credit fleet close"),
        on=_KEPT,
    ),
    # The part of the agent that does not fit into user data travels in the owner's own folder of the bucket.
    Right("SendAgent", ("s3:PutObject",), _words("up image"), on=_KEPT),
    Right(
        "ListKeptVersions",
        ("s3:ListBucketVersions",),
        _words("rm image"),
        on=_KEPT_LIST,
        when=_BELOW_OWNER,
    ),
    Right("ForgetKeptWork", ("s3:DeleteObjectVersion",), _words("rm image"), on=_KEPT),
)

SETUP = (
    Right(
        "Bucket",
        (
            "s3:CreateBucket",
            "s3:PutBucketPublicAccessBlock",
            "s3:PutBucketVersioning",
            "s3:PutEncryptionConfiguration",
            "s3:PutLifecycleConfiguration",
        ),
        _words("init"),
        on=_KEPT_LIST,
        part=Part.SETUP,
    ),
    Right(
        "Roles",
        ("iam:CreateRole", "iam:TagRole", "iam:PutRolePolicy"),
        _words("init"),
        on=("arn:aws:iam::*:role/gpulab-end-*", "arn:aws:iam::*:role/gpulab-work-*"),
        part=Part.SETUP,
    ),
    Right(
        "WorkProfile",
        (
            "iam:CreateInstanceProfile",
            "iam:TagInstanceProfile",
            "iam:AddRoleToInstanceProfile",
        ),
        _words("init"),
        on=("arn:aws:iam::*:instance-profile/gpulab-work-*",),
        part=Part.SETUP,
    ),
    Right(
        "PutRoleIntoProfile",
        ("iam:PassRole",),
        _words("init"),
        on=("arn:aws:iam::*:role/gpulab-work-*",),
        when=_passed_to("ec2.amazonaws.com"),
        part=Part.SETUP,
    ),
    Right(
        "SpotRole",
        ("iam:CreateServiceLinkedRole",),
        _words("init"),
        on=("arn:aws:iam::*:role/aws-service-role/spot.amazonaws.com/*",),
        when={"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        part=Part.SETUP,
    ),
)

IMAGES = (
    Right(
        "ImageOfOwn",
        ("ec2:CreateImage",),
        _words("image"),
        on=_ec2("instance"),
        whose=Whose.OWNED,
        part=Part.IMAGES,
    ),
    Right(
        "MakeTaggedImages",
        ("ec2:CreateImage", "ec2:CopyImage"),
        _words("image"),
        on=_ec2("image", "snapshot"),
        part=Part.IMAGES,
    ),
    Right(
        "TagImages",
        ("ec2:CreateTags",),
        _words("image"),
        on=_ec2("image", "snapshot"),
        when=_created_by("CreateImage", "CopyImage"),
        part=Part.IMAGES,
    ),
    Right(
        "SayThatItWasTested",
        ("ec2:CreateTags",),
        _words("image"),
        on=_ec2("image", "snapshot"),
        when={
            "Null": {f"aws:ResourceTag/{TAG_BAKE}": "false"},
            "ForAllValues:StringEquals": {"aws:TagKeys": [TAG_USABLE]},
        },
        part=Part.IMAGES,
    ),
    Right(
        "DeleteOwnImages",
        ("ec2:DeregisterImage", "ec2:DeleteSnapshot"),
        _words("image"),
        on=_ec2("image", "snapshot"),
        whose=Whose.OWNED,
        part=Part.IMAGES,
    ),
)

GUARD = (
    Right(
        "Budget",
        (
            "budgets:ViewBudget",
            "budgets:ModifyBudget",
            "budgets:DescribeBudgetActionsForBudget",
        ),
        _words("guard"),
        on=_BUDGET,
        part=Part.GUARD,
    ),
    Right(
        "BudgetActions",
        ("budgets:CreateBudgetAction", "budgets:DeleteBudgetAction"),
        _words("guard"),
        on=("arn:aws:budgets::*:budget/gpulab-*/action/*",),
        part=Part.GUARD,
    ),
    Right(
        "DenyPolicy",
        (
            "iam:CreatePolicy",
            "iam:TagPolicy",
            "iam:GetPolicy",
            "iam:GetPolicyVersion",
            "iam:DeletePolicy",
        ),
        _words("guard"),
        on=(_NO_LAUNCHES,),
        part=Part.GUARD,
    ),
    Right(
        "BudgetRole",
        (
            "iam:CreateRole",
            "iam:TagRole",
            "iam:GetRole",
            "iam:PutRolePolicy",
            "iam:GetRolePolicy",
            "iam:DeleteRolePolicy",
            "iam:DeleteRole",
        ),
        _words("guard"),
        on=("arn:aws:iam::*:role/gpulab-budget-*",),
        part=Part.GUARD,
    ),
    Right(
        "PassBudgetRole",
        ("iam:PassRole",),
        _words("guard"),
        on=("arn:aws:iam::*:role/gpulab-budget-*",),
        when=_passed_to("budgets.amazonaws.com"),
        part=Part.GUARD,
    ),
    Right(
        "AllowLaunchesAgain",
        ("iam:DetachUserPolicy", "iam:DetachRolePolicy"),
        _words("guard"),
        on=("arn:aws:iam::*:user/*", "arn:aws:iam::*:role/*"),
        when={"ArnLike": {"iam:PolicyARN": _NO_LAUNCHES}},
        part=Part.GUARD,
    ),
)

# Beside a student's: what a course needs of its teacher.
TEACHER = (
    Right(
        "BecomeCourseRole",
        ("sts:AssumeRole",),
        _words("fleet close"),
        on=("arn:aws:iam::*:role/gpulab-*",),
        part=Part.TEACHER,
    ),
    Right(
        "CourseEndRole",
        ("iam:CreateRole", "iam:TagRole", "iam:PutRolePolicy"),
        _words("fleet"),
        on=(_COURSE_END_ROLE,),
        part=Part.TEACHER,
    ),
    Right(
        "RemoveCourseEndRole",
        ("iam:DeleteRole", "iam:DeleteRolePolicy", "iam:GetRole", "iam:ListRolePolicies"),
        _words("close"),
        on=(_COURSE_END_ROLE,),
        part=Part.TEACHER,
    ),
    # One role for all instances of a course in an account that the teacher reaches by a profile.
    Right(
        "CourseWorkRole",
        ("iam:CreateRole", "iam:GetRole", "iam:TagRole", "iam:PutRolePolicy"),
        _words("fleet"),
        on=(_COURSE_WORK_ROLE,),
        part=Part.TEACHER,
    ),
    Right(
        "CourseWorkProfile",
        (
            "iam:CreateInstanceProfile",
            "iam:TagInstanceProfile",
            "iam:AddRoleToInstanceProfile",
        ),
        _words("fleet"),
        on=(_COURSE_WORK_PROFILE,),
        part=Part.TEACHER,
    ),
    # What every instance of the course fetches, and whose seat is whose; the work beside it is written by the instances only.
    Right(
        "SendCourseFiles",
        ("s3:PutObject",),
        _words("fleet"),
        on=(
            "arn:aws:s3:::gpulab-*/course-*/.agent/*",
            "arn:aws:s3:::gpulab-*/course-*/.seats/*",
        ),
        part=Part.TEACHER,
    ),
    Right(
        "SeeWhoKeepsWork",
        ("s3:ListBucket",),
        _words("ledger"),
        on=_KEPT_LIST,
        when=_TOP_OF_BUCKET,
        part=Part.TEACHER,
    ),
    # Of an account that the teacher reaches by a profile: `gpulab course check --accounts` reads what `gpulab guard arm` made.
    Right(
        "ReadGuards",
        ("budgets:ViewBudget", "budgets:DescribeBudgetActionsForBudget"),
        _words("fleet"),
        on=_BUDGET,
        part=Part.TEACHER,
    ),
    Right(
        "RemoveCourseWorkRole",
        (
            "iam:DeleteInstanceProfile",
            "iam:DeleteRole",
            "iam:DeleteRolePolicy",
            "iam:GetRole",
            "iam:RemoveRoleFromInstanceProfile",
        ),
        _words("close"),
        on=(_COURSE_WORK_ROLE, _COURSE_WORK_PROFILE),
        part=Part.TEACHER,
    ),
)

COURSE = (
    # Of the role in a student's own account, beside what a launch asks for: `gpulab course check --accounts` reads it.
    Right(
        "ReadOwnBudget",
        ("budgets:ViewBudget", "budgets:DescribeBudgetActionsForBudget"),
        _words("fleet"),
        on=("arn:aws:budgets::*:budget/gpulab-{owner}",),
        part=Part.COURSE,
    ),
    # What every instance of the course fetches; the work beside it is written by the instances only.
    Right(
        "LookForWorkRole",
        ("iam:GetRole",),
        _words("fleet close"),
        on=("arn:aws:iam::*:role/gpulab-work-{owner}",),
        part=Part.COURSE,
    ),
    Right(
        "SendCourseAgent",
        ("s3:PutObject",),
        _words("fleet"),
        on=("arn:aws:s3:::gpulab-*/{owner}/.agent/*",),
        part=Part.COURSE,
    ),
)

# Of the roles that nobody holds in their hands.
ROLES = (
    Right(
        # Old versions stay, so a hijacked notebook cannot destroy them.
        "KeepWork",
        (
            "s3:AbortMultipartUpload",
            "s3:DeleteObject",
            "s3:GetObject",
            "s3:GetObjectVersion",
            "s3:PutObject",
        ),
        frozenset(),
        on=("arn:aws:s3:::{bucket}/{owner}/*",),
        part=Part.INSTANCE,
    ),
    Right(
        # Without it S3 answers 403 instead of 404 for what is not there yet.
        "TellMissingFromForbidden",
        ("s3:ListBucket",),
        frozenset(),
        on=("arn:aws:s3:::{bucket}",),
        when=_BELOW_OWNER,
        part=Part.INSTANCE,
    ),
    Right(
        "FetchTheAgent",
        ("s3:GetObject",),
        frozenset(),
        on=("arn:aws:s3:::{bucket}/{owner}/.agent/*",),
        part=Part.CLASS,
    ),
    Right(
        "EndOnSchedule",
        ("ec2:TerminateInstances",),
        frozenset(),
        on=_ec2("instance"),
        whose=Whose.OWNED,
        part=Part.SCHEDULER,
    ),
)

RIGHTS = (*STUDENT, *SETUP, *IMAGES, *GUARD, *TEACHER, *COURSE, *ROLES)
