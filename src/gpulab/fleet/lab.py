"""When a lab's instances begin and end, and the wish they share. Refuses a lab that is over, or begins too far ahead."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from gpulab.errors import Refused, WrongUsage
from gpulab.model.course import Course, Lab
from gpulab.model.instance import LaunchRequest
from gpulab.model.market import Market
from gpulab.model.nearest import did_you_mean


def lab_of(course: Course, lab_id: str) -> Lab:
    """
    Find a lab.

    Raises:
        WrongUsage: There is none of that id; the hint names the nearest.
    """
    found = next((lab for lab in course.labs if lab.id == lab_id), None)
    if found is not None:
        return found
    known = [lab.id for lab in course.labs]
    hint = did_you_mean(lab_id, known, otherwise="There are " + ", ".join(known))
    raise WrongUsage(f"{course.id} has no lab `{lab_id}`", hint=hint)


def as_if_now(lab: Lab, now: datetime) -> Lab:
    """Move a lab so that it begins now, for a rehearsal or a term long past; its length stays."""
    begins = now.replace(microsecond=0)
    return replace(lab, starts_at=begins, ends_at=begins + (lab.ends_at - lab.starts_at))


def refuse_over(lab: Lab, *, now: datetime) -> None:
    """
    Refuse to plan a lab of the past.

    Raises:
        Refused: It is over.
    """
    if lab.ends_at <= now:
        raise Refused(
            f"lab {lab.id} was over at {lab.ends_at:%Y-%m-%d %H:%M} UTC",
            hint="`--now` treats it as beginning now, for a rehearsal",
        )


def check_time(lab: Lab, *, now: datetime, prewarm: timedelta | None) -> timedelta:
    """
    Say how long to wait before launching.

    Args:
        prewarm: How long before the lab the launches may begin; `None` for the lab's own.

    Returns:
        Zero when the time has come.

    Raises:
        Refused: The lab is over; or it begins later than that and nobody asked to wait.
    """
    refuse_over(lab, now=now)
    ahead = prewarm if prewarm is not None else timedelta(minutes=lab.prewarm_minutes)
    wait = lab.starts_at - ahead - now
    if wait > timedelta(0) and prewarm is None:
        raise Refused(
            f"lab {lab.id} begins at {lab.starts_at:%Y-%m-%d %H:%M} UTC; instances launched now would cost until then",
            hint=f"`--prewarm {lab.prewarm_minutes}m` waits until {lab.prewarm_minutes} min before; `--now` treats it as beginning now",
        )
    return max(wait, timedelta(0))


def end_of(lab: Lab, *, now: datetime, longest: timedelta) -> datetime:
    """
    Say when an instance launched now ends itself: the lab's end and its grace, but no later than the longest life allows.

    Project weeks last longer than any instance may: there the plan says so, and running it again goes on.
    """
    return min(lab.ends_at + timedelta(minutes=lab.grace_minutes), now + longest)


def extension_of(lab: Lab, *, now: datetime, longest: timedelta) -> datetime:
    """
    Say until when the instances of a lab are extended where nobody names a time: until the end that a launch now would have.

    Raises:
        WrongUsage: The lab is not on: what runs is a rehearsal, of which the lab's own end says nothing.
    """
    end = end_of(lab, now=now, longest=longest)
    if end <= now or lab.starts_at - now > longest:
        raise WrongUsage(
            f"lab {lab.id} is not on now, so its end ({lab.ends_at:%Y-%m-%d %H:%M} UTC) is none for what runs",
            hint=f"Name one, as for a rehearsal: `gpulab fleet extend {lab.id} --by 1h`",
        )
    return end


def request_for(
    course: Course, lab: Lab, *, now: datetime, longest: timedelta, on_demand: bool = False
) -> LaunchRequest:
    """
    Build the wish that all launches of a lab share.

    Args:
        on_demand: Whether places on demand are tried once every spot place is full.
    """
    return LaunchRequest(
        name=lab.id,
        gpu=lab.gpu or None,
        instance_type=lab.instance_type or None,
        duration=end_of(lab, now=now, longest=longest) - now,
        max_usd_per_hour=None,
        regions=course.regions,
        markets=(Market.SPOT, Market.ON_DEMAND) if on_demand else (Market.SPOT,),
        environment=lab.environment,
        budget_usd=lab.budget_usd,
        course=course.id,
        lab=lab.id,
        notebooks=lab.notebooks,
    )
