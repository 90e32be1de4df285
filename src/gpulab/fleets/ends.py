"""
The ends that the accounts of a class schedule for its instances: made up for where an earlier try failed, or was killed before it.

A schedule that stands is never touched: it may have been moved on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from gpulab.fleets.accounts import Accounts
from gpulab.launch.protocol import scheduled_end
from gpulab.model.fleet import AccountRef
from gpulab.model.instance import Instance

_AT_ONCE = 16


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

    def missing(one: tuple[AccountRef, Instance]) -> str:
        context, instance = accounts.account(one[0]).context, one[1]
        if not context.profile.scheduler_role:
            return ""
        known = scheduled_end.read(context, instance)
        if known.is_armed:
            return ""
        if known.error is not None:
            return f"whether its end is scheduled is not known: {known.why_not}"
        armed = scheduled_end.arm_at(context, instance, instance.expires_at or ends_at)
        return "" if armed.is_armed else f"its end is not scheduled: {armed.why_not}"

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(found)))) as pool:
        said = pool.map(missing, found)
        return {one[1].id: why for one, why in zip(found, said, strict=True) if why}
