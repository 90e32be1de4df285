"""
A connection to the upstream that is ready before anybody asks: one for each remote port that speaks persistent HTTP. Hides when one
is opened, how long it is good for, and how a dead one is told from a living one.

Through ssh a new connection waits for a channel to be opened, which is a round trip to the instance. A browser that asks for one more
gets the spare, and waits for its answer only.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# A TCP port on 127.0.0.1, or a unix socket.
Endpoint = int | Path

# Servers close idle connections after a minute or more; a spare is never the one they are just closing.
_GOOD_FOR_S = 20.0


class _Spare(NamedTuple):
    end: socket.socket
    until: float


class Spares:
    """
    The spares of one link.

    Args:
        monotonic: Seconds on a clock that never jumps.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ready: dict[int, _Spare] = {}

    def prepare(self, remote_port: int, endpoint: Endpoint) -> None:
        """Open one, unless there is one. Call it where the server has shown that it keeps connections open between requests."""
        if remote_port in self._ready:
            return
        with contextlib.suppress(OSError):  # out of file handles: no spare then
            end = socket_for(endpoint)
            failure = end.connect_ex(address_of(endpoint))
            if failure in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                self._ready[remote_port] = _Spare(end, self._monotonic() + _GOOD_FOR_S)
            else:
                end.close()

    def take(self, remote_port: int) -> socket.socket | None:
        """Hand one over that is connected and that nobody has closed; `None` if there is none."""
        spare = self._ready.pop(remote_port, None)
        if spare is None:
            return None
        try:
            is_open = bool(spare.end.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            is_open = True
        except OSError:
            is_open = False
        if is_open:
            return spare.end
        spare.end.close()
        return None

    def patience(self) -> float | None:
        """Seconds until one has to go; `None`: there is none."""
        if not self._ready:
            return None
        return max(min(spare.until for spare in self._ready.values()) - self._monotonic(), 0.0)

    def expire(self) -> None:
        """Close those that have been kept for long enough."""
        if not self._ready:
            return
        now = self._monotonic()
        for port in [port for port, spare in self._ready.items() if spare.until <= now]:
            self._ready.pop(port).end.close()

    def close(self) -> None:
        """Close them all: the link has gone, or is another one."""
        while self._ready:
            self._ready.popitem()[1].end.close()


def socket_for(endpoint: Endpoint) -> socket.socket:
    """Make the socket, which never blocks, that connects to an endpoint."""
    if isinstance(endpoint, Path):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.settimeout(0)
    return end


def address_of(endpoint: Endpoint) -> str | tuple[str, int]:
    """What to connect to."""
    return str(endpoint) if isinstance(endpoint, Path) else ("127.0.0.1", endpoint)
