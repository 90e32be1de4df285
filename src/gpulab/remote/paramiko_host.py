"""
Commands on an instance through paramiko, for computers without an ssh program. Hides paramiko; accepts the pinned host
key and no other, and asks by itself whether the other side still lives, because paramiko's own keepalive never
looks at an answer (https://github.com/paramiko/paramiko/issues/2326).
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import threading
from collections import deque
from typing import BinaryIO, cast

import paramiko

from gpulab.errors import HostKeyMismatch, Unreachable
from gpulab.remote import hostkeys
from gpulab.remote.process import SSH_FAILED, Ended, login_refused
from gpulab.remote.target import SshTarget, proxy_argv, without_keys

# What paramiko logs about a lost connection reaches the user as our error, not as a traceback.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

CONNECT_S = 10.0
PROBE_EVERY_S = 5.0
PROBE_LIMIT_S = 10.0
_STDERR_CHUNKS = 16
_CHUNK = 4096


class Paramiko:
    """Starts commands with paramiko."""

    def start(self, target: SshTarget, command: list[str]) -> ParamikoProcess:
        """
        Start a command over a connection of its own.

        Raises:
            HostKeyMismatch, LoginRefused, Unreachable: As the system's ssh would.
        """
        transport = connect(target)
        try:
            channel = transport.open_session(timeout=CONNECT_S)
            channel.exec_command(shlex.join(command))
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise _unreachable(target, error) from error
        return ParamikoProcess(transport, channel)


class ParamikoProcess:
    """One running command; see `RemoteProcess`."""

    def __init__(self, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        self._transport = transport
        self._channel = channel
        self._stdin = channel.makefile_stdin("wb", _CHUNK)
        self._stdout = channel.makefile("rb", 1 << 16)
        self._tail: deque[bytes] = deque(maxlen=_STDERR_CHUNKS)
        self._drain = threading.Thread(target=self._keep_tail, daemon=True)
        self._drain.start()
        watch(transport)

    @property
    def stdin(self) -> BinaryIO:
        """What the command reads."""
        return cast("BinaryIO", self._stdin)

    @property
    def stdout(self) -> BinaryIO:
        """What the command prints."""
        return cast("BinaryIO", self._stdout)

    def wait(self) -> Ended:
        """Wait for the command, or the connection, to end."""
        status = self._channel.recv_exit_status()
        self._drain.join()
        is_lost = not self._transport.is_active()
        self._transport.close()
        stderr = b"".join(self._tail).decode("utf-8", "replace")
        if status == -1:
            # Without a status either the connection is gone, or a signal ended the command.
            return Ended(SSH_FAILED, stderr, "the connection was lost" if is_lost else "")
        return Ended(status, stderr, "")

    def kill(self) -> None:
        """Break the connection off."""
        self._transport.close()

    def _keep_tail(self) -> None:
        while chunk := self._channel.recv_stderr(_CHUNK):
            self._tail.append(chunk)


def connect(target: SshTarget) -> paramiko.Transport:
    """
    Connect and log in. The caller closes the transport.

    Raises:
        HostKeyMismatch: The machine shows another key than the pinned one, or none is pinned.
        LoginRefused: The key is not accepted.
        Unreachable: No answer.
    """
    try:
        transport = paramiko.Transport(_socket(target))
    except (OSError, paramiko.SSHException) as error:
        raise _unreachable(target, error) from error
    try:
        _log_in(transport, target)
    except BaseException:
        transport.close()
        raise
    return transport


def watch(transport: paramiko.Transport) -> None:
    """Close a transport whose other side has not answered for `PROBE_LIMIT_S` seconds."""
    threading.Thread(target=_watch, args=(transport,), daemon=True).start()


def answers(transport: paramiko.Transport) -> bool:
    """Ask the other side for a sign of life; an answer of any kind will do."""
    timer = threading.Timer(PROBE_LIMIT_S, transport.close)
    timer.daemon = True
    timer.start()
    try:
        transport.global_request("keepalive@openssh.com", wait=True)
    except (paramiko.SSHException, OSError, EOFError):
        return False
    finally:
        timer.cancel()
    return bool(transport.is_active())


def _watch(transport: paramiko.Transport) -> None:
    pause = threading.Event()
    while transport.is_active() and answers(transport):
        pause.wait(PROBE_EVERY_S)


def _log_in(transport: paramiko.Transport, target: SshTarget) -> None:
    pinned = hostkeys.pinned(target.known_hosts, target.instance_id)
    transport.get_security_options().key_types = (hostkeys.KEY_TYPE,)
    try:
        transport.start_client(timeout=CONNECT_S)
        shown = hostkeys.parse_public_key(transport.get_remote_server_key().get_base64())
        if shown is None or shown not in pinned:
            raise _wrong_key(target, pinned, shown)
        key = paramiko.Ed25519Key.from_private_key_file(str(target.key_file))
        transport.auth_publickey(target.user, key)
    except paramiko.AuthenticationException as error:
        raise login_refused(target) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _unreachable(target, error) from error


def _wrong_key(
    target: SshTarget, pinned: tuple[hostkeys.HostKey, ...], shown: hostkeys.HostKey | None
) -> HostKeyMismatch:
    return hostkeys.mismatch(
        target.instance_id, pinned=pinned, seen=shown.fingerprint if shown else ""
    )


def _socket(target: SshTarget) -> socket.socket | paramiko.ProxyCommand:
    argv = proxy_argv(target)
    if not argv:
        return socket.create_connection((target.address, target.port), timeout=CONNECT_S)
    if sys.platform == "win32":
        raise Unreachable(
            "a proxy command needs the `ssh` program on Windows",
            hint="Settings, Optional features, OpenSSH client",
        )
    # paramiko hands it the whole environment.
    keys = sorted({*os.environ} - {*without_keys(os.environ)})
    return paramiko.ProxyCommand(shlex.join(["env", *(f"-u{key}" for key in keys), *argv]))


def _unreachable(target: SshTarget, error: BaseException) -> Unreachable:
    return Unreachable(
        f"no answer from {target.instance_id} at {target.address} ({str(error) or type(error).__name__})",
        hint="See with `gpulab ls` whether the instance still runs",
    )
