"""
`gpulab extend`: move all three ends of an instance: the timer on it, the schedule in the account, and the tag that says when; or its idle
limit, on the instance and in a tag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from gpulab.aws import instances as ec2
from gpulab.aws.end_schedule import EndSchedule
from gpulab.errors import AwsError, GpulabError, NotAllowed, Refused, StoreError
from gpulab.launch.context import Context
from gpulab.launch.money.budget import allowance
from gpulab.launch.money.planned import planned_ends
from gpulab.launch.money.rebuilding import complete
from gpulab.launch.protocol import scheduled_end
from gpulab.launch.running import agent, instances
from gpulab.model.budget import Allowance
from gpulab.model.fact import extended
from gpulab.model.instance import TAG_EXPIRES, TAG_IDLE, Instance
from gpulab.planning.budgets import Extension, check_extension
from gpulab.remote.host import Host
from gpulab.spending.budget import most_usd_per_hour, term_budget
from gpulab.spending.facts import LedgerReading, timeline_of


@dataclass(frozen=True)
class Extended:
    """
    What was moved.

    Attributes:
        until: The new end; aware UTC.
        agent: Whether the timer on the instance was moved.
        schedule: Whether the schedule in the account was moved.
        tag: Whether the tag was moved; the agent reads it within a minute.
        notes: Sentences about what was not.
        at_most_usd: What the added time may cost, 0 when there is none; `None` when nobody knows.
    """

    until: datetime
    agent: bool
    schedule: bool
    tag: bool
    notes: tuple[str, ...] = ()
    at_most_usd: Decimal | None = None


@dataclass(frozen=True)
class IdleLimit:
    """
    The new idle limit, and where it was written.

    Attributes:
        agent: Whether the agent has it now.
        tag: Whether the tag has it; the agent reads it within a minute.
        notes: Sentences about what was not.
    """

    idle_minutes: int
    agent: bool
    tag: bool
    notes: tuple[str, ...] = ()


def limit_idle(context: Context, instance: Instance, minutes: int) -> IdleLimit:
    """
    Change after how many minutes without activity an instance ends; its end and its budget stand.

    Raises:
        GpulabError: Neither the agent nor the tag could be changed; the old limit stands.
    """
    tag_error = _retag(context, instance, {TAG_IDLE: str(minutes)})
    agent_error = _ask_agent(context, instance, lambda host: agent.idle(host, minutes))
    if tag_error and agent_error:
        raise agent_error.reworded(
            f"the idle limit was not changed: {agent_error.message}; {tag_error.message}"
        ) from agent_error
    notes = _notes(agent_error, tag_error, what="limit")
    return IdleLimit(minutes, agent_error is None, tag_error is None, notes)


def _notes(
    agent_error: GpulabError | None, tag_error: GpulabError | None, *, what: str
) -> tuple[str, ...]:
    return (
        *(
            [
                f"the instance was not reached ({agent_error.message}); it reads the new {what} from its tag within a minute"
            ]
            if agent_error
            else []
        ),
        *([f"the tag was not moved: {tag_error.message}"] if tag_error else []),
    )


def extend_within_budget(
    context: Context,
    instance: Instance,
    until: datetime,
    *,
    allowed: Allowance | None = None,
    reading: LedgerReading | None = None,
    lab: str = "",
) -> Extended:
    """
    Move the end of an instance, if the time until then fits into what is left of a term's budget.

    Args:
        allowed: Of whom it serves; `None` for the profile's own.
        reading: The ledger, where it was read already; it is read again for an instance that it does not know.
        lab: Whose teacher asks; `""` for one's own instance.

    Raises:
        CreditTooLow: It may cost more than that.
        StoreError: There is a budget, and the ledger cannot be read: a limit that cannot be checked is not passed.
        GpulabError: As `extend` raises.
    """
    until = _whole(until)
    _check(context, until)
    allowed = allowed or allowance(context)
    if reading is None or instance.id not in reading.launches:
        reading = _read(context, instance, is_needed=allowed.usd is not None)
    at_most_usd = None
    if reading is not None:
        at_most_usd = _priced(context, instance, until, reading, allowed, lab)
    return replace(extend(context, instance, until), at_most_usd=at_most_usd)


def _read(context: Context, instance: Instance, *, is_needed: bool) -> LedgerReading | None:
    try:
        # What AWS does not say now is missing below, and named there.
        with contextlib.suppress(AwsError):
            complete(context, instance.place.region, instance.id)
        return timeline_of(context.ledger.facts())
    except StoreError:
        if is_needed:
            raise
        return None


def _priced(
    context: Context,
    instance: Instance,
    until: datetime,
    reading: LedgerReading,
    allowed: Allowance,
    lab: str,
) -> Decimal | None:
    """Say what the added time may cost, and refuse what does not fit."""
    now = context.now()
    per_hour = most_usd_per_hour(reading, instance.id, now=now)
    asked = Extension(instance.name, instance.expires_at, until, per_hour, lab)
    if allowed.usd is not None:
        term = term_budget(
            reading, allowed.usd, owners=allowed.owners, now=now, besides=instance.id
        )
        check_extension(asked, term, now=now)
    return asked.at_most_usd(max(now, instance.expires_at or now))


def extend(context: Context, instance: Instance, until: datetime) -> Extended:
    """
    Move the end of an instance. The schedule in the account moves first when the end comes later, last when it comes sooner, so that
    neither ends the instance under the other.

    Raises:
        Refused: The end lies in the past, or beyond the limit from now.
        GpulabError: Neither the agent nor the tag could be moved, or the account may still end the instance sooner; the old end stands.
    """
    until = _whole(until)
    _check(context, until)
    is_later = instance.expires_at is None or until > instance.expires_at
    armed = _armed_first(context, instance, until) if is_later else None
    text = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    tag_error = _retag(context, instance, {TAG_EXPIRES: text})
    agent_error = _ask_agent(context, instance, lambda host: agent.extend(host, until))
    if tag_error and agent_error:
        stood = _end_before(context, instance)
        if stood is not None and armed is not None and armed.is_armed:
            scheduled_end.arm_at(context, instance, stood)
        raise agent_error.reworded(
            f"the end was not moved: {agent_error.message}; {tag_error.message}"
        ) from agent_error
    armed = armed or scheduled_end.arm_at(context, instance, until)
    unwritten = _write_down(context, instance, until)
    return Extended(
        until=until,
        agent=agent_error is None,
        schedule=armed.is_armed,
        tag=tag_error is None,
        notes=(
            *_notes(agent_error, tag_error, what="end"),
            *(
                [f"no end is scheduled in the account: {armed.why_not}"]
                if not armed.is_armed
                else []
            ),
            *unwritten,
        ),
    )


def _armed_first(context: Context, instance: Instance, until: datetime) -> EndSchedule:
    """
    Move the schedule. Where it may stay behind nothing else is moved: the account would end the instance with its work unsaved.

    Who may neither schedule nor look has scheduled nothing.
    """
    armed = scheduled_end.arm_at(context, instance, until)
    if armed.error is None:
        return armed
    found = scheduled_end.read(context, instance)
    if found.until is not None and found.until >= until:
        return found
    if found.until is not None or not isinstance(found.error, NotAllowed | None):
        raise armed.error.reworded(f"the end was not moved: {armed.why_not}") from armed.error
    return armed


def _end_before(context: Context, instance: Instance) -> datetime | None:
    """The end that stands when nothing was moved: the tag's, or a later one of an extension that did not reach the tag."""
    told = planned_ends(context).get(instance.id)
    return max((end for end in (instance.expires_at, told) if end is not None), default=None)


