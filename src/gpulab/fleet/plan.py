"""
Seats + one snapshot an account -> what to launch, keep, replace and end, what it costs at most, and what does not fit where.

Refuses as data: what stands in the way of one seat blocks that seat; a limit of the course that is passed refuses the whole plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.errors import GpulabError
from gpulab.fleet.room import Room
from gpulab.model.budget import TermBudget
from gpulab.model.course import Course, Lab
from gpulab.model.fleet import (
    AccountRef,
    Action,
    BrokenAccount,
    FleetPlan,
    QuotaNeed,
    Seat,
    Step,
    Trouble,
)
from gpulab.model.instance import Instance, LaunchPlan, LaunchRequest, State
from gpulab.model.market import Offer
from gpulab.model.setup import ImageChoice
from gpulab.planning.budgets import with_own_budget
from gpulab.planning.catalogue import on_demand_prices
from gpulab.planning.plan import ceiling_usd_per_hour, plan_launch
from gpulab.planning.snapshot import Limits, Snapshot

_HOUR = Decimal(3600)
_LOST = "nobody in the roster has it"


@dataclass(frozen=True)
class View:
    """
    What was read of one account.

    Attributes:
        snapshot: Its instances are all of ours in every region of the course; its offers those of `regions`.
        regions: Where prices and quotas were read, in order of preference; never empty.
        later_regions: Looked at only if every place in those is full; their on-demand price counts in the worst case.
        budgets: What each seat's students may spend over the term, by the seat's name; empty where the course says nothing.
        boots: What a launch boots from in each of `regions`; empty where nothing is to be launched.
    """

    snapshot: Snapshot
    regions: tuple[str, ...]
    later_regions: tuple[str, ...] = ()
    budgets: Mapping[str, TermBudget] = field(default_factory=dict)
    boots: tuple[ImageChoice, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """
    What a lab asks for.

    Attributes:
        request: The wish all launches share; its duration counts from `now`.
        everyone: Every seat of the lab; an instance of none of them is extra.
        seats: Those to serve now; all, or some chosen by name.
        longest: The longest life of an instance.
    """

    course: Course
    lab: Lab
    request: LaunchRequest
    everyone: tuple[Seat, ...]
    seats: tuple[Seat, ...]
    longest: timedelta


def plan_fleet(
    wanted: Wanted, views: Mapping[str, View | GpulabError], *, now: datetime
) -> FleetPlan:
    """
    Decide what each seat needs.

    Args:
        views: By account key; one for each account of the seats. An error stands for an account that could not be looked at.
    """
    parts = [
        _account(wanted, ref, seats, views[ref.key], now)
        for ref, seats in _by_account(wanted.seats)
    ]
    found = {step.seat.name: step for part in parts for step in part.steps if step.seat}
    extras = [step for part in parts for step in part.steps if step.seat is None]
    steps = (
        *(found[seat.name] for seat in wanted.seats),
        *sorted(extras, key=lambda s: (s.name, s.account.key)),
    )
    at_most = sum((step.at_most_usd for step in steps), Decimal(0))
    return FleetPlan(
        course=wanted.course,
        lab=wanted.lab,
        made_at=now,
        ends_at=now + wanted.request.duration,
        request=wanted.request,
        steps=steps,
        launch_plans={
            part.account.key: part.launch_plan for part in parts if part.launch_plan is not None
        },
        quotas=tuple(need for part in parts for need in part.quotas),
        broken=tuple(part.broken for part in parts if part.broken is not None),
        at_most_usd=at_most,
        expected_usd=sum((part.expected_usd for part in parts), Decimal(0)),
        boots={part.account.key: part.boots for part in parts if part.boots},
        refusals=(*_of_another_key(wanted, steps), *_refusals(wanted.course, steps, at_most)),
        notes=tuple(_notes(wanted, parts, now)),
    )


def with_former(
    plan: FleetPlan, found: Mapping[AccountRef, Sequence[Instance] | GpulabError]
) -> FleetPlan:
    """
    Add what runs in accounts that nobody in the roster has any more.

    Args:
        found: The lab's live instances in each, or why it could not be looked at.
    """
    extras, notes = [], []
    for ref, listed in found.items():
        if isinstance(listed, GpulabError):
            who = ref.number or ref.profile
            notes.append(
                f"somebody who left the roster had an instance in {who}, which cannot be looked at: {listed.message}"
            )
        else:
            extras += [Step(Action.EXTRA, ref, None, i, reason=_LOST) for i in listed]
    return replace(plan, steps=(*plan.steps, *extras), notes=(*plan.notes, *notes))


@dataclass
class _Part:
    """The plan of one account; `short` counts whose term's budget is smaller than what the lab costs."""

    account: AccountRef
    steps: list[Step] = field(default_factory=list)
    quotas: tuple[QuotaNeed, ...] = ()
    launch_plan: LaunchPlan | None = None
    boots: tuple[ImageChoice, ...] = ()
    broken: BrokenAccount | None = None
    expected_usd: Decimal = Decimal(0)
    short: int = 0
    notes: tuple[str, ...] = ()


