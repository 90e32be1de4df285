"""
The work that was kept of seats, brought to the instances that `fleet up` has launched for them: what an instance has still to get is
remembered until it has it, so that a command that is killed, or an instance that boots slowly, costs nobody their work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from gpulab.aws import instances, workspace
from gpulab.aws.workspace import KeptManifest
from gpulab.errors import GpulabError, RemoteError, StoreError
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.kept import bring_newest, folder_of
from gpulab.fleets.launching import Halted
from gpulab.fleets.seating import Place, places, write_received
from gpulab.launch.context import Context
from gpulab.launch.events import Restored, Warned
from gpulab.launch.protocol.outcome import FIRST_LOOK_S, STILL_PENDING
from gpulab.launch.running import booting
from gpulab.launch.running.lineage import has_work, held, is_owed, other_versions, owe, settle
from gpulab.model.fleet import AccountRef
from gpulab.model.instance import Instance, State

_AT_ONCE = 32


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
        if is_owed(account.context, instance.id):
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
        if account.keeping is not None and account.keeping.is_by_name:
            found = (Place(account.keeping.place(instance.name, "")),)
            if _keeps_by_itself(account.context, instance):
                found = ()  # its agent brings it back, but for what only this computer has
        earlier = tuple(place for place in found if place.instance_id != instance.id)
        if not earlier and not folder_of(account.context, instance.name).is_dir():
            return None
        try:
            owe(account.context, instance.id)
        except StoreError as error:
            said = f"its kept work is not on it: {error.message}; `gpulab fleet up` tries again"
            return lambda: said
        context = replace(account.of(account.context.owner), sleep=self._sleep)
        waiting = replace(account, context=context)
        return lambda: self._returned(waiting, instance, earlier)

    def all(self, todo: Mapping[int, Callable[[], str]]) -> Iterator[tuple[int, str]]:
        """
        Do what is to be done for many at once; say of each what came of it, in their order.

        Args:
            todo: From `to`, by whatever the caller knows them by.
        """
        pool = ThreadPoolExecutor(min(_AT_ONCE, max(1, len(todo))))
        try:
            yield from zip(todo, pool.map(lambda act: act(), todo.values()), strict=True)
        finally:
            self.halt.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _sleep(self, seconds: float) -> None:
        if self.halt.is_set():
            raise Halted
        self._accounts.outside.sleep(seconds)

    def _returned(self, account: Account, instance: Instance, earlier: tuple[Place, ...]) -> str:
        try:
            said = self._brought(account, instance, earlier)
        except GpulabError as error:
            return (
                f"its kept work is not on it: {error.message}; `gpulab fleet handout` tries again"
            )
        keeping = account.keeping
        if keeping is not None and not keeping.is_by_name:
            # Another computer that does not read it keeps more than it has to.
            with contextlib.suppress(GpulabError):
                write_received(account, keeping, self._lab, instance)
        return said

    def _brought(self, account: Account, instance: Instance, earlier: tuple[Place, ...]) -> str:
        context, keeping = account.context, account.keeping
        if keeping is not None and keeping.is_by_name and not earlier:
            prefix = keeping.place(instance.name, "")
            kept = workspace.read_manifest(context.cloud, keeping.role.bucket, prefix)
            if kept is not None and not _has_later(context, instance.name, kept):
                settle(context, instance.id)  # the agent brings it back
                return ""
        instance = _begun(context, instance)
        bring_newest(account, instance.name, earlier)
        if not folder_of(context, instance.name).is_dir():
            settle(context, instance.id)
            return ""
        said = _bring_back(account, instance)
        others = other_versions(context, instance.name, said=said)
        return "; ".join(filter(None, (said, others)))


def _begun(context: Context, instance: Instance) -> Instance:
    """
    Wait until a command that was killed a moment ago has an instance that runs: before, it has no address.

    Raises:
        GpulabError: EC2 does not show it.
    """
    until = context.now() + STILL_PENDING
    while instance.state is State.PENDING and context.now() < until:
        context.sleep(FIRST_LOOK_S)
        instance = instances.read(context.cloud, instance.place.region, instance.id)
    return instance


def _later_ones(context: Context) -> frozenset[str]:
    """Name the instances that this computer launched when their seats had had one before."""
    first: dict[str, str] = {}
    made = context.journal.read().made
    for one in made:
        first.setdefault(one.name, one.instance_id)
    return frozenset(one.instance_id for one in made if first[one.name] != one.instance_id)


def _keeps_by_itself(context: Context, instance: Instance) -> bool:
    """Whether an instance was born with a bucket; the account may have had one only before or after."""
    made = context.journal.read().made
    return any(one.keep_prefix != "" for one in made if one.instance_id == instance.id)


def _has_later(context: Context, name: str, kept: KeptManifest) -> bool:
    """Whether this computer holds work of a seat that is later than what the bucket has, from an instance that could not keep it there."""
    known = held(context, name)
    latest = max(filter(None, known.values()), default=None)
    if latest is None or kept.at is None or latest <= kept.at:
        return False
    return known.get(kept.launch_id) != latest


def _bring_back(account: Account, instance: Instance) -> str:
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
            settle(context, instance.id)
            files = "1 file" if event.files == 1 else f"{event.files:,} files"
            return "; ".join(filter(None, (f"its work is back: {files}", said)))
    raise RemoteError(said or "nothing is kept of it on this computer")
