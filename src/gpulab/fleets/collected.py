"""
What is in a collected folder, and since when, so that an older copy never replaces it, nor an instance that never got it.

Two clocks say when: the instance's, by which it keeps work in the bucket by itself, and this computer's, by which `stop` saves here. The
two may be an hour apart, so each copy is compared by the clock it was made by.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpulab.errors import RemoteError
from gpulab.launch.context import Context
from gpulab.launch.running import agent, lineage
from gpulab.model.moment import read_moment
from gpulab.remote import copying
from gpulab.remote.host import Host


@dataclass(frozen=True)
class Collected:
    """
    When a folder was collected over ssh.

    Attributes:
        instance_id: From which instance.
        at: By the instance's clock.
        here_at: By this computer's.
    """

    instance_id: str
    at: datetime
    here_at: datetime


def starting(context: Context, host: Host, instance_id: str) -> Collected:
    """
    Say when a collection over ssh begins.

    An agent that does not answer keeps nothing any more, either; then this computer's clock is good enough.
    """
    now = context.now()
    try:
        return Collected(instance_id, agent.status(host).at, now)
    except RemoteError:
        return Collected(instance_id, now, now)


def remember(context: Context, into: Path, collected: Collected) -> None:
    """
    Write down when a folder was collected over ssh.

    Raises:
        StoreError: It cannot be written.
    """
    moments = (collected.at.isoformat(), collected.here_at.isoformat())
    said = " ".join((collected.instance_id, *moments))
    context.notes.write({_key(into): said})


def recall(context: Context, into: Path) -> Collected | None:
    """
    Return when what is in a folder now was collected over ssh; `None` if it never was, or was moved away since.

    Raises:
        StoreError: The notes cannot be read.
    """
    if not into.is_dir() or not any(into.iterdir()):
        return None
    said = context.notes.read(_key(into))
    if said is None:
        return None
    instance_id, *moments = said.split(" ")
    at, here_at = (read_moment(moment) for moment in moments)
    return Collected(instance_id, at, here_at) if at and here_at else None


def put_aside(context: Context, host: Host, instance_id: str, into: Path) -> Path | None:
    """
    Copy what is in a folder, and otherwise on an instance that has still to get it, into a folder beside it.

    Such an instance may have no more than the notebooks as they are handed out.

    Returns:
        The folder beside it; `None` where there was nothing to copy.

    Raises:
        RemoteError: The instance does not say what it has.
        StoreError: The notes cannot be read, or the files not be copied.
    """
    if not into.is_dir() or not lineage.is_owed(context, instance_id):
        return None
    before = recall(context, into)
    if before is not None and before.instance_id == instance_id:
        return None
    different = copying.verify(host, "work", into).different
    return lineage.put_aside(into, different, before=instance_id)


def _key(into: Path) -> str:
    return f"collected/{into.resolve()}"
