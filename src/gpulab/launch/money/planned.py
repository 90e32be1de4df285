"""When instances are to end by this computer's ledger, which hears of every extension made here, also of those that reached no tag."""

from __future__ import annotations

from datetime import datetime

from gpulab.errors import StoreError
from gpulab.launch.context import Context
from gpulab.spending.facts import timeline_of


def planned_ends(context: Context) -> dict[str, datetime]:
    """
    Say when instances end, by their ids.

    Returns:
        Nothing where the ledger cannot be read.
    """
    try:
        launches = timeline_of(context.ledger.facts()).launches
    except StoreError:
        return {}
    return {i: launch.expires_at for i, launch in launches.items() if launch.expires_at is not None}
