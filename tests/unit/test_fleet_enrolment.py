"""The template a student uploads: what it lets the course do in their account, and what not."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.aws.denying import deny_document
from gpulab.errors import WrongUsage
from gpulab.fleet.enrolment import Guards, rights_mark, template, trusted_arn
from gpulab.fleet.needs import types_of

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

T4 = 'gpu = "T4"'
TEACHER = "arn:aws:iam::123456789012:role/teacher"


def made(**changes):
    wish = {
        "trusted": TEACHER,
        "external_id": "gpulab-1",
        "end_role": "gpulab-end-course-c1",
        "owners": ["s1"],
    }
    return json.loads(template(build.a_course("own", lab=T4), **{**wish, **changes}))


def guarded(email="ann@x.example", usd="37.50", **changes):
    """The template of a course with a budget."""
    course = replace(build.a_course("own", lab=T4), budget_usd=Decimal(usd))
    wish = {
        "trusted": TEACHER,
        "external_id": "x",
        "end_role": "gpulab-end-course-c1",
        "owners": ["s1"],
    }
    guards = Guards(deny_document(), email)
    return json.loads(template(course, **{**wish, "guards": guards, **changes}))


def statements(role):
    return made()["Resources"][role]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]


def test_the_role_trusts_one_identity_and_asks_for_the_external_id():
    """Without the id, a tool that serves many accounts could be tricked into another student's."""
    trust = made()["Resources"]["CourseRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]

    assert [
        {
            "Effect": "Allow",
            "Principal": {"AWS": TEACHER},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": "gpulab-1"}},
        }
    ] == trust


def test_only_what_carries_the_courses_tag_can_be_ended():
    """A student's own project in the same account is none of the course's business."""
    ending = [
        s
        for role in ("CourseRole", "EndRole")
        for s in statements(role)
        if "ec2:TerminateInstances" in s["Action"]
    ]

    assert [{"aws:ResourceTag/gpulab:course": "c1"}] * 2 == [
        s["Condition"]["StringEquals"] for s in ending
    ]


def test_of_iam_only_two_roles_are_passed_and_one_is_read():
    """Least rights: no users, no policies, nothing that makes or widens a role."""
    named = [
        (action, s["Resource"][0]["Fn::Sub"].rpartition(":")[2])
        for role in ("CourseRole", "EndRole")
        for s in statements(role)
        for action in s["Action"]
        if action.startswith("iam:")
    ]
    actions = [
        a for role in ("CourseRole", "EndRole") for s in statements(role) for a in s["Action"]
    ]

    assert [
        ("iam:PassRole", "role/gpulab-end-course-c1"),
        ("iam:PassRole", "role/gpulab-work-course-c1"),
        ("iam:GetRole", "role/gpulab-work-course-c1"),
    ] == named
    assert [] == [a for a in actions if "*" in a]


def test_the_course_reads_the_kept_work_and_writes_beside_it_only():
    """The files of a student's own account are none of the course's business; nor may it change what an instance kept."""
    files = {
        action: (s["Resource"][0]["Fn::Sub"].rpartition(":")[2], s.get("Condition"))
        for s in statements("CourseRole")
        for action in s["Action"]
        if action.startswith("s3:")
    }

    below = {"StringLike": {"s3:prefix": "course-c1/*"}}
    assert {
        "s3:ListBucket": ("${WorkBucket}", below),
        "s3:GetObject": ("${WorkBucket}/course-c1/*", None),
        "s3:GetObjectVersion": ("${WorkBucket}/course-c1/*", None),
        "s3:PutObject": ("${WorkBucket}/course-c1/.agent/*", None),
    } == files


def test_the_work_stays_when_the_stack_goes():
    """Who takes every right back from the course must not lose their own notebooks with them."""
    bucket = made()["Resources"]["WorkBucket"]

    kept = {key: bucket[key] for key in ("DeletionPolicy", "UpdateReplacePolicy")}
    assert dict.fromkeys(("DeletionPolicy", "UpdateReplacePolicy"), "Retain") == kept
    assert "BucketName" not in bucket["Properties"]


def test_an_instance_reaches_the_courses_part_of_the_bucket_and_nothing_else():
    """Whoever runs code in a notebook has this role in their hands."""
    found = statements("WorkRole")

    places = [resource["Fn::Sub"].rpartition(":")[2] for s in found for resource in s["Resource"]]
    assert ["${WorkBucket}/course-c1/*", "${WorkBucket}"] == places
    assert {"s3:prefix": "course-c1/*"} == found[1]["Condition"]["StringLike"]
    assert [] == [a for s in found for a in s["Action"] if "DeleteObjectVersion" in a or "*" in a]


def test_whatever_changes_something_is_bound_to_the_course():
    """Reading is harmless; a right to change without a tag or a name would reach the student's own things."""
    free = [
        (s["Action"], s["Resource"])
        for role in ("CourseRole", "EndRole")
        for s in statements(role)
        if "Condition" not in s
        and not all(re.search(":(Describe|Get|List|View)[A-Z]", a) for a in s["Action"])
    ]

    kinds = [re.split(r"[:/]", r["Fn::Sub"])[-2] for _, resources in free for r in resources]
    # A launch names what it uses and a group its network, neither is changed; a schedule is the course's by its name.
    assert [
        ["ec2:RunInstances"],
        ["ec2:CreateSecurityGroup"],
        [f"scheduler:{verb}Schedule" for verb in ("Create", "Delete", "Get", "Update")],
        ["s3:PutObject"],
    ] == [actions for actions, _ in free]
    used = ["image", "subnet", "security-group", "key-pair", "network-interface"]
    assert [*used, "vpc", "default", ".agent"] == kinds
    assert ":schedule/default/gpulab-end-" in free[2][1][0]["Fn::Sub"]


def test_nothing_that_changes_something_is_allowed_on_everything():
    """`"Resource": "*"` is for looking."""
    wide = [
        action
        for role in ("CourseRole", "EndRole")
        for s in statements(role)
        if "*" in s["Resource"]
        for action in s["Action"]
    ]

    assert [] == [a for a in wide if not re.search(":(Describe|Get|List|View)[A-Z]", a)]


def test_without_a_budget_nothing_guards_it():
    """A limit nobody has named would stop a class at a number of ours."""
    found = made(guards=Guards(deny_document(), "ann@x.example"))

    plain = ["CourseRole", "EndRole", "WorkBucket", "WorkRole", "WorkProfile"]
    assert (plain, False) == ([*found["Resources"]], "Parameters" in found)


def test_the_budget_counts_the_year_before_credits_and_tells_the_student():
    """One that counts credits never moves while credit pays; a monthly one begins anew four times in a term."""
    found = guarded()

    made_of = found["Resources"]["Budget"]["Properties"]
    budget, told = made_of["Budget"], made_of["NotificationsWithSubscribers"]
    assert ("COST", "ANNUALLY", {"IncludeCredit": False, "IncludeRefund": False}) == (
        budget["BudgetType"],
        budget["TimeUnit"],
        budget["CostTypes"],
    )
    assert {"Amount": {"Ref": "BudgetUsd"}, "Unit": "USD"} == budget["BudgetLimit"]
    assert [50, 80, 100] == [notice["Notification"]["Threshold"] for notice in told]
    assert [{"Ref": "Email"}] * 3 == [s["Address"] for n in told for s in n["Subscribers"]]
    defaults = {name: said["Default"] for name, said in found["Parameters"].items()}
    assert {"BudgetUsd": "37.50", "Email": "ann@x.example"} == defaults


def test_a_student_without_an_address_is_asked_for_it():
    """The course's roster need not have one; CloudFormation shows what has no default."""
    assert "Default" not in guarded(email="")["Parameters"]["Email"]


def test_a_spent_budget_forbids_the_courses_role_launches_and_nobody_else_anything():
    """The student's own work in the account goes on, and so do the ends of what the course has running."""
    found = guarded()["Resources"]

    action, denied = found["BudgetAction"]["Properties"], found["NoLaunches"]["Properties"]
    binds = {"PolicyArn": {"Ref": "NoLaunches"}, "Roles": ["gpulab-course"]}
    assert {"IamActionDefinition": binds} == action["Definition"]
    assert ("ACTUAL", {"Type": "PERCENTAGE", "Value": 100}, "AUTOMATIC") == (
        action["NotificationType"],
        action["ActionThreshold"],
        action["ApprovalModel"],
    )
    assert found["Budget"]["Properties"]["Budget"]["BudgetName"] == action["BudgetName"]
    assert deny_document() == denied["PolicyDocument"]
    # Bound to nobody until the budget is spent.
    assert {"ManagedPolicyName", "PolicyDocument"} == set(denied)


def test_the_budgets_role_may_put_that_policy_on_that_role_only():
    """A role that may attach any policy to anybody is the whole account for whoever can use it."""
    role = guarded()["Resources"]["BudgetRole"]["Properties"]

    assert [
        {
            "Effect": "Allow",
            "Action": ["iam:AttachRolePolicy", "iam:DetachRolePolicy"],
            "Resource": [{"Fn::GetAtt": ["CourseRole", "Arn"]}],
            "Condition": {"ArnEquals": {"iam:PolicyARN": {"Ref": "NoLaunches"}}},
        }
    ] == role["Policies"][0]["PolicyDocument"]["Statement"]
    assert [
        {
            "Effect": "Allow",
            "Principal": {"Service": "budgets.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
        }
    ] == role["AssumeRolePolicyDocument"]["Statement"]


def test_the_guards_give_the_course_no_right_more():
    """Who is held to a budget must not be able to lift it."""
    assert (
        made()["Resources"]["CourseRole"]
        == guarded(external_id="gpulab-1")["Resources"]["CourseRole"]
    )


def test_no_name_of_a_guard_is_too_long_for_aws():
    """A course's id may have 40 characters, a role's name 64."""
    course = replace(build.a_course("own", head="budget_usd = 1"), id="c" * 40)

    text = template(
        course,
        trusted=TEACHER,
        external_id="x",
        end_role="e",
        owners=["s1"],
        guards=Guards(deny_document(), ""),
    )

    found = json.loads(text)["Resources"]
    assert 64 >= len(found["WorkRole"]["Properties"]["RoleName"])
    assert 64 >= len(found["BudgetRole"]["Properties"]["RoleName"])
    assert 100 >= len(found["Budget"]["Properties"]["Budget"]["BudgetName"])
    assert 128 >= len(found["NoLaunches"]["Properties"]["ManagedPolicyName"])


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (None, []),
        (("AssumeRolePolicyDocument", "AssumeRolePolicy"), ["E3002", "E3003"]),
        (("ec2:TerminateInstances", "ec2:TerminateInstance"), ["W3037"]),
        (("${AWS::AccountId}", "${AWS::AcountId}"), ["E1019"]),
        (('"ApprovalModel"', '"Approval"'), ["E3002"]),
    ],
    ids=[
        "as written",
        "misspelt property",
        "unknown action",
        "unknown pseudo parameter",
        "misspelt property of a guard",
    ],
)
def test_cloudformation_would_take_the_template(change, rules):
    """300 students upload it on the same afternoon; a refusal is 300 mails. The linter finds what is broken on purpose."""
    from cfnlint.api import lint

    text = json.dumps(guarded())
    text = text.replace(*change) if change else text

    found = lint(text, regions=["us-east-1", "eu-west-1"])

    assert rules == sorted({problem.rule.id for problem in found})


