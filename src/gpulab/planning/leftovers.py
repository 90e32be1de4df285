"""
Which of our resources are left over. Pure. What is in use stays; what may hold work that is nowhere else stays; what is not tagged is
never even looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

from gpulab.model.instance import BAKE_NAME
from gpulab.model.leftover import Kind, Leftover, Tagged

# A launch made by another computer may not be known here for a moment.
GRACE = timedelta(minutes=10)
_NOWHERE: Mapping[str, datetime | None] = {}


def sort_out(
    resources: Iterable[Tagged],
    *,
    known_launches: Collection[str],
    kept_at: Mapping[str, datetime],
    now: datetime,
    moved_to: Mapping[str, datetime | None] = _NOWHERE,
) -> tuple[tuple[Leftover, ...], tuple[Leftover, ...]]:
    """
    Tell what is left over from what is not.

    Args:
        known_launches: Launch ids in this computer's journal.
        kept_at: When the work of each name was last kept and compared.
        moved_to: Where others than the tag say that an instance ends: by its id; `None` where nobody could be asked.

    Returns:
        What may be deleted, in the order of deleting; and what is not touched, both with the reason.
    """
    found = sorted(resources, key=lambda r: (list(Kind).index(r.kind), r.region, r.id))
    live = {r.id for r in found if r.kind is Kind.INSTANCE}
    busy = {r.region for r in found if r.kind is Kind.INSTANCE}
    over: list[Leftover] = []
    stays: list[Leftover] = []
    bakes = _bakes(found)
    for resource in found:
        if resource.bake_id and resource.kind in (Kind.IMAGE, Kind.SNAPSHOT):
            why, is_over = _of_a_bake(resource, bakes, now)
            (over if is_over else stays).append(Leftover(resource, why))
            continue
        why, is_over = _judge(
            resource,
            live=live,
            busy=busy,
            known=known_launches,
            kept_at=kept_at,
            moved_to=moved_to,
            now=now,
        )
        (over if is_over else stays).append(Leftover(resource, why))
    return tuple(over), tuple(stays)


def _bakes(found: Iterable[Tagged]) -> dict[str, str]:
    """Say why the parts of a bake stay, by its id or, while a builder or test instance is up, by its region."""
    builders = [r for r in found if r.kind is Kind.INSTANCE and r.name.startswith(BAKE_NAME)]
    tested = [r for r in found if r.kind is Kind.IMAGE and r.is_usable]
    return {r.region: "a bake is under way" for r in builders} | {
        r.bake_id: "`gpulab image prune` deletes old ones" for r in tested
    }


def _of_a_bake(resource: Tagged, bakes: Mapping[str, str], now: datetime) -> tuple[str, bool]:
    if resource.created_at is not None and now - resource.created_at < GRACE:
        return "it is younger than 10 min", False
    if resource.state == "pending":
        return "AWS is still making it", False
    why = bakes.get(resource.bake_id) or bakes.get(resource.region)
    return (why, False) if why else ("a bake that did not end has left it", True)


def _judge(
    resource: Tagged,
    *,
    live: Collection[str],
    busy: Collection[str],
    known: Collection[str],
    kept_at: Mapping[str, datetime],
    moved_to: Mapping[str, datetime | None],
    now: datetime,
) -> tuple[str, bool]:
    """Return the reason, and whether the resource is left over."""
    if resource.created_at is not None and now - resource.created_at < GRACE:
        return "it is younger than 10 min", False
    match resource.kind:
        case Kind.INSTANCE:
            return _instance(resource, known, moved_to, now)
        case Kind.VOLUME | Kind.SNAPSHOT | Kind.IMAGE:
            return _with_content(resource, live, kept_at)
        case Kind.SPOT_REQUEST | Kind.SCHEDULE:
            in_use = resource.uses in live
            return (f"{resource.uses} is up", False) if in_use else ("its instance has ended", True)
        case Kind.ADDRESS:
            return ("it is in use", False) if resource.uses else ("nothing uses it", True)
        case Kind.SECURITY_GROUP | Kind.KEY_PAIR:
            in_use = resource.region in busy
            return ("instances there use it", False) if in_use else ("no instance uses it", True)
        case Kind.KEPT_WORK:
            return "`gpulab rm` deletes it", False


def is_past_its_tag(resource: Tagged, *, now: datetime) -> bool:
    """Whether an instance's time is over by its tag, which `gpulab extend` may not have been able to write."""
    return resource.expires_at is not None and resource.expires_at + GRACE < now


def _instance(
    resource: Tagged,
    known: Collection[str],
    moved_to: Mapping[str, datetime | None],
    now: datetime,
) -> tuple[str, bool]:
    """
    An instance within its time may hold the only copy of somebody's work, whichever computer launched it; it ends by itself. One that was
    stopped does not, and its work cannot be saved.
    """
    if resource.state in ("stopping", "stopped"):
        ends = "`gpulab stop --no-save` ends it"
        return (
            f"it is {resource.state}, and its disk may hold work that is kept nowhere else; {ends}",
            False,
        )
    is_known = resource.launch_id in known
    if resource.expires_at is None:
        return ("it has no end", not is_known)
    if is_past_its_tag(resource, now=now):
        later = moved_to.get(resource.id, resource.expires_at)
        if later is None:
            return (
                "its time is over by its tag, and whether it was extended could not be read",
                False,
            )
        if later + GRACE < now:
            return "its time is over", True
    ends = "`gpulab stop` saves its work and ends it"
    if is_known:
        return f"it is within its time; {ends}", False
    return f"another computer launched it, and it is within its time; {ends}", False


def _with_content(
    resource: Tagged, live: Collection[str], kept_at: Mapping[str, datetime]
) -> tuple[str, bool]:
    if resource.uses in live:
        return f"{resource.uses} uses it", False
    if resource.state == "in-use":
        return "an instance uses it", False
    kept = kept_at.get(resource.name)
    if kept is None or resource.created_at is None or kept < resource.created_at:
        return "it may hold work that is kept nowhere else", False
    return f"nothing uses it, and the work of {resource.name} is kept", True
