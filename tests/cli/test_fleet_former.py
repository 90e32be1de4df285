"""A student who leaves the course in the middle of a lab: the instance bills on in an account that the roster does not name any more."""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpulab.cli.main import run
from gpulab.fleet.lab import as_if_now
from gpulab.fleet.seats import seats_of
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts, Outside
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.rules import Delays, Rules
from gpulab.store.courses import read_classroom
from gpulab.store.home import Home

AT_ONCE = Rules(
    delays=Delays(
        boot=timedelta(0), terminate=timedelta(0), consistency=timedelta(0), role=timedelta(0)
    )
)
HEAD = "id,name,email,group,role"
PEOPLE = [
    "s0,N0,s0@x.example,g0,arn:aws:iam::111100000000:role/gpulab-course",
    # The course names another role than this student's account has.
    "s1,N1,s1@x.example,g1,arn:aws:iam::111100000001:role/gpulab-another",
    "s2,N2,s2@x.example,g1,arn:aws:iam::111100000002:role/gpulab-course",
]


@pytest.fixture
def sandbox():
    """The simulated AWS at today's time, in which nothing takes time."""
    with Sandbox(clock=RunningClock(), rules=AT_ONCE) as opened:
        yield opened


@pytest.fixture
def course(tmp_path, sandbox, capsys, monkeypatch):
    """Three students with accounts of their own and one instance a group; group g1 runs in the account of s1."""
    folder = tmp_path / "dl"
    run(["course", "new", str(folder)])
    plan = (folder / "course.toml").read_text()
    plan = plan.replace('"eu-west-1", "eu-central-1"', '"us-east-1"').replace(
        '"tf2"', '"tf2-small"'
    )
    (folder / "course.toml").write_text(plan + "by_group = true\n")
    (folder / "roster.csv").write_text("\n".join([HEAD, *PEOPLE]))
    monkeypatch.setenv("GPULAB_COURSE", str(folder))
    assert 0 == run(["course", "enrol", str(folder / "templates")])
    for file in sorted((folder / "templates").iterdir()):
        text = file.read_text()
        is_other = file.name.startswith("s1")
        sandbox.apply_template(
            text.replace('"gpulab-course"', '"gpulab-another"') if is_other else text
        )
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
    *_, last = up.up(accounts, up.plan(accounts, wish, may_settle=True))
    assert [None, None] == [outcome.trouble for outcome in last.outcomes]


def leave(folder, *ids):
    kept = [line for line in PEOPLE if not line.startswith(ids)]
    (folder / "roster.csv").write_text("\n".join([HEAD, *kept]))


def test_it_is_listed_with_what_to_do(course, capsys):
    """Nobody else would see it before the bill."""
    leave(course, "s1")

    codes = [run(["fleet", "ls", "week1", "--quick", *more]) for more in ([], ["--json"])]

    said = capsys.readouterr()
    line = " (left): nobody in the roster has its account any more; `gpulab fleet stop` ends it"
    found = json.loads(said.out[said.out.index("{") :])["members"]
    assert [0, 0] == codes
    assert 1 == said.err.count(line)
    assert ["running", "-", "running"] == [member["state"] for member in found]
    assert "111100000001" == found[-1]["account"]


def test_it_is_ended_with_the_lab(course, sandbox, capsys):
    """`stop` at the end of the lab is the last time that somebody thinks of it."""
    leave(course, "s1")

    code = run(["fleet", "stop", "week1", "--no-save", "--yes"])

    assert 0 == code
    assert [] == sandbox.instances("pending", "running")


def test_who_is_chosen_by_name_leaves_it_alone(course, sandbox):
    """`--only` and `--group` name students; this is nobody's."""
    leave(course, "s1")

    code = run(["fleet", "stop", "week1", "--only", "s0", "--no-save", "--yes"])

    assert 0 == code
    assert 1 == len(sandbox.instances("pending", "running"))


def test_an_account_that_refuses_is_one_line_with_what_to_do(course, sandbox, capsys):
    """The stack is deleted: nobody may say that nothing runs there."""
    leave(course, "s1")
    sandbox.refuse("AssumeRole", "AccessDenied", status=403, contains="111100000001", times=None)

    code = run(["fleet", "stop", "week1", "--no-save", "--yes"])

    said = capsys.readouterr().err
    assert 4 == code
    assert "account 111100000001: failed;" in said
    assert "Put its student back into roster.csv and try again" in said


def test_the_end_of_the_term_finds_the_way_in(course, sandbox, capsys):
    """Neither the role's name nor the first student of the group is in the files any more."""
    leave(course, "s1")

    code = run(["course", "close", "--yes", "--no-save"])

    assert 0 == code
    assert [] == sandbox.instances("pending", "running")


@pytest.mark.parametrize("words", [["exec", "week1", "--", "true"], ["push", "week1", "FILE"]])
def test_what_serves_nobody_in_the_roster_gets_no_command_and_no_file(
    course, capsys, tmp_path, words
):
    """The solution is for the class; the group that was renamed is up twice, and one of the two is nobody's."""
    file = tmp_path / "solution.ipynb"
    file.write_text("{}")
    roster = (course / "roster.csv").read_text()
    (course / "roster.csv").write_text(roster.replace(",g0,", ",h0,").replace(",g1,", ",h1,"))

    code = run(["fleet", *(str(file) if word == "FILE" else word for word in words)])

    said = capsys.readouterr().err
    assert 2 == code
    assert "Left out, since nobody in the roster has it: " in said
    assert 2 == said.count("(extra)")
    assert "`gpulab fleet up --prune` saves its work and ends it" in said
    assert "error: nobody in the roster has an instance in week1" in said