def test_no_instance_is_launched_without_the_courses_tag():
    """What is not tagged could never be found and ended; what answers IMDSv1 gives its role's key to any page that is fetched."""
    launching = [s for s in statements("CourseRole") if s["Action"] == ["ec2:RunInstances"]]

    tagged = [s for s in launching if any(":instance/*" in r["Fn::Sub"] for r in s["Resource"])]
    assert [("c1", "required")] == [
        (
            s["Condition"]["StringEquals"]["aws:RequestTag/gpulab:course"],
            s["Condition"]["StringEquals"]["ec2:MetadataHttpTokens"],
        )
        for s in tagged
    ]


def test_the_course_launches_what_its_labs_are_given_and_where_they_are():
    """A key that leaks from a teacher's computer would otherwise start the dearest machine of every student in every region."""
    found = [s for s in statements("CourseRole") if s["Action"] == ["ec2:RunInstances"]]

    made = {s["Sid"]: s["Condition"]["StringEquals"] for s in found if "Condition" in s}
    t4 = [f"g4dn.{size}" for size in ("16xlarge", "2xlarge", "4xlarge", "8xlarge", "xlarge")]
    assert t4 == made["LaunchInstance"]["ec2:InstanceType"]
    assert dict.fromkeys(("LaunchInstance", "LaunchDisk", "LaunchSpot"), "us-east-1") == {
        name: said["aws:RequestedRegion"] for name, said in made.items()
    }


