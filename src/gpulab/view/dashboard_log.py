"""What happened between two looks of the dashboard, one line each. Pure; says nothing twice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gpulab.view.dashboard import UNANSWERED, Board, Standing, Tile, counts


@dataclass(frozen=True)
class Entry:
    """
    One line of the log.

    Attributes:
        is_alarm: Whether somebody has to do something.
    """

    at: datetime
    text: str
    is_alarm: bool = False


def happened(before: Board | None, after: Board) -> tuple[Entry, ...]:
    """Say what changed between two looks, one line each; of the first look, what there is."""
    if before is None:
        return (Entry(after.looked_at, f"First look: {counts_text(after)}"),)
    old = {tile.key: tile for tile in before.tiles}
    entries = [_change(old.get(tile.key), tile, after.looked_at) for tile in after.tiles]
    present = {tile.key for tile in after.tiles}
    gone = [
        Entry(after.looked_at, f"{tile.who}: has ended")
        for tile in before.tiles
        if tile.key not in present
    ]
    lost = [Entry(after.looked_at, n, is_alarm=True) for n in after.notes if n not in before.notes]
    found = [
        Entry(after.looked_at, f"No longer: {note}")
        for note in before.notes
        if note not in after.notes
    ]
    return (*lost, *(entry for entry in entries if entry), *gone, *found)


def counts_text(board: Board) -> str:
    """Count tiles by standing: `2 up, 1 idle`."""
    return ", ".join(f"{n:,} {standing}" for standing, n in counts(board).items()) or "nobody"


def _change(old: Tile | None, new: Tile, at: datetime) -> Entry | None:
    is_alarm = new.standing is Standing.TROUBLE
    if old is None:
        return Entry(at, f"{new.who}: {new.words}", is_alarm)
    if Standing.UNKNOWN in (old.standing, new.standing):
        # The account is a note, once for all who are in it; what is wrong once it is back is not.
        return Entry(at, f"{new.who}: {new.words}", is_alarm=True) if is_alarm else None
    if old.instance and new.instance and old.instance != new.instance:
        return Entry(at, f"{new.who}: was replaced by {new.instance}")
    if old.words == UNANSWERED and not is_alarm:
        # The dashboard began while a class was at work: that is no news, three hundred times.
        return None
    if old.standing is new.standing:
        is_news = is_alarm and old.words != new.words
        return Entry(at, f"{new.who}: {new.words}", is_alarm=True) if is_news else None
    if new.standing is Standing.NONE:
        return Entry(at, f"{new.who}: has ended")
    is_said = new.words.startswith(str(new.standing))
    words = new.words if is_said else f"{new.standing}, {new.words}"
    return Entry(at, f"{new.who}: {words}", is_alarm)
