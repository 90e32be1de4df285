"""Acting on a whole class: one result each, one failure never stops the rest, nothing unsaved is ended."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from gpulab.errors import Unreachable
from gpulab.fleets import acting
from gpulab.fleets.members import members
from gpulab.model.fleet import Result
from gpulab.remote import copying, hostkeys
from gpulab.remote.copying import CopyReport
from gpulab.remote.process import Completed
from gpulab.view.fleet_members import rows_of, totals_text

STATUS = (
    b'{"version": 1, "at": "2026-11-16T09:10:00Z", "phases": [], "deadline": "2026-11-16T13:10:00Z",'
    b' "idle_minutes": 60, "spent_usd": "0.12", "gpu": [], "jupyter": {"port": 8888, "ready": true}}'
)


class FakeHost:
    """An instance over ssh that answers from a table; the dead one answers nothing."""

    busy = most = 0
    lock = threading.Lock()

    def __init__(self, target, dead):
        self.target, self.dead = target, dead

    def run(self, command, **_):
        with FakeHost.lock:
            FakeHost.busy += 1
            FakeHost.most = max(FakeHost.most, FakeHost.busy)
        try:
            return self._answer(list(command))
        finally:
            with FakeHost.lock:
                FakeHost.busy -= 1

    def _answer(self, command):
        if self.target.instance_id in self.dead:
            raise Unreachable("no answer", hint="Look at the console")
        if command == ["gpulab-agent", "status"]:
            return Completed(0, STATUS, "")
        if command[0] == "false":
            return Completed(1, b"", "it is false\n")
        if command[:2] == ["bash", "-c"]:
            return Completed(2, b"", "")
        return Completed(0, f"{self.target.instance_id}\n".encode(), "")


@pytest.fixture
def up(make_class, sandbox):
    """Three students with running instances whose host keys are pinned, and the way to act on them."""
    klass = make_class(3)
    run = klass.up()
    dead = set()
    accounts = klass.accounts(connect=lambda target: FakeHost(target, dead))
    folder = accounts.account(run.outcomes[0].account).context.folder
    for n, outcome in enumerate(run.outcomes):
        key = hostkeys.HostKey(bytes([n]) * 32)
        hostkeys.pin(folder.known_hosts, outcome.instance.id, [key])
    wish = klass.wish()
    return (
        klass,
        accounts,
        lambda: members(accounts, wish.lab, wish.everyone, with_extras=True),
        dead,
    )


def test_members_are_read_in_one_call_and_name_who_is_missing(up, sandbox):
    """The next day it shows zero, and one call said so."""
    klass, _, look, _ = up
    sandbox.interrupt(look()[1].instance.id, in_seconds=1)
    sandbox.advance(seconds=200)
    look()  # the first one also writes down that it has ended
    calls = len(sandbox.calls)

    found = look()

    assert [True, False, True] == [m.instance is not None for m in found]
    assert ["DescribeInstances"] == klass.operations(calls)


def test_a_command_runs_on_each_and_the_dead_one_is_named(up):
    """One hung instance must not hide what the others said."""
    _, accounts, look, dead = up
    found = look()
    dead.add(found[1].instance.id)
    said = {}

    outcomes = list(
        acting.run(
            accounts,
            found,
            ["hostname"],
            timeout_s=5,
            take=lambda m, c, t: said.update({m.label: t}),
        )
    )

    assert {"s000000": f"{found[0].instance.id}\n", "s000002": f"{found[2].instance.id}\n"} == said
    failed = [o for o in outcomes if o.is_failed]
    assert [("s000001", "no answer", "Look at the console")] == [
        (o.seat.label, o.trouble.message, o.trouble.hint) for o in failed
    ]


def test_a_command_that_fails_says_its_code_and_its_last_line(up):
    """`exec` is how a teacher finds out who forgot to install something."""
    _, accounts, look, _ = up

    outcomes = list(acting.run(accounts, look()[:1], ["false"], timeout_s=5, take=lambda *_: None))

    assert ["`false` ended with 1: it is false"] == [o.trouble.message for o in outcomes]


def test_a_silent_line_of_shell_that_fails_is_named_whole(up):
    """`bash` ended with 2 would tell nobody what was typed."""
    _, accounts, look, _ = up
    line = ["bash", "-c", "ls | grep x"]

    outcomes = list(acting.run(accounts, look()[:1], line, timeout_s=5, take=lambda *_: None))

    assert ["`ls | grep x` ended with 2"] == [o.trouble.message for o in outcomes]


def test_a_single_file_is_sent_as_it_is_and_a_folder_with_what_is_in_it(up, tmp_path, monkeypatch):
    """The solution comes at half past four, and lies among what is not for students."""
    _, accounts, look, _ = up
    (tmp_path / "solution.ipynb").write_text("{}")
    sent = []

    def push(host, source, destination, *, only):
        sent.append((source, destination, only))
        return CopyReport(1, 2, 0, (), (), 1, "", "tar")

    monkeypatch.setattr(copying, "push", push)

    for source, into in ((tmp_path / "solution.ipynb", ""), (tmp_path, "data")):
        outcomes = list(acting.push(accounts, look()[:1], source, into=into))
        assert ["1 file sent, 1 verified by hash"] == [outcome.detail for outcome in outcomes]

    assert [(tmp_path, "work", ["solution.ipynb"]), (tmp_path, "work/data", [])] == sent


def test_an_instance_that_cannot_be_saved_runs_on(up, sandbox):
    """Ending it would lose an afternoon of somebody's work."""
    klass, accounts, look, dead = up
    found = look()
    dead |= {m.instance.id for m in found}

    outcomes = list(acting.stop(accounts, found, save=True))

    assert {Result.FAILED} == {o.result for o in outcomes}
    assert "so it runs on" in outcomes[0].trouble.message
    assert klass.names() == klass.live()


