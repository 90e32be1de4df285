"""The books of a whole class: what the ledgers of its accounts on this computer know of a course. Asks AWS nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpulab.fleet.books import facts_of
from gpulab.fleet.seats import account_of
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.former import former
from gpulab.model.course import Lab, Student
from gpulab.model.fact import Fact, FactKind
from gpulab.model.fleet import AccountRef, Seat


def accounts_of(
    accounts: Accounts, students: Iterable[Student], *, secret: bytes
) -> tuple[tuple[AccountRef, ...], tuple[AccountRef, ...]]:
    """Return the accounts that the roster's students have, each once, and those that nobody in it has any more."""
    found = (account_of(accounts.course, student, secret=secret) for student in students)
    known = {ref.key: ref for ref in found if not isinstance(ref, str)}
    refs = tuple(known.values())
    return refs, former(accounts, refs, secret=secret)


def facts(accounts: Accounts, refs: Sequence[AccountRef]) -> tuple[Fact, ...]:
    """Return what the ledgers of some accounts know of the course, each fact once."""
    every = (f for ref in refs for f in accounts.account(ref).context.ledger.facts())
    return facts_of(accounts.course.id, every)


def attendance(accounts: Accounts, seats: Sequence[Seat], lab: Lab) -> frozenset[str]:
    """
    Return the owners who had an instance in a lab, as this computer's ledgers know.

    Args:
        seats: Whose accounts are looked through.
    """
    refs = {seat.account.key: seat.account for seat in seats}
    return frozenset(
        fact.details.get("owner", "")
        for ref in refs.values()
        for fact in accounts.account(ref).context.ledger.facts(FactKind.LAUNCHED)
        if (fact.details.get("course"), fact.details.get("lab")) == (accounts.course.id, lab.id)
    )
