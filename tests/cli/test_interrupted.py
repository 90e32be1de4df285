"""What Ctrl-C leaves behind: a student must read what goes on costing, and the words that end it, before the terminal is closed."""

from __future__ import annotations

import base64
import os
import re
from datetime import UTC, datetime

import pytest

from gpulab.cli.main import run
from gpulab.fleet.ticket import Ticket, write_ticket
from gpulab.launch.events import Launched, Repeating, WaitingFor
from gpulab.launch.running import stop as stopping
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.store.config import change_profile
from gpulab.store.home import Home
from gpulab.view.events import Teller


@pytest.fixture
def sandbox():
    """A ready account whose clock runs."""
    with Sandbox(clock=RunningClock()) as opened:
        yield opened


def interrupted_at(monkeypatch, kind):
    """Press Ctrl-C in the moment an event is told."""
    tell = Teller.tell

    def heard(teller, event):
        tell(teller, event)
        if isinstance(event, kind):
            raise KeyboardInterrupt

    monkeypatch.setattr(Teller, "tell", heard)


def test_up_says_what_runs_and_what_ends_it(sandbox, capsys, monkeypatch):
    """From the launch on it costs; "nothing is lost" would let a GPU run all night."""
    interrupted_at(monkeypatch, Launched)

    code = run(["up", "week4", "--yes", "--no-open", "--cidr", "203.0.113.7/32"])

    (made,) = [i["InstanceId"] for i in sandbox.instances("pending", "running")]
    said = capsys.readouterr().err
    assert 130 == code
    assert re.search(rf"hint: week4 \({made}\) runs and costs \$0\.\d+/h, disk and address", said)
    assert "`gpulab up week4` goes on, `gpulab stop week4` ends it" in said


def test_up_before_any_launch_says_that_nothing_was_launched(sandbox, capsys, monkeypatch):
    """Whoever thinks better of the question need not look for what runs."""
    monkeypatch.setattr("gpulab.launch.up.Attempts.run", _pressed)

    code = run(["up", "week4", "--yes", "--no-open", "--cidr", "203.0.113.7/32"])

    assert (130, []) == (code, list(sandbox.instances("pending", "running")))
    assert "hint: nothing was launched; `gpulab up week4` goes on" in capsys.readouterr().err


@pytest.mark.parametrize("gpu", ["T4", "L4"], ids=["asked again", "looked for"])
def test_up_says_that_a_resumed_launch_may_run(sandbox, capsys, monkeypatch, gpu):
    """The answer to the first command was lost; whoever gives up on the second must not take that for nothing."""
    up = ["up", "week4", "--yes", "--no-open", "--cidr", "203.0.113.7/32", "--region", "us-east-1"]
    sandbox.lose_reply("RunInstances", times=None)
    monkeypatch.setattr("gpulab.launch.protocol.asking._TRIES", 2)
    first = run([*up, "--gpu", "T4"])
    monkeypatch.setattr("gpulab.launch.protocol.resuming.look_up", lambda context, intent: None)
    interrupted_at(monkeypatch, Repeating | WaitingFor)

    code = run([*up, "--gpu", gpu])

    said = capsys.readouterr().err
    assert (1, 130) == (first, code)
    assert (
        "hint: week4 may have been launched by an earlier command and cost: `gpulab up week4` goes on, `gpulab stop week4` ends it"
        in said
    )


def test_stop_says_that_it_runs_on(sandbox, capsys, monkeypatch):
    """Saving takes its time; who gives up must not take the instance for ended."""
    interrupted_at(monkeypatch, Launched)
    run(["up", "week4", "--yes", "--no-open", "--cidr", "203.0.113.7/32"])
    monkeypatch.setattr(stopping, "stop", _pressed)

    code = run(["stop", "week4"])

    assert 130 == code
    said = capsys.readouterr().err
    assert "hint: week4 may run on and cost: `gpulab stop week4` saves and ends it" in said


def test_a_class_is_looked_at_with_its_own_command(capsys, monkeypatch):
    """`gpulab ls` shows none of a class's instances to its teacher."""
    monkeypatch.setattr("gpulab.cli.fleet._wish", _pressed)

    code = run(["fleet", "up", "week4"])

    assert 130 == code
    said = capsys.readouterr().err
    assert "`gpulab fleet ls week4` shows it, `gpulab fleet up week4` goes on" in said


def test_closing_a_tickets_tunnel_says_that_the_instance_goes_on(tmp_path, capsys, monkeypatch):
    """A student who closes the lid of the terminal must not believe to have ended the lab."""
    monkeypatch.setattr("gpulab.launch.running.ticket.serve", _pressed)

    code = run(["open", "--ticket", str(_a_ticket(tmp_path))])

    assert 130 == code
    assert capsys.readouterr().err.endswith(
        "error: interrupted\n\nhint: Only the tunnel is closed: the instance goes on,"
        " and the same command opens it again\n"
    )


@pytest.mark.parametrize(
    "also", [["week4"], ["--detach"], ["--close"], ["--tensorboard"]], ids=lambda words: words[0]
)
def test_a_ticket_is_opened_alone(tmp_path, capsys, also):
    """A ticket names its instance, and `--close` beside it would close somebody else's tunnel."""
    code = run(["open", *also, "--ticket", str(_a_ticket(tmp_path))])

    assert 2 == code
    assert (
        "error: `--ticket` stands alone\n\nhint: It keeps the tunnel in this terminal\n"
        == capsys.readouterr().err
    )


def test_a_ticket_that_has_ended_is_refused(tmp_path, capsys):
    """Last week's file is still in the downloads; a tunnel that never comes up would say nothing."""
    code = run(
        ["open", "--ticket", str(_a_ticket(tmp_path, ends_at=datetime(2026, 1, 1, 10, tzinfo=UTC)))]
    )

    said = capsys.readouterr().err
    assert 3 == code
    assert "error: the ticket of week4 ended at 2026-01-01 10:00 UTC" in said
    assert "hint: Ask your teacher for a new one" in said


@pytest.mark.skipif(
    os.name == "nt", reason="not on Windows: the ssh program is a shell script here"
)
def test_a_ticket_whose_key_is_refused_sends_to_the_teacher(tmp_path, capsys, monkeypatch):
    """A student with a ticket has no rights to end or launch anything, which is what others are told then."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    # ssh tells its own troubles in the file behind -E.
    ssh.write_text(
        "#!/bin/sh\nwhile [ $1 != -E ]; do shift; done\n"
        "echo 'ubuntu@198.51.100.7: Permission denied (publickey).' >$2\nexit 255\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=os.pathsep)
    # With a way of its own, ssh alone reaches out; nothing else looks for the port before.
    change_profile(Home.of(os.environ).config_file, "default", {"ssh_proxy_command": ["false"]})

    code = run(["open", "--no-browser", "--ticket", str(_a_ticket(tmp_path))])

    said = capsys.readouterr().err
    assert 1 == code
    assert "does not accept the key id_ed25519 for" in said
    assert "hint: Ask your teacher for a new ticket: this one's key" in said


def _a_ticket(folder, ends_at=datetime(2099, 9, 7, 15, tzinfo=UTC)):
    key = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
    file = folder / "s1.ticket"
    found = Ticket("week4", "i-0123456789abcdef0", "192.0.2.7", "ubuntu", key, "", ends_at)
    file.write_text(write_ticket(found), encoding="utf-8")
    return file


def _pressed(*_args, **_more):
    raise KeyboardInterrupt
