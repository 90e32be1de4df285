"""IAM's evaluation as the sandbox plays it: each row is a sentence of AWS's page on how policies are evaluated."""

from __future__ import annotations

import pytest

from gpulab.sandbox.iam_policies import Asked, decide

INSTANCE = "arn:aws:ec2:us-east-1:123456789012:instance/i-1"
MINE = {
    "aws:resourcetag/gpulab:owner": ("ann",),
    "aws:principaltag/gpulab": ("ann",),
    "aws:tagkeys": ("gpulab:expires",),
    "aws:requestedregion": ("us-east-1",),
    "ec2:volumesize": ("60",),
    "ec2:encrypted": ("true",),
}


def statement(effect="Allow", action="ec2:TerminateInstances", resource="*", **conditions):
    found = {"Effect": effect, "Action": action, "Resource": resource}
    pairs = {name.replace("_", ":"): pair for name, pair in conditions.items()}
    return {**found, "Condition": pairs} if pairs else found


def decided(*statements, action="ec2:TerminateInstances", resource=INSTANCE, context=MINE):
    return decide([{"Statement": list(statements)}], Asked(action, resource, context)).name


@pytest.mark.parametrize(
    ("written", "decision"),
    [
        ([], "NOT_ALLOWED"),
        ([statement()], "ALLOWED"),
        ([statement(), statement("Deny")], "DENIED"),
        ([statement(action="ec2:Terminate*")], "ALLOWED"),
        ([statement(action="EC2:terminateinstances")], "ALLOWED"),
        ([statement(action=["ec2:StopInstances", "ec2:StartInstances"])], "NOT_ALLOWED"),
        ([statement(resource="arn:aws:ec2:*:*:instance/*")], "ALLOWED"),
        ([statement(resource="arn:aws:ec2:*:*:volume/*")], "NOT_ALLOWED"),
        ([statement(resource="arn:aws:ec2:eu-west-1:*:instance/*")], "NOT_ALLOWED"),
        ([statement(resource="arn:aws:ec2:*:instance/*")], "NOT_ALLOWED"),
    ],
)
def test_actions_and_resources_decide_as_aws_says(written, decision):
    """Deny wins, nothing said is no, actions ignore case, a wildcard stays between two colons of an ARN."""
    assert decision == decided(*written)


@pytest.mark.parametrize(
    ("conditions", "is_allowed"),
    [
        ({"StringEquals": {"aws:ResourceTag/gpulab:owner": "ann"}}, True),
        ({"StringEquals": {"aws:resourcetag/GPULAB:owner": "ann"}}, True),
        ({"StringEquals": {"aws:ResourceTag/gpulab:owner": "Ann"}}, False),
        ({"StringEquals": {"aws:ResourceTag/gpulab:owner": ["bo", "ann"]}}, True),
        ({"StringEquals": {"aws:ResourceTag/gpulab:owner": "${aws:PrincipalTag/gpulab}"}}, True),
        ({"StringEquals": {"aws:ResourceTag/gpulab:owner": "${aws:PrincipalTag/none}"}}, False),
        ({"StringEquals": {"aws:ResourceTag/none": "ann"}}, False),
        ({"StringNotEquals": {"aws:ResourceTag/none": "ann"}}, True),
        ({"StringNotEquals": {"aws:ResourceTag/gpulab:owner": ["bo", "ann"]}}, False),
        ({"StringEqualsIfExists": {"aws:ResourceTag/none": "ann"}}, True),
        ({"StringLike": {"aws:RequestedRegion": "us-*"}}, True),
        ({"StringLike": {"aws:RequestedRegion": "eu-*"}}, False),
        ({"Null": {"aws:ResourceTag/gpulab:owner": "false"}}, True),
        ({"Null": {"aws:ResourceTag/none": "false"}}, False),
        ({"Null": {"aws:ResourceTag/none": "true"}}, True),
        ({"Bool": {"ec2:Encrypted": "true"}}, True),
        ({"Bool": {"ec2:Encrypted": "false"}}, False),
        ({"NumericLessThanEquals": {"ec2:VolumeSize": "60"}}, True),
        ({"NumericLessThanEquals": {"ec2:VolumeSize": "59"}}, False),
        ({"ForAllValues_StringEquals": {"aws:TagKeys": ["gpulab:expires"]}}, True),
        ({"ForAllValues_StringEquals": {"aws:TagKeys": ["gpulab:owner"]}}, False),
        ({"ForAllValues_StringEquals": {"aws:none": ["x"]}}, True),
        ({"ForAnyValue_StringEquals": {"aws:none": ["x"]}}, False),
        (
            {
                "StringEquals": {"aws:RequestedRegion": "us-east-1"},
                "Bool": {"ec2:Encrypted": "false"},
            },
            False,
        ),
    ],
)
def test_conditions_decide_as_aws_says(conditions, is_allowed):
    """Values are alternatives, keys and operators all hold at once, a missing key fails all but the negated and the quantified."""
    assert is_allowed == (decided(statement(**conditions)) == "ALLOWED")


def test_a_tag_with_a_star_in_it_opens_nothing():
    """A student who may choose the tag of their own user would otherwise own everything with `*`."""
    owned = statement(resource="arn:aws:s3:::gpulab-1/${aws:PrincipalTag/gpulab}/*")
    context = {"aws:principaltag/gpulab": ("*",)}

    def reads(key):
        return decided(owned, resource=f"arn:aws:s3:::gpulab-1/{key}", context=context)

    assert ("NOT_ALLOWED", "ALLOWED") == (reads("bo/week4/a.ipynb"), reads("*/a.ipynb"))


def test_an_operator_nobody_taught_the_sandbox_is_an_error():
    """A guess would be a proof of nothing."""
    with pytest.raises(ValueError, match="DateGreaterThan"):
        decided(statement(DateGreaterThan={"aws:CurrentTime": "2026-01-01T00:00:00Z"}))
