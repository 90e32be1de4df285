"""
One client of the tunnel and its own connection to the upstream: reads, writes, waits. Hides what is on its way in either
direction; a client whose request may be repeated outlives the ssh it was sent through.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
from collections.abc import Callable
from typing import Protocol

from gpulab.remote.exchange import LONGEST_HEAD, Exchange
from gpulab.remote.spares import Endpoint, Spares, address_of, socket_for

# So long a server that seems to have closed by itself may turn out to be a dying ssh. A busy computer takes its time to let a killed
# process go; docs/soak.md has what a tenth of a second lost. Who waits meanwhile would only have learned of a failure.
_DOUBT_S = 2.0
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

OnReady = Callable[[socket.socket, int], None]


class Loop(Protocol):
    """What a connection needs of the thread that runs it."""

    upstream: dict[int, Endpoint] | None
    generation: int
    heard_at: float
    buffer: memoryview
    spares: Spares
    monotonic: Callable[[], float]

    @property
    def selector(self) -> selectors.BaseSelector:
        """Where sockets are watched; its data is an `OnReady`."""
        ...

    def park(self, connection: Connection) -> None:
        """Reach again when there is an upstream."""
        ...

    def unpark(self, connection: Connection) -> None:
        """It has reached one."""
        ...

    def offer_page(self, connection: Connection) -> None:
        """Answer it with the page, if there is one and it waits."""
        ...

    def retry_soon(self, connection: Connection) -> None:
        """Reach again in some milliseconds."""
        ...

    def close_after(self, connection: Connection, seconds: float) -> None:
        """Close it then, unless kept."""
        ...

    def keep(self, connection: Connection) -> None:
        """Do not close it after all."""
        ...

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        ...


class Connection:
    """
    One client and, while there is one, its own connection to the upstream.

    It is `parked` (no upstream), reaching (connecting), or flowing. `held` is what the client has sent and the
    upstream has not been given yet.
    """

    __slots__ = (
        "_asks_anew",
        "_client",
        "_client_mask",
        "_generation",
        "_has_client_ended",
        "_is_closed",
        "_is_doubted",
        "_is_in_doubt",
        "_is_leaving",
        "_is_reached",
        "_loop",
        "_port",
        "_to_client",
        "_upstream",
        "_upstream_mask",
        "_withheld",
        "exchange",
        "held",
    )

    def __init__(self, loop: Loop, client: socket.socket, port: int) -> None:
        self.exchange = Exchange()
        self.held = bytearray()
        self._loop = loop
        self._client = client
        self._port = port
        self._upstream: socket.socket | None = None
        self._to_client: bytes | memoryview = b""
        self._withheld = bytearray()
        self._generation = 0
        self._client_mask = 0
        self._upstream_mask = 0
        self._is_reached = False
        self._is_doubted = False
        self._is_in_doubt = False
        self._asks_anew = False
        self._has_client_ended = False
        self._is_leaving = False
        self._is_closed = False

    def reach(self) -> None:
        """Connect to the current upstream, or wait for one."""
        if self._is_closed or self._upstream is not None:
            return
        if self._loop.upstream is None:
            self._park()
            return
        endpoint = self._loop.upstream[self._port]
        self._generation = self._loop.generation
        # Only a connection made now tells a server that closed from an ssh that died.
        spare = None if self._is_doubted else self._loop.spares.take(self._port)
        try:
            self._upstream = spare or socket_for(endpoint)
        except OSError:
            # Out of file handles: until some are closed.
            self._park()
            self._loop.retry_soon(self)
            return
        failure = 0 if spare else self._upstream.connect_ex(address_of(endpoint))
        if failure == 0:
            self._on_reached()
        elif isinstance(endpoint, int) and failure in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._listen()
        else:
            # ssh is gone and nobody has noticed yet, or fifty tabs at once have filled its backlog.
            self._park()
            self._loop.retry_soon(self)

    def reconsider(self) -> None:
        """The link has gone or is another one: whatever closed, it was not the server."""
        if self._is_in_doubt:
            self._park()
            if self._loop.upstream is not None:
                self.reach()

    def say_goodbye(self, answer: bytes) -> None:
        """Send a last answer and close once the client has read it."""
        self._is_leaving = True
        self._to_client = answer
        self._flush_to_client()

    def close(self) -> None:
        """Close both sides."""
        if self._is_closed:
            return
        self._is_closed = True
        self._drop_upstream()
        self._watch_client(0)
        self._client.close()
        self._loop.forget(self)

    def _park(self) -> None:
        self._drop_upstream()
        self._is_doubted = False
        self._end_doubt()
        self._listen()
        self._loop.park(self)

    def _on_reached(self) -> None:
        if self._is_doubted and not self._asks_anew:
            # ssh still listens: it was the server that closed. Unless ssh is just about to die.
            self._is_in_doubt = True
            self._loop.close_after(self, _DOUBT_S)
            self._watch_upstream(_READ)
            if self._loop.upstream is None or self._generation != self._loop.generation:
                self.reconsider()  # the link has changed while this was connecting
            return
        self._loop.unpark(self)
        self._is_reached = True
        if self._flush_to_upstream():
            self._listen()

    def _end_doubt(self) -> None:
        self._is_in_doubt = False
        self._loop.keep(self)

    def _on_client(self, end: socket.socket, events: int) -> None:
        if self._is_closed:
            return
        if events & _WRITE and not self._flush_to_client():
            return
        if events & _READ:
            self._read_client()

    def _on_upstream(self, end: socket.socket, events: int) -> None:
        if end is not self._upstream:
            return  # from before it was replaced, in the same round
        if not self._is_reached:
            self._on_connecting(end, events)
            return
        if events & _WRITE and not self._flush_to_upstream():
            return
        if events & _READ:
            self._read_upstream()

    def _on_connecting(self, end: socket.socket, events: int) -> None:
        failed = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        if failed and self._has_client_ended:
            self.close()
        elif failed or (self._is_doubted and events & _READ):
            self._park()
            self._loop.retry_soon(self)
        else:
            self._on_reached()

    def _read_client(self) -> None:
        buffer = self._loop.buffer
        try:
            size = self._client.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if size == 0:
            self._on_client_ended()
        elif not self._is_leaving:
            self._take(buffer[:size])

    def _take(self, chunk: memoryview) -> None:
        """Pass on what the client sent, or hold it while there is nobody to pass it to."""
        if self.exchange.is_quiet:
            self._asks_anew = True
        self.exchange.sent(chunk)
        if self._is_in_doubt and self._asks_anew:
            # Nothing was under way that the server could have refused: what comes now is its own affair.
            self.held += chunk
            self._end_doubt()
            self._on_reached()
            return
        if self._is_reached and not self.held:
            assert self._upstream is not None
            try:
                given = self._upstream.send(chunk)
            except BlockingIOError:
                given = 0
            except OSError:
                self._on_upstream_lost()
                return
            chunk = chunk[given:]
            if not chunk:
                return
        self.held += chunk
        self._loop.offer_page(self)
        if not self._is_closed:
            self._listen()

    def _read_upstream(self) -> None:
        assert self._upstream is not None
        buffer = self._loop.buffer
        try:
            size = self._upstream.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self._on_upstream_lost()
            return
        if size == 0:
            self._on_upstream_lost()
            return
        self._loop.heard_at = self._loop.monotonic()
        chunk = buffer[:size]
        self.exchange.received(chunk)
        if self.exchange.withholds:
            self._withheld += chunk
        elif self._withheld:
            self._withheld += chunk
            whole, self._withheld = self._withheld, bytearray()
            self._pass_to_client(memoryview(whole))
        else:
            self._pass_to_client(chunk)
        if self.exchange.is_idle and self._loop.upstream is not None:
            # After the answer is on its way, so that nobody waits for it.
            self._loop.spares.prepare(self._port, self._loop.upstream[self._port])

    def _pass_to_client(self, chunk: memoryview) -> None:
        try:
            given = self._client.send(chunk)
        except BlockingIOError:
            given = 0
        except OSError:
            self.close()
            return
        if given < len(chunk):
            self._to_client = bytes(chunk[given:])
            self._listen()

    def _flush_to_client(self) -> bool:
        """Send what is kept for the client; `False` when the connection was closed."""
        try:
            while self._to_client:
                self._to_client = memoryview(self._to_client)[self._client.send(self._to_client) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return False
        if self._is_leaving and not self._to_client:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_WR)
        self._listen()
        return True

    def _flush_to_upstream(self) -> bool:
        """Send what is held for the upstream; `False` when the connection was lost."""
        assert self._upstream is not None
        try:
            while self.held:
                del self.held[: self._upstream.send(self.held)]
        except BlockingIOError:
            pass
        except OSError:
            self._on_upstream_lost()
            return False
        if self._has_client_ended and not self.held:
            with contextlib.suppress(OSError):
                self._upstream.shutdown(socket.SHUT_WR)
        self._listen()
        return True

    def _on_client_ended(self) -> None:
        """The client sends no more: it left, or only waits for the rest of its answer."""
        self._has_client_ended = True
        is_waiting = self._upstream is None or self._is_in_doubt
        if self._is_leaving or is_waiting or self.exchange.is_idle:
            self.close()
        elif self._is_reached:
            self._flush_to_upstream()
        else:
            self._listen()  # connecting: what it sent goes out first

    def _on_upstream_lost(self) -> None:
        """
        The server closed, or ssh died; which of them, only another connection tells.

        A request that may be repeated waits for the next ssh; so does a client between two requests, or before its first.
        """
        replay = self.exchange.replay
        if (
            self._has_client_ended
            or self._to_client
            or (replay is None and not self.exchange.is_quiet)
        ):
            self._drain_and_close()
            return
        self.held = bytearray(replay or b"")
        self._asks_anew = False
        self.exchange.asked_again()
        self._withheld.clear()
        self._is_doubted = self._generation == self._loop.generation
        self._drop_upstream()
        self.reach()

    def _drain_and_close(self) -> None:
        self._to_client = bytes(self._to_client) + bytes(self._withheld)
        if not self._to_client:
            self.close()
            return
        self._drop_upstream()
        self.say_goodbye(bytes(self._to_client))

    def _drop_upstream(self) -> None:
        self._is_reached = False
        if self._upstream is not None:
            self._watch_upstream(0)
            self._upstream.close()
            self._upstream = None

    def _listen(self) -> None:
        """Wait for exactly what can be dealt with now: a full side stops the other one."""
        client = 0
        if self._to_client:
            client |= _WRITE
        if not self._has_client_ended and self._has_room():
            client |= _READ
        self._watch_client(client)
        if self._upstream is not None:
            upstream = 0 if self._to_client or not self._is_reached else _READ
            if self.held or not self._is_reached:
                upstream |= _WRITE
            self._watch_upstream(upstream)

    def _has_room(self) -> bool:
        if self._is_leaving:
            return True
        return not self.held if self._is_reached else len(self.held) < LONGEST_HEAD

    def _watch_client(self, mask: int) -> None:
        if mask != self._client_mask:
            _watch(self._loop.selector, self._client, self._client_mask, mask, self._on_client)
            self._client_mask = mask

    def _watch_upstream(self, mask: int) -> None:
        if mask != self._upstream_mask and self._upstream is not None:
            _watch(
                self._loop.selector, self._upstream, self._upstream_mask, mask, self._on_upstream
            )
            self._upstream_mask = mask


def _watch(
    selector: selectors.BaseSelector,
    end: socket.socket,
    old: int,
    new: int,
    callback: OnReady,
) -> None:
    if not new:
        selector.unregister(end)
    elif not old:
        selector.register(end, new, callback)
    else:
        selector.modify(end, new, callback)
