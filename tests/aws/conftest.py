"""The simulated AWS for every test of code that talks to AWS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

from gpulab.sandbox import Sandbox

#: One attempt: a test sees each refusal, and nothing waits between retries.
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1, "mode": "standard"})

_SESSION = boto3.Session()

UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A ready account in a simulated AWS; its clock stands still until `sandbox.advance`."""
    with Sandbox() as opened:
        yield opened


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
