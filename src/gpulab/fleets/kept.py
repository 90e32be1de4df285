"""
The work that instances of a class have kept in a bucket by themselves: brought to the teacher's computer, and back to a seat's next instance.

Comes into `work/NAME`, beside what `fleet stop` saves there, so that one folder has the newest of both. Nothing there is replaced by the
work of an instance that did not get what was kept before.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.workspace import KeptManifest
from gpulab.errors import GpulabError, RemoteError, StoreError, disk_hint
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.launching import Halted
from gpulab.fleets.members import Member
from gpulab.fleets.seating import Place, places
from gpulab.launch.context import Context
from gpulab.launch.events import Restored, Warned
from gpulab.launch.running import booting, keep
from gpulab.launch.running.fetching import has_work, note_has_work
from gpulab.model.fleet import AccountRef
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
            return Home(_folder(account.context, member.name).is_dir(), error=where)
        try:
            at = _bring(account, member.name, _places_of(account, where, member.name))
        except GpulabError as error:
            return Home(_folder(account.context, member.name).is_dir(), error=error)
        return Home(_folder(account.context, member.name).is_dir(), at)

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


def owe(context: Context, instance: Instance) -> None:
    """Remember that an instance has still to get what was kept of its seat."""
    context.cache.put(_owed(instance.id), value=True, lasting=_IS_REMEMBERED)


def is_owed(context: Context, instance: Instance) -> bool:
    """Whether an instance has still to get what was kept of its seat."""
    return bool(context.cache.get(_owed(instance.id)))


def bring_back(account: Account, instance: Instance) -> str:
    """
    Copy what is kept of a seat on this computer to its new instance; says so.

    Raises:
        RemoteError: It is not there; it stays owed.
    """
    context, said = account.context, ""
    for event in booting.bring_back(context, instance):
        if isinstance(event, Warned):
            said = event.text
        if isinstance(event, Restored):
            said = ""
            context.cache.drop(_owed(instance.id))
            files = "1 file" if event.files == 1 else f"{event.files:,} files"
            return f"its work is back: {files}"
    raise RemoteError(said or "nothing is kept of it on this computer")


class Returning:
    """
    Brings the kept work of seats to the instances that `fleet up` has launched for them.

    Args:
        lab: Whose seats.

    Attributes:
        halt: Set when the command is interrupted: nobody waits for a boot any more.
    """

    def __init__(self, accounts: Accounts, lab: str) -> None:
        self._accounts = accounts
        self._lab = lab
        self._known: dict[str, Mapping[str, tuple[Place, ...]]] = {}
        self._later: dict[str, frozenset[str]] = {}
        self.halt = threading.Event()

    def look(self, refs: Iterable[AccountRef]) -> None:
        """Look where earlier instances of the lab have kept work, before new ones begin; a student's own instance brings its own back."""
        for ref in refs:
            account = self._accounts.account(ref)
            keeping = account.keeping
            if keeping is None or keeping.is_by_name:
                continue
            try:
                self._known[ref.key] = places(account, keeping, self._lab)
            except GpulabError:
                # What this computer launched it knows by itself, and it is tried again when the work is to come.
                self._known[ref.key] = places(account, keeping, self._lab, is_asked=False)

    def is_left_open(self, ref: AccountRef, instance: Instance) -> bool:
        """Whether this computer launched an instance after another one of its seat, and died before it could bring the work; asks nobody."""
        account = self._accounts.account(ref)
        if is_owed(account.context, instance):
            return True
        if account.keeping is None or account.keeping.is_by_name:
            return False
        if ref.key not in self._later:
            self._later[ref.key] = _later_ones(account.context)
        is_later = instance.id in self._later[ref.key]
        return is_later and not has_work(account.context, instance.id)

    def to(self, ref: AccountRef, instance: Instance) -> Callable[[], str] | None:
        """
        Say what is to be done for a new instance; `None` where nothing was kept of its seat.

        What is to be done says what came of it; of AWS and ssh it raises nothing.
        """
        account = self._accounts.account(ref)
        found = self._known.get(ref.key, {}).get(instance.name, ())
        earlier = tuple(place for place in found if place.instance_id != instance.id)
        if not earlier and not _folder(account.context, instance.name).is_dir():
            return None
        owe(account.context, instance)
        context = replace(account.of(account.context.owner), sleep=self._sleep)
        waiting = replace(account, context=context)
        return lambda: self._returned(waiting, instance, earlier)

    def _sleep(self, seconds: float) -> None:
        if self.halt.is_set():
            raise Halted
        self._accounts.outside.sleep(seconds)

    def _returned(self, account: Account, instance: Instance, earlier: tuple[Place, ...]) -> str:
        context, keeping = account.context, account.keeping
        try:
            if keeping is not None and keeping.is_by_name:
                prefix, bucket = keeping.place(instance.name, ""), keeping.role.bucket
                if workspace.read_manifest(context.cloud, bucket, prefix) is not None:
                    return _settled(context, instance)  # the agent brings it back by itself
            else:
                _bring(account, instance.name, earlier)
            if not _folder(context, instance.name).is_dir():
                return _settled(context, instance)
            return bring_back(account, instance)
        except GpulabError as error:
            return (
                f"its kept work is not on it: {error.message}; `gpulab fleet handout` tries again"
            )


def _later_ones(context: Context) -> frozenset[str]:
    """Name the instances that this computer launched when their seats had had one before."""
    first: dict[str, str] = {}
    made = context.journal.read().made
    for one in made:
        first.setdefault(one.name, one.instance_id)
    return frozenset(one.instance_id for one in made if first[one.name] != one.instance_id)


def _settled(context: Context, instance: Instance) -> str:
    context.cache.drop(_owed(instance.id))
    note_has_work(context, instance.id)
    return ""


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


def _bring(account: Account, name: str, where: Sequence[Place]) -> datetime | None:
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
    folder, note = _folder(context, name), f"brought-home/{name}"
    known = context.cache.get(note)
    if known == kept_at.isoformat() and folder.is_dir():
        return kept_at
    if known != _UNFINISHED and folder.is_dir() and _saved_at(folder) >= kept_at:
        return None
    if place.instance_id and context.cache.get(_owed(place.instance_id)):
        _put_aside(folder, before=place.instance_id)
    context.cache.put(note, _UNFINISHED, lasting=_IS_REMEMBERED)
    keep.bring(context, keeping.role.bucket, manifest, folder)
    with contextlib.suppress(OSError):
        os.utime(folder, (kept_at.timestamp(), kept_at.timestamp()))
    context.cache.put(note, kept_at.isoformat(), lasting=_IS_REMEMBERED)
    return kept_at


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


def _folder(context: Context, name: str) -> Path:
    return context.folder.work / name


def _saved_at(folder: Path) -> datetime:
    try:
        return datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    except OSError as error:
        raise StoreError(
            f"could not read {folder}: {error.strerror}", hint=disk_hint(error)
        ) from error


def _owed(instance_id: str) -> str:
    return f"owed-work/{instance_id}"
