"""The soak at its smallest: the same program that plays a whole term, and that it notices a broken promise."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

_SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def soak(tmp_path: Path) -> Any:
    """Run a soak and return its exit code, what it printed and its figures."""

    def run(what: str, *options: str) -> tuple[int, str, dict[str, Any]]:
        argv = [sys.executable, str(_SCRIPTS / "soak.py"), what, *options]
        argv += ["--figures", str(tmp_path)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
        figures = tmp_path / f"{what}.json"
        assert figures.is_file(), done.stderr
        return done.returncode, done.stdout, json.loads(figures.read_text(encoding="utf-8"))

    return run


def test_a_small_term_keeps_every_promise(soak):
    """Nothing launched twice, left running, lost or missing in the ledger, in whatever weather the seed brings."""
    code, said, found = soak("term", "--students", "2", "--weeks", "1", "--swept-everywhere", "0")

    assert ([], 0) == (found["violations"], code), said
    assert found["tally"]["booted"] >= 2
    assert found["tally"]["saves"] > 0
    assert float(found["figures"]["billed_usd"]) > 0


def test_a_share_that_was_played_is_not_played_again(monkeypatch, tmp_path):
    """Three hundred students take half an hour of a quiet computer; a busy one plays them in several sittings."""
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    from soaking import shares
    from soaking.figures import Figures, Sample
    from soaking.machines import Tally
    from soaking.term import Size

    sample = Sample(datetime(2026, 5, 4, tzinfo=UTC), 20, 300, 1, 12)
    for name, launches in (("0-2", 20), ("2-1", 9)):
        part = (Figures(samples=[sample]), Tally(booted=launches))
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(part))

    ends = list(
        shares.play(
            Size(3, 13), seed=1, each=2, processes=1, minutes=0.0, kept=tmp_path, say=lambda _: None
        )
    )

    assert [(3, 29)] == [(students, tally.booted) for students, (_, tally) in ends]


def test_what_shares_of_a_term_came_to_is_added_up(monkeypatch):
    """A share that were counted twice, or not at all, would make the published figures wrong."""
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    from soaking.figures import Figures, Sample
    from soaking.machines import Tally
    from soaking.shares import joined

    small = Sample(datetime(2026, 5, 4, tzinfo=UTC), 20, 300, 1, 12)
    large = replace(small, launches=30, memory_mb=400)
    one = Figures(
        commands=Counter({"up": 2, "ls": 1}),
        failures=Counter({("up", "Throttled"): 1}),
        to_jupyter_s=[60.0],
        orphans=["i-1"],
        billed_usd=Decimal("1.5"),
        most_apart=("222200000001", Decimal("0.4")),
        outages=Counter({"no connection": 3}),
        samples=[small],
    )
    other = Figures(
        commands=Counter({"up": 3}),
        to_jupyter_s=[70.0],
        billed_usd=Decimal("2.25"),
        most_apart=("222200000021", Decimal("0.1")),
        outages=Counter({"no connection": 3}),
        samples=[large],
    )

    figures, tally = joined(
        [(one, Tally(booted=20, ends={"idle": 1})), (other, Tally(booted=30, ends={"idle": 2}))]
    )

    assert Counter({"up": 5, "ls": 1}) == figures.commands
    assert Counter({("up", "Throttled"): 1}) == figures.failures
    assert ([60.0, 70.0], ["i-1"]) == (figures.to_jupyter_s, figures.orphans)
    assert Decimal("3.75") == figures.billed_usd
    assert ("222200000001", Decimal("0.4")) == figures.most_apart
    assert Counter({"no connection": 3}) == figures.outages
    assert [small, large] == figures.samples
    assert (50, {"idle": 3}) == (tally.booted, tally.ends)


def test_tunnels_outlive_some_of_everything(soak):
    """The long run is only as good as its smallest version, which runs with every change."""
    code, said, found = soak("tunnel", "--faults", "6", "--tunnels", "2")

    assert ([], 0) == (found["violations"], code), said
    assert 6 == sum(found["faults"].values())
    assert found["requests"] >= 12


def test_the_watcher_holds_no_more_after_hours_than_after_minutes(soak):
    """It runs as long as the instance does; what it kept a little of at each look would end the instance."""
    code, said, found = soak("watch", "--days", "0.02")

    assert ([], 0) == (found["violations"], code), said
    assert 345 == found["steps"]


def test_a_broken_promise_is_named(monkeypatch):
    """A soak that finds nothing is worth as much as its eyes."""
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    from soaking.figures import Figures, violations
    from soaking.machines import Lost, Tally

    on_notice = Lost("week.ipynb", age_s=50.0, cause="spot notice", noticed_s=120.0)
    refused = replace(on_notice, is_refused=True)
    unannounced = Lost("week.ipynb", age_s=50.0, cause="cut without a notice", noticed_s=0.0)
    figures = Figures(orphans=["instance i-1"], unknown_resources=["i-2"], apart=["i-5"])
    tally = Tally(doubled=["launch7: i-3, i-4"], lost=[on_notice, refused, unannounced])

    found = violations(figures, tally)

    assert [
        "launched twice: launch7: i-3, i-4",
        f"lost on notice: {on_notice}",
        "orphan after the sweep: instance i-1",
        "unknown to the ledger: i-2",
        "estimated wrong: i-5",
    ] == found


def test_the_page_shows_every_process_at_every_week(monkeypatch):
    """A leak in one of thirty processes shows in the most, and one in all of them in the middle."""
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    from soaking.page import _weeks

    rows = _weeks(
        [
            {
                "at": f"2026-05-{day} 06:00:00",
                "launches": n,
                "memory_mb": mb,
                "threads": 1,
                "files": 12,
            }
            for day, n, mb in (("18", 9, 350), ("11", 4, 300), ("11", 6, 310), ("18", 12, 470))
        ]
    )

    assert [(1, 2, 10, 305, 310, 1, 12), (2, 2, 21, 410, 470, 1, 12)] == rows
