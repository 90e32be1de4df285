"""A whole class as its teacher reads it: the plan before any money, one line a seat, and what went wrong with what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from gpulab.fleets import events
from gpulab.model.fleet import (
    AccountRef,
    Action,
    FleetPlan,
    Outcome,
    QuotaNeed,
    Seat,
    Step,
    Trouble,
)
from gpulab.model.setup import ImageChoice
from gpulab.view.console import table
from gpulab.view.words import counted, in_line, local_time, money, span

_SHOWN = 20


def plan_text(plan: FleetPlan, *, now: datetime) -> str:
    """Say what would be done, for whom, what it costs at most, and what does not fit."""
    counts = Counter(step.action for step in plan.steps)
    lab = plan.lab
    lines = [
        f"{plan.course.id} {lab.id}: {lab.title}",
        f"  lab       {local_time(lab.starts_at, now=now)} to {local_time(lab.ends_at, now=now)}",
        f"  seats     {_counted(counts) or 'nobody'}",
        *_wish(plan),
        f"  ends      each instance ends itself {local_time(plan.ends_at, now=now)}",
        *_costs(plan),
        *(f"  boots     {line}" for line in boot_lines(chain(*plan.boots.values()), "accounts")),
        *(
            f"  quota     {_quota(need)}"
            for need in plan.quotas[:_SHOWN]
            if not need.fits or len(plan.launch_plans) == 1
        ),
        *(f"  note      {note}" for note in plan.notes),
        *(f"  refused   {refusal}" for refusal in plan.refusals),
    ]
    lines += _trouble(plan)
    return "\n".join(lines)


def steps_text(steps: Sequence[Step]) -> str:
    """Align all steps for people, one a line."""
    rows = [
        [
            step.name,
            step.seat.label if step.seat else "-",
            step.account.number or step.account.profile,
            str(step.action),
            step.instance.id if step.instance else "-",
            money(step.at_most_usd) if step.starts else "-",
            step.reason,
        ]
        for step in steps
    ]
    headings = ["NAME", "WHO", "ACCOUNT", "ACTION", "INSTANCE", "AT MOST", "WHY"]
    return table(rows, headings, right=[5])


def plan_json(plan: FleetPlan) -> dict[str, Any]:
    """Return the plan for programs: amounts in USD as decimal texts; people by their opaque ids and the roster's ids, never by name."""
    return {
        "course": plan.course.id,
        "lab": plan.lab.id,
        "starts_at": plan.lab.starts_at,
        "ends_at": plan.ends_at,
        "at_most_usd": plan.at_most_usd,
        "expected_usd": plan.expected_usd,
        "boots": [
            {"account": key, **_boot_json(boot)}
            for key, boots in plan.boots.items()
            for boot in boots
        ],
        "counts": {action.value: len(plan.of(action)) for action in Action},
        "steps": [_step_json(step) for step in plan.steps],
        "quotas": [_quota_json(need) for need in plan.quotas],
        "broken_accounts": [
            {
                "account": broken.account.key,
                "seats": [seat.name for seat in broken.seats],
                "error": broken.trouble.message,
                "hint": broken.trouble.hint,
                "code": broken.trouble.code,
            }
            for broken in plan.broken
        ],
        "refusals": list(plan.refusals),
        "notes": list(plan.notes),
    }


def outcome_line(number: int, outcome: Outcome) -> str:
    """Say what came of one seat, numbered as they come: `   3  s171000: done; 1 file sent`."""
    text = outcome.trouble.message if outcome.trouble else outcome.detail
    return in_line(
        f"  {number:>4}  {outcome.who}: {'; '.join(filter(None, (outcome.result, text)))}"
    )


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return what came of one seat for programs."""
    instance, seat = outcome.instance, outcome.seat
    return {
        "name": outcome.name,
        "owner": seat.owner if seat else (instance.owner if instance else ""),
        "label": seat.label if seat else "",
        "group": seat.group if seat else "",
        "account": outcome.account.key,
        "result": outcome.result,
        "instance": instance.id if instance else "",
        "zone": instance.place.zone if instance else "",
        "address": instance.address if instance else "",
        "error": outcome.trouble.message if outcome.trouble else "",
        "hint": outcome.trouble.hint if outcome.trouble else "",
        "code": outcome.trouble.code if outcome.trouble else "",
        "detail": outcome.detail,
        "boot": _boot_json(outcome.boot) if outcome.boot else None,
    }


def outcomes_text(outcomes: Sequence[Outcome]) -> str:
    """Count what came of the seats, then name each failure, grouped by cause, with what to do about it."""
    counts = Counter(str(outcome.result) for outcome in outcomes)
    head = ", ".join(f"{n:,} {word}" for word, n in counts.items()) or "nobody to serve"
    boots = boot_lines((o.boot for o in outcomes if o.boot), "instances")
    return "\n".join([head, *(f"  {line}" for line in boots), *causes_lines(outcomes)])


def boot_lines(choices: Iterable[ImageChoice], counted_as: str) -> list[str]:
    """Say what instances boot from and why, each reason once: an account's own name of its image would make it a reason of its own."""
    found = tuple(choices)
    is_one = len({boot.baked for boot in found}) == 1
    reasons = Counter(
        boot.why if is_one or boot.baked is None else boot.why.replace(boot.baked.name, "an image")
        for boot in found
    )
    return [f"{why} ({n:,} {counted_as})" if n > 1 else why for why, n in reasons.items()]


