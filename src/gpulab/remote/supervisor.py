"""
Keeps a link to an instance up: connects, listens to its heartbeat, connects again. Hides backing off, waking from sleep,
and asking where the instance has gone. Stops only for what waiting cannot mend.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from gpulab.errors import GpulabError, HostKeyMismatch, LoginRefused, RemoteError
from gpulab.remote.link import Link, Opener, open_link
from gpulab.remote.process import last_line
from gpulab.remote.spares import Endpoint
from gpulab.remote.target import SshTarget

_T = TypeVar("_T")


@dataclass(frozen=True)
class Gone:
    """
    The answer that the instance no longer runs.

    Attributes:
        reason: For people: "AWS needed the capacity back".
        is_final: Nobody is going to replace it; the tunnel ends.
    """

    reason: str
    is_final: bool = False


# Asked when the instance does not answer: a target when it runs (another one when it was replaced), `Gone` when it
# does not, `None` when nobody can tell now. Runs in a thread; a `GpulabError` counts as `None`.
Refresh = Callable[[SshTarget], SshTarget | Gone | None]


class EventKind(StrEnum):
    """What happened to a tunnel."""

    CONNECTED = "connected"
    LOST = "lost"
    WAITING = "waiting"
    WOKE = "woke"
    REPLACED = "replaced"
    GONE = "gone"


@dataclass(frozen=True)
class TunnelEvent:
    """
    Something that happened to a tunnel.

    Attributes:
        detail: For people, one line; never a secret.
        seconds: Since the link was lost (`CONNECTED`), since the last sign of life (`LOST`), asleep (`WOKE`);
            0 otherwise.
    """

    kind: EventKind
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Pace:
    """
    How fast things are noticed and tried again, in seconds.

    Attributes:
        ping: Between two heartbeats.
        silence: Without an echo or any other byte the link is given up. With `ping` a dead link is noticed after
            8 to 12 s; shorter would give up links that only carry much.
        wake: A clock that jumps further than this has slept.
        wake_silence: How long an echo may take right after waking.
        connect: One attempt to connect may take so long.
        first_pause, longest_pause: Between attempts, doubling.
        steady: A link that lived so long starts the pauses over.
        refresh: Between two questions where the instance is.
        knock: Between two tries of the bare TCP connection while the network is away.
    """

    ping: float = 2.0
    silence: float = 10.0
    wake: float = 10.0
    wake_silence: float = 2.0
    connect: float = 15.0
    first_pause: float = 0.1
    longest_pause: float = 5.0
    steady: float = 1.0
    refresh: float = 5.0
    knock: float = 0.5


USUAL_PACE = Pace()


class Front(Protocol):
    """What the supervisor tells the listening side."""

    @property
    def heard_at(self) -> float:
        """When the upstream last sent anything."""
        ...

    def connect(self, upstream: dict[int, Endpoint]) -> None:
        """There is a link."""
        ...

    def disconnect(self) -> None:
        """There is none."""
        ...

    def show(self, page: bytes | None) -> None:
        """Answer waiting clients with a page, or let them wait."""
        ...


def pause_s(attempt: int, pace: Pace, *, chance: float) -> float:
    """
    Say how long to wait before the next attempt: 0.1 s doubling to 5 s, each up to a half shorter.

    Args:
        attempt: Attempts that failed so far, from 1.
        chance: A random number from 0 to 1.
    """
    doublings = float(2 ** min(attempt - 1, 30))
    return min(pace.first_pause * doublings, pace.longest_pause) * (1 - chance / 2)


def slept_s(*, wall: float, monotonic: float, expected: float, pace: Pace) -> float:
    """
    Say how long the computer slept between two looks at its clocks; 0 when it did not.

    Args:
        wall: Seconds that went by on the clock on the wall.
        monotonic: Seconds that went by on the other clock, which stands still in sleep on Linux and macOS.
        expected: Seconds that we meant to wait.
    """
    jump = max(wall - monotonic, monotonic - expected)
    return jump if jump > pace.wake else 0.0


class Supervisor:
    """
    Keeps one link up behind a front. Run it once.

    Args:
        target: Where to begin.
        remote_ports: What to forward.
        on_event: Told what happens, in the event loop's thread.
        page_for: Makes the HTTP response for waiting clients while the instance is gone.
        open_link: Makes a link; for tests.
        random_: From 0 to 1.
    """

    def __init__(
        self,
        target: SshTarget,
        remote_ports: Sequence[int],
        front: Front,
        *,
        refresh: Refresh | None = None,
        on_event: Callable[[TunnelEvent], None] = lambda event: None,
        page_for: Callable[[Gone], bytes] = lambda gone: b"",
        pace: Pace = USUAL_PACE,
        open_link: Opener = open_link,
        knock: Callable[[SshTarget], Coroutine[Any, Any, bool]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random_: Callable[[], float] = random.random,
    ) -> None:
        self.target = target
        self._remote_ports = tuple(remote_ports)
        self._front = front
        self._refresh = refresh
        self._on_event = on_event
        self._page_for = page_for
        self._pace = pace
        self._open_link = open_link
        self._knock = knock or _knock
        self._monotonic = monotonic
        self._wall = wall
        self._random = random_
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._gone: Gone | None = None
        self._nudge = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> Gone:
        """
        Keep the link up until cancelled.

        Returns:
            Why there will be no instance any more.

        Raises:
            HostKeyMismatch, LoginRefused: Waiting does not mend it.
        """
        clock = self._spawn(self._watch_clock())
        try:
            return await self._run()
        finally:
            clock.cancel()
            self._front.disconnect()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> Gone:
        attempt, lost_at, was_silent = 0, self._monotonic(), False
        while True:
            link = await self._connected(lost_at, attempt, knock_first=was_silent)
            if isinstance(link, Gone):
                return link
            up_at = self._monotonic()
            self._on_event(TunnelEvent(EventKind.CONNECTED, self._where(), up_at - lost_at))
            self._front.connect(dict(link.endpoints))
            try:
                reason, was_silent = await self._until_lost(link)
            finally:
                self._front.disconnect()
                await link.close()
            lost_at = self._monotonic()
            attempt = 0 if lost_at - up_at > self._pace.steady else attempt + 1
            self._on_event(TunnelEvent(EventKind.LOST, reason, lost_at - link.heard_at))
            if was_silent:
                self._ask()

    async def _connected(self, lost_at: float, attempt: int, *, knock_first: bool) -> Link | Gone:
        """Try until there is a link, or there never will be one."""
        while True:
            if attempt:
                await self._rest(pause_s(attempt, self._pace, chance=self._random()))
            if self._gone is not None and self._gone.is_final:
                return self._gone
            if self._gone is not None:
                self._ask()
                await self._rest(self._pace.refresh)
                continue
            attempt += 1
            try:
                return await self._try_once(knock_first=knock_first)
            except (HostKeyMismatch, LoginRefused):
                # AWS gives an ended instance's address to somebody else.
                if not await self._has_moved():
                    raise
            except (RemoteError, TimeoutError) as error:
                reason = error.message if isinstance(error, RemoteError) else "no answer in time"
                self._on_event(TunnelEvent(EventKind.WAITING, last_line(reason)))
                self._ask()
                knock_first = True
            if self._nudge.is_set():
                attempt = 0

    async def _try_once(self, *, knock_first: bool) -> Link:
        self._nudge.clear()
        if knock_first and not self.target.proxy_command:
            await self._until_somebody_opens()
        link = await self._open_link(self.target, self._remote_ports)
        try:
            ready = await self._unless_nudged(link.ready(), self._pace.connect)
        except BaseException:
            await link.close()
            raise
        if not ready:
            await link.close()
            raise TimeoutError
        return link

    async def _until_somebody_opens(self) -> None:
        """
        Wait until the bare TCP connection can be made; raise `TimeoutError` when that takes too long.

        ssh's own attempt would repeat its first packet after 1, 3 and 7 s; a network that is back would go unnoticed
        for seconds.
        """
        await self._unless_nudged(self._first_knock(), self._pace.connect)

    async def _first_knock(self) -> None:
        """Knock anew twice a second without waiting for the last one's end; return with the first that succeeds."""
        knocks: set[asyncio.Task[bool]] = set()
        try:
            while not any(knock.done() and knock.result() for knock in knocks):
                knocks = {knock for knock in knocks if not knock.done()}
                knocks.add(self._spawn(self._knock(self.target)))
                pause = self._spawn(asyncio.sleep(self._pace.knock))
                pending = {*knocks, pause}
                while not pause.done() and not any(k.done() and k.result() for k in knocks):
                    _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for knock in knocks:
                knock.cancel()

    async def _until_lost(self, link: Link) -> tuple[str, bool]:
        """Wait until a link has ended or is silent; say why, and whether it was silence."""
        target, end = self.target, self._spawn(link.ended())
        self._nudge.clear()
        try:
            while True:
                await link.ping()
                await self._either(end, self._nudge.wait(), self._pace.ping)
                if end.done():
                    return end.result().message, False
                if self.target != target:
                    return "the instance was replaced", False
                if silence := await self._silence(link, end):
                    return silence, True
                if not _exist(link.endpoints.values()):
                    return "the tunnel's local socket was removed", False
        finally:
            end.cancel()

    async def _silence(self, link: Link, end: asyncio.Task[RemoteError]) -> str:
        """Say that a link is silent; right after waking a short silence is enough. Empty when it is not."""
        if self._nudge.is_set():
            self._nudge.clear()
            woke_at = self._monotonic()
            await link.ping()
            await self._either(end, asyncio.sleep(self._pace.wake_silence), None)
            if not end.done() and self._heard_at(link) < woke_at:
                return "no answer after the computer woke"
        if self._monotonic() - self._heard_at(link) > self._pace.silence:
            return f"no answer for {self._pace.silence:g} s"
        return ""

    def _heard_at(self, link: Link) -> float:
        return max(link.heard_at, self._front.heard_at)

    async def _watch_clock(self) -> None:
        """Nudge whoever waits when the computer has slept."""
        while True:
            wall, monotonic = self._wall(), self._monotonic()
            await asyncio.sleep(self._pace.ping)
            asleep_s = slept_s(
                wall=self._wall() - wall,
                monotonic=self._monotonic() - monotonic,
                expected=self._pace.ping,
                pace=self._pace,
            )
            if asleep_s:
                self._on_event(TunnelEvent(EventKind.WOKE, seconds=asleep_s))
                self._ask(at_once=True)
                self._nudge.set()

    def _ask(self, *, at_once: bool = False) -> None:
        """Ask in the background where the instance is, not more often than the pace allows."""
        now = self._monotonic()
        is_due = at_once or now - self._asked_at >= self._pace.refresh
        is_asking = self._asking is not None and not self._asking.done()
        if self._refresh is None or is_asking or not is_due:
            return
        self._asked_at = now
        self._asking = self._spawn(self._take_answer(self._refresh))

    async def _has_moved(self) -> bool:
        """Ask where the instance is, and wait for the answer; whether it is elsewhere, or gone."""
        if self._refresh is None:
            return False
        target = self.target
        await self._take_answer(self._refresh)
        return self._gone is not None or self.target != target

    async def _take_answer(self, refresh: Refresh) -> None:
        try:
            answer = await asyncio.to_thread(refresh, self.target)
        except GpulabError as error:
            self._on_event(TunnelEvent(EventKind.WAITING, last_line(error.message)))
            return
        if isinstance(answer, Gone):
            self._on_gone(answer)
        elif answer is not None:
            self._on_target(answer)

    def _on_gone(self, gone: Gone) -> None:
        if gone != self._gone:
            self._on_event(TunnelEvent(EventKind.GONE, gone.reason))
            self._front.show(self._page_for(gone))
        self._gone = gone
        self._nudge.set()

    def _on_target(self, target: SshTarget) -> None:
        was_gone, self._gone = self._gone, None
        if was_gone is not None:
            self._front.show(None)
        if target != self.target:
            self.target = target
            self._on_event(TunnelEvent(EventKind.REPLACED, self._where()))
            self._nudge.set()
        elif was_gone is not None:
            self._nudge.set()

    def _where(self) -> str:
        return f"{self.target.instance_id} at {self.target.address}"

    async def _rest(self, seconds: float) -> None:
        """Wait, but not through a nudge."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nudge.wait(), seconds)
        self._nudge.clear()

    async def _unless_nudged(self, work: Coroutine[Any, Any, _T], limit_s: float) -> bool:
        """Do something with a limit; `False` when a nudge came first. Raises `TimeoutError`, or what it raises."""
        task = self._spawn(work)
        try:
            await self._either(task, self._nudge.wait(), limit_s)
            if task.done():
                task.result()
                return True
            if self._nudge.is_set():
                return False
            raise TimeoutError
        finally:
            task.cancel()

    async def _either(
        self, task: asyncio.Task[Any], other: Coroutine[Any, Any, Any], limit_s: float | None
    ) -> None:
        second = asyncio.ensure_future(other)
        try:
            await asyncio.wait({task, second}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            second.cancel()

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _knock(target: SshTarget) -> bool:
    """Whether a TCP connection to sshd can be made within 3 s."""
    try:
        async with asyncio.timeout(3):
            _, writer = await asyncio.open_connection(target.address, target.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _exist(endpoints: Collection[Endpoint]) -> bool:
    return all(isinstance(endpoint, int) or endpoint.exists() for endpoint in endpoints)
