"""`gpulab course close`: it says what would go, asks, writes the last report, and deletes personal data only when told."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpulab.cli import fleet
from gpulab.cli.main import run
from gpulab.fleet.lab import as_if_now
from gpulab.fleet.seats import seats_of
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts, Outside
from gpulab.model.fact import FactKind
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.rules import Delays, Rules
from gpulab.store.courses import read_classroom
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger
from gpulab.view.console import Console

AT_ONCE = Rules(
    delays=Delays(
        boot=timedelta(0), terminate=timedelta(0), consistency=timedelta(0), role=timedelta(0)
    )
)


@pytest.fixture
def sandbox():
    """The simulated AWS at today's time, in which nothing takes time."""
    with Sandbox(clock=RunningClock(), rules=AT_ONCE) as opened:
        yield opened


@pytest.fixture
def course(tmp_path, sandbox, capsys, monkeypatch):
    """A course of two in one account whose lab is up."""
    folder = tmp_path / "dl"
    run(["course", "new", str(folder), "--shared"])
    plan = (folder / "course.toml").read_text()
    plan = plan.replace('"eu-west-1", "eu-central-1"', '"us-east-1"').replace(
        '"tf2"', '"tf2-small"'
    )
    (folder / "course.toml").write_text(plan)
    people = [f"s{n},N{n},s{n}@x.example,g{n}" for n in range(2)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,group", *people]))
    monkeypatch.setenv("GPULAB_COURSE", str(folder))
    start(folder)
    capsys.readouterr()
    return folder


def start(folder):
    """`fleet up`, without its pauses."""
    home = Home(Path(os.environ["GPULAB_HOME"]))
    room = read_classroom(home, folder)
    lab = as_if_now(room.course.labs[0], datetime.now(UTC))
    outside = Outside(
        home=home,
        config=home.config(),
        environment={},
        now=lambda: datetime.now(UTC),
        sleep=lambda _: None,
        random=random.Random(7),
        cidr="203.0.113.0/24",
    )
    accounts = Accounts(outside, room.course)
    everyone = seats_of(room.course, lab, room.roster.students, secret=room.secret)
    wish = up.Wish(room.course, lab, everyone, everyone, timedelta(hours=12))
    list(up.up(accounts, up.plan(accounts, wish, may_settle=True)))


def test_a_dry_run_says_what_would_go_and_changes_nothing(course, sandbox, capsys):
    """What a careful person types first."""
    calls = len(sandbox.calls)

    code = run(["course", "close", "--dry-run"])

    said = capsys.readouterr().err
    assert 0 == code
    assert "running   2 instances: saved, then ended" in said
    assert "setup     2 scheduled ends, 1 security group, 1 key pair, 2 roles: removed" in said
    assert "note      1 lab not over yet" in said
    changes = ("Run", "Create", "Terminate", "Put", "Delete", "Update")
    assert [] == [
        c.operation for c in list(sandbox.calls)[calls:] if c.operation.startswith(changes)
    ]


def test_nothing_is_done_without_a_yes(course, sandbox, capsys):
    """A script without a terminal must say `--yes`."""
    code = run(["course", "close"])

    assert 2 == code
    assert 2 == len(sandbox.instances("running"))


def test_the_term_ends_with_a_report_and_the_roster_stays(course, sandbox, capsys):
    """The plain end; next year somebody asks what it cost."""
    # Facts are cut to whole seconds: what began in this very one has not lasted yet.
    time.sleep(1.1)

    code = run(["course", "close", "--yes", "--no-save"])

    captured = capsys.readouterr()
    modes = {p.name: p.stat().st_mode & 0o777 for p in (course / "closed").iterdir()}
    assert {0o600} == set(modes.values()), modes
    report = json.loads((course / "closed" / "report.json").read_bytes())
    assert 0 == code
    assert [] == sandbox.instances("pending", "running")
    assert 2 == report["total"]["runs"]
    assert (course / "roster.csv").exists()
    assert (
        "2 instances ended, 1 security group removed, 1 key pair removed, 2 roles removed"
        in captured.err
    )
    assert "kept      the roster: `gpulab course close --purge-roster` deletes it" in captured.out


def test_the_report_names_nobody(course):
    """It is sent around and outlives the roster."""
    run(["course", "close", "--yes", "--no-save"])

    texts = [f.read_bytes() for f in (course / "closed").iterdir()]
    assert 3 <= len(texts)
    assert [] == [t for t in texts if b"x.example" in t or b"N0" in t]


def test_purging_deletes_the_roster_and_the_key_of_its_ids(course, capsys):
    """Personal data goes when the course is over; typing it again is nothing to do."""
    key = Path(os.environ["GPULAB_HOME"]) / "courses" / "dl" / "secret"
    assert key.exists()

    codes = [run(["course", "close", "--yes", "--no-save", "--purge-roster"]) for _ in range(2)]

    captured = capsys.readouterr()
    assert [0, 0] == codes
    assert [False, False] == [key.exists(), (course / "roster.csv").exists()]
    assert "and its roster deleted; nothing is left to do" in captured.err


def test_a_purge_that_was_killed_half_way_is_finished(course, capsys):
    """The roster is gone, the key that undoes the ids is not."""
    run(["course", "close", "--yes", "--no-save", "--purge-roster"])
    key = Path(os.environ["GPULAB_HOME"]) / "courses" / "dl" / "secret"
    key.write_text("left by a kill")

    code = run(["course", "close"])

    assert (0, False) == (code, key.exists())


def test_a_closed_course_says_when_and_starts_nothing_by_itself(course, sandbox, capsys):
    """A cron job of last term must not start a class; who closes twice reads that it is done."""
    run(["course", "close", "--yes", "--no-save"])
    capsys.readouterr()

    again = run(["course", "close"])
    said = capsys.readouterr().err
    up = run(["fleet", "up", "week1", "--now", "--yes"])
    refused = capsys.readouterr().err

    assert (0, 3) == (again, up)
    assert "dl was closed 20" in said
    assert "nothing is left in its account" in said
    assert "running" not in said
    assert "error: dl was closed 20" in refused
    assert "asks whether to open the course again" in refused
    assert [] == sandbox.instances("pending", "running")


def test_a_closed_course_opens_again_for_who_agrees_to_the_plan_too(course, monkeypatch, capsys):
    """The same folder serves next year's class; who reads the price and declines has opened nothing."""
    run(["course", "close", "--yes", "--no-save"])
    answers, asked = [True, False, True, True, False], []
    monkeypatch.setattr(
        Console, "confirm", lambda _, text, **more: asked.append(text) or answers[len(asked) - 1]
    )
    monkeypatch.setattr(fleet, "_carry_out", lambda *_, **more: ())

    codes = [run(["fleet", "up", "week1", "--now", "--cidr", "203.0.113.0/24"]) for _ in range(3)]

    assert [0, 0, 0] == codes
    assert [True, False, True, False, False] == ["Open it again?" in text for text in asked]


def test_while_something_runs_on_the_roster_is_not_deleted(course, sandbox, capsys):
    """Without the roster nobody knows whose work it is."""
    sandbox.refuse("TerminateInstances", "UnauthorizedOperation", status=403, times=None)

    code = run(["course", "close", "--yes", "--no-save", "--purge-roster"])

    said = capsys.readouterr().err
    assert 4 == code
    assert (course / "roster.csv").exists()
    assert "dl is not closed yet: something is left in 1 of 1 accounts" in said
    assert "2 instances run on (s0, s1), so the key to reach them stays" in said


def test_the_keys_of_its_json_are_a_contract(course, capsys):
    """A script that closes ten courses reads them."""
    run(["course", "close", "--yes", "--no-save", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert ["accounts", "outcomes", "report", "roster_purged"] == sorted(found)
    assert ["account", "error", "hint", "kept", "removed", "role_removed"] == sorted(
        found["accounts"][0]
    )


def test_the_books_of_a_class_are_completed_on_another_computer(
    course, tmp_path, monkeypatch, capsys
):
    """`gpulab report` in the course's folder needs them there; the course's key comes from a copy, as the roster does."""
    before = Path(os.environ["GPULAB_HOME"])
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "another"))
    shutil.copytree(before / "courses", tmp_path / "another" / "courses")

    codes = [run(["ledger", "rebuild", "--course", str(course)]) for _ in range(2)]

    said = capsys.readouterr().err
    assert [0, 0] == codes
    assert "1 account asked, 0 facts new" in said
    assert 2 == len(
        Ledger(Home(tmp_path / "another").folder("default").ledger).facts(FactKind.LAUNCHED)
    )
    run(["ledger", "rebuild", "--course", str(course), "--json"])
    assert [0] == [one["new"] for one in json.loads(capsys.readouterr().out)["accounts"]]


def test_the_books_of_a_class_are_not_asked_for_with_everyone(course, capsys):
    """The two mean different things: a course, and all of an account."""
    assert 2 == run(["ledger", "rebuild", "--everyone", "--course", str(course)])
    assert "hint: " in capsys.readouterr().err
