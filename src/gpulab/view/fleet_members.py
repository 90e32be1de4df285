"""A class at work: one line a student, for `fleet ls`, for the live screen, and for what was done to all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from gpulab.fleets.members import Member
from gpulab.model.status import AgentStatus
from gpulab.view.console import table
from gpulab.view.instances import doing
from gpulab.view.words import local_time, money, one_line, span

COLUMNS = (
    "label",
    "group",
    "name",
    "owner",
    "account",
    "state",
    "doing",
    "trouble",
    "instance",
    "instance_type",
    "market",
    "zone",
    "address",
    "launched_at",
    "expires_at",
    "gpu_use_percent",
    "idle_since",
    "spent_usd",
)
_HEADINGS = [
    "WHO",
    "GROUP",
    "STATE",
    "DOING",
    "GPU",
    "SPENT",
    "ENDS IN",
    "TYPE",
    "ZONE",
    "INSTANCE",
]

# What fits into 80 columns.
_ON_SCREEN = 7
_TROUBLES = 10
#: Of an instance in an account that nobody in the roster has any more.
FORMER = "nobody in the roster has its account any more; `gpulab fleet stop` ends it"

#: Of an instance that is stopped, as nothing of gpulab's stops one.
OFF = "its disk is paid for and may hold work; `gpulab fleet up` says how it is started or ended"


@dataclass(frozen=True)
class MemberRow:
    """
    One student's line.

    Attributes:
        status: From the agent; `None` when it was not asked or did not answer.
        silence: Why there is no status; empty when there is one or nobody asked.
    """

    member: Member
    status: AgentStatus | None = None
    silence: str = ""


def rows_of(
    members: Sequence[Member],
    statuses: Mapping[str, AgentStatus],
    silences: Mapping[str, str],
) -> tuple[MemberRow, ...]:
    """Join instances and what their agents said, by the instance's name."""
    return tuple(MemberRow(m, statuses.get(m.name), silences.get(m.name, "")) for m in members)


def row_json(row: MemberRow) -> dict[str, Any]:
    """Return one line for programs."""
    member, status, instance = row.member, row.status, row.member.instance
    return {
        "label": member.seat.label if member.seat else "",
        "group": member.seat.group if member.seat else "",
        "name": member.name,
        "owner": member.seat.owner if member.seat else (instance.owner if instance else ""),
        "account": member.account.key,
        "state": _state(member),
        "doing": _doing(row),
        "trouble": _trouble(row),
        "instance": instance.id if instance else "",
        "instance_type": instance.place.instance_type if instance else "",
        "market": instance.market if instance else "",
        "zone": instance.place.zone if instance else "",
        "address": instance.address if instance else "",
        "launched_at": instance.launched_at if instance else None,
        "expires_at": instance.expires_at if instance else None,
        "gpu_use_percent": _gpu_use(status),
        "idle_since": status.idle_since if status else None,
        "spent_usd": status.spent_usd if status else None,
    }


def rows_text(rows: Sequence[MemberRow], *, now: datetime) -> str:
    """Align the class for people."""
    return table([_cells(row, now) for row in rows], _HEADINGS, right=[4, 5])


def totals_text(rows: Sequence[MemberRow]) -> str:
    """Count the class: who is up, who is not, who is setting up, idle or in trouble, and what it has cost so far."""
    states = Counter(_state(row.member) for row in rows)
    words = [f"{n:,} {'not up' if state == '-' else state}" for state, n in states.items()]
    idle = sum(1 for row in rows if row.status is not None and row.status.idle_since is not None)
    begun = sum(1 for row in rows if _is_beginning(row))
    troubled = sum(1 for row in rows if _trouble(row))
    spent = [row.status.spent_usd for row in rows if row.status and row.status.spent_usd]
    if begun:
        words.append(f"{begun:,} setting up")
    if idle:
        words.append(f"{idle:,} idle")
    if troubled:
        words.append(f"{troubled:,} in trouble")
    if spent:
        words.append(f"{money(sum(spent, Decimal(0)))} so far")
    return ", ".join(words) or "nobody"


def trouble_lines(rows: Iterable[MemberRow]) -> list[str]:
    """Name everybody in trouble, with why."""
    return [
        f"{row.member.label}: {_trouble(row)}"
        for row in rows
        if (row.member.seat or row.member.is_former) and _trouble(row)
    ]


def live_text(rows: Sequence[MemberRow], *, title: str, now: datetime, height: int) -> str:
    """
    Draw the live screen.

    Args:
        height: Lines of the terminal. Trouble comes first, so that it is on the screen whatever its height; who has nothing comes last.
    """
    ordered = sorted(rows, key=lambda r: (not _trouble(r), r.member.instance is None))
    drawn = table(
        [_cells(row, now)[:_ON_SCREEN] for row in ordered], _HEADINGS[:_ON_SCREEN], right=[4, 5]
    )
    head = [title, totals_text(rows), *trouble_lines(rows)[:_TROUBLES], ""]
    lines = [*head, *drawn.split("\n")]
    # The line after the last one holds the cursor.
    fits = max(len(head) + 2, height - 2)
    if len(lines) <= fits:
        return "\n".join(lines)
    return "\n".join([*lines[: fits - 1], f"... and {len(lines) - fits + 1} more lines"])


def _cells(row: MemberRow, now: datetime) -> list[str]:
    member, instance = row.member, row.member.instance
    use = _gpu_use(row.status)
    spent = row.status.spent_usd if row.status else None
    return [
        member.label,
        member.seat.group if member.seat else "",
        _state(member),
        _doing(row),
        f"{use:.0f} %" if use is not None else "-",
        money(spent) if spent is not None else "-",
        _ends(row, now),
        instance.place.instance_type if instance else "-",
        instance.place.zone if instance else "-",
        instance.id if instance else "-",
    ]


def _state(member: Member) -> str:
    if member.error is not None:
        return "unknown"
    return str(member.instance.state) if member.instance else "-"


def _doing(row: MemberRow) -> str:
    return "no answer" if row.silence else doing(row.status)


def _trouble(row: MemberRow) -> str:
    """Say what is wrong with one, a half-sentence; empty when nothing is."""
    if row.member.error is not None:
        return row.member.error.message
    if row.silence:
        return one_line(row.silence)
    if row.member.is_former:
        return FORMER
    if row.member.seat is None:
        return "nobody in the roster has it"
    if row.member.is_off:
        return OFF
    failed = [p for p in row.status.phases if p.state == "failed"] if row.status else []
    if failed:
        return one_line(f"{failed[0].name} failed: {failed[0].message}")
    if row.status is not None and row.status.notice is not None:
        return "AWS takes it back"
    return ""


def _is_beginning(row: MemberRow) -> bool:
    phases = row.status.phases if row.status and not _trouble(row) else ()
    return any(phase.state in ("running", "waiting") for phase in phases)


def _gpu_use(status: AgentStatus | None) -> float | None:
    return max((gpu.use_percent for gpu in status.gpus), default=None) if status else None


def _ends(row: MemberRow, now: datetime) -> str:
    status, instance = row.status, row.member.instance
    end = (
        status.deadline if status and status.deadline else instance.expires_at if instance else None
    )
    if end is None:
        return "-"
    return span(end - now) if end > now else f"was {local_time(end, now=now)}"
