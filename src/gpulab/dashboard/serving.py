"""The dashboard's server on 127.0.0.1, and the private file that leads a browser in. Hides uvicorn; ends without remains."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from gpulab.dashboard.gate import ENTER, Gate
from gpulab.dashboard.web import application
from gpulab.errors import WrongUsage
from gpulab.store.files import write_atomically
from gpulab.view.dashboard_page import redirect_file

if TYPE_CHECKING:
    from gpulab.dashboard.feed import Feed

_LOOPBACK = "127.0.0.1"
# Pages of this computer; more would be somebody's attempt to fill it up.
_CONNECTIONS = 100
_ENDS_WITHIN_S = 3
# What a killed dashboard left behind opens nothing; it is swept up all the same.
_STALE_S = 86400.0


@dataclass(frozen=True)
class Served:
    """
    A dashboard that answers.

    Attributes:
        url: Where it is; without the secret.
        file: Leads a browser in; readable by its owner only.
    """

    url: str
    file: Path
    gate: Gate


@contextmanager
def serving(feed: Feed, *, folder: Path, port: int = 0) -> Iterator[Served]:
    """
    Serve until the block is left.

    Args:
        folder: Where the private file goes.
        port: 0 for any that is free.

    Raises:
        WrongUsage: The port is taken.
        StoreError: The private file cannot be written.
    """
    listening = _listen(port)
    number = listening.getsockname()[1]
    gate = Gate(
        number,
        base=f"/{secrets.token_urlsafe(16)}/",
        secret=secrets.token_urlsafe(32),
        session=secrets.token_urlsafe(32),
    )
    url = f"http://{_LOOPBACK}:{number}"
    file = folder / f"dashboard-{number}.html"
    with listening, _answering(gate, feed, listening):
        _sweep(folder)
        write_atomically(file, redirect_file(url + ENTER, gate.secret).encode())
        try:
            yield Served(url + "/", file, gate)
        finally:
            file.unlink(missing_ok=True)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_LOOPBACK, port))
    except (OSError, OverflowError) as error:
        raise WrongUsage(
            f"port {port} on this computer is taken",
            hint="Choose another port, or leave it to gpulab",
        ) from error


@contextmanager
def _answering(gate: Gate, feed: Feed, listening: socket.socket) -> Iterator[None]:
    """Answer in a thread beside, so that the thread of signals is free to look and to end."""
    server = uvicorn.Server(
        uvicorn.Config(
            application(gate, feed),
            http="h11",
            ws="none",
            lifespan="off",
            loop="asyncio",
            access_log=False,
            log_config=None,
            log_level="critical",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_ENDS_WITHIN_S)


def _sweep(folder: Path) -> None:
    for file in folder.glob("dashboard-*.html"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _STALE_S:
                file.unlink()
