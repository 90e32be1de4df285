"""`gpulab fleet` from the command line: exit codes, JSON keys, and that a plan changes nothing."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import pytest

from gpulab.cli import extend, fleet_acting
from gpulab.cli.main import run
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.store.courses import read_classroom, secret_file
from gpulab.store.home import Home

CIDR = ("--cidr", "203.0.113.0/24")
CHANGES = ("Run", "Create", "Terminate", "Import", "Authorize", "Put", "Delete", "Update")


@pytest.fixture
def sandbox():
    """The simulated AWS at today's time, which is the command line's."""
    with Sandbox(clock=RunningClock()) as opened:
        yield opened


@pytest.fixture
def course(tmp_path, sandbox, capsys, monkeypatch):
    """A course of three in one account."""
    folder = tmp_path / "dl"
    run(["course", "new", str(folder), "--shared"])
    plan = (folder / "course.toml").read_text()
    plan = plan.replace('"eu-west-1", "eu-central-1"', '"us-east-1"')
    (folder / "course.toml").write_text(plan)
    people = [f"s{n},N{n},s{n}@x.example,g{n % 2}" for n in range(3)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,group", *people]))
    monkeypatch.setenv("GPULAB_COURSE", str(folder))
    capsys.readouterr()
    return folder


def test_a_plan_says_seats_costs_and_quota_and_changes_nothing(course, sandbox, capsys):
    """Typed weeks before, in front of the head of department."""
    code = run(["fleet", "plan", "week1", "--now"])

    out = capsys.readouterr().out
    assert 0 == code
    assert "seats     3 launch" in out
    assert "needs 12 G vCPUs (spot), limit 64, 64 free" in out
    assert "costs     at most $" in out
    assert [] == [c.operation for c in sandbox.calls if c.operation.startswith(CHANGES)]


def test_a_dry_run_is_the_same_plan_and_changes_nothing(course, sandbox, capsys):
    """`up --dry-run` is what a careful person types first."""
    code = run(["fleet", "up", "week1", "--now", "--dry-run", "--json"])

    captured = capsys.readouterr()
    assert 0 == code
    assert 3 == json.loads(captured.out)["counts"]["launch"]
    assert [] == [c.operation for c in sandbox.calls if c.operation.startswith(CHANGES)]


def test_the_keys_of_a_plans_json_are_a_contract(course, capsys):
    """Scripts read them; adding is fine, renaming is not."""
    run(["fleet", "plan", "week1", "--now", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert [
        "at_most_usd",
        "boots",
        "broken_accounts",
        "counts",
        "course",
        "ends_at",
        "expected_usd",
        "lab",
        "notes",
        "quotas",
        "refusals",
        "starts_at",
        "steps",
    ] == sorted(found)
    assert [
        "account",
        "action",
        "at_most_usd",
        "group",
        "hint",
        "instance",
        "label",
        "name",
        "owner",
        "reason",
    ] == (sorted(found["steps"][0]))


def test_a_plan_tells_no_name_and_no_address(course, capsys):
    """It is pasted into tickets and mails."""
    run(["fleet", "plan", "week1", "--now", "--all"])
    run(["fleet", "plan", "week1", "--now", "--json"])

    assert "x.example" not in capsys.readouterr().out


def test_a_limit_of_the_course_exits_with_3(course, capsys):
    """Refused before any money."""
    file = course / "course.toml"
    file.write_text(file.read_text().replace("max_instances = 320", "max_instances = 2"))

    code = run(["fleet", "plan", "week1", "--now"])

    assert 3 == code
    assert "3 instances are more than the 2" in capsys.readouterr().err


def test_who_cannot_be_served_exits_with_4(course, sandbox, capsys):
    """The quota is too small for all; the cause and the request are named."""
    sandbox.set_quota("L-3819A6DF", "us-east-1", 8)

    code = run(["fleet", "plan", "week1", "--now"])

    captured = capsys.readouterr()
    assert 4 == code
    assert "1 of 3 could not be served" in captured.err
    assert "--desired-value 12" in captured.out


def test_prewarming_waits_and_then_looks_again(course, sandbox, capsys):
    """Typed at breakfast: nothing may cost before its time, and what changed meanwhile counts."""
    hours = 12 - datetime.now(UTC).hour
    zone = ZoneInfo(
        f"Etc/GMT{-hours:+d}"
    )  # noon, wherever that is now: the lab does not cross midnight
    starts = (datetime.now(zone) + timedelta(minutes=5)).replace(second=0, microsecond=0)
    plan = (course / "course.toml").read_text().replace("Europe/Copenhagen", str(zone))
    plan = re.sub(r"(date|first_day) = \S+", rf"\1 = {starts.date()}", plan)
    plan = plan.replace('starts = "13:00"', f'starts = "{starts:%H:%M}"')
    (course / "course.toml").write_text(plan.replace('"17:00"', '"19:00"'))
    # Every launch fails, so that nothing is waited for afterwards.
    sandbox.refuse("RunInstances", "UnauthorizedOperation", status=403, times=None)
    ahead = (starts - datetime.now(zone)).total_seconds() - 2
    begins = starts.astimezone(UTC) - timedelta(seconds=ahead)

    code = run(["fleet", "up", "week1", "--yes", "--prewarm", f"{ahead:.0f}s", *CIDR])

    said = capsys.readouterr().err
    calls = [c for c in sandbox.calls if c.operation in ("RunInstances", "DescribeInstances")]
    assert 4 == code
    assert "Waiting until" in said
    assert 2 == len([c for c in calls if c.operation == "DescribeInstances"])
    launches = [c.at for c in calls if c.operation == "RunInstances"]
    assert launches
    assert begins - timedelta(seconds=1) <= min(launches)


def test_a_lab_that_is_over_is_not_planned(course, sandbox, capsys):
    """The example is of 2017: what stands in the way is its date, not each student."""
    plan = (course / "course.toml").read_text()
    dates = re.sub(r"(first_day|date) = \S+", r"\1 = 2017-09-04", plan)
    (course / "course.toml").write_text(dates)

    code = run(["fleet", "plan", "week1"])

    said = capsys.readouterr().err
    assert 3 == code
    assert "lab week1 was over at 2017-09-04 15:00 UTC" in said
    assert "`--now` treats it as beginning now" in said
    assert [] == list(sandbox.calls)


def test_next_weeks_lab_is_not_launched_today(course, capsys):
    """A week of twelve GPUs."""
    code = run(["fleet", "up", "week1", "--yes"])

    captured = capsys.readouterr()
    assert 3 == code
    assert "instances launched now would cost until then" in captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "wek1"], "has no lab `wek1`"),
        (["plan", "week1", "--only", "nobody*", "--now"], "no id matches `nobody*`"),
        (["up", "week1", "--only", "s0", "--only", "s11"], "hint: The nearest: s1"),
        (["ls", "week1", "--group", "g7"], "no group is called `g7`"),
        (["extend", "week1", "--by", "30m", "--until", "17:00"], "exclude each other"),
        (["extend", "week1"], "lab week1 is not on now"),
        (["push", "week1", ".", "--into", "../x"], "leads out of the work folder"),
        (["exec", "week1"], "missing argument"),
        (["exec", "week1", "--timeout", "soon", "--", "true"], "is not a duration"),
    ],
)
def test_wrong_usage_exits_with_2(course, words, said, capsys):
    """One line that names it."""
    code = run(["fleet", *words])

    assert 2 == code
    assert said in capsys.readouterr().err


def test_nobody_up_is_listed_as_such(course, capsys):
    """The day after: zero."""
    codes = [run(["fleet", "ls", "week1", "--quick", *more]) for more in ([], ["--json"])]

    said = capsys.readouterr()
    found = json.loads(said.out[said.out.index("{") :])["members"]
    assert [0, 0] == codes
    assert "3 not up\n" == said.err
    assert ["-", "-", "-"] == [m["state"] for m in found]


def test_a_damaged_ledger_is_told_once_and_the_class_is_listed(course, capsys):
    """What ends by itself is not written down any more, and the class's costs go wrong in silence otherwise."""
    ledger = Home(Path(os.environ["GPULAB_HOME"])).folder("default").ledger
    ledger.parent.mkdir(parents=True, exist_ok=True)
    ledger.write_bytes(b"no ledger " * 1000)

    code = run(["fleet", "ls", "week1", "--quick"])

    err = capsys.readouterr().err
    assert 0 == code
    assert 1 == err.count("What ended by itself is not in the books: ")
    assert str(ledger) in err
    assert err.endswith("3 not up\n")