def causes_lines(outcomes: Iterable[Outcome]) -> list[str]:
    """Write each cause once, then whom it concerns, then what to do."""
    return _causes((o.account, o.who, o.trouble) for o in outcomes)


def trouble_lines(found: Iterable[tuple[AccountRef, Trouble | None]]) -> list[str]:
    """Write each cause once, then the accounts it concerns, then what to do."""
    return _causes((ref, ref.number or ref.profile, trouble) for ref, trouble in found)


def _causes(found: Iterable[tuple[AccountRef, str, Trouble | None]]) -> list[str]:
    causes: dict[tuple[str, str], list[str]] = {}
    for account, who, trouble in found:
        if trouble is not None:
            key = (unnamed(trouble.message, account), unnamed(trouble.hint, account))
            causes.setdefault(key, []).append(who)
    return _grouped(causes)


def unnamed(text: str, account: AccountRef) -> str:
    """Leave out of a cause which account it is about: named, it would be a cause of its own for each of a class."""
    if not account.role_arn:
        return text
    named = ((account.role_arn, "the role"), (f"account {account.number}", "the account"))
    for name, words in (*named, (account.number, "the account")):
        text = text.replace(name, words)
    return text


def sentence(event: events.FleetEvent, *, now: datetime) -> str:
    """Say an event in one line; empty when there is nothing to say."""
    match event:
        case events.WaitingUntil(until=until):
            return f"Waiting until {local_time(until, now=now)} ({span(until - now)}); Ctrl-C ends the waiting, nothing runs yet"
        case events.Unscheduled(accounts=accounts, why=why):
            return (
                f"In {_named(accounts)} no end is scheduled in the account itself ({why}):"
                " only the timer on each instance ends it, and `gpulab fleet stop`"
            )
        case events.Narrowed(account=account, region=region, former=former, cidr=cidr):
            return (
                f"In {account}, {region}, ssh is let in from {cidr} now and no more from {', '.join(former)}: for all instances of the course."
                " `--cidr` or `cidr` in course.toml names another range"
            )
        case events.Unkept(accounts=accounts, why=why):
            return (
                f"Nothing in {_named(accounts)} keeps the work when an instance ends by itself ({why}):"
                " `gpulab fleet collect` brings it home before that"
            )
        case events.Unwritten(accounts=accounts, why=why):
            return (
                f"In {_named(accounts)} it could not be written down whose instance is whose ({why}):"
                " until the next `gpulab fleet up` only this computer finds the work that these keep"
            )
        case events.Unbooked(accounts=accounts, why=why):
            return (
                f"In {_named(accounts)} the ledger could not be completed ({why}):"
                " what an earlier command launched may not be charged until a `gpulab fleet up` can"
            )
        case events.Pruning(count=count):
            return f"Saving and ending {counted(count, 'extra instance')} meanwhile"
        case events.Pruned(outcome=outcome):
            said = outcome.trouble.message if outcome.trouble else "ended"
            return f"  {outcome.who}: {said}"
        case events.BringingBack(count=count):
            return f"Bringing kept work to {counted(count, 'new instance')} as soon as they can be reached"
        case events.BroughtBack(outcome=outcome, said=said):
            return f"  {outcome.who}: {said}"
        case events.Requested(seat=seat, instance=instance, done=done, of=total):
            return f"  {done:>4}/{total}  {seat.label}: {instance.id} in {instance.place.zone}"
        case events.SeatFailed(outcome=outcome, done=done, of=total):
            said = outcome.trouble.message if outcome.trouble else "failed"
            return f"  {done:>4}/{total}  {outcome.who}: {said}"
        case events.Lost(seat=seat, reason=reason):
            return f"  {seat.label}: it ended while it started ({reason}); launching again"
        case events.Polled(running=running, pending=pending):
            return f"  {running} run, {pending} are starting" if pending else f"  {running} run"
    return ""


