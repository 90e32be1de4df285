"""What one look says about an instance that AWS has taken for a class: wait on, or not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from gpulab.errors import GpulabError, NotFound
from gpulab.launch.protocol.outcome import STILL_PENDING, UNLISTED, still_pending
from gpulab.model.instance import Instance, State

# Looks follow each other sooner than this, unless some were not answered.
_A_LOOK = timedelta(seconds=20)


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


def running_since(
    instance: Instance,
    *,
    asked_at: datetime,
    pending_at: datetime | None,
    now: datetime,
    is_adopted: bool,
) -> datetime:
    """
    Say since when an instance runs that is seen running now; where looks were not answered before, since when it may have: no dollar is unknown.

    Args:
        asked_at: When AWS took the launch, by this computer's clock, as all but the instance's own times.
        pending_at: When a look last showed it pending; `None` where none did.
        is_adopted: Whether an earlier command had made it, so that `asked_at` says nothing of its age.
    """
    if is_adopted and pending_at is None:
        return instance.launched_at
    last = pending_at or asked_at
    since = now if now - last <= _A_LOOK else last
    # By the clock of AWS where this command asked for it: this computer's may be minutes off, its seconds are not.
    return since if is_adopted else instance.launched_at + (since - asked_at)


def _vanished(instance: Instance) -> GpulabError:
    return NotFound(f"EC2 does not show {instance.id} any more", hint=_AGAIN)


_AGAIN = "Run it again"
