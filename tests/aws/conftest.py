"""The simulated AWS for every test of code that talks to AWS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from gpulab.sandbox import Sandbox

#: One attempt: a test sees each refusal, and nothing waits between retries.
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1, "mode": "standard"})


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A ready account in a simulated AWS; its clock stands still until `sandbox.advance`."""
    with Sandbox() as opened:
        yield opened


@pytest.fixture
def ec2(sandbox: Sandbox) -> Any:
    """An EC2 client of the sandbox, in us-east-1, that tries once."""
    return boto3.client("ec2", config=ONE_ATTEMPT)