def question(plan: FleetPlan, *, prune: bool, wait: timedelta) -> str:
    """Ask about a plan in one line."""
    starts = sum(step.starts for step in plan.steps)
    words = [f"Start {counted(starts, 'instance')}, at most {money(plan.at_most_usd)}"]
    if replaced := len(plan.of(Action.REPLACE)):
        words.append(f"after saving and ending {replaced:,} of them")
    if prune and (extra := len(plan.of(Action.EXTRA))):
        words.append(f"save and end {extra:,} extra ones")
    if wait > timedelta(0):
        words.append(f"in {span(wait)}")
    return ", ".join(words) + "?"


def _counted(counts: Counter[Action]) -> str:
    return ", ".join(f"{counts[action]:,} {action}" for action in Action if counts[action])


def _wish(plan: FleetPlan) -> list[str]:
    first = next(iter(plan.launch_plans.values()), None)
    if first is None:
        return []
    offer = first.attempts[0]
    kinds = sorted({p.attempts[0].type.name for p in plan.launch_plans.values()})
    gpu = f" ({offer.type.gpus} x {offer.type.gpu_name})" if offer.type.gpus else ""
    regions = sorted({o.place.region for p in plan.launch_plans.values() for o in p.attempts})
    return [
        f"  each      {' or '.join(kinds)}{gpu}, environment {plan.lab.environment}, in {', '.join(regions)}"
    ]


def _costs(plan: FleetPlan) -> list[str]:
    starts = [step for step in plan.steps if step.starts]
    if not starts:
        return ["  costs     nothing is started"]
    dearest = max(step.at_most_usd for step in starts)
    return [
        f"  costs     at most {money(plan.at_most_usd)} in all, {money(dearest)} a seat;"
        f" about {money(plan.expected_usd)} at today's price"
    ]


def _quota(need: QuotaNeed) -> str:
    where = f"{need.account.number or need.account.profile}, {need.region}"
    words = f"{where}: needs {need.needed_vcpus:,} {need.family} vCPUs ({need.market})"
    if need.limit_vcpus is None:
        return f"{words}; the limit could not be read"
    limit = f"limit {need.limit_vcpus:,}, {need.free_vcpus or 0:,} free"
    return f"{words}, {limit}" + ("" if need.fits else f": {need.hint}")


def _trouble(plan: FleetPlan) -> list[str]:
    causes: dict[tuple[str, str], list[str]] = {}
    for step in plan.of(Action.BLOCKED, Action.REPLACE, Action.EXTRA):
        hint = step.hint or ("`--prune` saves its work and ends it" if step.seat is None else "")
        reason = unnamed(f"{step.action}: {step.reason}", step.account)
        causes.setdefault((reason, unnamed(hint, step.account)), []).append(_step_who(step))
    for step in plan.of(Action.KEEP):
        if step.reason:
            causes.setdefault((f"keep: {step.reason}", step.hint), []).append(_step_who(step))
    return _grouped(causes)


def _named(accounts: Sequence[str]) -> str:
    return ", ".join(accounts) if len(accounts) < 4 else f"{len(accounts):,} accounts"


def _grouped(causes: dict[tuple[str, str], list[str]]) -> list[str]:
    lines = []
    for (message, hint), who in causes.items():
        some = ", ".join(who[:_SHOWN])
        more = f" and {len(who) - _SHOWN:,} more" if len(who) > _SHOWN else ""
        lines += ["", f"{message}", f"    {len(who):,}: {some}{more}"]
        if hint:
            lines.append(f"    {hint}")
    return [in_line(line) for line in lines]


def _step_who(step: Step) -> str:
    return (
        step.seat.label
        if step.seat
        else f"{step.name} ({step.instance.id if step.instance else ''})"
    )


def _step_json(step: Step) -> dict[str, Any]:
    seat: Seat | None = step.seat
    return {
        "action": step.action,
        "name": step.name,
        "owner": seat.owner if seat else "",
        "label": seat.label if seat else "",
        "group": seat.group if seat else "",
        "account": step.account.key,
        "instance": step.instance.id if step.instance else "",
        "at_most_usd": step.at_most_usd,
        "reason": step.reason,
        "hint": step.hint,
    }


def _boot_json(boot: ImageChoice) -> dict[str, Any]:
    return {
        "region": boot.region,
        "image": boot.baked.id if boot.baked else "",
        "why": boot.why,
        "once_usd": boot.once_usd,
    }


def _quota_json(need: QuotaNeed) -> dict[str, Any]:
    return {
        "account": need.account.key,
        "region": need.region,
        "family": need.family,
        "market": need.market,
        "code": need.code,
        "needed_vcpus": need.needed_vcpus,
        "free_vcpus": need.free_vcpus,
        "limit_vcpus": need.limit_vcpus,
        "fits": need.fits,
        "hint": need.hint,
    }
