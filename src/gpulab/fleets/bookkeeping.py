"""Keeping the books of a class's accounts: what ended without anybody's command is asked for, so that it is not charged on and on."""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import timedelta

from gpulab.errors import GpulabError, StateDamaged, StoreError
from gpulab.fleets.accounts import Accounts
from gpulab.launch.money.forgotten import open_launches
from gpulab.launch.money.rebuilding import hear_course, refresh
from gpulab.model.fleet import AccountRef, Seat
from gpulab.spending.facts import timeline_of

# A class is looked at every few seconds, and EC2 may not show yet what it has just made.
_ASKED_AGAIN_AFTER = timedelta(minutes=1)


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
    if account.keeping is not None:
        owners = {seat.owner for seat in seats if ref.role_arn and seat.account.key == ref.key}
        folder = account.keeping.owner
        unheard += hear_course(account.launching(""), folder, regions, owners=owners)
    try:
        refresh(account.looking, at_once=True, is_heard=True)
    except StoreError:
        raise
    except GpulabError as error:
        unheard.append(f"what ended by itself could not be asked for: {error.message}")
    return tuple(unheard)


def close_ended(accounts: Accounts, ref: AccountRef, lab: str, alive: Iterable[str]) -> None:
    """
    Close in an account's ledger what is not alive any more: taken back by AWS, or ended by its own timer while nobody looked.

    Nothing is asked while ledger and account agree. What cannot be read or written now is left for the next look; a damaged
    ledger, which no look mends, is noted in `Accounts.damaged`.

    Args:
        lab: The lab that was listed.
        alive: Ids of its instances that AWS shows alive.
    """
    context, asked = accounts.account(ref).looking, f"books/asked-about/{accounts.course.id}/{lab}"
    try:
        believed = open_launches(timeline_of(context.ledger.facts()))
        lab_runs = {
            o.instance_id for o in believed if (o.course, o.lab) == (accounts.course.id, lab)
        }
        lost = sorted(lab_runs.difference(alive))
        if lost and context.cache.get(asked) != lost:
            context.cache.put(asked, lost, lasting=_ASKED_AGAIN_AFTER)
            account = accounts.find_keeping(ref)
            folder = account.keeping.owner if account.keeping else ""
            refresh(account.launching(""), at_once=True, folder=folder)
    except StateDamaged as error:
        accounts.damaged[ref.key] = error
    except GpulabError:
        pass
