"""
Whose work lies in `work/NAME` on this computer, and which instances have got what was kept: what may follow into the folder, and what may
only be laid beside it. Notes, each written before what relies on it; where there is none, both versions are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import count
from pathlib import Path

from gpulab.errors import StoreError, disk_hint
from gpulab.launch.context import Context
from gpulab.model.moment import read_moment
from gpulab.remote.manifest import read_local
from gpulab.store.files import copy_private
from gpulab.store.locks import locked


def filling(folder: Path) -> AbstractContextManager[bool]:
    """
    Be the only one on this computer that puts an instance's work into `work/NAME`, as long as the block lasts.

    A copy that began before another one and ends after it would put older files over newer ones that were compared already.

    Returns:
        A block whose value says whether it is ours; nobody waits here.

    Raises:
        StoreError: The lock cannot be made.
    """
    return locked(folder.parent / ".locks" / folder.name)


def note_has_work(context: Context, instance_id: str) -> None:
    """
    Remember that an instance has what was kept of its name, so that its work may follow into the same folder.

    Raises:
        StoreError: It cannot be written; nothing may follow.
    """
    context.notes.write({_has_work(instance_id): "yes"})


def has_work(context: Context, instance_id: str) -> bool:
    """
    Whether this computer knows that an instance has what was kept of its name.

    Raises:
        StoreError: The notes cannot be read.
    """
    return context.notes.read(_has_work(instance_id)) is not None


def owe(context: Context, instance_id: str) -> None:
    """
    Remember that an instance has still to get what was kept of its seat.

    Raises:
        StoreError: It cannot be written.
    """
    context.notes.write({_owed(instance_id): "yes"})


def is_owed(context: Context, instance_id: str) -> bool:
    """
    Whether an instance has still to get what was kept of its seat.

    Raises:
        StoreError: The notes cannot be read.
    """
    return context.notes.read(_owed(instance_id)) is not None


def settle(context: Context, instance_id: str) -> None:
    """
    Remember that an instance has what was kept of its seat, or that nothing was: both at once, so that no kill parts them.

    Raises:
        StoreError: It cannot be written; it stays owed.
    """
    context.notes.write({_owed(instance_id): None, _has_work(instance_id): "yes"})


def held(context: Context, name: str) -> Mapping[str, datetime | None]:
    """
    Say which instances' work is in `work/NAME`, and as of when; `None` for one of which only a part came.

    Raises:
        StoreError: The notes cannot be read.
    """
    if not (context.folder.work / name).is_dir():
        return {}
    return _read(context.notes.read(_held(name)))


def note_begun(context: Context, name: str, instance_id: str) -> None:
    """
    Remember, before the first file comes, that a part of an instance's work may be in `work/NAME`.

    Raises:
        StoreError: It cannot be written; nothing may come.
    """
    is_there = (context.folder.work / name).is_dir()
    if not is_there or instance_id not in held(context, name):
        _change(context, name, {instance_id: None}, is_there=is_there)


def note_part(context: Context, name: str, instance_id: str) -> None:
    """
    Remember, before files come one by one, that nobody will know as of when they are.

    Raises:
        StoreError: It cannot be written; nothing may come.
    """
    is_there = (context.folder.work / name).is_dir()
    if not is_there or held(context, name).get(instance_id, context.now()) is not None:
        _change(context, name, {instance_id: None}, is_there=is_there)


def note_held(context: Context, name: str, *keys: str, at: datetime) -> None:
    """
    Remember that all of an instance's work, as it was at a moment, is in `work/NAME`.

    Args:
        keys: What the instance is known by: its id, and its launch where the bucket knows only that.

    Raises:
        StoreError: It cannot be written; it will come once more.
    """
    _change(context, name, dict.fromkeys(keys, at), is_there=True)


def put_aside(folder: Path, paths: Iterable[str], *, before: str) -> Path | None:
    """
    Copy files of a folder into one beside it, `NAME-before-INSTANCE`, since what comes now never got them.

    Returns:
        The folder beside it; `None` where there was nothing to copy.

    Raises:
        StoreError: They cannot be copied; they must not be replaced.
    """
    only = sorted(paths)
    if not only:
        return None
    here = read_local(folder, only=only).entries
    for number in count(1):
        more = f"-{number}" if number > 1 else ""
        aside = folder.with_name(f"{folder.name}-before-{before}{more}")
        there = read_local(aside).entries
        if all(there[p]["sha256"] == here[p]["sha256"] for p in here if p in there):
            break
    try:
        for path in here:
            if path not in there:
                copy_private(folder / path, aside / path)
    except OSError as error:
        raise StoreError(
            f"could not put {folder} aside: {error.strerror}", hint=disk_hint(error)
        ) from error
    return aside


def beside(context: Context, name: str) -> tuple[Path, ...]:
    """Name the folders beside `work/NAME` that hold other versions of what is in it, sorted."""
    work = context.folder.work
    start = (f"{name}-before-", f"{name}-from-")
    return tuple(sorted(f for f in work.iterdir() if f.name.startswith(start)))


def other_versions(context: Context, name: str, *, said: str = "") -> str:
    """
    Say where other versions of the work of a name are; `""` where there are none.

    Args:
        said: What is said already; a folder in it is not named again.
    """
    unsaid = [str(folder) for folder in beside(context, name) if str(folder) not in said]
    return f"other versions of some files are in {', '.join(unsaid)}" if unsaid else ""


def _change(
    context: Context, name: str, found: Mapping[str, datetime | None], *, is_there: bool
) -> None:
    with context.notes.changing(_held(name)) as note:
        known = {**(_read(note.text) if is_there else {}), **found}
        said = {key: moment.isoformat() if moment else "" for key, moment in known.items()}
        note.text = json.dumps(said)


def _read(text: str | None) -> Mapping[str, datetime | None]:
    """Read a note; a damaged one is none, so that both versions are kept."""
    try:
        return {key: read_moment(at) for key, at in json.loads(text).items()} if text else {}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _has_work(instance_id: str) -> str:
    return f"has-work/{instance_id}"


def _owed(instance_id: str) -> str:
    return f"owed-work/{instance_id}"


def _held(name: str) -> str:
    return f"held/{name}"
