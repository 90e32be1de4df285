"""What the policies in docs/iam allow and forbid, asked of IAM itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from gpulab.sandbox.iam_policies import Asked, Decision, decide

_POLICIES = Path(__file__).parents[2] / "docs" / "iam"
_ALLOWED = {
    "own-account.json": ["ec2:DescribeInstances", "pricing:GetProducts", "billing:GetCredits"],
    "course-account.json": ["ec2:DescribeInstances", "ec2:DescribeSpotPriceHistory"],
}
_FORBIDDEN = [
    "ec2:ModifyInstanceAttribute",
    "ec2:DescribeInstanceAttribute",
    "ec2:RequestSpotFleet",
    "iam:CreateUser",
    "iam:AttachUserPolicy",
    "s3:DeleteObjectVersion",
    "s3:DeleteBucket",
]


@pytest.mark.parametrize("file", sorted(_ALLOWED))
def test_iam_evaluates_the_policies_as_written(account, file, record_property):
    """An evaluator of ours has judged them so far; a typo in a condition's key allows everything or nothing."""
    iam = account.cloud.client("iam", "us-east-1")
    policy = json.dumps(json.loads((_POLICIES / file).read_text(encoding="utf-8")))
    asked = [*_ALLOWED[file], *_FORBIDDEN]

    said = iam.simulate_custom_policy(PolicyInputList=[policy], ActionNames=asked)

    decisions = {r["EvalActionName"]: r["EvalDecision"] for r in said["EvaluationResults"]}
    record_property("seen", f"{file}: {decisions}")
    assert set(_ALLOWED[file]) == {a for a, d in decisions.items() if d == "allowed"}


@pytest.mark.costs("small")
def test_a_dry_run_says_whether_a_launch_is_allowed(account, record_property):
    """`gpulab doctor` relies on it: an answer that is neither of two would read as a missing right."""
    with pytest.raises(ClientError) as said:
        account.small(DryRun=True)

    code = said.value.response["Error"]["Code"]
    status = said.value.response["ResponseMetadata"]["HTTPStatusCode"]
    record_property("seen", f"{code} with HTTP {status}")
    assert ("DryRunOperation", 412) == (code, status)


_INSTANCE = "arn:aws:ec2:us-east-1:123456789012:instance/i-0123456789abcdef0"
_RULE = "arn:aws:ec2:us-east-1:123456789012:security-group-rule/sgr-0123456789abcdef0"
_END = "arn:aws:scheduler:us-east-1:123456789012:schedule/default/gpulab-end-{}-i-0123456789abcdef0"
_MINE = {"aws:PrincipalTag/gpulab": "ann"}
_LAUNCH = {
    **_MINE,
    "aws:RequestTag/gpulab:owner": "ann",
    "aws:RequestedRegion": "us-east-1",
    "ec2:InstanceType": "g4dn.xlarge",
    "ec2:MetadataHttpTokens": "required",
}
_ASKED = [
    ("ec2:RunInstances", _INSTANCE, _LAUNCH),
    ("ec2:RunInstances", _INSTANCE, {**_LAUNCH, "aws:RequestTag/gpulab:owner": "bo"}),
    ("ec2:RunInstances", _INSTANCE, {**_LAUNCH, "ec2:InstanceType": "p5.48xlarge"}),
    ("ec2:RunInstances", _INSTANCE, {**_LAUNCH, "ec2:MetadataHttpTokens": "optional"}),
    ("ec2:RunInstances", _INSTANCE, {**_LAUNCH, "aws:RequestedRegion": "eu-west-1"}),
    ("ec2:TerminateInstances", _INSTANCE, {**_MINE, "aws:ResourceTag/gpulab:owner": "ann"}),
    ("ec2:TerminateInstances", _INSTANCE, {**_MINE, "aws:ResourceTag/gpulab:owner": "bo"}),
    ("ec2:TerminateInstances", _INSTANCE, {"aws:ResourceTag/gpulab:owner": "ann"}),
    ("ec2:AuthorizeSecurityGroupIngress", _RULE, _LAUNCH),
    ("scheduler:DeleteSchedule", _END.format("ann"), _MINE),
    ("scheduler:DeleteSchedule", _END.format("bo"), _MINE),
    ("s3:GetObject", "arn:aws:s3:::gpulab-1/ann/week4/a.ipynb", _MINE),
    ("s3:GetObject", "arn:aws:s3:::gpulab-1/bo/week4/a.ipynb", _MINE),
]


def test_iam_decides_as_the_sandbox_does(account, record_property):
    """All that is said about students of one account rests on our evaluator; here AWS's own judges the same questions."""
    theirs, ours = _decided(account, "course-account.json", _ASKED)

    record_property("seen", f"{sum(theirs)} of {len(theirs)} allowed; ours: {sum(ours)}")
    assert ours == theirs
    assert 5 == sum(ours)


_CLASS = "arn:aws:s3:::gpulab-ACCOUNT-REGION/course-COURSE/"
_ANN = {"aws:userid": "AROAEXAMPLEEXAMPLE123:i-0123456789abcdef0"}
_OWN = f"{_CLASS}AROAEXAMPLEEXAMPLE123:i-0123456789abcdef0/work/a.ipynb"
_ANOTHERS = f"{_CLASS}AROAEXAMPLEEXAMPLE123:i-0fedcba9876543210/work/a.ipynb"
_OF_A_CLASS = [
    ("s3:PutObject", _OWN, _ANN),
    ("s3:GetObject", _OWN, _ANN),
    ("s3:GetObject", f"{_CLASS}.agent/agent-1.py", _ANN),
    ("s3:PutObject", f"{_CLASS}.agent/agent-1.py", _ANN),
    ("s3:GetObject", f"{_CLASS}.seats/week1/1.json", _ANN),
    ("s3:PutObject", _ANOTHERS, _ANN),
    ("s3:GetObject", _ANOTHERS, _ANN),
    ("s3:GetObject", _OWN, {}),
]


def test_iam_keeps_the_instances_of_a_class_apart_by_their_ids(account, record_property):
    """One role for all of them is safe only as long as IAM puts the id of whoever asks into the policy."""
    theirs, ours = _decided(account, "class-role.json", _OF_A_CLASS)

    record_property("seen", f"{sum(theirs)} of {len(theirs)} allowed; ours: {sum(ours)}")
    assert [True, True, True, False, False, False, False, False] == ours == theirs


def _decided(account, file, asked):
    """What IAM and our evaluator say to the same questions about a published policy."""
    iam = account.cloud.client("iam", "us-east-1")
    policy = json.loads((_POLICIES / file).read_text(encoding="utf-8"))
    theirs, ours = [], []
    for action, resource, context in asked:
        entries = [
            {"ContextKeyName": k, "ContextKeyValues": [v], "ContextKeyType": "string"}
            for k, v in context.items()
        ]
        said = iam.simulate_custom_policy(
            PolicyInputList=[json.dumps(policy)],
            ActionNames=[action],
            ResourceArns=[resource],
            ContextEntries=entries,
        )
        theirs.append(said["EvaluationResults"][0]["EvalDecision"] == "allowed")
        known = {key.lower(): (value,) for key, value in context.items()}
        ours.append(decide([policy], Asked(action, resource, known)) is Decision.ALLOWED)
    return theirs, ours
