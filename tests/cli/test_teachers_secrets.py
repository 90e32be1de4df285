"""A teacher's day, on a computer whose umask keeps nothing: what lets somebody in is in its own file only, and no file is anybody else's."""

from __future__ import annotations

import base64
import gzip
import os
import random
import stat
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from tests.aws.fleets.instances_that_keep import Machines

from gpulab.cli.main import run
from gpulab.fleet.lab import as_if_now
from gpulab.fleet.seats import seats_of
from gpulab.fleet.ticket import read_ticket
from gpulab.fleets import acting, up
from gpulab.fleets.accounts import Accounts, Outside
from gpulab.fleets.handout import hand_out
from gpulab.fleets.members import members
from gpulab.remote import hostkeys
from gpulab.remote.process import Completed
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.rules import Delays, Rules
from gpulab.store.config import change_profile
from gpulab.store.courses import read_classroom
from gpulab.store.home import Home
from gpulab.view.handout import Handed, handout_html, merge_csv

AT_ONCE = Rules(
    delays=Delays(
        boot=timedelta(0), terminate=timedelta(0), consistency=timedelta(0), role=timedelta(0)
    )
)
NOTEBOOK = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzE" + "a1" * 60


class LetsIn:
    """An instance that takes every key it is told of."""

    def run(self, command: list[str], **_: Any) -> Completed:
        return Completed(0, b"", "")


class Day:
    """What a teacher's computer holds, and what was shown and sent, after each part of a class's day."""

    def __init__(self, sandbox: Sandbox, course: Path, capsys: Any) -> None:
        self.sandbox, self.course, self.capsys = sandbox, course, capsys
        self.home = Home.of(os.environ)
        self.tickets, self.handed_in = course / "tickets", course / "handed-in"
        self.shown = ""
        # No sshd is behind the instances; what is typed must not wait for one.
        change_profile(self.home.config_file, "default", {"ssh_proxy_command": ["false"]})
        outside = Outside(
            home=self.home,
            config=self.home.config(),
            environment=os.environ,
            now=lambda: datetime.now(UTC),
            sleep=lambda _: None,
            random=random.Random(7),
            cidr="203.0.113.0/24",
            connect=lambda _: LetsIn(),
        )
        self.machines = Machines(sandbox, course.with_name("machines"))
        room = read_classroom(self.home, course)
        self.accounts = Accounts(outside, room.course)
        self.lab = as_if_now(room.course.labs[0], datetime.now(UTC))
        self.seats = seats_of(room.course, self.lab, room.roster.students, secret=room.secret)
        self.room = room

    def type(self, *command: str) -> int:
        """Type a command, and keep what it shows."""
        code = run([*command])
        said = self.capsys.readouterr()
        self.shown += said.out + said.err
        return code

    def fleet_up(self) -> None:
        wish = up.Wish(self.room.course, self.lab, self.seats, self.seats, timedelta(hours=12))
        *_, last = up.up(self.accounts, up.plan(self.accounts, wish, may_settle=True))
        assert all(o.instance for o in last.outcomes), last.outcomes
        for n, outcome in enumerate(last.outcomes):
            known = self.accounts.account(outcome.account).context.folder.known_hosts
            hostkeys.pin(known, outcome.instance.id, [hostkeys.HostKey(bytes([n]) * 32)])
            machine = self.machines.boot(outcome.instance.id)
            machine.write("week1/a.ipynb", NOTEBOOK)
            machine.save()

    def hand_out(self) -> None:
        """What `fleet handout` does once it has its instances."""
        found = members(self.accounts, self.lab, self.seats, with_extras=False)
        handed: list[Handed] = []
        outcomes = hand_out(
            self.accounts,
            self.lab,
            found,
            self.tickets,
            with_notebooks=False,
            take=lambda m, t, f: handed.append(Handed(m, t, f)),
        )
        self.shown += "".join(map(repr, outcomes))
        page = handout_html(handed, title=self.lab.title)
        self.shown += page + merge_csv(handed, lab=self.lab.id)

    def collect(self) -> None:
        """What `fleet collect` does with instances that answer."""
        outside = replace(self.accounts.outside, connect=self.machines.connect)
        accounts = Accounts(outside, self.room.course)
        found = members(accounts, self.lab, self.seats, with_extras=False)
        outcomes = list(acting.collect(accounts, found, self.handed_in, is_anonymous=False))
        self.shown += "".join(map(repr, outcomes))
        assert [None] * len(found) == [one.trouble for one in outcomes], outcomes

    def born(self) -> list[bytes]:
        """User data as the simulated EC2 has it, unpacked."""
        client = boto3.client("ec2", region_name="us-east-1")
        found = []
        for instance in self.sandbox.instances():
            told: Any = client.describe_instance_attribute(
                InstanceId=instance["InstanceId"], Attribute="userData"
            )
            raw = base64.b64decode(told["UserData"]["Value"])
            found.append(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw)
        return found

    def holding(self, secret: bytes) -> set[str]:
        """Name all places that hold a secret, plain or written in another way: files, what was shown, what was sent to AWS."""
        text = secret.decode("latin-1")
        forms = {secret, secret.hex().encode(), base64.b64encode(secret)}
        forms |= {quote(text, safe="", encoding="latin-1").encode()}
        roots = (self.home.root, self.course)
        held = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for root in roots
            for path in root.rglob("*")
            if path.is_file()
        }
        held["what was shown"] = self.shown.encode()
        held["what was sent"] = "".join(repr(call.params) for call in self.sandbox.calls).encode()
        held["what instances are born with"] = b"".join(self.born())
        return {name for name, content in held.items() if any(form in content for form in forms)}


