"""`gpulab check` on the laptop: the table, the JSON, the exit code, and the words of an instance nobody may trust."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpulab.cli.main import run
from gpulab.errors import CommandFailed
from gpulab.launch.running import checking, instances
from gpulab.remote.process import Completed

GOOD = {"name": "driver", "state": "ok", "text": "Tesla T4, 595.71.05", "seconds": 0.1}
BAD = {"name": "gpu", "state": "failed", "text": "TensorFlow does not see the GPU", "seconds": 3.0}
NONE = {"name": "gpu memory", "state": "skipped", "text": "no GPU", "seconds": 0.0}


class Said:
    """An instance that answers the check with given lines."""

    def __init__(self, *rows):
        self.lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.given = b""

    def run(self, command, *, given=b"", **_more):
        self.given = given
        return Completed(0, "\n".join(self.lines).encode(), "")


@pytest.fixture
def up(student, monkeypatch):
    """One instance that is up; returns what makes it answer."""
    instance = student.up().instance
    monkeypatch.setattr(instances, "find", lambda context, name: instance)

    def answer(*rows):
        host = Said(*rows)
        monkeypatch.setattr("gpulab.launch.context.Context.host", lambda self, target: host)
        return host

    return answer


def test_the_table_has_a_line_for_each_check(up, capsys):
    """A student reads three columns, not a log."""
    up(GOOD, NONE)

    code = run(["check"])

    out = capsys.readouterr().out
    assert 0 == code
    assert [
        "    CHECK       FOUND                 TOOK",
        "ok  driver      Tesla T4, 595.71.05  0.1 s",
        "-   gpu memory  no GPU               0.0 s",
    ] == out.splitlines()


def test_a_failure_is_loud_and_exits_with_5(up, capsys):
    """A script that prepares a class must stop here."""
    up(GOOD, BAD)

    code = run(["check"])

    captured = capsys.readouterr()
    assert 5 == code
    assert "FAILED  gpu     TensorFlow does not see the GPU  3.0 s" in captured.out
    assert "error: 1 of 2 checks failed: gpu" in captured.err


def test_json_has_the_same(up, capsys):
    """Keys that scripts rely on."""
    up(GOOD)

    run(["check", "--json"])

    told = json.loads(capsys.readouterr().out)
    assert ["instance", "checks"] == list(told)
    assert [GOOD] == told["checks"]


def test_what_is_run_is_the_check_of_the_instances_environment(up, student):
    """tf2-small has no TensorFlow; asking for it would be a failure that is none."""
    host = up(GOOD)
    instance = student.up().instance

    checking.check(student.context, instance)

    assert b"CHECKS = (_numpy, _matplotlib)" in host.given
    assert b"tensorflow" not in host.given


def test_an_instance_of_an_unknown_environment_is_still_checked(up, student):
    """Another computer's course environment is not here; driver and disk can be checked all the same."""
    host = up(GOOD)
    instance = replace(student.up().instance, environment="theirs")

    checking.check(student.context, instance)

    assert b"CHECK = ''" in host.given


@pytest.mark.parametrize("row", ["Traceback", "[]", '{"name": "x"}', ""])
def test_words_that_are_no_answer_are_an_error_and_no_traceback(up, student, row):
    """The instance belongs to a student and may say anything."""
    up(row)
    instance = student.up().instance

    with pytest.raises(CommandFailed):
        checking.check(student.context, instance)
