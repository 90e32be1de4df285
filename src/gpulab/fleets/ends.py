"""
The ends that the accounts of a class schedule for its instances: made up for where an earlier try failed, or was killed before it.

A schedule that stands is never touched: it may have been moved on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from gpulab.fleets.accounts import Accounts
from gpulab.launch.protocol import scheduled_end
from gpulab.model.fleet import AccountRef
from gpulab.model.instance import Instance

_AT_ONCE = 16
_ASSUMED_AFTER_S = 15.0


def schedule_missing(
    accounts: Accounts, found: Sequence[tuple[AccountRef, Instance]], *, ends_at: datetime
) -> Mapping[str, str]:
    """
    Schedule the end of each instance that has none, in accounts with a role for it. Never fails: the timer on each instance is there.

    Args:
        ends_at: The end of instances whose tags name none.

    Returns:
        By instance id, why it still has none, or that nobody knows; whoever has one is not in it.
    """
    lacking = _round(accounts, found, ends_at)
    if any(left.is_early for left in lacking.values()):
        accounts.outside.sleep(_ASSUMED_AFTER_S)
        again = [one for one in found if one[1].id in lacking]
        lacking = _round(accounts, again, ends_at)
    return {
        id_: f"whether its end is scheduled is not known: {left.why_not}"
        if left.is_unread
        else f"its end is not scheduled: {left.why_not}"
        for id_, left in lacking.items()
    }


@dataclass(frozen=True)
class _Left:
    """Why an instance has no scheduled end, as far as is known; `is_unread` when the account did not even say whether it has."""

    why_not: str
    is_early: bool = False
    is_unread: bool = False


def _round(
    accounts: Accounts, found: Sequence[tuple[AccountRef, Instance]], ends_at: datetime
) -> Mapping[str, _Left]:
    def ask(one: tuple[AccountRef, Instance]) -> _Left | None:
        context, instance = accounts.account(one[0]).context, one[1]
        if not context.profile.scheduler_role:
            return None
        known = scheduled_end.read(context, instance)
        if known.error is not None:
            return _Left(known.why_not, is_unread=True)
        if not known.is_armed:
            known = scheduled_end.arm_at(context, instance, instance.expires_at or ends_at)
        if known.is_armed:
            return None
        return _Left(known.why_not, is_early=known.is_too_early)

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(found)))) as pool:
        said = pool.map(ask, found)
        return {one[1].id: left for one, left in zip(found, said, strict=True) if left}
