"""The term's budget on the command line: set once, seen every day, and in the way when it is spent."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gpulab.cli.main import run
from gpulab.model.fact import launched
from gpulab.model.market import Market
from gpulab.sandbox import Sandbox
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger


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
