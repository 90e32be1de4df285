"""
The work that instances of a class have kept in a bucket by themselves, brought to the teacher's computer.

Comes into `work/NAME`, beside what `fleet stop` saves there, so that one folder has the newest of both. Nothing there is replaced by the
work of an instance that did not get what was kept before: of a file that differs both versions stay, and that is said.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.workspace import KeptManifest
from gpulab.errors import GpulabError, StoreError
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.members import Member
from gpulab.fleets.seating import Place, places
from gpulab.launch.context import Context
from gpulab.launch.running import keep
from gpulab.launch.running.lineage import has_work, held, note_begun, note_held, put_aside
from gpulab.model.instance import Instance
from gpulab.remote.copying import CopyReport
from gpulab.remote.manifest import read_local

_AT_ONCE = 16
# What an instance saves within this time after it got the earlier work may have begun before it: clocks differ.
_CLOCKS_DIFFER = timedelta(minutes=10)


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


@dataclass(frozen=True)
class _Copy:
    """What one instance has kept."""

    place: Place
    manifest: KeptManifest
    at: datetime

    @property
    def key(self) -> str:
        """Where all instances of a seat share a place, only their launches tell them apart."""
        return self.place.instance_id or self.manifest.launch_id


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


def bring_from(
    account: Account, instance: Instance, into: Path, *, after: datetime | None = None
) -> tuple[CopyReport | None, datetime]:
    """
    Copy what one instance has kept in the bucket into a folder; for an instance that does not answer itself.

    Args:
        after: What was kept before then is older than what is in the folder, which is left as it is.

    Returns:
        What was copied, `None` where it is older; when it was kept.

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
    if after is not None and manifest.at < after:
        return None, manifest.at
    return keep.bring(context, bucket, manifest, into), manifest.at


def bring_newest(account: Account, name: str, where: Sequence[Place]) -> datetime | None:
    """
    Bring what was kept in some places into `work/NAME`: all since an instance that had got the work of those before it.

    Of a file that differs from what an instance never got, both versions stay: see `lineage.other_versions`.

    Args:
        where: The newest first.

    Returns:
        When the newest of it was kept; `None` when nothing was, or what is here is newer.

    Raises:
        GpulabError: The bucket cannot be read, the copy is damaged, or this computer's disk is full.
    """
    copies = _copies(account, where)
    for copy in reversed(copies):
        _bring(account, name, copy)
    known = held(account.context, name)
    is_newest = bool(copies) and known.get(copies[0].key) == copies[0].at
    return copies[0].at if is_newest else None


def _copies(account: Account, where: Sequence[Place]) -> tuple[_Copy, ...]:
    """Read what was kept, the newest first, until one that has the rest."""
    found: list[_Copy] = []
    if account.keeping is None:
        return ()
    bucket = account.keeping.role.bucket
    for place in where:
        manifest = workspace.read_manifest(account.context.cloud, bucket, place.prefix)
        if manifest is None or manifest.at is None:
            continue
        found.append(_Copy(place, manifest, manifest.at))
        if place.received_at and manifest.at > place.received_at + _CLOCKS_DIFFER:
            break
    return tuple(found)


def _bring(account: Account, name: str, copy: _Copy) -> None:
    """Bring one instance's copy, unless it is here."""
    known = held(account.context, name)
    mine = known.get(copy.key)
    if mine is not None and mine >= copy.at:
        return
    is_later_here = any(at and at > copy.at for key, at in known.items() if key != copy.key)
    note_begun(account.context, name, copy.key)
    (_beneath if is_later_here else _above)(account, name, copy)
    note_held(account.context, name, copy.key, at=copy.at)


def _above(account: Account, name: str, copy: _Copy) -> None:
    """Let a copy replace what is here; what its instance never got is put aside before."""
    context, folder = account.context, folder_of(account.context, name)
    if not _is_heir(context, name, copy):
        put_aside(folder, _different(copy, folder), before=copy.key)
    _fetch(account, copy.manifest, folder)
    with contextlib.suppress(OSError):  # for people only: when it was kept
        os.utime(folder, (copy.at.timestamp(), copy.at.timestamp()))


def _is_heir(context: Context, name: str, copy: _Copy) -> bool:
    """Whether an instance had got what is here, or it is its own from before."""
    known = held(context, name)
    if known.get(copy.key) is not None:
        return True
    if copy.place.instance_id:
        return has_work(context, copy.place.instance_id)
    # Each agent brings back what lies under the seat's name; what could not be kept there it has not got.
    return not any(
        m.keep_prefix == "" and m.instance_id in known for m in context.journal.read().made
    )


def _beneath(account: Account, name: str, copy: _Copy) -> None:
    """Let a copy add what is not here; where something newer is, its version goes beside it."""
    folder = folder_of(account.context, name)
    different = _different(copy, folder)
    files = tuple(f for f in copy.manifest.files if f.path not in different)
    if different:
        rest = tuple(f for f in copy.manifest.files if f.path in different)
        aside = folder.with_name(f"{name}-from-{copy.key}")
        _fetch(account, replace(copy.manifest, files=rest), aside)
    _fetch(account, replace(copy.manifest, files=files), folder)


def _different(copy: _Copy, folder: Path) -> frozenset[str]:
    here = read_local(folder).entries
    return frozenset(
        f.path for f in copy.manifest.files if f.path in here and here[f.path]["sha256"] != f.sha256
    )


def _fetch(account: Account, manifest: KeptManifest, folder: Path) -> None:
    assert account.keeping is not None
    keep.bring(account.context, account.keeping.role.bucket, manifest, folder)


def folder_of(context: Context, name: str) -> Path:
    """Return where this computer keeps the work of a seat."""
    return context.folder.work / name


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