@pytest.fixture
def off(make_class, sandbox, ec2):
    """Two students on demand, one of whose instances AWS has stopped: its disk holds the afternoon."""
    klass = make_class(2)
    sandbox.set_quota("L-3819A6DF", "us-east-1", 0)
    sandbox.set_quota("L-DB2E81BA", "us-east-1", 64)
    run = klass.up(on_demand=True)
    sandbox.advance(120)
    ec2.stop_instances(InstanceIds=[run.outcomes[0].instance.id])
    sandbox.advance(120)
    return klass, klass.accounts(), run.outcomes[0]


def test_a_stopped_instance_is_its_students(off):
    """Read as an extra it could be ended by nobody's name, and `ls` would say that its student has none."""
    klass, accounts, _ = off
    wish = klass.wish()

    found = members(accounts, wish.lab, wish.everyone, with_extras=True)

    assert ["s000000", "s000001"] == [m.label for m in found]
    assert [True, False] == [m.is_off for m in found]
    said = totals_text(rows_of(found, {}, {}))
    assert "1 stopped, 1 running, 1 in trouble" == said


@pytest.mark.parametrize("act", ["run", "stop", "collect"])
def test_what_cannot_be_done_to_a_stopped_instance_names_the_command_that_ends_it(
    off, act, tmp_path
):
    """Named for one student: the same command without `--only` would throw away everybody's work."""
    klass, accounts, stopped = off
    wish = klass.wish("s000000")
    found = members(accounts, wish.lab, wish.seats, with_extras=False)
    acts = {
        "run": lambda: acting.run(accounts, found, ["true"], timeout_s=5, take=lambda *_: None),
        "stop": lambda: acting.stop(accounts, found, save=True),
        "collect": lambda: acting.collect(accounts, found, tmp_path, is_anonymous=False),
    }

    (outcome,) = acts[act]()

    command = f"`gpulab fleet stop {wish.lab.id} --only {stopped.name} --no-save` ends it"
    assert command in outcome.trouble.hint
    assert wish.seats == klass.wish(stopped.name).seats


def test_who_gives_up_the_work_of_a_stopped_instance_ends_it(off, sandbox):
    """`fleet up` launches nothing beside it, so that its student would sit there without any."""
    klass, accounts, stopped = off
    wish = klass.wish("s000000")
    found = members(accounts, wish.lab, wish.seats, with_extras=False)

    (outcome,) = acting.stop(accounts, found, save=False)

    assert (Result.ENDED, stopped.instance.id) == (outcome.result, outcome.instance.id)
    assert [] == sandbox.instances("stopped")
    assert 1 == len(klass.live())


def test_stopping_without_saving_ends_all(up):
    """The end of a rehearsal."""
    klass, accounts, look, _ = up

    outcomes = list(acting.stop(accounts, look(), save=False))

    assert {Result.ENDED} == {o.result for o in outcomes}
    assert [] == klass.live()


def test_an_extension_moves_everybodys_tag(up, sandbox):
    """The lecture ran late."""
    _, accounts, look, _ = up
    until = sandbox.now() + timedelta(hours=6)

    outcomes = list(acting.extend(accounts, look(), new_end=lambda _: until))

    assert {Result.DONE} == {o.result for o in outcomes}
    assert {until.replace(microsecond=0)} == {m.instance.expires_at for m in look()}


def test_statuses_come_from_the_agents(up):
    """The live screen: dollars and GPU use as the instances themselves know them."""
    _, accounts, look, dead = up
    found = look()
    dead.add(found[0].instance.id)
    taken = {}

    outcomes = list(
        acting.statuses(accounts, found, take=lambda m, s: taken.update({m.label: s.spent_usd}))
    )

    assert ["0.12", "0.12"] == [str(v) for v in taken.values()]
    assert ["no answer"] == [o.trouble.message for o in outcomes if o.trouble]


def test_no_more_than_thirty_two_at_once(up):
    """A laptop has only so many processes and sockets."""
    _, accounts, look, _ = up
    FakeHost.most = 0

    list(acting.run(accounts, look() * 20, ["hostname"], timeout_s=5, take=lambda *_: None))

    assert 1 <= FakeHost.most <= 32


def test_an_account_that_cannot_be_read_is_a_failure_not_an_absence(up, sandbox):
    """To know that nothing runs and not to know are different news on the bill."""
    _, accounts, look, _ = up
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", status=403, times=None)

    outcomes = list(acting.stop(accounts, look(), save=False))

    assert 3 == len(outcomes)
    assert all("ec2:DescribeInstances" in o.trouble.message or o.trouble.code for o in outcomes)


@pytest.mark.parametrize(
    ("label", "is_safe"),
    [("s171000", True), ("g1", True), ("../x", False), ("Gruppe Ø/1", False), ("con", False)],
)
def test_folders_of_collected_work_are_safe_names(up, label, is_safe):
    """A group's name is free text from a spreadsheet."""
    from dataclasses import replace

    member = up[2]()[0]
    member = replace(member, seat=replace(member.seat, label=label))

    name = acting.folder_name(member, is_anonymous=False)

    assert is_safe is (name == label)
    assert name == Path(name).name
    assert member.seat.owner == acting.folder_name(member, is_anonymous=True)
