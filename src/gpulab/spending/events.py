"""From an instance's events to its runs. Hides which of two events in one second came first; refuses contradictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from gpulab.errors import WrongUsage
from gpulab.model.timeline import EndedBy, Run


@dataclass(frozen=True, slots=True)
class EventType:
    """
    What an event does.

    Attributes:
        ended_by: `None` for an event that begins a run.
        is_final: After it the instance cannot start again.
    """

    name: str
    ended_by: EndedBy | None = None
    is_final: bool = False


EVENT_TYPES = {
    kind.name: kind
    for kind in (
        EventType("launch"),
        EventType("start"),
        EventType("user_stop", EndedBy.USER),
        EventType("aws_stop", EndedBy.AWS),
        EventType("aws_hibernate", EndedBy.AWS),
        EventType("user_terminate", EndedBy.USER, is_final=True),
        EventType("aws_terminate", EndedBy.AWS, is_final=True),
    )
}
_ORDER = list(EVENT_TYPES)


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that happened to an instance.

    Attributes:
        at: Aware UTC, whole second.
        place: Where it was read, for messages.
    """

    at: datetime
    type: EventType
    place: str


def runs_of(events: Iterable[Event]) -> tuple[Run, ...]:
    """
    Put events in order and read the runs off them.

    Within one second a run that is on ends before the next begins, and a stop comes before a termination.
    A termination of a stopped instance ends no run.

    Raises:
        WrongUsage: The events contradict each other; the message names the place.
    """
    history = _History()
    for _, group in groupby(sorted(events, key=_order), key=lambda event: event.at):
        pending = list(group)
        while pending:
            event = next((e for e in pending if _fits(e, history)), pending[0])
            pending.remove(event)
            history.add(event)
    return tuple(history.runs)


class _History:
    """The runs so far."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._last: Event | None = None

    @property
    def is_running(self) -> bool:
        return bool(self.runs) and self.runs[-1].ends_at is None

    def add(self, event: Event) -> None:
        self._refuse_contradiction(event)
        if event.type.ended_by is None:
            self.runs.append(Run(event.at))
        elif self.is_running:
            self.runs[-1] = Run(self.runs[-1].begins_at, event.at, event.type.ended_by)
        self._last = event

    def _refuse_contradiction(self, event: Event) -> None:
        begins = event.type.ended_by is None
        if self._last and self._last.type.is_final:
            _refuse(event, "comes after the instance was terminated")
        if begins and self.is_running:
            _refuse(event, "begins a run while one is on")
        if event.type.name == "launch" and self.runs:
            _refuse(event, "launches the instance a second time")
        if not begins and not self.runs:
            _refuse(event, "ends a run before any began")
        if not begins and not self.is_running and not event.type.is_final:
            _refuse(event, "stops an instance that is stopped")


def _order(event: Event) -> tuple[datetime, int]:
    return event.at, _ORDER.index(event.type.name)


def _fits(event: Event, history: _History) -> bool:
    return (event.type.ended_by is not None) == history.is_running


def _refuse(event: Event, problem: str) -> None:
    raise WrongUsage(
        f"{event.place} ({event.type.name} at {event.at:%Y-%m-%dT%H:%M:%SZ}) {problem}"
    )
