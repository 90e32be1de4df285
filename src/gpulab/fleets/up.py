"""
`gpulab fleet up`: look, decide, show, ask, do, write down, for a whole class. Running it again after any interruption converges: exactly
one instance for each seat.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.errors import GpulabError, Refused
from gpulab.fleet.lab import request_for
from gpulab.fleet.outcomes import Outcomes, untouched
from gpulab.fleet.plan import Wanted, plan_fleet, with_former
from gpulab.fleet.seats import accounts_in
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.completing import (
    bring_back,
    complete_books,
    may_lack,
    schedule_ends,
    write_seats,
)
from gpulab.fleets.events import Finished, FleetEvent
from gpulab.fleets.looking import Seen, live_of, look
from gpulab.fleets.preparing import Launches, lacking_after, lacking_before, prepare
from gpulab.fleets.pruning import Prune
from gpulab.fleets.requesting import Requests, Start
from gpulab.fleets.returning import Returning
from gpulab.fleets.starting import Starting
from gpulab.model.course import Course, Lab
from gpulab.model.fleet import AccountRef, Action, FleetPlan, Seat
from gpulab.model.instance import Instance
from gpulab.store.courses import course_home
from gpulab.store.journal import Journal


@dataclass(frozen=True)
class Wish:
    """
    What `fleet up` was asked for.

    Attributes:
        everyone: Every seat of the lab.
        seats: Those to serve.
        longest: The longest life of an instance.
        on_demand: Whether places on demand follow the spot places.
        former: Accounts where the lab was launched and which nobody in the roster has any more, see `fleets.former`.
    """

    course: Course
    lab: Lab
    everyone: tuple[Seat, ...]
    seats: tuple[Seat, ...]
    longest: timedelta
    on_demand: bool = False
    former: tuple[AccountRef, ...] = ()


@dataclass(frozen=True)
class Decided:
    """A plan and what was seen for it."""

    plan: FleetPlan
    seen: Seen


def plan(
    accounts: Accounts, wish: Wish, *, at: datetime | None = None, may_settle: bool = False
) -> Decided:
    """
    Decide what would be done; launches nothing.

    Args:
        at: When the launches would begin; `None` for now.
        may_settle: Whether the journals may be written; only while the lab is locked, see `locked`.

    Raises:
        WrongUsage, Refused: Nobody knows the GPU or type the lab names.
    """
    now = max(at or accounts.outside.now(), accounts.outside.now())
    request = request_for(
        wish.course, wish.lab, now=now, longest=wish.longest, on_demand=wish.on_demand
    )
    accounts.leave_unkept([seat.account for seat in wish.everyone])
    seen = look(accounts, request, wish.seats, may_settle=may_settle)
    wanted = Wanted(wish.course, wish.lab, request, wish.everyone, wish.seats, wish.longest)
    decided = plan_fleet(wanted, seen.views, now=now)
    left = {ref: _live(accounts, ref, wish) for ref in wish.former}
    return Decided(with_former(decided, left), seen)


def _live(accounts: Accounts, ref: AccountRef, wish: Wish) -> Sequence[Instance] | GpulabError:
    try:
        found = live_of(accounts, ref, wish.course.id, wish.lab.id)
    except GpulabError as error:
        return error
    return [instance for instance in found if instance.state.is_alive]


@contextlib.contextmanager
def locked(accounts: Accounts, lab: Lab) -> Iterator[None]:
    """
    Keep every other gpulab on this computer from launching the same lab at the same time.

    Raises:
        Refused: Another one is at it.
    """
    folder: Path = course_home(accounts.outside.home, accounts.course.id)
    journal = Journal(folder / "journal.jsonl")
    with journal.launching(lab.id, followed_by=f"gpulab fleet watch {lab.id}"):
        yield


def up(accounts: Accounts, decided: Decided, *, prune: bool = False) -> Iterator[FleetEvent]:
    """
    Carry a plan out. Call it under `locked`, with the plan made under the same lock.

    Args:
        prune: Whether extra instances are saved and ended.

    Yields:
        What happens; the last event is `Finished`, with one outcome for each step.

    Raises:
        Refused: The plan passes a limit of the course; nothing was launched.
    """
    if decided.plan.refusals:
        raise Refused(
            "; ".join(decided.plan.refusals),
            hint="Choose fewer with `--only`, or raise the limit in course.toml",
        )
    halt = threading.Event()
    launches = prepare(accounts, decided.plan, halt=halt)
    outcomes = Outcomes(decided.plan)
    strays = decided.plan.of(Action.EXTRA) if prune else ()
    for step in decided.plan.steps:
        if not step.starts and not (prune and step.action is Action.EXTRA):
            outcomes.set(step, untouched(step))
    pruned = Prune(accounts, strays, outcomes)
    try:
        yield from pruned.begin()
        yield from _serve(accounts, decided, launches, outcomes, halt=halt)
        yield from pruned.finish()
    finally:
        pruned.leave()
    yield Finished(accounts.outside.now(), outcomes.all())


def _serve(
    accounts: Accounts,
    decided: Decided,
    launches: Launches,
    outcomes: Outcomes,
    *,
    halt: threading.Event,
) -> Iterator[FleetEvent]:
    """Launch what is to be launched, and complete what goes with it."""
    plan = decided.plan
    starts = [Start(step, step.seat) for step in plan.starting if step.seat]
    requests = Requests(
        accounts,
        launches,
        outcomes,
        open_intents=decided.seen.open_intents,
        total=len(starts),
        halt=halt,
    )
    starting = Starting(accounts, plan, launches, outcomes)
    returning = Returning(accounts, plan.lab.id)
    yield from lacking_before(accounts, plan)
    returning.look(accounts_in(step for step in plan.steps if may_lack(returning, step)))
    try:
        while starts:
            taken = yield from requests.request(starts)
            starts = yield from starting.until_running(taken)
    finally:
        # An interrupted command begins no further call; those under way end, and are written down.
        requests.leave()
        unwritten = write_seats(accounts, plan, requests.taken)
    yield from unwritten
    yield from lacking_after(accounts, plan, launches)
    yield from complete_books(accounts, plan)
    schedule_ends(accounts, plan, outcomes, unscheduled=requests.unscheduled)
    yield from bring_back(accounts, returning, outcomes)
