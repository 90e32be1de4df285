"""Instances as people read them: the list, one in full, and what one is doing right now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from gpulab.launch.running.overview import Row
from gpulab.model.instance import State
from gpulab.model.status import AgentStatus, Phase
from gpulab.view.console import table
from gpulab.view.words import in_line, local_time, money, one_line, per_hour, span

COLUMNS = (
    "name",
    "id",
    "state",
    "doing",
    "instance_type",
    "market",
    "region",
    "zone",
    "environment",
    "address",
    "launched_at",
    "expires_at",
    "budget_ends_at",
    "usd_per_hour",
    "spent_usd",
    "local_url",
)


def row_json(row: Row) -> dict[str, Any]:
    """Return one row for programs: amounts in USD as decimal texts, moments in ISO 8601."""
    instance = row.instance
    return {
        "name": instance.name,
        "id": instance.id,
        "state": instance.state,
        "doing": _doing(row),
        "instance_type": instance.place.instance_type,
        "market": instance.market,
        "region": instance.place.region,
        "zone": instance.place.zone,
        "environment": instance.environment,
        "address": instance.address,
        "launched_at": instance.launched_at,
        "expires_at": instance.expires_at,
        "budget_ends_at": row.budget_ends_at,
        "usd_per_hour": row.usd_per_hour,
        "spent_usd": row.spent_usd,
        "local_url": row.local_url,
    }


def rows_text(rows: Sequence[Row], *, now: datetime, columns: int | None = None) -> str:
    """
    Align the list for people.

    Args:
        columns: Width of the terminal: where the table is wider, what matters least is left out of it; `None` for no limit.
    """
    shown = _cells(rows, now)
    below: list[str] = []
    for heading in _LEFT_OUT:
        if columns is None or max(map(len, _aligned(shown).split("\n"))) < columns:
            break
        left_out = shown.pop(heading)
        if heading == "OPEN AT":
            named = zip(shown["NAME"], left_out, strict=True)
            below = [f"{name} is open at {url}" for name, url in named if url != "-"]
    return "\n".join([_aligned(shown), *below])


# Where the terminal is too narrow, in this order; addresses go below the table.
_LEFT_OUT = ("OPEN AT", "MARKET", "ZONE", "TYPE", "SPENT")
_NUMBERS = ("COSTS", "SPENT")


def _cells(rows: Sequence[Row], now: datetime) -> dict[str, list[str]]:
    return {
        "NAME": [row.instance.name or row.instance.id for row in rows],
        "STATE": [str(row.instance.state) for row in rows],
        "DOING": [_doing(row) for row in rows],
        "TYPE": [row.instance.place.instance_type for row in rows],
        "MARKET": [str(row.instance.market) for row in rows],
        "ZONE": [row.instance.place.zone for row in rows],
        "COSTS": [_costs(row) for row in rows],
        "SPENT": [money(row.spent_usd) if row.spent_usd is not None else "?" for row in rows],
        "ENDS IN": [_ends(row, now) for row in rows],
        "OPEN AT": [row.local_url or "-" for row in rows],
    }


def _aligned(columns: Mapping[str, Sequence[str]]) -> str:
    headings = list(columns)
    rows = list(zip(*columns.values(), strict=True))
    return table(rows, headings, right=[headings.index(n) for n in _NUMBERS if n in columns])


def totals_text(rows: Sequence[Row]) -> str:
    """Say what all of them cost together."""
    running = [row for row in rows if row.instance.state is not State.TERMINATED]
    known = [row.usd_per_hour for row in running if row.usd_per_hour is not None]
    spent = [row.spent_usd for row in rows if row.spent_usd is not None]
    return (
        f"together {per_hour(sum(known, Decimal(0)))} now, {money(sum(spent, Decimal(0)))} so far"
    )


# The agent's unit does so: some causes pass, such as an index that was busy.
RETRIED = "it tries again by itself, six times in an hour; `gpulab logs --follow` shows everything, `gpulab stop` ends it"
_LAST_LINES = 9
_SHOWN = 5


def doing(status: AgentStatus | None) -> str:
    """Say in a word or two what an instance is doing: its phase, its use, or its coming end."""
    if status is None:
        return "-"
    if status.notice is not None:
        return "AWS takes it back"
    if status.ending:
        return f"ending: {status.ending}"
    failed = [phase.name for phase in status.phases if phase.state == "failed"]
    if failed:
        return f"failed: {failed[0]}"
    running = [phase.name for phase in status.phases if phase.state in ("running", "waiting")]
    if running:
        return f"setting up: {running[0]}"
    if status.unsaved:
        return "not all is saved"
    if status.idle_since is not None:
        return f"idle {span(status.at - status.idle_since)}"
    if status.gpus:
        return f"GPU {max(gpu.use_percent for gpu in status.gpus):.0f} %"
    return "ready"


def _doing(row: Row) -> str:
    return "no answer" if row.is_silent else doing(row.status)


def phase_line(phase: Phase) -> str:
    """Say one step of an instance's start in one line."""
    words = f"{phase.name}: {phase.state}, {phase.seconds:.1f} s"
    said = phase.message.partition("\n")[0] if phase.state == "failed" else phase.message
    return f"{words}: {one_line(said)}" if said else words


