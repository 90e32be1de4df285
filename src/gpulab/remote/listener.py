"""
The front of the tunnel: sockets on 127.0.0.1 that stay open for good, and the copying between them and whatever ssh is
there at the moment. Hides that ssh comes and goes: while it is away clients wait, and nobody is refused.

One thread and one selector do all of it, with plain non-blocking sockets; docs/decisions/tunnel.md says why.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from gpulab.remote.connection import Connection
from gpulab.remote.exchange import is_http
from gpulab.remote.spares import Endpoint, Spares

_BUFFER = 256 << 10
_LINGER_S = 5.0
_RETRY_S = 0.02


class Listener:
    """
    Listens on the given sockets and copies to the current upstream. All public methods may be called from any thread.

    Args:
        sockets: Listening TCP sockets by the remote port they stand for. They are closed by `stop`.
        monotonic: Seconds on a clock that never jumps.
    """

    def __init__(
        self,
        sockets: Mapping[int, socket.socket],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sockets = dict(sockets)
        self._loop = _Loop(self._sockets, monotonic)
        self._thread = threading.Thread(target=self._loop.run, name="gpulab-listener", daemon=True)

    def start(self) -> None:
        """Begin to accept; until `connect` is called clients wait."""
        self._thread.start()

    def connect(self, upstream: Mapping[int, Endpoint]) -> None:
        """Send waiting and new clients to these endpoints, by remote port."""
        endpoints = dict(upstream)
        self._loop.call(lambda: self._loop.set_upstream(endpoints))

    def disconnect(self) -> None:
        """Let new clients wait; those whose request can be repeated wait as well."""
        self._loop.call(lambda: self._loop.set_upstream(None))

    def show(self, page: bytes | None) -> None:
        """Answer waiting HTTP clients with this whole response; `None`: let them wait."""
        self._loop.call(lambda: self._loop.set_page(page))

    def stop(self) -> None:
        """Close every socket and end the thread."""
        self._loop.call(self._loop.end)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._loop.run()

    @property
    def heard_at(self) -> float:
        """When the upstream last sent anything; a sign that it lives."""
        return self._loop.heard_at

    @property
    def waiting(self) -> int:
        """How many clients wait for an upstream now."""
        return len(self._loop.parked)


class _Loop:
    """The thread's own state; nothing here is touched by another thread, except through `call`."""

    def __init__(
        self, sockets: Mapping[int, socket.socket], monotonic: Callable[[], float]
    ) -> None:
        self.upstream: dict[int, Endpoint] | None = None
        self.generation = 0
        self.parked: dict[Connection, None] = {}
        self.heard_at = monotonic()
        self.buffer = memoryview(bytearray(_BUFFER))
        self.selector = selectors.DefaultSelector()
        self.monotonic = monotonic
        self.spares = Spares(monotonic)
        self._page: bytes | None = None
        self._open: dict[Connection, None] = {}
        self._retries: list[Connection] = []
        self._timers: dict[Connection, float] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._is_ending = False
        self._ports: dict[socket.socket, int] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.settimeout(0)
        self.selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
        for remote_port, listening in sockets.items():
            listening.settimeout(0)
            self._ports[listening] = remote_port
            self.selector.register(listening, selectors.EVENT_READ, self._accept)

    def call(self, what: Callable[[], None]) -> None:
        """Have something done by the loop's thread."""
        self._calls.append(what)
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    def run(self) -> None:
        """Copy until `end`."""
        while not self._is_ending:
            for key, events in self.selector.select(self._patience()):
                key.data(key.fileobj, events)
            if self._retries:
                self._retry()
            if self._timers:
                self._expire()
            self.spares.expire()
        self._close_all()

    def end(self) -> None:
        self._is_ending = True

    def set_upstream(self, upstream: dict[int, Endpoint] | None) -> None:
        self.upstream = upstream
        self.spares.close()
        if upstream is not None:
            self.generation += 1
            self.heard_at = self.monotonic()
        for connection in list(self._timers):
            connection.reconsider()
        if upstream is None:
            return
        for connection in list(self.parked):
            connection.reach()

    def set_page(self, page: bytes | None) -> None:
        self._page = page
        for connection in list(self.parked):
            self.offer_page(connection)

    def park(self, connection: Connection) -> None:
        self.parked[connection] = None
        self.offer_page(connection)

    def unpark(self, connection: Connection) -> None:
        self.parked.pop(connection, None)

    def retry_soon(self, connection: Connection) -> None:
        self._retries.append(connection)

    def offer_page(self, connection: Connection) -> None:
        """Answer a waiting client with the page, if there is one and it speaks HTTP."""
        if self._page is None or connection not in self.parked:
            return
        speaks = is_http(bytes(connection.held))
        if speaks:
            del self.parked[connection]
            self.close_after(connection, _LINGER_S)
            connection.say_goodbye(self._page)
        elif speaks is False:
            connection.close()

    def forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        self.parked.pop(connection, None)
        self._timers.pop(connection, None)

    def close_after(self, connection: Connection, seconds: float) -> None:
        self._timers[connection] = self.monotonic() + seconds

    def keep(self, connection: Connection) -> None:
        self._timers.pop(connection, None)

    def _patience(self) -> float | None:
        if self._retries:
            return _RETRY_S
        spares = self.spares.patience()
        if not self._timers:
            return spares
        timers = max(min(self._timers.values()) - self.monotonic(), 0.0)
        return timers if spares is None else min(timers, spares)

    def _retry(self) -> None:
        retries, self._retries = self._retries, []
        for connection in retries:
            connection.reach()

    def _woken(self, end: socket.socket, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)
        while self._calls:
            self._calls.popleft()()

    def _accept(self, listening: socket.socket, events: int) -> None:
        # One at a time: a second try would mostly cost a call and an exception to learn that there is none.
        try:
            client, _address = listening.accept()
        except OSError as error:
            # Out of file handles: those in the backlog wait until some are closed.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_RETRY_S)
            return
        self._open_connection(client, self._ports[listening])

    def _open_connection(self, client: socket.socket, remote_port: int) -> None:
        client.settimeout(0)
        connection = Connection(self, client, remote_port)
        self._open[connection] = None
        # First of all, so that ssh opens its channel while we do the rest.
        connection.reach()
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _expire(self) -> None:
        now = self.monotonic()
        for connection in [c for c, until in self._timers.items() if until <= now]:
            connection.close()

    def _close_all(self) -> None:
        for connection in list(self._open):
            connection.close()
        self.spares.close()
        for listening in (*self._ports, self._wake_in, self._wake_out):
            listening.close()
        self.selector.close()
