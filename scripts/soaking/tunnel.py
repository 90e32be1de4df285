"""
Tunnels of one process through thousands of drops, freezes and sleeps, with somebody asking through each of them all the time.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
_STRIKES_AGAIN_S = 15.0
_COUNTING = threading.Lock()


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
    What became of the tunnels.

    Attributes:
        tunnels: So many at once.
        faults: By kind.
        failures: Requests that came to nothing; there must be none.
        waits: What did not happen in a minute; there must be none either.
        struck_again: Faults that hit nothing, since the link was just being made anew, and were repeated.
    """

    tunnels: int = 1
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    noticed_sleeps: int = 0
    failures: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    struck_again: int = 0
    back_s: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    def violations(self, *, memory_mb: int = 10) -> list[str]:
        """Name what grew or was lost; the first sample is taken once everything was used once, the last long after."""
        others = 3 * self.tunnels  # what is under way at the moment of a look
        found = [f"request: {failure}" for failure in self.failures] + self.waits
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


def soak(
    faults: int, *, tunnels: int, seed: int, minutes: float = 1e9, say: Callable[[str], None]
) -> Outcome:
    """Break tunnels so often together, or for so many minutes, and return what came of it."""
    outcome, began = Outcome(tunnels), time.monotonic()
    until = began + minutes * 60
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpulab-soak-")))
        web = stack.enter_context(bed.web_server())
        soaked = []
        for number in range(tunnels):
            server = stack.enter_context(bed.sshd(_made(folder / str(number))))
            way = stack.enter_context(bed.way_to(server.port))
            chance = random.Random(f"{seed}/{number}")
            one = _Soak(f"soak{number}", server, way, web, outcome, chance)
            soaked.append(stack.enter_context(one.asked()))
        _break_all(soaked, faults, until, outcome, say)
    outcome.seconds = time.monotonic() - began
    return outcome


def _break_all(
    soaked: Sequence[_Soak],
    faults: int,
    until: float,
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    """Break all side by side, and look at this process every now and then while all are up."""
    warm_up = min(faults // 2, 20 * len(soaked))
    rounds = [warm_up, *_rounds(faults - warm_up, max(1, faults // 20))]
    with ThreadPoolExecutor(len(soaked)) as pool:
        for count in rounds:
            shares = [(count + n) // len(soaked) for n in range(len(soaked))]
            for said in pool.map(lambda one, share: one.break_(share, until), soaked, shares):
                for text in said:
                    say(text)
            say(_look(outcome, sum(one.answered for one in soaked)))
            if time.monotonic() > until:
                return


def _rounds(count: int, every: int) -> Iterator[int]:
    for begun in range(0, count, every):
        yield min(every, count - begun)


def _look(outcome: Outcome, answered: int) -> str:
    gc.collect()
    faults = outcome.faults.total()
    seen = Sample(faults, memory_mb(), threading.active_count(), open_files(), len(_children()))
    outcome.samples.append(seen)
    return (
        f"{faults:>5} faults: {answered} requests, {len(outcome.waits)} waits,"
        f" {seen.memory_mb} MB, {seen.threads} threads, {seen.files} files, {seen.children} children"
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


class _Soak:
    """One tunnel, what it goes through, and who asks through it."""

    _asking: bed.Browser

    def __init__(
        self,
        name: str,
        server: bed.Sshd,
        way: bed.Way,
        web: int,
        outcome: Outcome,
        chance: random.Random,
    ) -> None:
        self._name = name
        self._server, self._way, self._web = server, way, web
        self._outcome, self._random = outcome, chance
        self._changed = threading.Condition()
        self._losses = 0
        self._is_up = False
        self._slept_s = self._back_s = 0.0

    @contextlib.contextmanager
    def asked(self) -> Iterator[_Soak]:
        """Open it, and let somebody ask through it until the end."""
        with self._tunnel() as port:
            self._wait_for(lambda: self._is_up, "the first connection")
            self._asking = bed.Browser(port)
            try:
                yield self
            finally:
                self._asking.close()
                self._outcome.requests += self._asking.answered
                self._outcome.failures += self._asking.failures

    @property
    def answered(self) -> int:
        """Requests so far."""
        return self._asking.answered

    def break_(self, times: int, until: float) -> list[str]:
        """Break it so often, or until the time is over; tell of each request that failed."""
        kinds = [
            self._ssh_killed,
            self._sshd_killed,
            self._sshd_frozen,
            self._swallowed,
            self._slept,
        ]
        said = []
        for _ in range(times):
            if time.monotonic() > until:
                break
            told = len(self._asking.failures)
            (kind,) = self._random.choices(kinds, [30, 30, 10, 10, 20])
            name = kind.__name__.strip("_").replace("_", " ")
            kind()
            self._wait_for_an_answer(name)
            with _COUNTING:
                self._outcome.faults[name] += 1
            said += [f"{self._name}, {name}: {text}" for text in self._asking.failures[told:]]
        return said

    # -- what breaks -----------------------------------------------------------------------------------------------------------

    def _ssh_killed(self) -> None:
        self._lose(lambda: bed.kill_ssh(self._way.port))

    def _sshd_killed(self) -> None:
        self._lose(self._server.kill_sessions)

    def _sshd_frozen(self) -> None:
        self._lose(self._server.freeze)

    def _swallowed(self) -> None:
        self._lose(self._way.freeze, self._way.thaw)

    def _slept(self) -> None:
        """The computer sleeps: its clock has jumped, and the server has given the connection up meanwhile, or has not."""
        if self._random.random() < 0.5:
            self._lose(self._sleep_and_be_given_up)
        else:
            self._sleep()
            time.sleep(3 * _PACE.ping)

    def _sleep(self) -> None:
        self._slept_s += _ASLEEP_S

    def _sleep_and_be_given_up(self) -> None:
        self._server.kill_sessions()
        self._sleep()

    def _lose(self, strike: Callable[[], None], relieve: Callable[[], None] = lambda: None) -> None:
        """
        Break the tunnel, and wait until it is lost and back.

        A busy computer makes the link seem silent now and then; what strikes while it is made anew breaks nothing, and is repeated.
        """
        losses = self._losses
        for again in range(int(_ANSWER_WITHIN_S / _STRIKES_AGAIN_S)):
            self._outcome.struck_again += bool(again)
            strike()
            with self._changed:
                is_lost = self._changed.wait_for(lambda: self._losses > losses, _STRIKES_AGAIN_S)
            relieve()
            if is_lost:
                break
        self._wait_for(lambda: self._losses > losses and self._is_up, "the next connection")
        self._outcome.back_s.append(self._back_s)

    def _wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, _ANSWER_WITHIN_S):
                self._outcome.waits.append(
                    f"{self._name}: waited {_ANSWER_WITHIN_S:g} s for {what}"
                )

    def _wait_for_an_answer(self, after: str) -> None:
        known, until = self.answered, time.monotonic() + _ANSWER_WITHIN_S
        while self.answered < known + 2 and time.monotonic() < until:
            time.sleep(0.01)
        if self.answered < known + 2:
            self._outcome.waits.append(
                f"{self._name}, {after}: waited {_ANSWER_WITHIN_S:g} s for an answer"
            )

    # -- the tunnel, with a clock that can jump --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tunnel(self) -> Iterator[int]:
        """What `gpulab.remote.tunnel.serve` puts together, but for the clock on the wall, which jumps as after a sleep."""
        sockets = ports.listen(self._name, [self._web])
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
