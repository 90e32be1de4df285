"""The term's budget on the command line: set once, seen every day, and in the way when it is spent."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import boto3
import pytest

from gpulab.cli.main import run
from gpulab.model.fact import launched
from gpulab.model.market import Market
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.rules import Delays, Rules
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger

UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


@pytest.fixture
def sandbox():
    """A ready account with the standard credit."""
    with Sandbox() as opened:
        yield opened


@pytest.fixture
def budget(sandbox, capsys):
    """Have `gpulab init` write a budget of $10, and a ledger that knows what was spent of it."""
    assert 0 == run(["init", "--budget", "10", "--no-resources"])
    capsys.readouterr()

    def spend(hours: int) -> None:
        # A third of a minute more, so that no cent depends on how long the test takes.
        at = datetime.now(UTC) - timedelta(hours=hours, seconds=20)
        fact = launched(
            "i-1",
            at=at,
            zone="us-east-1d",
            instance_type="g4dn.xlarge",
            market=Market.ON_DEMAND,
            usd_per_hour=Decimal("0.50"),
        )
        Ledger(Home.of(os.environ).folder("default").ledger).append([fact])

    return spend


def test_up_refuses_what_the_rest_of_the_budget_does_not_cover(budget, capsys):
    """One sentence, one hint with the hours that fit, and the exit code of a limit."""
    budget(hours=18)

    code = run(["up", "--dry-run"])

    said = capsys.readouterr().err
    assert 3 == code
    assert "and $0.99 of the term's budget of $10.00 is left\n\nhint: `--hours 0.8` fits" in said


def test_credit_and_ls_say_how_much_of_the_budget_is_used(budget, capsys):
    """A warning that waits for the refusal comes too late to plan by."""
    budget(hours=17)
    line = "budget: $8.50 of $10.00 spent (85 %), $1.50 left; over 80 %\n"

    codes = [run(["credit"]), run(["ls", "--quick"])]

    said = capsys.readouterr()
    assert [0, 0] == codes
    assert line in said.out
    assert line in said.err


def test_a_spent_budget_says_so(budget, capsys):
    """Over 100 % is not "over 80 %"."""
    budget(hours=24)

    run(["ls", "--quick"])

    assert "$0.00 left; it is used up, `gpulab up` starts nothing" in capsys.readouterr().err


def test_programs_read_the_budget_too(budget, capsys):
    """A teaching assistant's script looks at the level, not at the words."""
    budget(hours=10)

    run(["ls", "--quick", "--json"])
    listed = json.loads(capsys.readouterr().out)["budget"]
    run(["credit", "--json"])
    credit = json.loads(capsys.readouterr().out)["budget"]

    assert {"usd", "spent_usd", "promised_usd", "left_usd", "level"} == set(listed)
    assert ("10", 50, 50) == (listed["usd"], listed["level"], credit["level"])


def test_without_a_budget_nothing_is_said(sandbox, capsys):
    """Most people set none."""
    run(["ls", "--quick", "--json"])

    assert json.loads(capsys.readouterr().out)["budget"] is None


@pytest.fixture
def running():
    """An instance of mine that another computer launched, on demand, with no end of its own yet."""
    none = timedelta(0)
    at_once = Rules(delays=Delays(boot=none, consistency=none, role=none))
    with Sandbox(clock=RunningClock(), rules=at_once) as world:
        tags = [
            {"Key": f"gpulab:{key}", "Value": value}
            for key, value in (("name", "week4"), ("owner", "me"), ("launch", "l-1"))
        ]
        boto3.client("ec2").run_instances(
            ImageId=boto3.client("ssm").get_parameter(Name=UBUNTU)["Parameter"]["Value"],
            InstanceType="g4dn.xlarge",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
        )  # fmt: skip
        yield world


def test_extend_says_what_it_may_cost_and_keeps_to_the_budget(running, capsys):
    """Two hours of a g4dn.xlarge on demand with its address and its 8 GiB disk; the second time they do not fit any more."""
    run(["init", "--no-resources"])
    capsys.readouterr()

    free = run(["extend", "week4", "--hours", "2"])
    said = capsys.readouterr().out
    run(["init", "--budget", "2", "--no-resources"])
    capsys.readouterr()
    limited = run(["extend", "week4", "--hours", "2"])
    refused = capsys.readouterr().err

    assert (0, 3) == (free, limited)
    assert said.startswith("week4 now ends ")
    assert said.endswith("in 2 h; at most $1.06 more until then\n")
    # Some seconds of a slow machine are a cent.
    assert re.match(
        r"error: week4 may cost up to \$2\.1[0-3] until then, and \$1\.9[6-9] of", refused
    )
    assert re.search(r"hint: `gpulab extend week4 --hours 1\.[67]` fits\n$", refused)


def test_an_end_that_comes_sooner_is_asked_about(running, capsys):
    """`extend --until 10:00` typed for 22:00, or `--by 1h` meant as an hour more, would end the lab in the middle of a training."""
    run(["extend", "week4", "--hours", "4"])
    sooner = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    capsys.readouterr()

    asked = run(["extend", "week4", "--until", sooner])
    question = capsys.readouterr().err
    by = run(["extend", "week4", "--by", "1h"])
    same_question = capsys.readouterr().err
    agreed = run(["extend", "week4", "--by", "1h", "--yes"])

    assert (2, 2, 0) == (asked, by, agreed)
    assert "nobody is there to answer: week4 would end 3 h sooner than before" in same_question
    assert "nobody is there to answer: week4 would end 3 h sooner than before" in question
    assert ", 3 h sooner than before" in capsys.readouterr().out
