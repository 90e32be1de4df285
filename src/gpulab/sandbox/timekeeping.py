"""The world's time: its clock, what is due when, and the thread that fires it while the clock runs by itself."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta

from gpulab.sandbox.clock import Agenda, Clock

#: A running clock may be moved by hand; then the thread must not sleep through it.
_LONGEST_WAIT_S = 60.0


class Timekeeper:
    """
    Clock and agenda together.

    Args:
        lock: Held while something happens, so that nothing happens during a call.
    """

    def __init__(self, clock: Clock, lock: threading.RLock) -> None:
        self.clock = clock
        self._lock = lock
        self._agenda = Agenda()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def speed(self) -> float:
        """Simulated seconds for each real one; 1 for a clock that is moved by hand."""
        return float(getattr(self.clock, "speed", 1.0))

    @property
    def due_at(self) -> datetime | None:
        """When the next thing happens by itself; `None` when nothing is planned."""
        with self._changed:
            return self._agenda.next_at()

    def advance(self, seconds: float) -> None:
        """Move the clock; everything that falls due on the way happens at its own moment."""
        with self._lock:
            target = self.clock.now() + timedelta(seconds=seconds)
            while (due := self._agenda.next_at()) is not None and due <= target:
                self.clock.move_to(due)
                self.tick()
            self.clock.move_to(target)

    def at(self, moment: datetime, action: Callable[[], None]) -> None:
        """Let something happen at a moment; one that has passed is now."""
        with self._changed:
            self._agenda.at(moment, action)
            self._changed.notify_all()

    def tick(self) -> None:
        """Do what is due."""
        with self._lock:
            while (action := self._take_due()) is not None:
                action()

    def start(self) -> None:
        """Fire what is due on a thread of its own, until `close`."""
        threading.Thread(target=self._run, name="sandbox-clock", daemon=True).start()

    def close(self) -> None:
        """End the thread; nothing more happens by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take_due(self) -> Callable[[], None] | None:
        with self._changed:
            return self._agenda.pop_due(self.clock.now())

    def _run(self) -> None:
        while not self._closed:
            try:
                self.tick()
            except Exception:  # one action's mistake must not stop the clock for all the others
                traceback.print_exc()
            with self._changed:
                due = self._agenda.next_at()
                wait = _LONGEST_WAIT_S
                if due is not None:
                    wait = (due - self.clock.now()).total_seconds() / self.speed
                if not self._closed and wait > 0:
                    self._changed.wait(min(wait, _LONGEST_WAIT_S))
