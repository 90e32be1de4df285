"""The books of a whole class: what the ledgers of its accounts on this computer know of a course. Asks AWS nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpulab.fleet.books import facts_of
from gpulab.fleet.seats import account_of
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.former import former
from gpulab.model.course import Student
from gpulab.model.fact import Fact
from gpulab.model.fleet import AccountRef


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
