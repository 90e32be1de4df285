"""`gpulab extend`: move all three ends of an instance: the timer on it, the schedule in the account, and the tag that says when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from gpulab.aws import instances as ec2
from gpulab.errors import GpulabError, Refused
from gpulab.launch.context import Context
from gpulab.launch.protocol import scheduled_end
from gpulab.launch.running import agent, instances
from gpulab.model.instance import TAG_EXPIRES, Instance


@dataclass(frozen=True)
class Extended:
    """
    What was moved.

    Attributes:
        until: The new end; aware UTC.
        agent: Whether the timer on the instance was moved.
        guard: Whether the schedule in the account was moved.
        tag: Whether the tag was moved; the agent reads it within a minute.
        notes: Sentences about what was not.
    """

    until: datetime
    agent: bool
    guard: bool
    tag: bool
    notes: tuple[str, ...] = ()


def extend(context: Context, instance: Instance, until: datetime) -> Extended:
    """
    Move the end of an instance. The schedule in the account moves first when the end comes later, last when it comes sooner, so that
    neither ends the instance under the other.

    Raises:
        Refused: The end lies in the past, or beyond the limit from now.
        GpulabError: Neither the agent nor the tag could be moved; the old end stands.
    """
    until = until.astimezone(UTC).replace(microsecond=0)
    _check(context, until)
    is_later = instance.expires_at is None or until > instance.expires_at
    armed = scheduled_end.arm_at(context, instance, until) if is_later else None
    tag_error = _move_tag(context, instance, until)
    agent_error = _move_agent(context, instance, until)
    if tag_error and agent_error:
        if instance.expires_at is not None and armed is not None and armed.is_armed:
            scheduled_end.arm_at(context, instance, instance.expires_at)
        raise agent_error.reworded(
            f"the end was not moved: {agent_error.message}; {tag_error.message}"
        ) from agent_error
    armed = armed or scheduled_end.arm_at(context, instance, until)
    return Extended(
        until=until,
        agent=agent_error is None,
        guard=armed.is_armed,
        tag=tag_error is None,
        notes=(
            *(
                [
                    f"the instance was not reached ({agent_error.message}); it reads the new end from its tag within a minute"
                ]
                if agent_error
                else []
            ),
            *([f"the tag was not moved: {tag_error.message}"] if tag_error else []),
            *(
                [f"no end is scheduled in the account: {armed.why_not}"]
                if not armed.is_armed
                else []
            ),
        ),
    )


def _check(context: Context, until: datetime) -> None:
    now = context.now()
    if until <= now:
        raise Refused("the new end lies in the past", hint="`gpulab stop` ends it now")
    if until - now > context.profile.lifetime_limit:
        raise Refused(
            f"that is more than {context.profile.hours_limit:g} h from now",
            hint="Extend by less and again later, or raise `hours_limit` in the configuration",
        )


def _move_tag(context: Context, instance: Instance, until: datetime) -> GpulabError | None:
    text = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        ec2.retag(context.cloud, instance.place.region, [instance.id], {TAG_EXPIRES: text})
    except GpulabError as error:
        return error
    return None


def _move_agent(context: Context, instance: Instance, until: datetime) -> GpulabError | None:
    try:
        agent.extend(instances.host(context, instance), until)
    except GpulabError as error:
        return error
    return None
