"""Moving the ends of a class within what each student may spend over the term. Reads each account's ledger once, not once for each student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal

from gpulab.errors import StoreError
from gpulab.fleet.seats import allowance_of
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.members import Member
from gpulab.launch.running.extend import extend, extend_within_budget
from gpulab.model.instance import Instance
from gpulab.spending.facts import LedgerReading, timeline_of


def extending(
    accounts: Accounts, chosen: Sequence[Member], *, new_end: Callable[[Instance], datetime]
) -> Callable[[Member, Instance], tuple[str, ...]]:
    """
    Prepare to move the ends of some.

    Args:
        new_end: Until when an instance shall run.

    Returns:
        What moves the end of one and returns half-sentences: what the added time may cost, and what was not moved. It raises `CreditTooLow`
        where that does not fit into what is left of the term's budget; nothing is moved then.
    """
    course = accounts.course
    known = _readings(accounts, chosen) if course.budget_usd is not None else {}

    def move(member: Member, instance: Instance) -> tuple[str, ...]:
        account = accounts.account(member.account)
        if course.budget_usd is None:
            return extend(account.context, instance, new_end(instance)).notes
        moved = extend_within_budget(
            account.of(instance.owner),
            instance,
            new_end(instance),
            allowed=allowance_of(course, member.seat, instance.owner),
            reading=known.get(member.account.key),
            lab=instance.lab,
        )
        return (*_cost(moved.at_most_usd), *moved.notes)

    return move


def _readings(accounts: Accounts, chosen: Sequence[Member]) -> dict[str, LedgerReading]:
    """Read the ledgers of some accounts; one that cannot be read is the trouble of whom it concerns."""
    found = {}
    for ref in {m.account.key: m.account for m in chosen if m.instance}.values():
        try:
            found[ref.key] = timeline_of(accounts.account(ref).context.ledger.facts())
        except StoreError:
            continue
    return found


def _cost(at_most_usd: Decimal | None) -> tuple[str, ...]:
    return (f"at most ${at_most_usd:.2f} more until then",) if at_most_usd else ()
