"""
`gpulab sandbox connect HOST PORT`: carry bytes between an ssh client and a machine's door, as an ssh `ProxyCommand`.

It stands where EC2 Instance Connect Endpoint or Session Manager stand in the real world: a door for instances without an address
that can be reached. It starts fast (it imports little) and carries large pieces. `splice` would save copies, but into a socket it
holds small pieces back (MSG_MORE), and a shell is made of small pieces.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Mapping

_BUFFER = 256 * 1024
_CONNECT_LIMIT_S = 10
_STDIN, _STDOUT = 0, 1


def connect(host: str, port: int, environment: Mapping[str, str]) -> int:
    """
    Find the machine behind an address of the simulated EC2 and carry bytes until either side ends.

    What keeps it from connecting is said on stderr in OpenSSH's own words, because that is who reads it.

    Returns:
        The exit code: 0 after a connection, 1 when there was none.
    """
    from gpulab.errors import GpulabError
    from gpulab.sandbox.control import ask, find, folder_of

    try:
        door = ask(find(folder_of(environment)), "door", host=host, port=port)
        if "refused" in door:
            return _refuse(host, port, str(door["refused"]))
        connection = socket.create_connection((door["host"], door["port"]), _CONNECT_LIMIT_S)
    except GpulabError as error:
        return _refuse(host, port, f"Connection timed out ({error.message})")
    except OSError as error:
        return _refuse(host, port, os.strerror(error.errno) if error.errno else str(error))
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    carry(connection)
    return 0


def carry(connection: socket.socket, source: int = _STDIN, sink: int = _STDOUT) -> None:
    """
    Copy both ways until the far side has ended; the end of `source` is passed on, and the answer to it still carried.

    Args:
        source: File descriptor read from.
        sink: File descriptor written to.
    """
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (source, sink):
            msvcrt.setmode(descriptor, os.O_BINARY)
    _widen(source, sink)
    up = threading.Thread(target=_send, args=(source, connection), daemon=True)
    up.start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _move(connection, sink)


def _send(source: int, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := os.read(source, _BUFFER):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)


def _move(connection: socket.socket, sink: int) -> None:
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while count := connection.recv_into(buffer):
        written = 0
        while written < count:
            written += os.write(sink, view[written:count])


def _widen(*descriptors: int) -> None:
    """Let pipes hold more than their 64 KiB, so that fewer system calls carry the same bytes (Linux)."""
    if sys.platform == "linux":
        import fcntl

        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # a socket, or over the user's limit
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _BUFFER)


def _refuse(host: str, port: int, why: str) -> int:
    sys.stderr.write(f"connect to address {host} port {port}: {why}\n")
    return 1
