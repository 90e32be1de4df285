"""From `running` to an open JupyterLab: the host key AWS vouches for, then ssh, then the agent's phases."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpulab.errors import CommandFailed, HostKeyMismatch, LoginRefused, NoCapacity, Unreachable
from gpulab.launch.events import (
    HostKeyPinned,
    LoggedIn,
    PhaseChanged,
    Ready,
    Restored,
    WaitingFor,
    Warned,
)
from gpulab.launch.running import booting
from gpulab.remote import hostkeys
from gpulab.remote.process import Completed


class FakeHost:
    """An instance whose login and status answers are a script; the last answer stays."""

    def __init__(self, *, login=(None,), status=()):
        self.login, self.statuses = list(login), list(status)

    def run(self, command, **_more):
        answers = self.login if command == ["true"] else self.statuses
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Completed(0, json.dumps(answer).encode() if answer else b"", "")


def a_status(*phases, ready=False):
    return {
        "version": 1,
        "at": "2026-11-23T12:00:00Z",
        "phases": [{"name": n, "state": s, "seconds": 1.0, "message": m} for n, s, m in phases],
        "jupyter": {"port": 8888, "ready": ready},
    }


def booted(student, host, *, is_new=True):
    instance = student.up().instance
    context = replace(student.context, connect=lambda target: host)
    return instance, context, booting.until_ready(context, instance, is_new=is_new)


def test_the_host_key_of_the_console_is_pinned_before_the_first_connect(sandbox, student):
    """A stranger on the campus network must not become the student's instance."""
    host = FakeHost(status=[a_status(("jupyter", "done", ""), ready=True)])
    instance, context, steps = booted(student, host)

    events = list(steps)

    kinds = [type(e) for e in events]
    assert kinds.index(HostKeyPinned) < kinds.index(LoggedIn)
    pinned = hostkeys.pinned(context.folder.known_hosts, instance.id)
    assert [e.fingerprint for e in events if isinstance(e, HostKeyPinned)] == [
        k.fingerprint for k in pinned
    ]


def test_the_console_is_asked_with_growing_pauses(sandbox, student):
    """AWS allows few console calls per account, and a class asks at once."""
    host = FakeHost(status=[a_status(ready=True)])
    _, _, steps = booted(student, host)

    list(steps)

    asked = student.operations().count("GetConsoleOutput")
    assert 1 <= asked <= 5


def test_each_phase_is_told_once_and_the_last_event_is_ready(sandbox, student):
    """The student watches the start instead of wondering."""
    host = FakeHost(
        login=[Unreachable("not yet"), None],
        status=[
            a_status(("armed", "done", ""), ("jupyter", "running", "")),
            a_status(("armed", "done", ""), ("jupyter", "running", "")),
            a_status(("armed", "done", ""), ("jupyter", "done", "96 packages"), ready=True),
        ],
    )
    _, _, steps = booted(student, host)

    events = list(steps)

    told = [(e.name, e.state) for e in events if isinstance(e, PhaseChanged)]
    assert [("armed", "done"), ("jupyter", "running"), ("jupyter", "done")] == told
    assert ["ssh"] == [e.what for e in events if isinstance(e, WaitingFor) and e.what == "ssh"]
    assert Ready is type(events[-1])


def test_a_failed_step_that_jupyter_needs_stops_the_waiting(sandbox, student):
    """Fifteen minutes of waiting for what will not come cost money and nerves."""
    host = FakeHost(status=[a_status(("jupyter", "failed", "the index did not answer"))])
    _, _, steps = booted(student, host)

    with pytest.raises(CommandFailed) as failure:
        list(steps)

    assert "step jupyter failed on week4: the index did not answer" == failure.value.message
    assert "`gpulab logs` shows why; `gpulab stop` ends it" == failure.value.hint


def test_an_instance_taken_back_while_it_starts_is_told_as_that(sandbox, student):
    """Told as "no answer", it would send the student looking for a network fault."""
    host = FakeHost(login=[Unreachable("no answer")])
    instance, _, steps = booted(student, host)
    sandbox.interrupt(instance.id)

    with pytest.raises(NoCapacity) as failure:
        list(steps)

    assert "AWS took week4 back while it started" == failure.value.message
    assert "`gpulab up week4` launches again" == failure.value.hint


@pytest.mark.parametrize("error", [HostKeyMismatch("another machine"), LoginRefused("no")])
def test_what_waiting_does_not_mend_is_raised_at_once(sandbox, student, error):
    """A mismatch retried is an attacker given another chance."""
    host = FakeHost(login=[error])
    _, _, steps = booted(student, host)

    with pytest.raises(type(error)):
        list(steps)


def test_no_answer_for_eight_minutes_is_told_with_the_last_reason(sandbox, student):
    """The last reason is mostly the cause: a firewall, a wrong address."""
    host = FakeHost(login=[Unreachable("Connection timed out", hint="Try another network")])
    _, _, steps = booted(student, host)

    with pytest.raises(Unreachable) as failure:
        list(steps)

    assert (
        "week4 did not accept a login within 8 min: Connection timed out" == failure.value.message
    )


def test_work_that_cannot_be_brought_back_is_told_and_stops_nothing(sandbox, student):
    """JupyterLab opens all the same; one command repeats the copy."""
    folder = student.context.folder.work / "week4"
    folder.mkdir()
    (folder / "a.ipynb").write_text("cells", encoding="utf-8")
    host = FakeHost(status=[a_status(ready=True)])
    host.start = lambda command: (_ for _ in ()).throw(Unreachable("no answer"))
    _, context, steps = booted(student, host)

    events = list(steps)

    warned = [e.text for e in events if isinstance(e, Warned)]
    assert {} == context.notes.below("has-work/")
    assert [] == [e for e in events if isinstance(e, Restored)]
    assert f"`gpulab push week4 {folder}` repeats it" in warned[0]
    assert Ready is type(events[-1])
