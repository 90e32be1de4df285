"""
The work that instances of a class have kept in a bucket by themselves, brought to the teacher's computer.

Comes into `work/NAME`, beside what `fleet stop` saves there, so that one folder has the newest of both. Nothing there is replaced by the
work of an instance that did not get what was kept before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.workspace import KeptManifest
from gpulab.errors import GpulabError, StoreError, disk_hint
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.members import Member
from gpulab.fleets.seating import Place, places
from gpulab.launch.context import Context
from gpulab.launch.running import keep
from gpulab.model.instance import Instance
from gpulab.remote.copying import CopyReport

_AT_ONCE = 16
# Longer than an instance may live.
_IS_REMEMBERED = timedelta(days=30)
_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Home:
    """
    What is on this computer of a seat's work.

    Attributes:
        has_work: Whether `work/NAME` is there now.
        kept_at: When the newest of it was kept in the bucket; `None` where it is what `stop` saved.
        error: Why nobody knows whether the bucket has newer work; `None` when it was looked at.
    """

    has_work: bool
    kept_at: datetime | None = None
    error: GpulabError | None = None


def bring_home(accounts: Accounts, lab: str, gone: Sequence[Member]) -> Mapping[str, Home]:
    """
    Bring the newest kept work of seats without an instance to this computer, each file compared by its hash.

    Returns:
        What is there now, by the seat's name.
    """
    known = _all_places(accounts, lab, gone)

    def bring(member: Member) -> Home:
        account, where = accounts.account(member.account), known[member.account.key]
        if isinstance(where, GpulabError):
            return Home(folder_of(account.context, member.name).is_dir(), error=where)
        try:
            at = bring_newest(account, member.name, _places_of(account, where, member.name))
        except GpulabError as error:
            return Home(folder_of(account.context, member.name).is_dir(), error=error)
        return Home(folder_of(account.context, member.name).is_dir(), at)

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(gone)))) as pool:
        homes = pool.map(bring, gone)
        return {member.name: home for member, home in zip(gone, homes, strict=True)}


def bring_from(account: Account, instance: Instance, into: Path) -> tuple[CopyReport, datetime]:
    """
    Copy what one instance has kept in the bucket into a folder; for an instance that does not answer itself.

    Raises:
        StoreError: Nothing of it is kept, or the copy is damaged.
        GpulabError: The bucket cannot be read.
    """
    keeping, context = account.keeping, account.context
    if keeping is None:
        raise StoreError(f"nothing keeps the work of {instance.name} but the instance itself")
    bucket, prefix = keeping.role.bucket, keeping.place(instance.name, instance.id)
    manifest = workspace.read_manifest(context.cloud, bucket, prefix)
    if manifest is None or manifest.at is None or manifest.launch_id != instance.launch_id:
        raise StoreError(f"{instance.name} has kept nothing in {bucket.name} yet")
    return keep.bring(context, bucket, manifest, into), manifest.at


def bring_newest(account: Account, name: str, where: Sequence[Place]) -> datetime | None:
    """
    Bring the newest of what was kept in some places into `work/NAME`, where it is newer than what is there.

    Returns:
        When it was kept; `None` when nothing was, or what is here is as new.

    Raises:
        GpulabError: The bucket cannot be read, or the copy is damaged.
    """
    found = _newest(account, where)
    if found is None:
        return None
    place, manifest, kept_at = found
    context, keeping = account.context, account.keeping
    assert keeping is not None
    folder, note = folder_of(context, name), f"brought-home/{name}"
    known = context.cache.get(note)
    if known == kept_at.isoformat() and folder.is_dir():
        return kept_at
    if known != _UNFINISHED and folder.is_dir() and _saved_at(folder) >= kept_at:
        return None
    if place.instance_id and is_owed(context, place.instance_id):
        _put_aside(folder, before=place.instance_id)
    context.cache.put(note, _UNFINISHED, lasting=_IS_REMEMBERED)
    keep.bring(context, keeping.role.bucket, manifest, folder)
    with contextlib.suppress(OSError):
        os.utime(folder, (kept_at.timestamp(), kept_at.timestamp()))
    context.cache.put(note, kept_at.isoformat(), lasting=_IS_REMEMBERED)
    return kept_at


def folder_of(context: Context, name: str) -> Path:
    """Return where this computer keeps the work of a seat."""
    return context.folder.work / name


def owe(context: Context, instance_id: str) -> None:
    """Remember that an instance has still to get what was kept of its seat."""
    context.cache.put(_owed(instance_id), value=True, lasting=_IS_REMEMBERED)


def owe_nothing(context: Context, instance_id: str) -> None:
    """Remember that an instance has what was kept of its seat, or that nothing was."""
    context.cache.drop(_owed(instance_id))


def is_owed(context: Context, instance_id: str) -> bool:
    """Whether an instance has still to get what was kept of its seat."""
    return bool(context.cache.get(_owed(instance_id)))


def _owed(instance_id: str) -> str:
    return f"owed-work/{instance_id}"


def _all_places(
    accounts: Accounts, lab: str, members: Sequence[Member]
) -> Mapping[str, Mapping[str, tuple[Place, ...]] | GpulabError]:
    """Look where the instances of a lab have kept work, by account; nothing where an account keeps none."""
    refs = {member.account.key: member.account for member in members}
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(refs)))) as pool:
        found = pool.map(lambda ref: _looked_up(accounts.find_keeping(ref), lab), refs.values())
        return dict(zip(refs, found, strict=True))


def _looked_up(account: Account, lab: str) -> Mapping[str, tuple[Place, ...]] | GpulabError:
    if account.keeping is None or account.keeping.is_by_name:
        return {}
    try:
        return places(account, account.keeping, lab)
    except GpulabError as error:
        return error


def _places_of(
    account: Account, known: Mapping[str, tuple[Place, ...]], name: str
) -> tuple[Place, ...]:
    if account.keeping is not None and account.keeping.is_by_name:
        return (Place(account.keeping.place(name, "")),)
    return known.get(name, ())


def _newest(
    account: Account, where: Sequence[Place]
) -> tuple[Place, KeptManifest, datetime] | None:
    """Read what was kept last; an instance that ended before it kept anything is passed over."""
    if account.keeping is None:
        return None
    bucket = account.keeping.role.bucket
    for place in where:
        manifest = workspace.read_manifest(account.context.cloud, bucket, place.prefix)
        if manifest is not None and manifest.at is not None:
            return place, manifest, manifest.at
    return None


def _put_aside(folder: Path, *, before: str) -> None:
    """Leave what is here as it is: the instance whose work comes now never got it."""
    aside = folder.with_name(f"{folder.name}-before-{before}")
    if folder.is_dir() and not aside.exists():
        try:
            folder.rename(aside)
        except OSError as error:
            raise StoreError(
                f"could not put {folder} aside: {error.strerror}", hint=disk_hint(error)
            ) from error


def _saved_at(folder: Path) -> datetime:
    try:
        return datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    except OSError as error:
        raise StoreError(
            f"could not read {folder}: {error.strerror}", hint=disk_hint(error)
        ) from error
