"""
What the dashboard shows, as values: a tile for each student or instance, what it costs, what could not be read.

Names of students are left out unless they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from gpulab.launch.running.overview import Overview, Row
from gpulab.model.course import Lab
from gpulab.model.instance import Instance, State
from gpulab.model.status import AgentStatus
from gpulab.spending.lab import CourseSpending
from gpulab.view.fleet_members import FORMER, OFF, MemberRow
from gpulab.view.instances import doing
from gpulab.view.words import one_line, per_hour

# A machine boots, gets its key shown on the console and starts its agent within this; before it, silence is no trouble.
_BOOTS_WITHIN = timedelta(minutes=12)


class Standing(StrEnum):
    """How one is, in the order in which a teacher wants to see them."""

    TROUBLE = "in trouble"
    UNKNOWN = "unknown"
    STARTING = "starting"
    UP = "up"
    IDLE = "idle"
    ENDING = "ending"
    NONE = "not up"


@dataclass(frozen=True)
class Tile:
    """
    One student, group or instance.

    Attributes:
        key: The same from look to look, unique among the tiles.
        names: Of the students, empty unless asked for.
        words: What it does, or what is wrong; may come from outside.
        budget_usd: What it may cost in this lab; `None` for no limit of its own.
        place: Type, market and zone; empty without an instance.
    """

    key: str
    who: str
    standing: Standing
    words: str
    names: str = ""
    group: str = ""
    gpu_percent: float | None = None
    spent_usd: Decimal | None = None
    budget_usd: Decimal | None = None
    ends_at: datetime | None = None
    place: str = ""
    instance: str = ""


@dataclass(frozen=True)
class Gauge:
    """What was spent of a budget; `budget_usd` is `None` where there is none."""

    title: str
    spent_usd: Decimal
    budget_usd: Decimal | None
    note: str = ""


@dataclass(frozen=True)
class Board:
    """
    One look at everything.

    Attributes:
        tiles: In the roster's order, then what serves nobody.
        notes: What could not be read: an empty board is never taken for "nothing costs".
    """

    looked_at: datetime
    tiles: tuple[Tile, ...]
    gauges: tuple[Gauge, ...] = ()
    notes: tuple[str, ...] = ()


def remembering(board: Board, before: Board | None) -> Board:
    """Show of those whose account could not be read what was seen last, and that it was before: a lost Wi-Fi must not empty the board."""
    old = {tile.key: tile for tile in before.tiles} if before else {}
    return replace(board, tiles=tuple(_remembered(tile, old.get(tile.key)) for tile in board.tiles))


def counts(board: Board) -> Mapping[Standing, int]:
    """Count tiles by standing, in its order; what nobody has is left out."""
    found = Counter(tile.standing for tile in board.tiles)
    return {standing: found[standing] for standing in Standing if found[standing]}


def class_board(
    rows: Sequence[MemberRow],
    *,
    lab: Lab,
    spending: CourseSpending,
    term_budget_usd: Decimal | None,
    has_names: bool,
    notes: Iterable[str],
    now: datetime,
) -> Board:
    """
    Put a class on the board.

    Args:
        term_budget_usd: For everybody together over the whole term; `None` for no limit.
    """
    seats = sum(row.member.seat is not None for row in rows)
    lab_budget = lab.budget_usd * seats if lab.budget_usd is not None else None
    gauges = (
        Gauge("This lab", spending.lab_usd, lab_budget, f"{per_hour(spending.usd_per_hour)} now"),
        Gauge("The term", spending.term_usd, term_budget_usd),
    )
    tiles = tuple(_member_tile(row, lab, has_names=has_names, now=now) for row in rows)
    return Board(now, tiles, gauges, (*_unread(rows), *notes))


#: Of what has run for longer than a boot takes, and was not asked yet.
UNANSWERED = "has not answered yet"


def own_board(seen: Overview, *, now: datetime) -> Board:
    """Put one's own instances on the board."""
    known = [row.usd_per_hour for row in seen.rows if row.usd_per_hour is not None]
    note = f"{per_hour(sum(known, Decimal(0)))} now"
    budget = seen.budget
    spent = [row.spent_usd for row in seen.rows if row.spent_usd is not None]
    gauge = (
        Gauge("The term", budget.spent_usd, budget.usd, note)
        if budget
        else Gauge("What runs", sum(spent, Decimal(0)), None, note)
    )
    return Board(now, tuple(_own_tile(row, now) for row in seen.rows), (gauge,), seen.notes)


