"""What strangers may write (tags, AWS's codes, agents' words, logs, rosters) and commands show: it drives no terminal."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path

import pytest
from tests.aws.conftest import UBUNTU, a_client
from tests.aws.security.hostile import DRIVING, FORGED, SENT, drives, unfiltered

from gpulab.cli.context import Context
from gpulab.cli.main import run
from gpulab.course.roster import owner_id
from gpulab.fleet.seats import seats_of
from gpulab.launch.upkeep import sweep
from gpulab.remote import hostkeys
from gpulab.remote.host import Host
from gpulab.remote.process import Completed
from gpulab.store.courses import read_classroom
from gpulab.store.home import Home

CHECKOUT = Path(__file__).parents[3]


def launch(**tags):
    """Start an instance in our account with tags as somebody else wrote them: everybody in a shared account may tag their own."""
    image = a_client("ssm").get_parameter(Name=UBUNTU)["Parameter"]["Value"]
    launched = a_client("ec2").run_instances(
        ImageId=image,
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": f"gpulab:{k}", "Value": v} for k, v in tags.items()],
            }
        ],
    )
    return launched["Instances"][0]["InstanceId"]


@pytest.fixture
def hostile(sandbox, monkeypatch):
    """An instance that is hostile in all it can say: in its tags and on its console, through its agent, in its log."""
    instance = launch(name=SENT, owner="me", launch="l1", env=SENT, lab=SENT)
    sandbox.advance(90)
    monkeypatch.setattr(Host, "run", _told)
    monkeypatch.setattr(Host, "stream", lambda self, command, **_: iter([f"boot {DRIVING}"]))
    monkeypatch.setattr("gpulab.sandbox.console.console_text", lambda *_, **__: f"boot {DRIVING}")
    # All of them take four seconds, and ours are in one.
    monkeypatch.setattr(sweep, "enabled_regions", lambda *_, **__: ("us-east-1",))
    return instance


def _told(self, command, **_):
    """Answer as a student can who is root there."""
    assert ["gpulab-agent", "status"] == list(command)
    phase = {"name": f"data {DRIVING}", "state": "failed", "message": f"no\n{DRIVING}"}
    status = {
        "version": 1,
        "at": "2026-11-16T09:10:00Z",
        "phases": [phase],
        "gpu": [{"name": DRIVING}],
        "keep": {"failed": [f"{DRIVING} {FORGED}"], "skipped": [{"path": "a", "reason": FORGED}]},
    }
    return Completed(0, json.dumps(status).encode(), "")


def shown(capsys, *arguments):
    capsys.readouterr()
    code = run(list(arguments))
    said = capsys.readouterr()
    return code, said.out + said.err


def weak_and_ours(capsys, *arguments):
    """Run one command twice: with the filter taken out, and as it is."""
    # Ours first: a module that was imported meanwhile would keep the hole.
    code, ours = shown(capsys, *arguments)
    with unfiltered():
        other, weak = shown(capsys, *arguments)
    assert code == other
    assert "unexpected" not in ours + weak
    return weak, ours


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls",),
        ("ls", "--quick", "--csv"),
        ("show", "INSTANCE"),
        ("logs", "INSTANCE"),
        ("logs", "INSTANCE", "--console"),
        ("sweep",),
        ("sweep", "--csv"),
    ],
    ids=" ".join,
)
def test_no_command_lets_an_instance_drive_the_terminal(hostile, capsys, arguments):
    """A tag or an agent can clear the screen, forge a line, or fill the clipboard with a command (OSC 52)."""
    words = [hostile if word == "INSTANCE" else word for word in arguments]

    weak, ours = weak_and_ours(capsys, *words)

    assert {"\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)
    assert "52;c;cm0gLXJmIH4=" in ours


def test_an_agent_forges_no_line_of_show(hostile, capsys):
    """What is left out and why are the instance's words; a line that begins as one of ours does would be read as ours."""
    weak, ours = weak_and_ours(capsys, "show", hostile)

    assert 1 <= len(re.findall("^error: your key", weak, re.M))
    assert [] == re.findall("^error: your key", ours, re.M)
    assert "error: your key was stolen" in ours


def test_the_watched_list_is_drawn_through_the_filter(hostile, capsys, monkeypatch):
    """`ls -w` writes its own control characters, so nobody would see a stranger's among them."""
    own = re.compile(r"\x1b\[[KHJ]|^\x1b\[2J")
    monkeypatch.setattr(Context, "sleep", staticmethod(_interrupted))

    def watched():
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        code, text = shown(capsys, "ls", "-w")
        return code, own.sub("", text)

    ours = watched()
    with unfiltered():
        weak = watched()

    assert (130, 130) == (weak[0], ours[0])
    assert {"\x9b", "\u202e"} <= set(drives(weak[1]))
    assert [] == drives(ours[1])
    assert "52;c;cm0gLXJmIH4=" in ours[1]