def _by_account(seats: Iterable[Seat]) -> list[tuple[AccountRef, list[Seat]]]:
    found: dict[str, tuple[AccountRef, list[Seat]]] = {}
    for seat in seats:
        found.setdefault(seat.account.key, (seat.account, []))[1].append(seat)
    return list(found.values())


def _account(
    wanted: Wanted,
    ref: AccountRef,
    seats: Sequence[Seat],
    view: View | GpulabError,
    now: datetime,
) -> _Part:
    if isinstance(view, GpulabError):
        steps = [
            Step(Action.BLOCKED, ref, seat, reason=view.message, hint=view.hint) for seat in seats
        ]
        return _Part(ref, steps, broken=BrokenAccount(ref, tuple(seats), trouble_of(view)))
    part = _Part(ref)
    live = _named(wanted, view.snapshot, lambda state: state.is_alive)
    off = _named(wanted, view.snapshot, lambda state: state.is_off)
    to_launch = []
    for seat in seats:
        step = _step(wanted, ref, seat, live.get(seat.name, []), now)
        if step.action is Action.LAUNCH and seat.name in off:
            step = _off(wanted, step, off[seat.name][0])
        if step.starts:
            to_launch.append(step)
        else:
            part.steps.append(step)
    part.steps += _extras(wanted, ref, live)
    if to_launch:
        _place(wanted, view, part, to_launch)
    return part


def _named(
    wanted: Wanted, snapshot: Snapshot, is_such: Callable[[State], bool]
) -> dict[str, list[Instance]]:
    """Return the lab's instances in such a state by name, oldest first: the one a student has worked on longest."""
    found: dict[str, list[Instance]] = {}
    for instance in sorted(snapshot.instances, key=lambda i: (i.launched_at, i.id)):
        is_ours = (instance.course, instance.lab) == (wanted.course.id, wanted.lab.id)
        if is_ours and is_such(instance.state):
            found.setdefault(instance.name, []).append(instance)
    return found


def _step(
    wanted: Wanted, ref: AccountRef, seat: Seat, live: Sequence[Instance], now: datetime
) -> Step:
    if not live:
        return Step(Action.LAUNCH, ref, seat)
    instance = live[0]
    environment = wanted.lab.environment
    if instance.environment and instance.environment != environment:
        reason = f"it has the environment {instance.environment}, the lab wants {environment}"
        return Step(Action.REPLACE, ref, seat, instance, reason=reason)
    end, needed = instance.expires_at, min(wanted.lab.ends_at, now + wanted.longest)
    if end is not None and end < needed - timedelta(minutes=1):
        return Step(
            Action.KEEP,
            ref,
            seat,
            instance,
            reason=f"it ends {_minutes(needed - end)} min before the lab",
            hint=f"`gpulab fleet extend {wanted.lab.id}{_by(wanted, needed - now)}` moves it",
        )
    return Step(Action.KEEP, ref, seat, instance)


