"""The tests for a real account, run against the sandbox: what they are to prove is AWS's, but that they run, sweep and report is ours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpulab.sandbox.witnesses import said_in_calls

_CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A sandbox with the machines that need no root, whose first zone has no g5.xlarge left."""
    home = tmp_path_factory.mktemp("gpulab-live")
    environment = {
        **os.environ,
        "GPULAB_HOME": str(home),
        "GPULAB_PROFILE": "sandbox",
        "GPULAB_LIVE_REPORT": str(home / "report.md"),
    }
    try:
        gpulab(environment, "sandbox", "start")
        gpulab(environment, "init", "--yes")
        gpulab(environment, "sandbox", "capacity", "g5.xlarge", "us-east-1a", "0")
        yield environment
    finally:
        gpulab(environment, "sandbox", "stop")


def gpulab(environment: dict[str, str], *words: str) -> str:
    """Run a command to its good end."""
    done = subprocess.run(
        [sys.executable, "-m", "gpulab", *words],
        env=environment | said_in_calls(words),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def live(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run the live tests as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "tests/live", "-p", "no:cacheprovider", *options],
        env=environment,
        cwd=_CHECKOUT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_nothing_is_chosen_by_default_and_nothing_is_skipped(environment):
    """The gate must neither spend money nor count what it cannot run."""
    done = live(environment, "-q")

    assert 5 == done.returncode
    assert "skipped" not in done.stdout
    assert "deselected" in done.stdout


def test_without_a_budget_nothing_runs(environment):
    """Whoever types `-m live` has not said yet what it may cost."""
    done = live(environment, "-m", "live", "-q")

    assert 4 == done.returncode
    assert "GPULAB_LIVE_BUDGET_USD=2" in done.stderr


def test_a_budget_below_the_price_stops_before_anything_is_made(environment):
    """The price stands first, with what it is for."""
    done = live({**environment, "GPULAB_LIVE_BUDGET_USD": "0.50"}, "-m", "live", "-q")

    assert 3 == done.returncode
    assert re.search(r"live tests cost at most \$1\.\d\d in all", done.stdout)
    assert "that is over GPULAB_LIVE_BUDGET_USD=0.50" in done.stdout
    assert [] == instances(environment)


_KILLED = """
import os, signal
from gpulab.launch import up
from tests.live.account import Account
from tests.live.sweeping import ROLE, left
account = Account.of(os.environ)
seen = set()
for event in up.up(account.context, account.wish("lab"), confirm=lambda _: True):
    seen.add(type(event).__name__)
    if {"Guarded", "Running"} <= seen:
        break
(made,) = (thing.id for thing in left(account) if thing.kind == "instance")
account.ec2.create_image(InstanceId=made, Name="live", TagSpecifications=account.tags("image", "snapshot"))
volume = {"AvailabilityZone": account.region + "a", "Size": 1}
account.ec2.create_volume(**volume, TagSpecifications=account.tags("volume"))
account.ec2.create_volume(**volume)
account.ec2.create_key_pair(KeyName="packer_1", TagSpecifications=account.tags("key-pair"))
iam = account.cloud.client("iam", account.region)
iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument="{}")
rights = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"}]}'
iam.put_role_policy(RoleName=ROLE, PolicyName=ROLE, PolicyDocument=rights)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_found_by_the_next_sweep(environment, monkeypatch):
    """Whoever is killed cleans up nothing: what it made must be found in the account, by its tags alone, and nothing else with it."""
    monkeypatch.syspath_prepend(str(_CHECKOUT))
    from tests.live.account import Account
    from tests.live.sweeping import left

    account = Account.of(environment)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED], env=environment, cwd=_CHECKOUT, check=False
    )
    before = {thing.kind for thing in left(account)}
    swept = subprocess.run(
        [sys.executable, "-m", "tests.live.sweeping"],
        env=environment,
        cwd=_CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert -signal.SIGKILL == killed.returncode
    assert {"instance", "spot request", "schedule", "image", "snapshot", "volume", "key pair", "role"} == before  # fmt: skip
    assert 0 == swept.returncode, swept.stdout + swept.stderr
    assert before == set(re.findall(r"^found ([a-z ]+) \S+$", swept.stdout, re.M))
    assert [] == [str(thing) for thing in left(account)]
    own = account.ec2.describe_volumes()["Volumes"]
    assert [1] == [volume["Size"] for volume in own if not volume.get("Tags")]


def test_the_sandbox_shows_what_the_page_says_it_shows(environment):
    """A test that was never run is a guess; this one ran, and says which of the others could not."""
    page = (_CHECKOUT / "docs" / "unproven.md").read_text(encoding="utf-8")
    shown = re.findall(r"\| (`tests/live/\S+`) \| shown \|$", page, re.M)
    by_hand = re.findall(r"\| `(tests/live/\S+)` \| by hand", page)
    rest = [word for test in by_hand for word in ("--deselect", test)]

    done = live({**environment, "GPULAB_LIVE_BUDGET_USD": "2"}, "-m", "live", "-q", *rest)

    verdicts = dict(re.findall(r"^\| (`.+?`) \| (\w+(?: \w+)?) \|", report(environment), re.M))
    assert 0 == done.returncode, done.stdout
    assert sorted(shown) == sorted(
        test for test, verdict in verdicts.items() if verdict == "proved"
    )
    assert {"proved", "not shown"} == set(verdicts.values())
    assert len(by_hand) <= 2


def test_what_was_launched_is_ended_and_named(environment):
    """Also the instances that should have been refused."""
    found = instances(environment)

    assert len(found) >= 1
    assert {"terminated", "shutting-down"} >= {instance["state"] for instance in found}


def report(environment: dict[str, str]) -> str:
    return Path(environment["GPULAB_LIVE_REPORT"]).read_text(encoding="utf-8")


def instances(environment: dict[str, str]) -> list[dict[str, str]]:
    """Every instance the sandbox has had, as it knows them."""
    found: list[dict[str, str]] = json.loads(gpulab(environment, "sandbox", "status", "--json"))[
        "instances"
    ]
    return found
