"""R24: a role's key goes only to whom its trust policy names, with the external id it asks for."""

from __future__ import annotations

import json

import pytest

from gpulab.errors import WrongUsage
from gpulab.sandbox import trust
from gpulab.sandbox.calls import Refusal

ARN = "arn:aws:iam::222222222222:role/course"
TEACHER = "arn:aws:iam::123456789012:user/student"
ACT = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": TEACHER}}


def a_policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def a_template(statement, account="222222222222"):
    role = {"RoleName": "course", "AssumeRolePolicyDocument": json.loads(a_policy(statement))}
    made = {"Type": "AWS::IAM::Role", "Properties": {**role, "Policies": []}}
    return json.dumps(
        {"Metadata": {"gpulab": {"account": account}}, "Resources": {"CourseRole": made}}
    )


def asking(external_id):
    return {**ACT, "Condition": {"StringEquals": {"sts:ExternalId": external_id}}}


def assume(client, **more):
    return client("sts").assume_role(RoleArn=ARN, RoleSessionName="me", **more)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"ExternalId": "ours"}, "ok"),
        ({}, "AccessDenied"),
        ({"ExternalId": "theirs"}, "AccessDenied"),
    ],
)
def test_a_role_asks_for_its_external_id(sandbox, client, code_of, given, code):
    """A check that the id is asked for is worth nothing where nobody asks."""
    sandbox.apply_template(a_template(asking("ours")))

    said = code_of(assume, client=client, **given)

    assert code == said


def test_a_role_that_is_not_there_is_refused_with_the_same_words(sandbox, client, code_of):
    """AWS does not say which roles an account has; most students have not applied the template yet."""
    assert "AccessDenied" == code_of(assume, client=client, ExternalId="ours")


def test_plain_moto_lets_anyone_in(plain_moto, client, code_of):
    """What the rule is for: moto hands the key of a role that does not even exist to anybody."""
    assert "ok" == code_of(assume, client=client)


def test_a_template_applied_again_changes_whom_the_role_trusts(sandbox, client, code_of):
    """The hint for a role with another external id is to apply the template again."""
    sandbox.apply_template(a_template(asking("old")))

    roles = sandbox.apply_template(a_template(asking("ours")))

    assert (ARN,) == roles
    assert "ok" == code_of(assume, client=client, ExternalId="ours")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        (a_template(ACT, account="12"), "`12` is not an account"),
        (json.dumps({"Resources": {"b": {"Type": "AWS::SQS::Queue", "Properties": {}}}}), "AWS::"),
    ],
)
def test_a_template_of_anything_else_is_refused(sandbox, text, said):
    """The layer plays CloudFormation for roles and does not pretend more."""
    with pytest.raises(WrongUsage, match=said):
        sandbox.apply_template(text)


SESSION = "arn:aws:sts::123456789012:assumed-role/teacher/me"


@pytest.mark.parametrize(
    ("principal", "caller", "is_admitted"),
    [
        ({"AWS": TEACHER}, TEACHER, True),
        ({"AWS": TEACHER}, SESSION, False),
        ({"AWS": "arn:aws:iam::123456789012:role/teacher"}, SESSION, True),
        ({"AWS": [SESSION, "x"]}, SESSION, True),
        ({"AWS": "arn:aws:iam::123456789012:root"}, TEACHER, True),
        ({"AWS": "123456789012"}, SESSION, True),
        ({"AWS": "arn:aws:iam::999999999999:root"}, TEACHER, False),
        ({"Service": "scheduler.amazonaws.com"}, TEACHER, False),
        ("*", TEACHER, True),
    ],
)
def test_a_principal_is_read_as_aws_reads_it(principal, caller, is_admitted):
    """A whole account, one role or one of its sessions: each is written another way."""
    policy = a_policy({**ACT, "Principal": principal})

    assert is_admitted is trust.admits(policy, caller=caller, external_id=None)


@pytest.mark.parametrize(
    ("statements", "is_admitted"),
    [
        ((asking("ours"),), True),
        ((asking(["other", "ours"]),), True),
        ((asking("OURS"),), False),
        (({**ACT, "Condition": {"StringLike": {"sts:externalid": "o*s"}}},), True),
        (({**ACT, "Condition": {"StringEquals": {"aws:PrincipalOrgID": "o-1"}}},), False),
        (({**ACT, "Action": "sts:TagSession"},), False),
        ((ACT, {**asking("ours"), "Effect": "Deny"}), False),
    ],
)
def test_every_condition_has_to_hold_and_a_deny_wins(statements, is_admitted):
    """Values are compared to the letter, keys are not; what the call does not carry fits nothing."""
    found = trust.admits(a_policy(*statements), caller=TEACHER, external_id="ours")

    assert is_admitted is found


def test_a_condition_nobody_simulates_is_named_not_guessed():
    """A wrong answer here would be a wrong answer about somebody's account."""
    policy = a_policy({**ACT, "Condition": {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}}})

    with pytest.raises(Refusal, match="IpAddress"):
        trust.admits(policy, caller=TEACHER, external_id=None)
