"""What one look says about an instance that AWS has taken for a class: wait on, or not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from gpulab.errors import GpulabError, NotFound
from gpulab.launch.protocol.outcome import STILL_PENDING, UNLISTED, still_pending
from gpulab.model.instance import Instance, State


class Verdict(Enum):
    """What follows for one instance; nobody waits for one that is given up, which may be alive all the same."""

    WAIT = auto()
    RUNS = auto()
    ENDED = auto()
    GIVEN_UP = auto()


@dataclass(frozen=True)
class Judged:
    """
    A verdict and what it rests on.

    Attributes:
        seen: The instance as the look showed it; `None` where it did not.
        error: Why nobody waits any longer; with `GIVEN_UP` only.
    """

    verdict: Verdict
    seen: Instance | None = None
    error: GpulabError | None = None


def judge(
    instance: Instance, said: Mapping[str, Instance] | GpulabError, *, waited: timedelta
) -> Judged:
    """
    Decide about one instance after a look.

    Args:
        said: What the look showed, by id, or why it failed.
        waited: For how long, since AWS took the launch.
    """
    seen = None if isinstance(said, GpulabError) else said.get(instance.id)
    if seen is None:
        if waited < UNLISTED:
            return Judged(Verdict.WAIT)
        error = said if isinstance(said, GpulabError) else _vanished(instance)
        return Judged(Verdict.GIVEN_UP, error=error)
    if seen.state is State.PENDING:
        if waited < STILL_PENDING:
            return Judged(Verdict.WAIT, seen)
        error = still_pending(seen)
        error = error.reworded(error.message, hint=_AGAIN)
        return Judged(Verdict.GIVEN_UP, seen, error)
    return Judged(Verdict.RUNS if seen.state is State.RUNNING else Verdict.ENDED, seen)


def _vanished(instance: Instance) -> GpulabError:
    return NotFound(f"EC2 does not show {instance.id} any more", hint=_AGAIN)


_AGAIN = "Run it again"