def _whole(until: datetime) -> datetime:
    return until.astimezone(UTC).replace(microsecond=0)


def _write_down(context: Context, instance: Instance, until: datetime) -> tuple[str, ...]:
    """Let the ledger keep money for the time to come; one that cannot be written does not stop what runs."""
    try:
        context.ledger.append([extended(instance.id, at=context.now(), until=until)])
    except StoreError as error:
        return (f"the ledger does not know the new end: {error.message}",)
    return ()


def _check(context: Context, until: datetime) -> None:
    now = context.now()
    if until <= now:
        raise Refused("the new end lies in the past", hint="`gpulab stop` ends it now")
    if until - now > context.profile.lifetime_limit:
        raise Refused(
            f"that is more than {context.profile.hours_limit:g} h from now",
            hint="Extend by less and again later, or raise `hours_limit` in the configuration",
        )


def _retag(context: Context, instance: Instance, tags: Mapping[str, str]) -> GpulabError | None:
    try:
        ec2.retag(context.cloud, instance.place.region, [instance.id], tags)
    except GpulabError as error:
        return error
    return None


def _ask_agent(
    context: Context, instance: Instance, ask: Callable[[Host], None]
) -> GpulabError | None:
    try:
        ask(instances.host(context, instance))
    except GpulabError as error:
        return error
    return None