def _off(wanted: Wanted, step: Step, instance: Instance) -> Step:
    """Launch nothing beside an instance that can be started again: its disk may hold what the student has not kept."""
    its = f"--region {instance.place.region} --instance-ids {instance.id}"
    return _blocked(
        step,
        f"{instance.id} is {instance.state}, and its disk may hold work",
        f"`aws ec2 start-instances {its}` starts it, then `gpulab fleet up {wanted.lab.id}` goes on with it;"
        f" `gpulab fleet stop {wanted.lab.id} --only {step.name} --no-save` ends it with what is on its disk",
    )


def _by(wanted: Wanted, length: timedelta) -> str:
    """Name the time where the lab's own end is none: in a rehearsal, as `--now` begins it."""
    planned = next((lab for lab in wanted.course.labs if lab.id == wanted.lab.id), wanted.lab)
    return "" if planned.ends_at == wanted.lab.ends_at else f" --by {_minutes(length)}m"


def _minutes(length: timedelta) -> int:
    return int(length.total_seconds() // 60)


def _extras(wanted: Wanted, ref: AccountRef, live: Mapping[str, Sequence[Instance]]) -> list[Step]:
    names = {seat.name for seat in wanted.everyone if seat.account.key == ref.key}
    lost = [i for name, found in live.items() if name not in names for i in found]
    doubles = [i for name, found in live.items() if name in names for i in found[1:]]
    return [
        *(Step(Action.EXTRA, ref, None, i, reason=_LOST) for i in lost),
        *(Step(Action.EXTRA, ref, None, i, reason=f"a second {i.name}") for i in doubles),
    ]


def _place(wanted: Wanted, view: View, part: _Part, steps: Sequence[Step]) -> None:
    """Fit the launches of one account into its quotas and its credit, in the roster's order."""
    request = replace(wanted.request, regions=view.regions)
    free = replace(view.snapshot, quotas=(), credit_left_usd=None, instances=())
    try:
        plan = plan_launch(request, free, limits=Limits(wanted.longest))
    except GpulabError as error:
        part.steps += [_blocked(step, error.message, error.hint) for step in steps]
        return
    room = Room(part.account, plan.attempts, view.snapshot.quotas)
    plan = replace(plan, attempts=room.roomy() or plan.attempts, later_regions=view.later_regions)
    left = view.snapshot.credit_left_usd
    once = max((boot.once_usd for boot in view.boots), default=Decimal(0))
    for step in steps:
        term = view.budgets.get(step.name)
        own = replace(plan, request=with_own_budget(plan.request, term))
        each = at_most_usd(own) + once
        if term is not None and own.request.budget_usd == 0:
            part.steps.append(_blocked(step, *_no_budget(term)))
        elif not room.take():
            reason, hint = room.refusal(len(steps))
            part.steps.append(_blocked(step, reason, hint))
        elif left is not None and each > left:
            part.steps.append(_blocked(step, *_no_credit(each, left, part.account)))
        else:
            left = None if left is None else left - each
            budget = own.request.budget_usd
            part.steps.append(replace(step, at_most_usd=each, budget_usd=budget))
            costs = min(plan.expected_usd, plan.request.budget_usd or plan.expected_usd)
            part.expected_usd += min(costs, budget or costs) + once
            part.short += budget is not None and budget < costs
    part.quotas = room.needs(len(steps))
    part.notes = plan.warnings
    if any(step.starts for step in part.steps):
        part.launch_plan = plan
        tried = {offer.place.region for offer in plan.attempts}
        part.boots = tuple(boot for boot in view.boots if boot.region in tried)


def trouble_of(error: GpulabError) -> Trouble:
    """Turn an error into data, so that it can stand beside what went well."""
    return Trouble(error.message, error.hint, error.code)


def at_most_usd(plan: LaunchPlan) -> Decimal:
    """
    Return the worst case of one launch: the dearest attempt to the end, or until the instance has used up its budget.

    The instance counts at the price of its launch; where the spot price rises after that, it passes the budget in the same ratio.
    """
    hours = Decimal(str(plan.request.duration.total_seconds())) / _HOUR
    beside = plan.disk_usd_per_hour + plan.address_usd_per_hour
    budget = plan.request.budget_usd
    worst = Decimal(0)
    for offer in plan.attempts:
        lives = hours if budget is None else min(hours, budget / (offer.usd_per_hour + beside))
        ceiling = max(
            (ceiling_usd_per_hour(offer, plan.request), *_elsewhere(offer, plan.later_regions))
        )
        worst = max(worst, lives * (ceiling + beside))
    return worst


def _elsewhere(offer: Offer, regions: Iterable[str]) -> Iterable[Decimal]:
    """Return the shipped on-demand prices of a type in regions that were not looked at."""
    listed = on_demand_prices()
    return (
        listed[(r, offer.type.name)].usd_per_hour for r in regions if (r, offer.type.name) in listed
    )


def _blocked(step: Step, reason: str, hint: str) -> Step:
    return replace(step, action=Action.BLOCKED, reason=reason, hint=hint)


def _no_budget(term: TermBudget) -> tuple[str, str]:
    kept = f", ${term.promised_usd:.2f} kept for what runs" if term.promised_usd else ""
    reason = f"the term's budget of ${term.usd:.2f} is used up (${term.spent_usd:.2f} spent{kept})"
    return reason, "Raise `budget_usd` in [course] of course.toml, or leave them out with `--only`"


def _no_credit(each: Decimal, left: Decimal, ref: AccountRef) -> tuple[str, str]:
    cent = Decimal("0.01")
    reason = (
        f"it may cost ${each.quantize(cent)}, and ${left.quantize(cent)} of the credit"
        f" of {ref.number or ref.profile} is left"
    )
    return reason, "Add credit to the account, or lower `budget_usd` of the lab"


def _of_another_key(wanted: Wanted, steps: Sequence[Step]) -> Iterable[str]:
    """
    Refuse to start a class a second time beside the one that runs: without the course's key every seat has another name.

    Whoever starts some seats by name has looked.
    """
    names = {seat.name for seat in wanted.everyone}
    strangers = [s for s in steps if s.action is Action.EXTRA and s.name not in names]
    is_all = len(wanted.seats) == len(wanted.everyone)
    if is_all and strangers and all(s.starts for s in steps if s.seat is not None):
        course, lab = wanted.course.id, wanted.lab.id
        yield (
            f"{len(strangers):,} instances of {lab} run and belong to nobody here: a computer with another key of the course started them;"
            f" copy `~/.gpulab/courses/{course}/secret` from there, or start some beside them with `--only`"
        )


def _refusals(course: Course, steps: Sequence[Step], at_most: Decimal) -> Iterable[str]:
    running = sum(step.starts or step.action is Action.KEEP for step in steps)
    if running > course.max_instances:
        yield (
            f"{running:,} instances are more than the {course.max_instances:,} that `limits.max_instances` allows"
        )
    if course.max_usd is not None and at_most > course.max_usd:
        cent = Decimal("0.01")
        yield (
            f"the worst case of ${at_most.quantize(cent):,} is over the ${course.max_usd.quantize(cent):,}"
            " that `limits.max_usd` allows"
        )


def _notes(wanted: Wanted, parts: Sequence[_Part], now: datetime) -> Iterable[str]:
    lab = wanted.lab
    if now + wanted.request.duration < lab.ends_at:
        hours = f"{wanted.longest.total_seconds() / 3600:g}"
        yield (
            f"the lab goes on until {lab.ends_at:%Y-%m-%d %H:%M} UTC; an instance lives {hours} h at most,"
            f" then `gpulab fleet up {lab.id}` goes on"
        )
    counted: dict[str, int] = {}
    if short := sum(part.short for part in parts):
        yield (
            f"{short:,} have less left of the term's budget than the lab costs: their instances end themselves when that is used up"
        )
    for note in (note for part in parts for note in part.notes):
        counted[note] = counted.get(note, 0) + 1
    for note, times in counted.items():
        yield note if times == 1 or len(parts) == 1 else f"{note} ({times} accounts)"
