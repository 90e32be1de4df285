"""The last look, what happened before it, and when to look again. One looks, any number of pages read; no page asks AWS."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gpulab.errors import GpulabError
from gpulab.view.dashboard import Board, remembering
from gpulab.view.dashboard_log import Entry, happened
from gpulab.view.dashboard_page import board_json

_LOG_LINES = 300
# How long after the button somebody waits at most.
_NAP_S = 0.5
#: However often somebody presses the button, AWS is not asked sooner.
_AT_LEAST = timedelta(seconds=5)


@dataclass
class Feed:
    """
    What all pages show.

    Args:
        title: Of the page.
        now: The clock.
        sleep: Waits, in seconds.
    """

    title: str
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    _board: Board | None = None
    _note: str = ""
    _log: deque[Entry] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wanted: threading.Event = field(default_factory=threading.Event)

    def look(self, boards: Callable[[], Iterator[Board]]) -> None:
        """Look once; what fails is a line on the page, and the last look stays."""
        try:
            for board in boards():
                self.publish(board)
        except GpulabError as error:
            self.fail(error)

    def publish(self, board: Board) -> None:
        """Show a new look."""
        with self._lock:
            if self._note:
                self._log.appendleft(Entry(board.looked_at, "Looking works again"))
            self._note = ""
            for entry in happened(self._board, board):
                self._log.appendleft(entry)
            self._board = remembering(board, self._board)

    def fail(self, error: GpulabError) -> None:
        """Say that a look failed; the last one stays."""
        now = self.now()
        with self._lock:
            text = f"could not look: {error.message}"
            if not self._note.endswith(text):
                self._log.appendleft(Entry(now, text, is_alarm=True))
            last = f"{now.astimezone():%H:%M:%S}"
            self._note = f"{last}, this page shows an older look: {text}"

    def state(self) -> dict[str, Any]:
        """Return what the pages show, as JSON has it."""
        with self._lock:
            board, note, log = self._board, self._note, list(self._log)
        return board_json(board, log, title=self.title, note=note, now=self.now())

    def want(self) -> None:
        """Ask for a look before it is due."""
        self._wanted.set()

    def rest(self, every: timedelta) -> None:
        """Wait until the next look is due, or wanted."""
        begun = self.now()
        while self.now() - begun < (_AT_LEAST if self._wanted.is_set() else every):
            self.sleep(_NAP_S)
        self._wanted.clear()
