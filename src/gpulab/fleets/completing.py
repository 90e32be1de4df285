"""
What goes with the instances of a class once AWS has taken their launches: whose each is, the books, the scheduled ends, the kept work.
Also for instances from before, where a killed command left it out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from gpulab.errors import GpulabError
from gpulab.fleet.outcomes import Outcomes
from gpulab.fleet.seats import accounts_in
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.ends import schedule_missing
from gpulab.fleets.events import BringingBack, BroughtBack, FleetEvent, Unbooked, Unwritten
from gpulab.fleets.returning import Returning
from gpulab.fleets.seating import write_down
from gpulab.launch.money.rebuilding import complete_others
from gpulab.model.fleet import AccountRef, Action, FleetPlan, Step
from gpulab.model.instance import Instance


def write_seats(
    accounts: Accounts, plan: FleetPlan, launched: Sequence[tuple[AccountRef, Instance]]
) -> Sequence[Unwritten]:
    """Write down whose instance is whose, those found included; return where it could not be, which the next run does."""
    up: dict[str, list[Instance]] = {}
    found = [(step.account, step.instance) for step in plan.of(Action.KEEP) if step.instance]
    for ref, instance in [*found, *launched]:
        up.setdefault(ref.key, []).append(instance)
    unwritten: dict[str, list[str]] = {}
    for ref in accounts_in(plan.steps):
        account = accounts.account(ref)
        keeping = account.keeping
        if ref.key in up and keeping is not None and not keeping.is_by_name:
            try:
                write_down(account, keeping, plan.lab.id, up[ref.key])
            except GpulabError as error:
                unwritten.setdefault(error.message, []).append(ref.title)
    now = accounts.outside.now
    return [Unwritten(now(), tuple(titles), why) for why, titles in unwritten.items()]


def complete_books(accounts: Accounts, plan: FleetPlan) -> Iterator[FleetEvent]:
    """Make up for what a killed command left out of the ledger; one that cannot be read keeps nobody from what was launched."""
    kept: dict[str, list[Step]] = {}
    for step in plan.of(Action.KEEP):
        kept.setdefault(step.account.key, []).append(step)
    unbooked: dict[str, list[str]] = {}
    for steps in kept.values():
        ref = steps[0].account
        try:
            up = [step.instance for step in steps if step.instance]
            complete_others(accounts.account(ref).looking, up)
        except GpulabError as error:
            unbooked.setdefault(error.message, []).append(ref.title)
    for why, titles in unbooked.items():
        yield Unbooked(accounts.outside.now(), tuple(titles), why)


def schedule_ends(
    accounts: Accounts, plan: FleetPlan, outcomes: Outcomes, *, unscheduled: Collection[str]
) -> None:
    """
    Make up for the ends that no account has scheduled yet: of what runs from before, and of launches whose first try failed.

    Args:
        unscheduled: Ids of the latter.
    """
    found = [
        (step, outcome.instance)
        for step, outcome in outcomes.known()
        if outcome.instance and (not step.starts or outcome.instance.id in unscheduled)
    ]
    at = [(step.account, instance) for step, instance in found]
    lacking = schedule_missing(accounts, at, ends_at=plan.ends_at)
    for step, instance in found:
        outcomes.add(step, lacking.get(instance.id, ""))


def bring_back(
    accounts: Accounts, returning: Returning, outcomes: Outcomes
) -> Iterator[FleetEvent]:
    """Bring the kept work of seats to their new instances, which boot meanwhile."""
    found, todo = list[Step](), {}
    for step, outcome in outcomes.known():
        if outcome.instance and not outcome.is_failed and may_lack(returning, step):
            act = returning.to(outcome.account, outcome.instance)
            if act is not None:
                todo[len(found)] = act
                found.append(step)
    if not todo:
        return
    now = accounts.outside.now
    yield BringingBack(now(), len(todo))
    for number, said in returning.all(todo):
        outcome = outcomes.add(found[number], said)
        if said:
            yield BroughtBack(now(), outcome, said)


def may_lack(returning: Returning, step: Step) -> bool:
    """Whether a step's instance may lack what was kept of its seat: it is new, or was launched by a command that was killed."""
    if step.action is Action.KEEP and step.instance is not None:
        return returning.is_left_open(step.account, step.instance)
    return step.starts
