"""What the accounts of a class need before anything is launched in them, and what they lack for it. Refuses nothing: a class can begin without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from gpulab.fleet.seats import accounts_in
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.events import FleetEvent, Unkept, Unscheduled
from gpulab.fleets.former import remember_way
from gpulab.fleets.launching import AccountLaunches
from gpulab.model.fleet import AccountRef, FleetPlan

Launches = Mapping[str, AccountLaunches]


def prepare(accounts: Accounts, plan: FleetPlan, *, halt: threading.Event) -> Launches:
    """
    Write down the ways into the accounts in which something starts, make sure of where the work is kept and of the role that ends instances.

    Args:
        halt: Set when the command is interrupted.

    Returns:
        The launches of each account in which something starts, by its key.
    """
    for ref in accounts_in(plan.starting):
        remember_way(accounts, ref)
        accounts.make_keeping(ref)
    for ref in accounts_in(step for step in plan.steps if step.instance or step.starts):
        accounts.arm(ref)
    return {
        ref.key: AccountLaunches(
            accounts.account(ref),
            plan.launch_plans[ref.key],
            budgets={step.name: step.budget_usd for step in plan.starting},
            needs=[need for need in plan.quotas if need.account.key == ref.key],
            halt=halt,
        )
        for ref in accounts_in(plan.starting)
    }


def lacking_before(accounts: Accounts, plan: FleetPlan) -> Iterator[FleetEvent]:
    """Say what the accounts lack in which something starts: scheduled ends, a place for the work."""
    now, refs = accounts.outside.now, accounts_in(plan.starting)
    for why, titles in _by_reason(refs, lambda ref: accounts.account(ref).unscheduled):
        yield Unscheduled(now(), titles, why)
    yield from _unkept(now, refs, lambda ref: accounts.account(ref).unkept)


def lacking_after(accounts: Accounts, plan: FleetPlan, launches: Launches) -> Iterator[FleetEvent]:
    """Say what the launches found: where the work could not be kept after all."""
    now, refs = accounts.outside.now, accounts_in(plan.starting)
    yield from _unkept(now, refs, lambda ref: launches[ref.key].unkept)


def _unkept(
    now: Callable[[], datetime], refs: Iterable[AccountRef], why_not: Callable[[AccountRef], str]
) -> Iterator[FleetEvent]:
    for why, titles in _by_reason(refs, why_not):
        yield Unkept(now(), titles, why)


def _by_reason(
    refs: Iterable[AccountRef], why_not: Callable[[AccountRef], str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Gather what is wrong with accounts: each reason once, with all that it holds for."""
    found: dict[str, list[str]] = {}
    for ref in refs:
        found.setdefault(why_not(ref), []).append(ref.title)
    return [(why, tuple(titles)) for why, titles in found.items() if why]
