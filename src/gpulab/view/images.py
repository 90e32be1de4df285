"""Images with a lab environment as a list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gpulab.launch.account.images import Listed
from gpulab.view.console import table
from gpulab.view.words import counted, money, span

COLUMNS = (
    "id",
    "name",
    "region",
    "environment",
    "lock",
    "base",
    "made_at",
    "size_gib",
    "usd_per_month",
    "state",
    "is_usable",
    "has_moved_on",
)
_LOCK = 8  # digits, as the image's name has them
_MOVED = {
    "lock": "the lock has moved on",
    "base": "its base has moved on",
    "unknown": "its environment is not here",
}


def image_row(row: Listed) -> dict[str, Any]:
    """Return one image for programs."""
    baked = row.baked
    return {
        "id": baked.image.id,
        "name": baked.image.name,
        "region": baked.image.region,
        "environment": baked.environment,
        "lock": baked.lock,
        "base": baked.base_name,
        "made_at": baked.made_at,
        "size_gib": baked.image.root_gib,
        "usd_per_month": row.usd_per_month,
        "state": baked.state,
        "is_usable": baked.is_usable,
        "has_moved_on": list(row.has_moved_on),
    }


def images_text(rows: Sequence[Listed], *, now: datetime) -> str:
    """List images, newest first, with what they cost a month at most and what is newer than they are."""
    if not rows:
        return "There is no image; `gpulab image bake` makes one"
    cells = [
        [
            row.baked.image.id,
            row.baked.environment,
            row.baked.lock[:_LOCK],
            row.baked.image.region,
            span(now - row.baked.made_at) if row.baked.made_at else "?",
            f"{row.baked.image.root_gib} GiB",
            money(row.usd_per_month),
            _state(row),
        ]
        for row in rows
    ]
    headings = ["IMAGE", "ENVIRONMENT", "LOCK", "REGION", "AGE", "SIZE", "$/MONTH, AT MOST", ""]
    total = money(sum((row.usd_per_month for row in rows), start=rows[0].usd_per_month * 0))
    return f"{table(cells, headings, right=[4, 5, 6])}\n\n{counted(len(rows), 'image')}, at most {total} a month"


def _state(row: Listed) -> str:
    if not row.baked.is_usable:
        return "not tested" if row.baked.state == "available" else row.baked.state
    return ", ".join(_MOVED[word] for word in row.has_moved_on) or "usable"
