"""`gpulab sandbox start` and `stop` as plays: what runs in the background must be one or none, as wanted."""

from __future__ import annotations

import json

from crash.nursery import Nursery
from crash.plays import Play, must
from crash.stage import Stage

_START = ("sandbox", "start", "--seed", "7")


def plays() -> tuple[Play, ...]:
    """Both."""
    return (
        Play("sandbox start", _START, _prepare, 0, _runs, counted_by=(), rebuilt_by=()),
        Play(
            "sandbox stop",
            ("sandbox", "stop"),
            _prepare,
            0,
            _has_ended,
            first=_started,
            counted_by=(),
            rebuilt_by=(),
        ),
    )


def _prepare(stage: Stage) -> None:
    stage.sandboxes = Nursery(stage.base / "nursery")


def _started(stage: Stage) -> None:
    must(stage.run(*_START))


def _runs(stage: Stage) -> list[str]:
    return _count(stage, 1) + _state(stage, is_running=True)


def _has_ended(stage: Stage) -> list[str]:
    return _count(stage, 0) + _state(stage, is_running=False)


def _count(stage: Stage, wanted: int) -> list[str]:
    """Count the sandboxes of the computer in use; one whose folder was deleted may take a moment to see it."""
    assert stage.sandboxes is not None
    found = stage.sandboxes.alive_soon(stage.home, wanted)
    return [] if len(found) == wanted else [f"{len(found)} sandboxes run, not {wanted}"]


def _state(stage: Stage, *, is_running: bool) -> list[str]:
    ran = stage.run("sandbox", "status", "--json")
    said = json.loads(ran.out)["running"] if ran.code == 0 else ran.err
    return [] if said is is_running else [f"`sandbox status` says running: {said}"]
