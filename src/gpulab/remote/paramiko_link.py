"""
A program that stands in for `ssh -L ... cat` where there is no ssh: forwards by paramiko, and gives back each line it reads
once the instance has answered a question of its own. Run by `link`, in a process of its own, with its order as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko

from gpulab.errors import HostKeyMismatch, LoginRefused, RemoteError
from gpulab.remote.paramiko_host import answers, connect
from gpulab.remote.process import SSH_FAILED
from gpulab.remote.target import SshTarget

_CHUNK = 1 << 15
_BACKLOG = 128


def main(order: dict[str, Any]) -> int:
    """
    Connect, forward and echo until stdin or the connection ends.

    Args:
        order: `target`, `log_file` and `endpoints`, see `link.paramiko_argv`.

    Returns:
        An exit status as ssh's: 255 when the connection failed, with the reason in the log file.
    """
    target = _target(order["target"])
    try:
        listening = {port: _listen(endpoint) for port, endpoint in order["endpoints"]}
        transport = connect(target)
    except (RemoteError, OSError) as error:
        Path(order["log_file"]).write_text(complaint(error), encoding="utf-8")
        return SSH_FAILED
    for port, end in listening.items():
        _in_background(_accept, transport, end, port)
    _echo(transport)
    was_alive = transport.is_active()
    transport.close()
    return 0 if was_alive else SSH_FAILED


def complaint(error: Exception) -> str:
    """Say in ssh's words what went wrong, so that one reader understands both."""
    if isinstance(error, HostKeyMismatch):
        # The reader takes the first fingerprint for the one that was shown, which our sentence names last.
        shown = error.message.rpartition("it shows ")[2]
        return f"{shown}\nHost key verification failed.\n"
    if isinstance(error, LoginRefused):
        return "Permission denied (publickey).\n"
    return f"{error}\n"


def _target(values: dict[str, Any]) -> SshTarget:
    return SshTarget(
        **{
            **values,
            "key_file": Path(values["key_file"]),
            "known_hosts": Path(values["known_hosts"]),
            "proxy_command": tuple(values["proxy_command"]),
        }
    )


def _listen(endpoint: str | int) -> socket.socket:
    if isinstance(endpoint, int):
        return socket.create_server(("127.0.0.1", endpoint), backlog=_BACKLOG)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.bind(endpoint)
    end.listen(_BACKLOG)
    return end


def _echo(transport: paramiko.Transport) -> None:
    while (line := sys.stdin.buffer.readline()) and answers(transport):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _accept(transport: paramiko.Transport, listening: socket.socket, port: int) -> None:
    while True:
        client, _ = listening.accept()
        _in_background(_forward, transport, client, port)


def _forward(transport: paramiko.Transport, client: socket.socket, port: int) -> None:
    try:
        channel = transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0))
    except (paramiko.SSHException, OSError, EOFError):
        client.close()
        return
    up = _in_background(_copy, client, channel)
    _copy(channel, client)
    up.join()
    channel.close()
    client.close()


def _copy(source: socket.socket | paramiko.Channel, sink: socket.socket | paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
    with contextlib.suppress(OSError, EOFError):
        sink.shutdown(socket.SHUT_WR)


def _in_background(what: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=what, args=arguments, daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    status = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    # Threads may be waiting in paramiko; nothing is left to do for them.
    os._exit(status)