def _remembered(tile: Tile, old: Tile | None) -> Tile:
    if tile.standing is not Standing.UNKNOWN or old is None:
        return tile
    if old.standing is Standing.UNKNOWN:
        return old
    words = f"was {old.standing}: {old.words}" if old.words != old.standing else f"was {old.words}"
    return replace(old, standing=Standing.UNKNOWN, words=words, gpu_percent=None)


def _member_tile(row: MemberRow, lab: Lab, *, has_names: bool, now: datetime) -> Tile:
    member, instance, status = row.member, row.member.instance, row.status
    seat = member.seat
    standing, words = _standing(row, now)
    # An instance that serves nobody may carry any name, another student's too: its id is what is unique.
    key = seat.name if seat else instance.id if instance else member.account.key
    own_limit = status.budget_usd if status and status.budget_usd is not None else lab.budget_usd
    return Tile(
        key=key,
        who=member.label,
        standing=standing,
        words=words,
        names=", ".join(s.name for s in seat.students) if seat and has_names else "",
        group=seat.group if seat else "",
        gpu_percent=_gpu(status),
        spent_usd=status.spent_usd if status else None,
        budget_usd=own_limit,
        ends_at=_end(status, instance),
        place=_place(instance),
        instance=instance.id if instance else "",
    )


def _own_tile(row: Row, now: datetime) -> Tile:
    instance, status = row.instance, row.status
    standing, words = _of_instance(instance, status, "", now)
    return Tile(
        key=instance.id,
        who=instance.name or instance.id,
        standing=standing,
        words=words,
        gpu_percent=_gpu(status),
        spent_usd=row.spent_usd,
        budget_usd=status.budget_usd if status else None,
        ends_at=_end(status, instance),
        place=_place(instance),
        instance=instance.id,
    )


def _standing(row: MemberRow, now: datetime) -> tuple[Standing, str]:
    member = row.member
    if member.error is not None:
        return Standing.UNKNOWN, "its account could not be read"
    if member.instance is None:
        return Standing.NONE, "not up"
    if member.seat is None:
        return Standing.TROUBLE, FORMER if member.is_former else "nobody in the roster has it"
    if member.instance.state is State.STOPPED:
        return Standing.TROUBLE, f"stopped: {OFF}"
    return _of_instance(member.instance, row.status, row.silence, now)


def _of_instance(
    instance: Instance, status: AgentStatus | None, silence: str, now: datetime
) -> tuple[Standing, str]:
    if instance.state not in (State.PENDING, State.RUNNING):
        return Standing.ENDING, str(instance.state)
    if status is None:
        if instance.state is State.PENDING or now - instance.launched_at < _BOOTS_WITHIN:
            return Standing.STARTING, "booting"
        if silence:
            return Standing.TROUBLE, f"no answer: {one_line(silence)}"
        return Standing.UP, UNANSWERED
    failed = [p for p in status.phases if p.state == "failed"]
    if failed:
        return Standing.TROUBLE, one_line(f"{failed[0].name} failed: {failed[0].message}")
    words = one_line(doing(status))
    if status.notice is not None:
        return Standing.TROUBLE, words
    if status.ending:
        return Standing.ENDING, words
    if any(p.state in ("running", "waiting") for p in status.phases):
        return Standing.STARTING, words
    return (Standing.IDLE if status.idle_since is not None else Standing.UP), words


def _unread(rows: Iterable[MemberRow]) -> list[str]:
    """Name each account that could not be read once, however many students it concerns."""
    causes = Counter(
        (row.member.account.key, row.member.error.message)
        for row in rows
        if row.member.error is not None
    )
    return [
        f"{key} could not be read, which concerns {count:,}: {message}"
        for (key, message), count in causes.items()
    ]


def _end(status: AgentStatus | None, instance: Instance | None) -> datetime | None:
    if instance is None:
        return None
    return status.deadline if status and status.deadline else instance.expires_at


def _gpu(status: AgentStatus | None) -> float | None:
    """Return the busiest GPU's use, 0 to 100, whatever an instance claims."""
    uses = [gpu.use_percent for gpu in status.gpus] if status else []
    return min(100.0, max(0.0, *uses)) if uses else None


def _place(instance: Instance | None) -> str:
    if instance is None:
        return ""
    place = instance.place
    return f"{place.instance_type}, {place.market}, {place.zone}"
