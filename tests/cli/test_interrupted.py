"""What Ctrl-C leaves behind: a student must read what goes on costing, and the words that end it, before the terminal is closed."""

from __future__ import annotations

import re

import pytest

from gpulab.cli.main import run
from gpulab.launch.events import Launched
from gpulab.launch.running import stop as stopping
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
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


def _pressed(*_args, **_more):
    raise KeyboardInterrupt
