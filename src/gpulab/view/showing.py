"""One instance in full."""

from __future__ import annotations

from datetime import datetime

from gpulab.launch.running.instances import Details
from gpulab.launch.running.overview import Row
from gpulab.view.instances import pairs_text, status_lines
from gpulab.view.words import local_time, money, per_hour, span


def show_text(row: Row, details: Details, *, now: datetime) -> str:
    """Say what it is, what it costs, when and by whom it will be ended, and what its agent knows."""
    instance, place = row.instance, row.instance.place
    pairs = {
        "name": instance.name,
        "id": instance.id,
        "state": f"{instance.state} {instance.state_reason}".rstrip(),
        "type": f"{place.instance_type}, {place.market}, {place.zone}",
        "image": instance.image_id,
        "address": instance.address or "-",
        "environment": instance.environment or "-",
        "launched": f"{local_time(instance.launched_at, now=now)}, {span(now - instance.launched_at)} ago",
        "costs": per_hour(row.usd_per_hour) if row.usd_per_hour is not None else "?",
        "spent": money(row.spent_usd) if row.spent_usd is not None else "?",
        "open at": row.local_url or f"- (`gpulab open {instance.name}`)",
        **_ends(row, details, now=now),
    }
    lines = [pairs_text(pairs)]
    if details.status is not None:
        lines += ["", *status_lines(details.status, now=now)]
    elif details.silence:
        lines += ["", f"agent     does not answer: {details.silence}"]
    return "\n".join(lines)


def _ends(row: Row, details: Details, *, now: datetime) -> dict[str, str]:
    """Name every guard that ends it, and every one that is missing."""
    timer = row.deadline
    said = "" if details.status is not None else " (from its tag)"
    scheduled = details.end_schedule
    budget = details.status.budget_usd if details.status is not None else None
    return {
        "end, timer": f"{local_time(timer, now=now)}, in {span(timer - now)}{said}"
        if timer
        else "?",
        "end, account": f"{local_time(scheduled.until, now=now)}, should the timer fail"
        if scheduled.until
        else f"not armed: {scheduled.why_not}",
        "end, budget": f"when it has cost {money(budget)}{_at_this_pace(row, now=now)}"
        if budget is not None
        else "-",
    }


def _at_this_pace(row: Row, *, now: datetime) -> str:
    """Say when its budget is used up, where that comes before its deadline."""
    used_up, deadline = row.budget_ends_at, row.deadline
    if used_up is None or (deadline is not None and deadline <= used_up):
        return ""
    return f", at this pace {local_time(used_up, now=now)}, in {span(used_up - now)}"
