"""
When the work in a collected folder was the student's newest, so that an older copy never replaces it.

Two clocks say when: the instance's, by which it keeps work in the bucket by itself, and this computer's, by which `stop` saves here. The
two may be an hour apart, so each copy is compared by the clock it was made by.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpulab.errors import RemoteError
from gpulab.launch.context import Context
from gpulab.launch.running import agent
from gpulab.model.moment import read_moment
from gpulab.remote.host import Host


@dataclass(frozen=True)
class Collected:
    """
    When a folder was collected over ssh.

    Attributes:
        at: By the instance's clock.
        here_at: By this computer's.
    """

    at: datetime
    here_at: datetime


def starting(context: Context, host: Host) -> Collected:
    """
    Say when a collection over ssh begins.

    An agent that does not answer keeps nothing any more, either; then this computer's clock is good enough.
    """
    now = context.now()
    try:
        return Collected(agent.status(host).at, now)
    except RemoteError:
        return Collected(now, now)


def remember(context: Context, into: Path, collected: Collected) -> None:
    """
    Write down when a folder was collected over ssh.

    Raises:
        StoreError: It cannot be written.
    """
    said = f"{collected.at.isoformat()} {collected.here_at.isoformat()}"
    context.notes.write({_key(into): said})


def recall(context: Context, into: Path) -> Collected | None:
    """
    Return when what is in a folder now was collected over ssh; `None` if it never was, or was moved away since.

    Raises:
        StoreError: The notes cannot be read.
    """
    if not into.is_dir() or not any(into.iterdir()):
        return None
    at, _, here_at = (context.notes.read(_key(into)) or "").partition(" ")
    both = read_moment(at), read_moment(here_at)
    return Collected(both[0], both[1]) if both[0] and both[1] else None


def _key(into: Path) -> str:
    return f"collected/{into.resolve()}"