def test_every_lab_of_the_term_is_among_what_may_be_launched():
    """A student applies the template once, in the first week, for the project of the last as well."""
    course = build.a_course("own", lab='gpu = "T4"')
    later = replace(course.labs[0], id="w9", gpu="", instance_type="g6.12xlarge")

    types = types_of(replace(course, labs=(*course.labs, later)))

    assert {*types_of(course), "g6.12xlarge"} == set(types)


def test_the_course_moves_and_removes_the_ends_of_its_own_seats_only():
    """Schedules carry no tags: by the pattern of all it could put off the end of what the student runs by themselves."""
    found = made(owners=["s2", "g1"])["Resources"]["CourseRole"]["Properties"]["Policies"][0]

    ends = [s for s in found["PolicyDocument"]["Statement"] if "DeleteSchedule" in str(s["Action"])]
    names = [r["Fn::Sub"].rpartition("/")[2] for s in ends for r in s["Resource"]]
    assert ["gpulab-end-g1-*", "gpulab-end-s2-*"] == names


def test_the_mark_of_the_rights_tells_other_rights_and_nothing_else():
    """It asks 300 students to apply a template again, so it changes when the rights do."""
    course = build.a_course("own", lab=T4)
    other = {
        "the same": course,
        "a later lab": replace(course, labs=(replace(course.labs[0], id="w2"),)),
        "another GPU": replace(course, labs=(replace(course.labs[0], gpu="L4"),)),
        "one more region": replace(course, regions=("us-east-1", "eu-west-1")),
    }
    marks = {what: rights_mark(changed, ["s1"]) for what, changed in other.items()}
    marks["another owner"] = rights_mark(course, ["s2"])

    tags = made()["Resources"]["WorkRole"]["Properties"]["Tags"]
    assert [marks["the same"]] == [t["Value"] for t in tags if t["Key"] == "gpulab:rights"]
    assert ["the same", "a later lab"] == [w for w, m in marks.items() if m == marks["the same"]]


@pytest.mark.parametrize(
    ("arn", "trusted"),
    [
        (TEACHER, TEACHER),
        ("arn:aws:sts::123456789012:assumed-role/teacher/me", TEACHER),
        ("arn:aws:iam::123456789012:root", None),
        ("*", None),
    ],
)
def test_a_session_is_trusted_as_its_role_and_a_whole_account_never(arn, trusted):
    """Trusting an account's root would trust everybody in it."""
    if trusted is None:
        with pytest.raises(WrongUsage, match="cannot be trusted by a role"):
            trusted_arn(arn)
    else:
        assert trusted == trusted_arn(arn)


def test_a_course_without_a_role_says_where_to_name_it():
    """The hint is the line to add."""
    course = build.a_course("own")
    course = replace(course, accounts=replace(course.accounts, role_name=""))

    with pytest.raises(WrongUsage) as caught:
        template(course, trusted=TEACHER, external_id="x", end_role="e", owners=["s1"])

    assert '`role_name = "gpulab-course"` in [accounts] of course.toml' == caught.value.hint