def _interrupted(_seconds):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments",
    [("stop", DRIVING, "--yes"), ("up", DRIVING, "--dry-run"), ("show", DRIVING), (DRIVING,)],
    ids=["stop", "up", "show", "command"],
)
def test_what_was_typed_or_pasted_is_not_obeyed_when_it_is_refused(capsys, arguments):
    """A name copied from a page is quoted in the refusal."""
    weak, ours = weak_and_ours(capsys, *arguments)

    assert {"\x1b", "\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)
    assert "52;c;cm0gLXJmIH4=" in ours


@pytest.mark.parametrize("arguments", [("ls",), ("sweep",), ("up", "week4", "--yes")], ids=" ".join)
def test_what_aws_answers_with_drives_nothing(sandbox, capsys, monkeypatch, arguments):
    """Whoever answers in AWS's place, such as a proxy of the campus, chooses the code that we show."""
    monkeypatch.setattr(sweep, "enabled_regions", lambda *_, **__: ("us-east-1",))
    sandbox.refuse("DescribeInstances", SENT, message=f"bad {SENT} value", status=400)

    weak, ours = weak_and_ours(capsys, *arguments)

    assert {"\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)
    assert "52;c;cm0gLXJmIH4=" in ours


def test_the_report_of_an_unexpected_failure_drives_nothing(capsys, monkeypatch):
    """It is read with `cat`, and an exception quotes what it failed on, even what could not be written as UTF-8."""
    errors = Home.of(os.environ).errors
    monkeypatch.setattr("sys.stdin", _Broken())

    def kept():
        code = run(["init", "--paste"])
        (file,) = errors.iterdir()
        text = file.read_text(encoding="utf-8")
        file.unlink()
        return code, text

    ours = kept()
    with unfiltered():
        weak = kept()
    monkeypatch.setattr(_Broken, "text", "\udc80")
    lone = kept()

    assert (1, 1, 1) == (weak[0], ours[0], lone[0])
    assert {"\x1b", "\x9b", "\u202e"} <= set(drives(weak[1]))
    assert [] == drives(ours[1]) + drives(lone[1])
    assert "RuntimeError: cannot read" in ours[1]
    assert "RuntimeError: cannot read �" in lone[1]


class _Broken:
    text = DRIVING

    def read(self, size=-1):
        raise RuntimeError(f"cannot read {self.text}")

    def isatty(self):
        return False


# -- classes ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path, monkeypatch, capsys):
    """A course in one account, with a roster of one row that says who is in it."""
    folder = tmp_path / "course"
    run(["course", "new", str(folder), "--shared"])
    plan = (folder / "course.toml").read_text()
    plan = plan.replace('"eu-west-1", "eu-central-1"', '"us-east-1"')
    (folder / "course.toml").write_text(plan)
    monkeypatch.setenv("GPULAB_COURSE", str(folder))

    def enter(**cells):
        row = {"id": "s1", "name": "Ann", "email": "a@b.example", "group": "g1", **cells}
        with (folder / "roster.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, row)
            writer.writeheader()
            writer.writerow(row)
        return folder

    return enter


@pytest.mark.parametrize("column", ["id", "email"])
def test_a_roster_drives_nothing(course, capsys, column):
    """Students choose how their name is written; what is wrong with it is quoted in a teacher's terminal."""
    course(**{column: DRIVING})

    weak, ours = weak_and_ours(capsys, "course", "check")

    assert {"\x1b", "\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)
    assert f"roster.csv:2: `{column}` holds characters that cannot be seen" in ours


def test_a_rosters_cell_begins_no_line_of_its_own(course, capsys):
    """A cell in quotes may hold a line break; below it stands what looks like a word of gpulab's."""
    course(id=FORGED)

    weak, ours = weak_and_ours(capsys, "course", "check")

    assert 1 == len(re.findall("^error: your key", weak, re.M))
    assert [] == re.findall("^error: your key", ours, re.M)
    assert "error: your key was stolen` cannot be an id" in ours


def test_a_hostile_roster_goes_no_further(course, capsys):
    """Whoever cannot be seen in the teacher's list is in no lab: the filter is the second wall, not the first."""
    course(name=f"Ann {DRIVING}")

    code, text = shown(capsys, "course", "show")

    assert (2, []) == (code, drives(text))
    assert "1 problem" in text


@pytest.mark.parametrize(
    "arguments", [("ls",), ("ls", "--csv"), ("watch",)], ids=lambda words: " ".join(words)
)
def test_no_instance_of_a_class_drives_its_teachers_terminal(
    course, sandbox, capsys, monkeypatch, arguments
):
    """Thirty students are root on what this table asks."""
    home, folder = Home.of(os.environ), course()
    room = read_classroom(home, folder)
    lab = room.course.labs[0]
    (seat,) = seats_of(room.course, lab, room.roster.students, secret=room.secret)
    assert seat.owner == owner_id("a@b.example", secret=room.secret)
    instance = launch(
        name=seat.name, owner=seat.owner, course=room.course.id, lab=lab.id, launch="l1", env=SENT
    )
    sandbox.advance(90)
    known = home.folder("default").known_hosts
    hostkeys.pin(known, instance, [hostkeys.HostKey(bytes(32))])
    monkeypatch.setattr(Host, "run", _told)
    monkeypatch.setattr(Context, "sleep", staticmethod(_interrupted))

    weak, ours = weak_and_ours(capsys, "fleet", arguments[0], lab.id, *arguments[1:])

    assert {"\x1b", "\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)
    assert "52;c;cm0gLXJmIH4=" in ours


# -- all of it ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_written_past_the_filter():
    """One forgotten `print` is a hole; those that write by themselves write only their own words."""
    own = {
        "__main__.py": "the version",
        "cli/completion.py": "a script of click's",
        "cli/ledger.py": "JSON, whose control characters are escaped",
        "cli/logs.py": "`--raw`, which says so",
        "cli/main.py": "click's own usage, and a closed pipe",
        "view/console.py": "the filter itself",
        "remote/instance_side.py": "a program on the instance",
        "remote/paramiko_link.py": "between two of our processes",
    }
    writing = re.compile(
        r"\bprint\(|click\.s?echo\(|sys\.std(?:out|err)\.(?:write|buffer)|\.(?:out|err)\.write\b"
    )
    package = CHECKOUT / "src" / "gpulab"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in ("agent", "sandbox")
        and writing.search(path.read_text(encoding="utf-8"))
    }

    assert set(own) == found
