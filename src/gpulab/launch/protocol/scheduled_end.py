"""Arming, moving and removing the end that is scheduled in the account. It comes a little after the instance's own, which saves the work first."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime, timedelta

from gpulab.aws import end_schedule
from gpulab.aws.end_schedule import EndSchedule
from gpulab.errors import GpulabError
from gpulab.launch.context import Context
from gpulab.launch.events import Event, Guarded, Unguarded
from gpulab.model.instance import Instance

# The instance ends itself at its deadline, after saving; the account ends what is left of it.
AFTER_DEADLINE = timedelta(minutes=3)


def arm(
    context: Context, instance: Instance, ends_at: datetime, *, is_last: bool = False
) -> Generator[Event, None, bool]:
    """
    Schedule the end of an instance, or move it; say what is armed. Never fails: the timer on the instance is there.

    Args:
        is_last: Whether nobody asks again once the instance runs.

    Returns:
        Whether asking again later may help: the account has a role, and the scheduler did not take it. A role that was made
        moments ago cannot be assumed for some seconds.
    """
    armed = arm_at(context, instance, ends_at)
    yield told(context, armed, is_asked_again=armed.is_too_early and not is_last)
    return armed.until is None and bool(context.profile.scheduler_role)


def told(context: Context, armed: EndSchedule, *, is_asked_again: bool = False) -> Event:
    """Say what is armed, as an event."""
    if armed.until is not None:
        return Guarded(context.now(), armed.until)
    return Unguarded(context.now(), armed.why_not, is_asked_again)


def ensure(context: Context, instance: Instance) -> EndSchedule:
    """
    Schedule the end of an instance that was found, where none stands or one that comes too soon; a later one is believed.

    The tag alone is no reason to move it back: `gpulab extend` may have moved agent and schedule while the tag could not be written, and the
    account would then end the instance with its work unsaved.
    """
    found = read(context, instance)
    if found.error is not None or instance.expires_at is None:
        return found
    if found.until is not None and found.until >= instance.expires_at + AFTER_DEADLINE:
        return found
    return arm_at(context, instance, instance.expires_at)


def arm_at(context: Context, instance: Instance, ends_at: datetime) -> EndSchedule:
    """Schedule the end of an instance, or move it."""
    try:
        return end_schedule.arm(
            context.cloud,
            instance.place.region,
            instance.id,
            owner=instance.owner,
            until=ends_at + AFTER_DEADLINE,
            role_arn=context.profile.scheduler_role,
        )
    except GpulabError as error:
        return EndSchedule(None, error.message, error)


def disarm(context: Context, instance: Instance) -> None:
    """Remove the scheduled end of an instance that has ended."""
    if not context.profile.scheduler_role:
        return
    try:
        end_schedule.disarm(context.cloud, instance.place.region, instance.id, owner=instance.owner)
    except GpulabError:
        # It ends nothing, removes itself and costs nothing.
        return


def read(context: Context, instance: Instance) -> EndSchedule:
    """Read what is armed."""
    return read_of(context, instance.place.region, instance.id, owner=instance.owner)


def read_of(context: Context, region: str, instance_id: str, *, owner: str) -> EndSchedule:
    """Read what is armed for an instance of which no more is known than this."""
    if not context.profile.scheduler_role:
        return EndSchedule(
            None, "the account has no role for it; `gpulab init` makes one where it may"
        )
    try:
        return end_schedule.read(context.cloud, region, instance_id, owner=owner)
    except GpulabError as error:
        return EndSchedule(None, error.message, error)