def test_after_the_lab_the_saved_work_is_collected(course, tmp_path, capsys):
    """The evening after `stop`: the notebooks are on this computer, and nothing runs that could be asked for them."""
    home = Home(Path(os.environ["GPULAB_HOME"]))
    owner = read_classroom(home, course).roster.students[1].owner
    saved = home.folder("default").work / f"week1-{owner}" / "lab.ipynb"
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")

    codes = [run(["fleet", "collect", "week1", str(tmp_path / "in")]) for _ in range(2)]

    assert [0, 0] == codes
    assert "s1: done; 0 new, 1 unchanged, from the saved work" in capsys.readouterr().err
    assert ["s1/lab.ipynb"] == [
        f.relative_to(tmp_path / "in").as_posix() for f in (tmp_path / "in").rglob("*.ipynb")
    ]


def test_nothing_to_collect_says_where_work_is_saved(course, tmp_path, capsys):
    """Another computer has it."""
    code = run(["fleet", "collect", "week1", str(tmp_path / "in")])

    assert 2 == code
    assert "nobody is up in week1, and no work of it is saved on this computer" in (
        capsys.readouterr().err
    )


def test_a_ticket_that_is_none_says_so(tmp_path, capsys):
    """The student took the wrong file from the downloads folder."""
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7")

    code = run(["open", "--ticket", str(tmp_path / "x.pdf")])

    assert 2 == code
    assert "is no ticket: it is not JSON" in capsys.readouterr().err