def of_a_key(pem: str) -> bytes:
    """A line from the middle of a private key."""
    return pem.splitlines()[2].encode()


def readable_by_others(root: Path) -> set[str]:
    """Name every file and folder that somebody else could read, and every folder that they could look into."""
    return {
        path.relative_to(root).as_posix()
        for path in (root, *root.rglob("*"))
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077
    }


@pytest.fixture
def day(tmp_path, monkeypatch, capsys):
    """A course of two in one account, its teacher signed in, before anything is up."""
    before = os.umask(0)
    with Sandbox(clock=RunningClock(), rules=AT_ONCE) as sandbox:
        known = sandbox.credentials.keys
        mine = known[os.environ["AWS_ACCESS_KEY_ID"]]
        known[mine.access_key] = replace(mine, secret=SECRET_KEY, token=TOKEN)
        for name, value in known[mine.access_key].environment().items():
            monkeypatch.setenv(name, value)
        folder = tmp_path / "dl"
        run(["course", "new", str(folder), "--shared"])
        plan = (folder / "course.toml").read_text()
        plan = plan.replace('"eu-west-1", "eu-central-1"', '"us-east-1"')
        (folder / "course.toml").write_text(plan.replace('"tf2"', '"tf2-small"'))
        people = [f"s{n},N{n},s{n}@x.example,g{n}" for n in range(2)]
        (folder / "roster.csv").write_text("\n".join(["id,name,email,group", *people]))
        monkeypatch.setenv("GPULAB_COURSE", str(folder))
        yield Day(sandbox, folder, capsys)
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: files have no modes")
def test_after_a_classs_day_secrets_are_in_their_own_files_and_files_are_their_teachers(day):
    """A report that is sent around, a log in a question to the forum, a backup: whoever has those must not get into 200 instances."""
    lab = day.lab.id
    day.fleet_up()
    day.hand_out()
    ticket = sorted(day.tickets.glob("*.ticket"))[0]
    private = ticket.read_text().split("PRIVATE KEY-----\\n")[1]
    secrets = {
        "class": day.room.secret,
        "ticket": private.split("\\n")[1].encode(),
        "teacher": of_a_key(next(day.home.root.rglob("id_ed25519")).read_text()),
        "credentials": SECRET_KEY.encode(),
        "session": TOKEN.encode(),
    }
    day.collect()
    to_grade, again = str(day.course / "to-grade"), str(day.course / "again")
    codes = [
        day.type("fleet", "ls", lab),
        day.type("fleet", "ls", lab, "--json"),
        day.type("fleet", "ls", lab, "--csv"),
        day.type("fleet", "collect", lab, again, "--hand-in", to_grade),
        day.type("report", "--json"),
        day.type("report", "--csv"),
        day.type("report", "--html", str(day.course / "report.html")),
        day.type("ledger", "export", str(day.course / "facts.jsonl")),
    ]
    brought = {path.relative_to(day.course).as_posix() for path in day.course.rglob("*.ipynb")}
    held = {name: day.holding(secret) for name, secret in secrets.items()}
    closed = day.type("course", "close", "--yes", "--no-save")
    held_at_last = {name: day.holding(secret) for name, secret in secrets.items()}
    (day.course / "careless.log").write_text(quote(SECRET_KEY, safe=""))
    (day.course / "notes.json").write_bytes(base64.b64encode(day.room.secret))

    # The search sees what is planted, written otherwise too, and looks into tags and what instances are born with.
    assert {"careless.log"} == day.holding(SECRET_KEY.encode())
    assert {"notes.json", "courses/dl/secret"} == day.holding(day.room.secret)
    assert "what was sent" in day.holding(b"gpulab:owner")
    assert "what instances are born with" in day.holding(b"#cloud-config")
    (day.course / "careless.log").unlink()
    (day.course / "notes.json").unlink()
    # The instance's own folder of the key goes when the course is closed; the file that was given out is its student's.
    given = f"courses/dl/tickets/{read_ticket(ticket.read_bytes(), file='').instance_id}/id_ed25519"
    own = {
        "class": {"courses/dl/secret"},
        "ticket": {"tickets/s0.ticket"},
        "teacher": {"profiles/default/keys/id_ed25519"},
        "credentials": set(),
        "session": set(),
    }
    assert ([0] * 8, 0) == (codes, closed), day.shown
    assert {**own, "ticket": {"tickets/s0.ticket", given}} == held
    assert own == held_at_last
    # What is the course's to share: its plan, which names nobody, and what git is to leave out; and the folder that both lie in.
    assert {".", ".gitignore", "course.toml"} == readable_by_others(day.course)
    assert set() == readable_by_others(day.home.root)
    for name in ("handed-in", "again", "to-grade"):
        assert {f"{name}/s0/week1/a.ipynb", f"{name}/s1/week1/a.ipynb"} <= brought


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: files have no modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602], ids=oct)
def test_a_file_or_folder_that_lets_others_in_is_found(tmp_path, mode):
    """A check that sees nothing would pass for ever: every bit counts that is another's, also in a folder that is closed itself."""
    folder = tmp_path / "profiles" / "default"
    folder.mkdir(parents=True, mode=0o700)
    for path in (tmp_path, tmp_path / "profiles"):
        path.chmod(0o700)
    for name in ("private", "loose"):
        (folder / name).write_text("a key")
        (folder / name).chmod(0o600)
    before = readable_by_others(tmp_path)

    (folder / "loose").chmod(mode)
    with_a_file = readable_by_others(tmp_path)
    folder.chmod(mode | 0o100)
    with_a_folder = readable_by_others(tmp_path)

    assert set() == before
    assert {"profiles/default/loose"} == with_a_file
    assert {"profiles/default/loose", "profiles/default"} == with_a_folder
