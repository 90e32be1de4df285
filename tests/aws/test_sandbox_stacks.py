"""A student who uploads the template of a course with a budget: what it makes in the account, and what that does when it is spent."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.aws import budgets, denying
from gpulab.aws.session import Cloud
from gpulab.aws.workspace_setup import read_class_role
from gpulab.errors import WrongUsage
from gpulab.fleet.enrolment import Guards, template
from gpulab.model.guard import Principals

_BUILDERS = Path(__file__).parents[1] / "unit" / "fleet_builders.py"
_spec = importlib.util.spec_from_file_location("fleet_builders", _BUILDERS)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

# The account of the environment's key, so that what is made can be read back with the student's own.
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/gpulab-course"
BUDGET = "gpulab-course-c1"


def a_template(usd="1", email="ann@x.example"):
    return template(
        replace(build.a_course("own"), budget_usd=Decimal(usd)),
        trusted=f"arn:aws:iam::{ACCOUNT}:user/student",
        external_id="gpulab-1",
        end_role="gpulab-end-course-c1",
        owners=["s1"],
        account=ACCOUNT,
        guards=Guards(denying.deny_document(), email),
    )


def launched_by_the_course(client, a_launch, code_of):
    """Whether the course's role may launch now, in the words of EC2; nothing is."""
    key = client("sts").assume_role(RoleArn=ROLE, RoleSessionName="me", ExternalId="gpulab-1")
    ec2 = client(
        "ec2",
        aws_access_key_id=key["Credentials"]["AccessKeyId"],
        aws_secret_access_key=key["Credentials"]["SecretAccessKey"],
        aws_session_token=key["Credentials"]["SessionToken"],
    )
    tags = [{"Key": "gpulab:course", "Value": "c1"}]
    tagged = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
    params = a_launch(
        DryRun=True,
        InstanceMarketOptions=None,
        TagSpecifications=tagged,
        MetadataOptions={"HttpTokens": "required"},
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"Encrypted": True}}],
    )
    return code_of(ec2.run_instances, **params)


def test_the_guards_are_there_as_the_account_reads_them(sandbox):
    """What `gpulab guard arm` would make, and gpulab's own reading of it finds nothing missing."""
    roles = sandbox.apply_template(a_template("37.50"))

    cloud = Cloud(now=sandbox.now)
    budget = budgets.read_budget(cloud, ACCOUNT, BUDGET)
    (action,) = budgets.read_actions(cloud, ACCOUNT, BUDGET)
    assert (Decimal("37.50"), True) == (budget.limit_usd, budget.counts_gross)
    assert dict.fromkeys((50, 80, 100), ("ann@x.example",)) == budget.alerts
    assert (100, True, "STANDBY") == (action.percent, action.is_automatic, action.status)
    assert Principals(roles=("gpulab-course",)) == action.targets
    assert denying.policy_arn(ACCOUNT, "course-c1") == action.policy_arn
    assert denying.role_arn(ACCOUNT, "course-c1") == action.role_arn
    assert [ROLE, action.role_arn] == [roles[0], roles[3]]


def test_a_launch_can_name_the_profile_and_everybody_can_read_where_the_work_goes(
    sandbox, client, running
):
    """The bucket's name is CloudFormation's own: only the role's tags tell it."""
    sandbox.apply_template(a_template())
    sandbox.apply_template(a_template())

    found = read_class_role(Cloud(now=sandbox.now), course="c1", account_id=ACCOUNT)
    s3 = client("s3")
    assert ("gpulab-work-course-c1", "us-east-1") == (found.name, found.bucket.region)
    assert "Enabled" == s3.get_bucket_versioning(Bucket=found.bucket.name)["Status"]
    assert [found.bucket.name] == [b["Name"] for b in s3.list_buckets()["Buckets"]]
    assert running(IamInstanceProfile={"Name": found.name}).startswith("i-")


def test_a_spent_budget_stops_the_course_and_not_the_student(
    sandbox, client, a_launch, code_of, running
):
    """The whole chain: cost passes the limit, AWS attaches the policy with the role's own rights, EC2 refuses the course."""
    sandbox.apply_template(a_template("1"))
    before = launched_by_the_course(client, a_launch, code_of)
    spent = running(InstanceMarketOptions=None)
    sandbox.advance(seconds=8 * 3600)
    client("ec2").terminate_instances(InstanceIds=[spent])
    sandbox.advance(seconds=2 * 86400)

    after = launched_by_the_course(client, a_launch, code_of)

    assert ("DryRunOperation", "UnauthorizedOperation") == (before, after)
    assert "DryRunOperation" == code_of(client("ec2").run_instances, **a_launch(DryRun=True))


def test_applied_again_it_is_as_it_says_now_and_nothing_is_there_twice(sandbox):
    """The hint for many a broken account is to apply the template again."""
    cloud = Cloud(now=sandbox.now)
    sandbox.apply_template(a_template())
    (first,) = budgets.read_actions(cloud, ACCOUNT, BUDGET)

    sandbox.apply_template(a_template("80"))

    (second,) = budgets.read_actions(cloud, ACCOUNT, BUDGET)
    sandbox.apply_template(a_template(email="bo@x.example"))
    (third,) = budgets.read_actions(cloud, ACCOUNT, BUDGET)
    budget = budgets.read_budget(cloud, ACCOUNT, BUDGET)
    # The second did not change the action; the third names another address in it.
    assert (True, False) == (first.id == second.id, second.id == third.id)
    assert (Decimal(1), ("bo@x.example",)) == (budget.limit_usd, budget.alerts[100])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (a_template(email=""), "asks for Email"),
        (a_template(email="ann"), "`ann` is no answer"),
        (a_template().replace("budgets.amazonaws.com", "ec2.amazonaws.com"), "AWS refuses"),
        (a_template().replace('"Ref": "BudgetUsd"', '"Ref": "Budgetusd"'), "cannot be read"),
    ],
    ids=["no address", "not an address", "a role that budgets cannot assume", "unknown parameter"],
)
def test_what_cloudformation_would_refuse_is_refused(sandbox, text, said):
    """A rehearsal that takes what AWS does not is no rehearsal."""
    with pytest.raises(WrongUsage, match=said):
        sandbox.apply_template(text)

    assert () == budgets.read_actions(Cloud(now=sandbox.now), ACCOUNT, BUDGET)
