"""
The tunnel to an instance: local ports that stay the same for the life of the tunnel, and behind them an ssh that comes and
goes. Nobody who connects is refused, and a request that can be repeated does not fail because ssh died.

    browser -> 127.0.0.1:port (listener, ours for good) -> unix socket -> ssh (supervisor) -> sshd -> 127.0.0.1:8888
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

from gpulab.errors import Unreachable
from gpulab.remote.link import Opener, open_link
from gpulab.remote.listener import Listener
from gpulab.remote.supervisor import (
    USUAL_PACE,
    EventKind,
    Gone,
    Pace,
    Refresh,
    Supervisor,
    TunnelEvent,
)
from gpulab.remote.target import SshTarget

OnEvent = Callable[[TunnelEvent], None]


async def serve(
    target: SshTarget,
    sockets: Mapping[int, socket.socket],
    *,
    stop: asyncio.Event,
    refresh: Refresh | None = None,
    on_event: OnEvent = lambda event: None,
    pace: Pace = USUAL_PACE,
    open_link: Opener = open_link,
) -> Gone | None:
    """
    Keep a tunnel up until told to stop.

    Args:
        target: The instance; its host key is pinned.
        sockets: From `ports.listen`; closed at the end.
        stop: Set it to end the tunnel.
        refresh: Asked, in a thread, where the instance is when it does not answer: a target, `Gone`, or `None`.
            It pins a new instance's host key before it returns the target.
        on_event: Told what happens, in the event loop's thread.

    Returns:
        `None` when told to stop; otherwise why there will be no instance any more.

    Raises:
        HostKeyMismatch, LoginRefused: Waiting does not mend it.
    """
    listener = Listener(sockets)
    listener.start()
    supervisor = Supervisor(
        target,
        tuple(sockets),
        listener,
        refresh=refresh,
        on_event=on_event,
        page_for=gone_page,
        pace=pace,
        open_link=open_link,
    )
    keeping = asyncio.create_task(supervisor.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return keeping.result() if keeping.done() else None
    finally:
        stopping.cancel()
        keeping.cancel()
        await asyncio.wait({keeping})
        await asyncio.to_thread(listener.stop)


def gone_page(gone: Gone) -> bytes:
    """Make the HTTP response a waiting browser gets while the instance is gone; it asks again by itself."""
    title = "The instance has ended" if gone.is_final else "Interrupted, relaunching"
    after = (
        "The tunnel is closed. Your terminal says how to start again."
        if gone.is_final
        else "This page comes back by itself when the new instance answers."
    )
    refresh = "" if gone.is_final else '<meta http-equiv="refresh" content="5">'
    body = _PAGE.format(
        title=title, refresh=refresh, reason=html.escape(gone.reason), after=after
    ).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
        "Cache-Control: no-store\r\n"
        "Retry-After: 5\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class Tunnel:
    """
    A tunnel in the background of this process; see `running`.

    Attributes:
        ports: Local ports by remote port.
    """

    def __init__(self, ports: Mapping[int, int]) -> None:
        self.ports = dict(ports)
        self._connected = threading.Event()
        self._ended: Future[Gone | None] = Future()

    def wait_connected(self, timeout_s: float) -> None:
        """
        Wait until the tunnel is up for the first time.

        Raises:
            Unreachable: Not in time.
            HostKeyMismatch, LoginRefused: It will never be.
        """
        if self._connected.wait(timeout_s):
            if self._ended.done():
                self.wait_ended()
            return
        raise Unreachable(f"the tunnel did not come up within {timeout_s:g} s")

    def wait_ended(self, timeout_s: float | None = None) -> Gone | None:
        """
        Wait until there will be no instance any more, and say why.

        Raises:
            TimeoutError: It is still up.
            HostKeyMismatch, LoginRefused: As `serve`.
        """
        return self._ended.result(timeout_s)

    def _take(self, event: TunnelEvent) -> None:
        if event.kind is EventKind.CONNECTED:
            self._connected.set()

    def _run(self, work: Callable[[], Gone | None]) -> None:
        try:
            self._ended.set_result(work())
        except BaseException as error:
            self._ended.set_exception(error)
        finally:
            self._connected.set()


@contextlib.contextmanager
def running(
    target: SshTarget,
    sockets: Mapping[int, socket.socket],
    *,
    refresh: Refresh | None = None,
    on_event: OnEvent = lambda event: None,
    pace: Pace = USUAL_PACE,
) -> Iterator[Tunnel]:
    """
    Keep a tunnel up in a thread for as long as the block runs.

    Args:
        on_event: Told what happens, in the tunnel's thread.
    """
    tunnel = Tunnel({port: end.getsockname()[1] for port, end in sockets.items()})
    stops: Future[Callable[[], None]] = Future()

    def take(event: TunnelEvent) -> None:
        tunnel._take(event)
        on_event(event)

    async def main() -> Gone | None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.set_result(lambda: _call_soon(loop, stop.set))
        return await serve(target, sockets, stop=stop, refresh=refresh, on_event=take, pace=pace)

    thread = threading.Thread(
        target=tunnel._run, args=(lambda: asyncio.run(main()),), name="gpulab-tunnel", daemon=True
    )
    thread.start()
    try:
        yield tunnel
    finally:
        stops.result()()
        thread.join()


def _call_soon(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # it has ended by itself
        loop.call_soon_threadsafe(what)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{refresh}
<title>{title}</title>
<style>body {{ font: 18px/1.5 system-ui, sans-serif; margin: 15vh auto; max-width: 34em; padding: 0 1em }}</style>
</head>
<body>
<h1>{title}</h1>
<p>{reason}</p>
<p>{after}</p>
</body>
</html>
"""