def failure_lines(message: str) -> list[str]:
    """The last words of a step that failed, below its first line, and what to do."""
    last = [one_line(line) for line in message.splitlines()[1:] if line.strip()][-_LAST_LINES:]
    return [*(f"| {line}" for line in last), RETRIED]


def status_lines(status: AgentStatus, *, now: datetime) -> list[str]:
    """Say what the agent knows, one line a thing."""
    lines = []
    for phase in status.phases:
        lines.append(f"phase     {phase_line(phase)}")
        if phase.state == "failed":
            lines += [f"          {line}" for line in failure_lines(phase.message)]
    lines += [
        f"GPU       {gpu.name}: {gpu.use_percent:.0f} % busy, {gpu.memory_used_mib:,.0f} of {gpu.memory_total_mib:,.0f} MiB"
        for gpu in status.gpus
    ]
    if status.idle_since is not None:
        lines.append(
            f"idle      since {local_time(status.idle_since, now=now)}; ends after {status.idle_minutes} min"
        )
    else:
        lines.append(f"idle      no; ends after {status.idle_minutes} min without activity")
    saved = local_time(status.saved_at, now=now) if status.saved_at else "not yet"
    lines.append(f"saved     {saved}")
    lines += _some([f"left out  {one_line(path)}: {reason}" for path, reason in status.left_out])
    lines += _some([f"not saved {one_line(line)}" for line in status.unsaved])
    if status.notice is not None:
        when = f" at {local_time(status.notice[1], now=now)}" if status.notice[1] else ""
        back = "what is saved by then comes back with `gpulab up`"
        lines.append(f"notice    AWS will {status.notice[0]} it{when}; {back}")
    return [in_line(line) for line in lines]


def _some(lines: list[str]) -> list[str]:
    """The first lines; a data set of links into nowhere must not fill the screen."""
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"          and {more} more"]


def pairs_text(pairs: Mapping[str, str]) -> str:
    """Align a few facts, one a line."""
    width = max(len(key) for key in pairs)
    return "\n".join(f"{key.ljust(width)}  {in_line(value)}" for key, value in pairs.items())


def _costs(row: Row) -> str:
    if row.instance.state is State.TERMINATED:
        return "-"
    return per_hour(row.usd_per_hour) if row.usd_per_hour is not None else "?"


def _ends(row: Row, now: datetime) -> str:
    """Say how long it goes on: until its deadline, or until its budget is used up where that comes first."""
    if row.instance.state is State.TERMINATED:
        return "has ended"
    deadline, budget = row.deadline, row.budget_ends_at
    if budget is not None and (deadline is None or budget < deadline):
        return f"{_left(budget - now)} (budget)"
    return _left(deadline - now) if deadline is not None else "?"


def _left(length: timedelta) -> str:
    return span(length) if length > timedelta(0) else "now"
