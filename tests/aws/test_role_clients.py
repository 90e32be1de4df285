"""Many accounts through one client: every call carries the key of its own account, whatever the others do meanwhile."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from gpulab.aws.accounts import identity
from gpulab.aws.roles import Role
from gpulab.aws.session import Cloud

NUMBERS = [f"{222200000000 + n}" for n in range(8)]


@pytest.fixture
def base(sandbox):
    """The teacher's own way to AWS, trusted by a role in each of eight accounts."""
    trust = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
    }
    every = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    role = {
        "RoleName": "gpulab-r",
        "AssumeRolePolicyDocument": {"Statement": [trust]},
        "Policies": [{"PolicyName": "all", "PolicyDocument": every}],
    }
    made = {"Resources": {"R": {"Type": "AWS::IAM::Role", "Properties": role}}}
    for number in NUMBERS:
        sandbox.apply_template(json.dumps(made), account=number)
    return Cloud(now=sandbox.now)


def through(base, number):
    role = Role(f"arn:aws:iam::{number}:role/gpulab-r", "", "me")
    return Cloud(now=base.now, role=role, via=base)


def test_calls_at_once_reach_each_its_own_account(base):
    """One key in another account's call would be another student's money."""
    clouds = {number: through(base, number) for number in NUMBERS}
    gate = threading.Barrier(len(NUMBERS))

    def ask(number):
        gate.wait(30)
        return [identity(clouds[number]).account_id for _ in range(5)]

    with ThreadPoolExecutor(len(NUMBERS)) as pool:
        said = dict(zip(NUMBERS, pool.map(ask, NUMBERS), strict=True))

    assert {number: [number] * 5 for number in NUMBERS} == said
    assert "123456789012" == identity(base).account_id


def test_accounts_share_their_clients(base):
    """Three hundred clients of EC2 are a gigabyte and ten seconds."""
    first, second = (through(base, number).client("ec2", "us-east-1") for number in NUMBERS[:2])

    assert first._target is second._target
    assert base.client("ec2", "us-east-1") is not first._target


def test_pages_are_asked_for_with_the_same_key(base, sandbox):
    """A paginator makes its calls long after it was made."""
    clouds = [through(base, number) for number in NUMBERS[:2]]
    listings = [
        c.pages("ec2", "us-east-1", "describe_instances", doing="look", MaxResults=5)
        for c in clouds
    ]
    calls = len(sandbox.calls)

    found = [list(listing) for listing in listings]

    assert [1, 1] == [len(pages) for pages in found]
    asked = [c.account for c in list(sandbox.calls)[calls:] if c.operation == "DescribeInstances"]
    assert NUMBERS[:2] == asked


def test_a_key_is_renewed_before_it_ends(base, sandbox):
    """A lab afternoon is longer than the hour such a key lives."""
    cloud = through(base, NUMBERS[0])
    client = cloud.client("ec2", "us-east-1")
    client.describe_instances()
    sandbox.advance(timedelta(minutes=58).total_seconds())

    client.describe_instances()

    assert 2 == [c.operation for c in sandbox.calls].count("AssumeRole")


def test_without_a_key_no_call_is_made(base, sandbox):
    """Somebody who holds the shared client by mistake must not reach whoever called last."""
    shared = through(base, NUMBERS[0]).client("ec2", "us-east-1")._target
    calls = len(sandbox.calls)

    with pytest.raises(RuntimeError, match="without the role's key"):
        shared.describe_instances()

    assert calls == len(sandbox.calls)
