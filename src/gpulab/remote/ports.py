"""
The tunnel's ports on this computer: the same ones for a name every time, as long as nobody else has taken them. A browser
tab, its cookies and a bookmark outlive the instance.
"""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

from gpulab.errors import WrongUsage

# Below the ports that Linux (32768), macOS and Windows (49152) give to outgoing connections.
_FIRST, _COUNT = 20000, 12000
_TRIES = 50
_BACKLOG = 256

Bind = Callable[[int], socket.socket]


def preferred(name: str, remote_port: int) -> Iterator[int]:
    """Yield the local ports to try for an instance's port, best first; the same for the same name every time."""
    digest = hashlib.sha256(f"{name}:{remote_port}".encode()).digest()
    first = int.from_bytes(digest[:4], "big") % _COUNT
    return (_FIRST + (first + step) % _COUNT for step in range(_TRIES))


def listen(
    name: str,
    remote_ports: Sequence[int],
    *,
    local_port: int | None = None,
    bind: Bind | None = None,
) -> dict[int, socket.socket]:
    """
    Open the local side of a tunnel on 127.0.0.1, before there is an ssh.

    Args:
        name: The user's name for the instance.
        remote_ports: Ports on the instance, Jupyter's first.
        local_port: For the first of them, when the user asks for one.
        bind: Opens one port; for tests.

    Returns:
        Listening sockets by remote port; `socket.getsockname()[1]` is the local one.

    Raises:
        WrongUsage: The port asked for is taken, or none is free.
    """
    bind = bind or _bind
    opened: dict[int, socket.socket] = {}
    try:
        for remote_port in remote_ports:
            asked = local_port if remote_port == remote_ports[0] else None
            opened[remote_port] = _open(name, remote_port, asked, bind)
    except BaseException:
        for listening in opened.values():
            listening.close()
        raise
    return opened


def _open(name: str, remote_port: int, asked: int | None, bind: Bind) -> socket.socket:
    for port in preferred(name, remote_port) if asked is None else (asked,):
        try:
            return bind(port)
        except (OSError, OverflowError):
            continue
    if asked is not None:
        raise WrongUsage(
            f"port {asked} on this computer is taken",
            hint="Choose another port, or leave it to gpulab",
        )
    raise WrongUsage(f"none of {_TRIES} ports tried on this computer is free")


def _bind(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            # There SO_REUSEADDR lets two programs share a port.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