def test_a_time_that_is_sooner_for_a_class_is_asked_about(course, sandbox, capsys):
    """`--by 10m` meant as ten minutes more would take hours away from everybody."""
    assert 0 == run(["fleet", "up", "week1", "--now", "--yes", *CIDR])
    before = _ends(sandbox)
    capsys.readouterr()

    code = run(["fleet", "extend", "week1", "--by", "10m"])

    said = capsys.readouterr().err
    assert 2 == code
    assert "3 instances would end sooner than before. Move the ends?" in said
    assert "`--hours` counts from the end that each has" in said
    assert before == _ends(sandbox)


def test_no_end_is_said_to_move_where_nobody_is_up(course, capsys):
    """The day before: one line that names it, and not first one that says the contrary."""
    code = run(["fleet", "extend", "week1", "--hours", "1"])

    said = capsys.readouterr().err
    assert 2 == code
    assert said.startswith("error: that is nobody\n")


def test_without_the_classs_key_nothing_is_sent_to_nobody(course, tmp_path, capsys):
    """An assistant's first evening: three instances run, none by an id of this computer, and "0 tickets" would read as done."""
    assert 0 == run(["fleet", "up", "week1", "--now", "--yes", *CIDR])
    key = secret_file(Home(Path(os.environ["GPULAB_HOME"])), "dl")
    key.unlink()
    tickets = tmp_path / "tickets"
    capsys.readouterr()

    handed = run(["fleet", "handout", "week1", str(tickets)]), capsys.readouterr().err
    pushed = run(["fleet", "push", "week1", "."]), capsys.readouterr().err

    assert 2 == handed[0]
    assert pushed == handed
    assert "nobody in the roster has an instance in week1" in handed[1]
    assert f"if {key} is not the class's, copy it from the computer that started" in handed[1]
    assert not tickets.exists()


def test_a_class_is_extended_by_the_options_of_one_instance():
    """Who knows one of the two commands types its options for the other."""
    one, many = (
        {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        for command in (extend.command, fleet_acting.extend)
    )

    assert {"--hours", "--by", "--until", "--idle", "--yes", "-y", "--json"} == one
    assert one == one & many


def _ends(sandbox):
    tags = [{t["Key"]: t["Value"] for t in one["Tags"]} for one in sandbox.instances("running")]
    return sorted(one["gpulab:expires"] for one in tags)
