"""Moments as other programs write them: in tags, in replies, in files. Never raises; what is no moment is none."""

from __future__ import annotations

from datetime import UTC, datetime


def read_moment(text: object) -> datetime | None:
    """
    Read an ISO 8601 moment with its offset, such as `2026-11-23T13:00:00Z`.

    Returns:
        Aware UTC; `None` for anything else, a moment without an offset included: nobody could say when it was.
    """
    try:
        moment = datetime.fromisoformat(str(text))
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):  # the year 1 in a zone east of Greenwich has no UTC
        return None
