"""The simulated AWS for every test of code that talks to AWS."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

from gpulab.rights.policy import OF_THE_CALLER, Reach, policy
from gpulab.rights.table import Part
from gpulab.sandbox import Sandbox
from gpulab.sandbox.calls import Call
from gpulab.sandbox.iam_policies import Asked, Decision, decide

#: One attempt: a test sees each refusal, and nothing waits between retries.
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1, "mode": "standard"})

_SESSION = boto3.Session()

UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """
    A ready account in a simulated AWS; its clock stands still until `sandbox.advance`.

    Every call that gpulab makes meanwhile must be one that the published policies allow: a new call without a right fails the test
    that makes it.
    """
    judge = Judge()
    with Sandbox() as opened:
        opened.permissions.witnesses.append(judge)
        yield opened
    assert [] == judge.forbidden


class Judge:
    """
    Looks at every permission gpulab asks for, in whichever test.

    Attributes:
        forbidden: What no policy allows, or what more policies allow than should.
    """

    def __init__(self) -> None:
        self.forbidden: list[str] = []

    def __call__(self, call: Call, asked: list[Asked]) -> None:
        # Tests arrange and look through clients of their own; a role's rights are checked by the sandbox itself.
        if "gpulab/" not in call.headers.get("user-agent", "") or _is_of_role(asked):
            return
        for one in asked:
            parts = _parts_that_allow(one)
            if not parts or (len(parts) > 1 and one.action not in _OF_SEVERAL):
                self.forbidden.append(f"{one.action} on {one.resource}: allowed by {parts}")


#: Whoever bakes images may delete them, and so may a student's sweep; whoever sets up an account or holds a course makes end roles;
#: a course's role reads the budget that whoever arms guards makes; putting a role into its profile passes it, as a launch does;
#: a course's instances have a role like a student's, which its role in a student's account reads, and fetch the agent from where it put it.
_OF_SEVERAL = frozenset(
    {
        "budgets:DescribeBudgetActionsForBudget",
        "budgets:ViewBudget",
        "ec2:DeregisterImage",
        "ec2:DeleteSnapshot",
        "iam:AddRoleToInstanceProfile",
        "iam:CreateInstanceProfile",
        "iam:CreateRole",
        "iam:GetRole",
        "iam:PassRole",
        "iam:PutRolePolicy",
        "iam:TagInstanceProfile",
        "iam:TagRole",
        "s3:PutObject",
    }
)
_POLICIES = {part: [policy([part], Reach())] for part in Part}
_OF_ONE_OWNER = [policy([Part.STUDENT], Reach(OF_THE_CALLER))]


def _parts_that_allow(asked: Asked) -> list[str]:
    allowing = [p for p, rules in _POLICIES.items() if decide(rules, asked) is Decision.ALLOWED]
    if Part.STUDENT in allowing and not _is_of_one_owner(asked):
        allowing.remove(Part.STUDENT)
    return [part.value for part in allowing]


def _is_of_one_owner(asked: Asked) -> bool:
    """Whether the policy of a shared account allows it too, to the owner that the call is about."""
    context = {**asked.context, "aws:principaltag/gpulab": (_owner_in(asked),)}
    return decide(_OF_ONE_OWNER, Asked(asked.action, asked.resource, context)) is Decision.ALLOWED


def _owner_in(asked: Asked) -> str:
    for key in ("aws:requesttag/gpulab:owner", "aws:resourcetag/gpulab:owner"):
        if key in asked.context:
            return asked.context[key][0]
    if "s3:prefix" in asked.context:
        return asked.context["s3:prefix"][0].partition("/")[0]
    named = re.search(r":::[^/]+/([^/]+)/|gpulab-(?:end|work)-(.+?)(?:-i-|$)", asked.resource)
    return (named[1] or named[2]) if named else "nobody"


def _is_of_role(asked: list[Asked]) -> bool:
    return any(":assumed-role/" in one.context["aws:principalarn"][0] for one in asked)


@pytest.fixture
def ec2(sandbox: Sandbox) -> Any:
    """An EC2 client of the sandbox, in us-east-1, that tries once."""
    return a_client("ec2")


@pytest.fixture
def client() -> Callable[..., Any]:
    """Make a client that tries once: `client("ssm")`, `client("ec2", region_name="eu-west-1")`."""
    return a_client


@pytest.fixture
def a_launch(sandbox: Sandbox) -> Callable[..., dict[str, Any]]:
    """Build the parameters of RunInstances: one g4dn.xlarge spot instance in us-east-1a, with changes by name."""
    image = a_client("ssm").get_parameter(Name=UBUNTU)["Parameter"]["Value"]
    sandbox.calls.clear()

    def build(**changes: Any) -> dict[str, Any]:
        params = {
            "ImageId": image,
            "InstanceType": "g4dn.xlarge",
            "MinCount": 1,
            "MaxCount": 1,
            "Placement": {"AvailabilityZone": "us-east-1a"},
            "InstanceMarketOptions": {"MarketType": "spot"},
            **changes,
        }
        return {name: value for name, value in params.items() if value is not None}

    return build


@pytest.fixture
def running(
    sandbox: Sandbox, ec2: Any, a_launch: Callable[..., dict[str, Any]]
) -> Callable[..., str]:
    """Launch an instance, wait in simulated time until it runs, and return its id."""

    def launch(**changes: Any) -> str:
        launched = ec2.run_instances(**a_launch(**changes))
        sandbox.advance(10)
        return str(launched["Instances"][0]["InstanceId"])

    return launch


@pytest.fixture
def code_of() -> Callable[..., str]:
    """Call something and return the error code it was refused with; `ok` when it was not."""

    def call(function: Callable[..., Any], **params: Any) -> str:
        try:
            function(**params)
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "ok"

    return call


@pytest.fixture
def plain_moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Moto alone, to show what a rule of the layer is there for."""
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with mock_aws():
        yield


def a_client(service: str, **arguments: Any) -> Any:
    """A client that tries once, with the key of the environment."""
    # One session for all tests: it keeps the service models, which take longer to read than a test takes to run.
    key = {
        "aws_access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "aws_secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "region_name": os.environ.get("AWS_DEFAULT_REGION"),
    }
    return _SESSION.client(service, config=ONE_ATTEMPT, **{**key, **arguments})
