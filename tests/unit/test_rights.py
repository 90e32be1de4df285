"""The policies in docs/iam: made from the table, small enough for IAM, and linted against AWS's own reference of actions."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest
from botocore import xform_name

from gpulab.errors import WrongUsage
from gpulab.launch.upkeep.rights import least, published
from gpulab.rights.policy import LONGEST, as_text
from gpulab.rights.table import RIGHTS
from gpulab.store.config import Profile

CHECKOUT = Path(__file__).resolve().parents[2]
POLICIES = CHECKOUT / "docs" / "iam"
REFERENCE = json.loads(
    (Path(__file__).parent / "cases" / "iam" / "reference.json").read_text(encoding="utf-8")
)["actions"]
# Keys that AWS knows for every action.
# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html
GLOBAL = {"aws:requestedregion"}
# The reference leaves it out; AWS's own example of tagging a spot launch names it.
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html
BEYOND_REFERENCE = {("ec2:RunInstances", "arn:aws:ec2:*:*:spot-instances-request/*")}
STATEMENTS = [
    pytest.param(statement, id=f"{name}-{statement['Sid']}")
    for name, document in published().items()
    for statement in document["Statement"]
]


def listed(value):
    return value if isinstance(value, list) else [value]


def resources_of(action):
    """AWS's formats of the resources of an action, as patterns, with their condition keys."""
    known = REFERENCE[action]["resources"].items()
    return {re.sub(r"\$\{[^}]+\}", "*", arn): keys for arn, keys in known}


def could_be(resource, pattern):
    ours, theirs = resource.split(":", 5), pattern.split(":", 5)
    plain = ours[5].replace("${aws:PrincipalTag/gpulab}", "x").replace("*", "x")
    return fnmatch.fnmatchcase(plain, theirs[5]) and ours[2] == theirs[2]


def test_what_is_published_is_what_the_table_says():
    """Two lists of rights drift apart; `scripts/policies.py` writes the one from the other."""
    files = {path.name: path.read_text(encoding="utf-8") for path in POLICIES.glob("*.json")}

    assert {name: as_text(document) for name, document in published().items()} == files


@pytest.mark.parametrize("name", sorted(published()))
def test_a_policy_fits_into_iam(name):
    """A managed policy has at most 6,144 characters without white space; the console refuses the rest."""
    assert len(json.dumps(published()[name], separators=(",", ":"))) <= LONGEST


def test_statement_names_are_unique_and_plain():
    """IAM refuses two of one name, and anything but letters and digits."""
    names = [right.name for right in RIGHTS]

    assert sorted(set(names)) == sorted(names)
    assert [] == [n for n in names if not re.fullmatch(r"[A-Za-z0-9]+", n)]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_action_exists_and_none_is_a_wildcard(statement):
    """A misspelt action allows nothing and nobody says so; `ec2:*` allows everything there will ever be."""
    actions = listed(statement["Action"])

    assert [] == [a for a in actions if REFERENCE.get(a) is None or "*" in a]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_everything_is_the_resource_only_where_aws_knows_no_smaller_one(statement):
    """A `*` beside an action that knows resources is everybody's."""
    careless = [
        action
        for action in listed(statement["Action"])
        if "*" in listed(statement["Resource"]) and resources_of(action)
    ]

    assert [] == careless


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_resource_is_one_its_actions_can_have(statement):
    """A statement whose resource never fits its action looks like a right and is none."""
    pairs = {
        (action, resource)
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
        if resource != "*"
    }
    useful = {(a, r) for a, r in pairs if any(could_be(r, p) for p in resources_of(a))}
    useful |= pairs & BEYOND_REFERENCE

    assert listed(statement["Action"]) == [
        a for a in listed(statement["Action"]) if a in {u[0] for u in useful} or not pairs
    ]
    assert {r for _, r in pairs} == {r for _, r in useful}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_condition_key_is_known_for_what_it_limits(statement):
    """An unknown key makes a condition that never holds, or, quantified, one that always does."""
    keys = {k.lower() for pairs in statement.get("Condition", {}).values() for k in pairs} - GLOBAL
    known = {
        (action, resource): {k.lower() for k in [*found, *REFERENCE[action]["conditions"]]}
        for action in listed(statement["Action"])
        for resource, found in (resources_of(action) or {"*": []}).items()
        if any(r == "*" or could_be(r, resource) for r in listed(statement["Resource"]))
    }
    tagged = re.compile(r"(aws:(?:request|resource)tag)/.*")
    plain = {tagged.sub(r"\1/${tagkey}", key) for key in keys}

    assert {place: set() for place in known} == {
        place: plain - found for place, found in known.items()
    }


def test_the_least_policy_is_for_this_owner_these_regions_and_this_gpu():
    """What a student sends to a teacher must ask for nothing they will not use."""
    profile = Profile(name="test", owner="3f2a", regions=("eu-north-1",), gpu="l4")

    document = least(profile, commands=("up",))
    launch = next(s for s in document["Statement"] if s["Sid"] == "LaunchInstance")
    asked = launch["Condition"]["StringEquals"]
    assert ("3f2a", "eu-north-1") == (
        asked["aws:RequestTag/gpulab:owner"],
        asked["aws:RequestedRegion"],
    )
    assert {"g6", "gr6"} == {name.partition(".")[0] for name in asked["ec2:InstanceType"]}


def test_a_command_that_is_not_listed_is_refused_with_those_that_are():
    """A misspelt command would otherwise print an empty policy."""
    with pytest.raises(WrongUsage, match="no rights are listed for `launch`") as caught:
        least(Profile(name="test"), commands=("launch",))

    assert "sweep, up" in caught.value.hint


# Rights that AWS names otherwise than the call, or asks for beside it; the agent on an instance signs its own calls.
CALLED_AS = {
    "budgets:ModifyBudget": "update_budget",
    "budgets:ViewBudget": "describe_budget",
    "iam:PassRole": "RoleArn",
    "iam:TagInstanceProfile": "create_instance_profile",
    "iam:TagPolicy": "create_policy",
    "iam:TagRole": "create_role",
    "s3:AbortMultipartUpload": "uploadId",
    "s3:DeleteObject": '"DELETE"',
    "s3:DeleteObjectVersion": "delete_objects",
    "s3:GetObjectVersion": "get_object",
    "s3:ListBucket": "list_objects_v2",
    "s3:ListBucketVersions": "list_object_versions",
    "s3:PutBucketPublicAccessBlock": "put_public_access_block",
    "s3:PutEncryptionConfiguration": "put_bucket_encryption",
    "s3:PutLifecycleConfiguration": "put_bucket_lifecycle_configuration",
}


def test_no_right_is_asked_for_that_nothing_uses():
    """A right that is left over from a call of last year is a door nobody watches."""
    callers = ("src/gpulab/aws", "src/gpulab/agent")
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in callers
        for path in (CHECKOUT / folder).glob("*.py")
    )
    actions = {action for right in RIGHTS for action in right.actions}

    unused = {a for a in actions if CALLED_AS.get(a, xform_name(a.split(":")[1])) not in code}

    assert set() == unused
    assert set(CALLED_AS) <= actions
