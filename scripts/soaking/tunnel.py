"""
A tunnel through thousands of drops, freezes and sleeps, with somebody asking through it all the time.

What people wait twelve seconds for is noticed here in a fraction of one, by the tunnel's own pace; the broken things are real: ssh and
sshd processes killed and frozen, a network that swallows everything, a clock that jumps as after a sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from bench import tunnel as bed
from gpulab.remote import ports
from gpulab.remote.listener import Listener
from gpulab.remote.supervisor import EventKind, Pace, Supervisor, TunnelEvent
from gpulab.remote.tunnel import gone_page
from soaking.process import memory_mb, open_files

# About a tenth of the usual pace, but for connecting: a handshake takes what it takes. A link that breaks as soon as it is there is
# the rule here, so it must not lengthen the pauses.
_PACE = Pace(
    ping=0.2,
    silence=1.0,
    wake=5.0,
    wake_silence=0.5,
    connect=10.0,
    longest_pause=0.5,
    steady=0.0,
    refresh=0.2,
    knock=0.05,
)
_ASLEEP_S = 600.0
_ANSWER_WITHIN_S = 60.0


@dataclass
class Sample:
    """What this process held after so many faults."""

    faults: int
    memory_mb: int
    threads: int
    files: int
    children: int


@dataclass
class Outcome:
    """
    What became of the tunnel.

    Attributes:
        faults: By kind.
        failures: Requests that came to nothing; there must be none.
    """

    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    noticed_sleeps: int = 0
    failures: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    def violations(self, *, memory_mb: int = 10, others: int = 3) -> list[str]:
        """Name what grew or was lost; the first sample is taken once everything was used once."""
        found = [f"request: {failure}" for failure in self.failures]
        first, last = self.samples[0], self.samples[-1]
        for what, allowed in (
            ("memory_mb", memory_mb),
            ("threads", others),
            ("files", others),
            ("children", others),
        ):
            grown = getattr(last, what) - getattr(first, what)
            if grown > allowed:
                found.append(f"{what} grew by {grown}")
        return found


def soak(faults: int, *, seed: int, minutes: float = 1e9, say: Callable[[str], None]) -> Outcome:
    """Break a tunnel so often, or for so many minutes, and return what came of it."""
    outcome, began = Outcome(), time.monotonic()
    until = began + minutes * 60
    with tempfile.TemporaryDirectory(prefix="gpulab-soak-") as name, bed.web_server() as web:
        with bed.sshd(Path(name)) as server, bed.way_to(server.port) as way:
            _Soak(server, way, web, outcome, random.Random(seed)).run(faults, until, say)
    outcome.seconds = time.monotonic() - began
    return outcome


class _Soak:
    def __init__(
        self, server: bed.Sshd, way: bed.Way, web: int, outcome: Outcome, chance: random.Random
    ) -> None:
        self._server, self._way, self._web = server, way, web
        self._outcome, self._random = outcome, chance
        self._changed = threading.Condition()
        self._losses = 0
        self._is_up = False
        self._slept_s = self._back_s = 0.0

    def run(self, faults: int, until: float, say: Callable[[str], None]) -> None:
        """Break it until there were enough faults or the time is over, and look at this process meanwhile."""
        kinds = [
            self._ssh_killed,
            self._sshd_killed,
            self._sshd_frozen,
            self._swallowed,
            self._slept,
        ]
        weights = [30, 30, 10, 10, 20]
        warm_up, every = min(faults // 2, 20), max(1, faults // 20)
        with self._tunnel() as port:
            self._wait_for(lambda: self._is_up)
            asking, told = bed.Browser(port), 0
            for number in range(faults):
                if time.monotonic() > until:
                    break
                if number >= warm_up and (number - warm_up) % every == 0:
                    say(self._sample(asking))
                (kind,) = self._random.choices(kinds, weights)
                kind()
                name = kind.__name__.strip("_").replace("_", " ")
                self._outcome.faults[name] += 1
                self._wait_for_an_answer(asking)
                for failure in asking.failures[told:]:
                    say(f"{self._outcome.faults.total():>5} faults, {name}: {failure}")
                told = len(asking.failures)
            say(self._sample(asking))
            asking.close()
        self._outcome.requests = asking.answered
        self._outcome.failures += asking.failures

    # -- what breaks -----------------------------------------------------------------------------------------------------------

    def _ssh_killed(self) -> None:
        with self._a_loss():
            bed.kill_ssh()

    def _sshd_killed(self) -> None:
        with self._a_loss():
            self._server.kill_sessions()

    def _sshd_frozen(self) -> None:
        with self._a_loss():
            self._server.freeze()

    def _swallowed(self) -> None:
        with self._a_loss() as losses:
            self._way.freeze()
            self._wait_for(lambda: self._losses > losses)
            self._way.thaw()

    def _slept(self) -> None:
        """The computer sleeps: its clock has jumped, and the server has given the connection up meanwhile, or has not."""
        if self._random.random() < 0.5:
            with self._a_loss():
                self._server.kill_sessions()
                self._slept_s += _ASLEEP_S
        else:
            self._slept_s += _ASLEEP_S
            time.sleep(3 * _PACE.ping)

    @contextlib.contextmanager
    def _a_loss(self) -> Iterator[int]:
        """Wait after what breaks the tunnel until it is lost and back."""
        losses = self._losses
        yield losses
        self._wait_for(lambda: self._losses > losses and self._is_up)
        self._outcome.back_s.append(self._back_s)

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, _ANSWER_WITHIN_S):
                self._outcome.failures.append(
                    f"not noticed, or not back, in {_ANSWER_WITHIN_S:g} s"
                )

    def _wait_for_an_answer(self, asking: bed.Browser) -> None:
        known, until = asking.answered, time.monotonic() + _ANSWER_WITHIN_S
        while asking.answered < known + 2 and time.monotonic() < until:
            time.sleep(0.01)
        if asking.answered < known + 2:
            self._outcome.failures.append(f"no answer for {_ANSWER_WITHIN_S:g} s")

    def _sample(self, asking: bed.Browser) -> str:
        gc.collect()
        faults = self._outcome.faults.total()
        seen = Sample(faults, memory_mb(), threading.active_count(), open_files(), len(_children()))
        self._outcome.samples.append(seen)
        return (
            f"{faults:>5} faults: {asking.answered} requests, {len(asking.failures)} failed,"
            f" {seen.memory_mb} MB, {seen.threads} threads, {seen.files} files, {seen.children} children"
        )

    # -- the tunnel, with a clock that can jump --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tunnel(self) -> Iterator[int]:
        """What `gpulab.remote.tunnel.serve` puts together, but for the clock on the wall, which jumps as after a sleep."""
        sockets = ports.listen("soak", [self._web])
        stops: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def main() -> None:
            stop = asyncio.Event()
            listener = Listener(sockets)
            listener.start()
            supervisor = Supervisor(
                self._server.target(port=self._way.port),
                tuple(sockets),
                listener,
                on_event=self._take,
                page_for=gone_page,
                pace=_PACE,
                wall=lambda: time.time() + self._slept_s,
            )
            keeping = asyncio.create_task(supervisor.run())
            stops.set_result((asyncio.get_running_loop(), stop))
            await asyncio.wait(
                {keeping, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            keeping.cancel()
            await asyncio.wait({keeping})
            await asyncio.to_thread(listener.stop)

        thread = threading.Thread(target=lambda: asyncio.run(main()), name="soaked-tunnel")
        thread.start()
        try:
            yield int(sockets[self._web].getsockname()[1])
        finally:
            loop, stop = stops.result()
            loop.call_soon_threadsafe(stop.set)
            thread.join()

    def _take(self, event: TunnelEvent) -> None:
        with self._changed:
            if event.kind is EventKind.WOKE:
                self._outcome.noticed_sleeps += 1
            if event.kind is EventKind.LOST:
                self._losses, self._is_up = self._losses + 1, False
            if event.kind is EventKind.CONNECTED:
                self._is_up, self._back_s = True, event.seconds
            self._changed.notify_all()


def _children() -> list[int]:
    """Processes of ours: ssh, and what the bed keeps."""
    return bed.descendants(os.getpid())
