"""The template a student uploads: what it lets the course do in their account, and what not."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gpulab.errors import WrongUsage
from gpulab.fleet.enrolment import template, trusted_arn

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

TEACHER = "arn:aws:iam::123456789012:role/teacher"


def made(**changes):
    wish = {"trusted": TEACHER, "external_id": "gpulab-1", "end_role": "gpulab-end-course-c1"}
    return json.loads(template(build.a_course("own"), **{**wish, **changes}))


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


def test_nothing_of_s3_or_iam_is_allowed_but_passing_the_end_role():
    """Least rights: no files, no users, no policies."""
    actions = [
        a for role in ("CourseRole", "EndRole") for s in statements(role) for a in s["Action"]
    ]

    assert ["iam:PassRole"] == [a for a in actions if a.startswith(("iam:", "s3:"))]
    assert [] == [a for a in actions if "*" in a]


def test_whatever_changes_something_is_bound_to_the_course():
    """Reading is harmless; a right to change without a tag or a name would reach the student's own things."""
    free = [
        (s["Action"], s["Resource"])
        for role in ("CourseRole", "EndRole")
        for s in statements(role)
        if "Condition" not in s
        and not all(re.search(":(Describe|Get|List)[A-Z]", a) for a in s["Action"])
    ]

    kinds = [re.split(r"[:/]", r["Fn::Sub"])[-2] for _, resources in free for r in resources]
    # A launch names what it uses and a group its network, neither is changed; a schedule is the course's by its name.
    assert [
        ["ec2:RunInstances"],
        ["ec2:CreateSecurityGroup"],
        [f"scheduler:{verb}Schedule" for verb in ("Create", "Delete", "Get", "Update")],
    ] == [actions for actions, _ in free]
    used = ["image", "subnet", "security-group", "key-pair", "network-interface"]
    assert [*used, "vpc", "default"] == kinds
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

    assert [] == [a for a in wide if not re.search(":(Describe|Get|List)[A-Z]", a)]


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (None, []),
        (("AssumeRolePolicyDocument", "AssumeRolePolicy"), ["E3002", "E3003"]),
        (("ec2:TerminateInstances", "ec2:TerminateInstance"), ["W3037"]),
        (("${AWS::AccountId}", "${AWS::AcountId}"), ["E1019"]),
    ],
    ids=["as written", "misspelt property", "unknown action", "unknown pseudo parameter"],
)
def test_cloudformation_would_take_the_template(change, rules):
    """300 students upload it on the same afternoon; a refusal is 300 mails. The linter finds what is broken on purpose."""
    from cfnlint.api import lint

    text = json.dumps(made())
    text = text.replace(*change) if change else text

    found = lint(text, regions=["us-east-1", "eu-west-1"])

    assert rules == sorted({problem.rule.id for problem in found})


def test_no_instance_is_launched_without_the_courses_tag():
    """What is not tagged could never be found and ended; what answers IMDSv1 gives its role's key to any page that is fetched."""
    launching = [s for s in statements("CourseRole") if s["Action"] == ["ec2:RunInstances"]]

    tagged = [s for s in launching if any(":instance/*" in r["Fn::Sub"] for r in s["Resource"])]
    assert [{"aws:RequestTag/gpulab:course": "c1", "ec2:MetadataHttpTokens": "required"}] == [
        s["Condition"]["StringEquals"] for s in tagged
    ]


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
        template(course, trusted=TEACHER, external_id="x", end_role="e")

    assert '`role_name = "gpulab-course"` in [accounts] of course.toml' == caught.value.hint
