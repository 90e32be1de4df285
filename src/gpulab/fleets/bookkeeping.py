"""Keeping the books of a class's accounts: what ended, or was launched, without its command writing it down is asked for."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from gpulab.errors import GpulabError, StateDamaged, StoreError
from gpulab.fleet.plan import trouble_of
from gpulab.fleets.accounts import Accounts
from gpulab.launch.money.forgotten import open_launches
from gpulab.launch.money.rebuilding import hear_course, recall_course, refresh, unwritten
from gpulab.model.fleet import AccountRef, Seat, Trouble
from gpulab.spending.facts import timeline_of

# A class is looked at every few seconds, and EC2 may not show yet what it has just made.
_ASKED_AGAIN_AFTER = timedelta(minutes=1)
# A launch that is under way is written down by whoever launches.
_WRITTEN_WITHIN = timedelta(minutes=10)
_AT_ONCE = 16


@dataclass(frozen=True)
class Recalled:
    """
    What came of completing one account's books; `trouble` is `None` where it could be asked.

    Attributes:
        new: Facts that the ledger did not have.
        unknown: Sentences about what nobody could tell.
    """

    account: AccountRef
    new: int = 0
    unknown: tuple[str, ...] = ()
    trouble: Trouble | None = None


def recall(
    accounts: Accounts, refs: Sequence[AccountRef], seats: Sequence[Seat], *, regions: Sequence[str]
) -> Iterator[Recalled]:
    """
    Complete the books of a whole class from its accounts, as on a computer that launched none of it.

    Args:
        seats: Of everybody in the roster.
        regions: Beside those where this computer has launched.

    Yields:
        One result for each account, in their order.
    """

    def ask(ref: AccountRef) -> Recalled:
        try:
            return _recalled(accounts, ref, seats, regions)
        except GpulabError as error:
            return Recalled(ref, trouble=trouble_of(error))

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(refs)))) as pool:
        yield from pool.map(ask, refs)


def _recalled(
    accounts: Accounts, ref: AccountRef, seats: Sequence[Seat], regions: Sequence[str]
) -> Recalled:
    context = accounts.account(ref).looking
    made = (m.region for m in context.journal.read().made)
    everywhere = tuple(dict.fromkeys((*regions, *made)))
    before = len(context.ledger.facts())
    found = recall_course(context, everywhere, course=accounts.course.id)
    unheard = complete(accounts, ref, everywhere, seats)
    new = len(context.ledger.facts()) - before
    return Recalled(ref, new, (*found.unknown, *unheard))


def complete(
    accounts: Accounts, ref: AccountRef, regions: Container[str], seats: Iterable[Seat]
) -> tuple[str, ...]:
    """
    Let the ledger know what the instances cost that ended by themselves, or were launched from a laptop that is lost.

    Args:
        seats: Of everybody in the roster: in a student's own account there are their instances only.

    Returns:
        Sentences about what could not be read, so that the sum may be too low, or is not theirs to tell.

    Raises:
        GpulabError: The ledger cannot be read or written.
    """
    account, unheard = accounts.find_keeping(ref), list[str]()
    context, folder = account.launching(""), account.keeping.owner if account.keeping else ""
    if folder:
        owners = {seat.owner for seat in seats if ref.role_arn and seat.account.key == ref.key}
        unheard += hear_course(context, folder, regions, owners=owners)
    try:
        # Where something could not be heard, what was heard hours ago is no instance's last word.
        refresh(context, at_once=True, is_heard=bool(folder) and not unheard, folder=folder)
    except StoreError:
        raise
    except GpulabError as error:
        unheard.append(f"what ended by itself could not be asked for: {error.message}")
    return tuple(unheard)


def catch_up(
    accounts: Accounts, ref: AccountRef, lab: str, alive: Iterable[str], *, seats: Iterable[Seat]
) -> None:
    """
    Let an account's ledger learn what nobody wrote down: what AWS took back, what ended by its own timer, what a killed command launched.

    Nothing is asked while ledger and account agree. What cannot be read or written now is left for the next look; a damaged
    ledger, which no look mends, is noted in `Accounts.damaged`.

    Args:
        lab: The lab that was listed.
        alive: Ids of its instances that AWS shows alive.
        seats: Of whom an instance there may be.
    """
    context, asked = accounts.account(ref).looking, f"books/asked-about/{accounts.course.id}/{lab}"
    try:
        reading = timeline_of(context.ledger.facts())
        believed = open_launches(reading)
        lab_runs = {
            o.instance_id for o in believed if (o.course, o.lab) == (accounts.course.id, lab)
        }
        lost = sorted(lab_runs.difference(alive))
        unknown = unwritten(context, reading, since=_WRITTEN_WITHIN)
        about = [*lost, *sorted(unknown)]
        if not about or context.cache.get(asked) == about:
            return
        context.cache.put(asked, about, lasting=_ASKED_AGAIN_AFTER)
        if unknown:
            complete(accounts, ref, set(unknown.values()), seats)
        else:
            account = accounts.find_keeping(ref)
            folder = account.keeping.owner if account.keeping else ""
            refresh(account.launching(""), at_once=True, folder=folder)
    except StateDamaged as error:
        accounts.damaged[ref.key] = error
    except GpulabError:
        pass
