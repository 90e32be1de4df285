"""
One ssh connection that carries the forwards, and its heartbeat. Hides the process: it is ready when an echo has come back
through it, and it is alive as long as echoes do.

The command at the other end is `cat`, so a line sent comes back by way of ssh, sshd and the instance: a frozen server
shows, whatever else is going on, and so does a network that swallows everything. ssh's own keepalive is only asked when
the client is idle. And when gpulab is killed, `cat` reads the end of its input and ssh goes as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gpulab.errors import RemoteError, Unreachable
from gpulab.remote import hostkeys
from gpulab.remote.openssh import CREATION_FLAGS, find_ssh
from gpulab.remote.process import SSH_FAILED, classify, last_line
from gpulab.remote.spares import Endpoint
from gpulab.remote.target import (
    PortForward,
    SshTarget,
    accepts_cipher_order,
    ssh_argv,
    ssh_environment,
)

# Longer socket paths are cut off or refused: 104 bytes on macOS, 108 on Linux.
_LONGEST_SOCKET_PATH = 100
_numbers = itertools.count(1)


class Link(Protocol):
    """One connection with its forwards."""

    @property
    def endpoints(self) -> Mapping[int, Endpoint]:
        """Where the forwards are reached on this computer, by remote port."""
        ...

    @property
    def heard_at(self) -> float:
        """When the last echo came back."""
        ...

    async def ready(self) -> None:
        """Wait until the first echo has come back; raises a `RemoteError` when the connection ends instead."""
        ...

    async def ended(self) -> RemoteError:
        """Wait for its end and say why."""
        ...

    async def ping(self) -> None:
        """Send a line that should come back."""
        ...

    async def close(self) -> None:
        """End it and remove its traces."""
        ...


class Opener(Protocol):
    """How a link is made; tests make theirs."""

    async def __call__(self, target: SshTarget, remote_ports: Sequence[int]) -> Link:
        """Start to connect."""
        ...


class ProcessLink:
    """A link through a child process: the system's ssh, or this program with paramiko."""

    def __init__(
        self,
        target: SshTarget,
        endpoints: Mapping[int, Endpoint],
        *,
        folder: Path,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._endpoints = dict(endpoints)
        self._folder = folder
        self._monotonic = monotonic
        self._process: asyncio.subprocess.Process | None = None
        self._heard_at = monotonic()
        self._ready = asyncio.Event()
        self._word = secrets.token_hex(8).encode("ascii")
        self._echoes: asyncio.Task[None] | None = None

    @property
    def endpoints(self) -> Mapping[int, Endpoint]:
        """Where the forwards are reached on this computer, by remote port."""
        return self._endpoints

    @property
    def heard_at(self) -> float:
        """When the last echo came back."""
        return self._heard_at

    @property
    def pid(self) -> int:
        """The child process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """Where ssh writes its own complaints."""
        return self._folder / "log"

    async def start(self, argv: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> None:
        """
        Start the child and ask for the first echo.

        Raises:
            Unreachable: It could not be started.
        """
        # A file, because a proxy command inherits it and could hold a pipe open after ssh has gone.
        stderr = (self._folder / "stderr").open("wb") if self._target.proxy_command else None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr or asyncio.subprocess.DEVNULL,
                env=ssh_environment(environ),
                creationflags=CREATION_FLAGS,
                start_new_session=sys.platform != "win32",
            )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise Unreachable(f"could not start {argv[0]} ({error.strerror})") from error
        finally:
            if stderr is not None:
                stderr.close()
        self._echoes = asyncio.create_task(self._read_echoes())
        await self.ping()

    async def ready(self) -> None:
        """Wait until the first echo has come back."""
        assert self._process is not None
        end = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({end, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()
            ready.cancel()
        if not self._ready.is_set():
            raise await self.ended()

    async def ended(self) -> RemoteError:
        """Wait for the child's end and say why."""
        assert self._process is not None
        await self._process.wait()
        return self._why()

    async def ping(self) -> None:
        """Send a line that should come back."""
        assert self._process is not None
        assert self._process.stdin is not None
        # A full or broken pipe is no news of its own: the echo will be missing, or the child has ended.
        with contextlib.suppress(OSError):
            self._process.stdin.write(self._word + b" %d\n" % next(_numbers))

    async def close(self) -> None:
        """End the child and remove its folder."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._echoes is not None:
            self._echoes.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _why(self) -> RemoteError:
        assert self._process is not None
        complaint = _read(self.log_file)
        said = last_line(_read(self._folder / "stderr")[-4096:])
        if self._process.returncode == SSH_FAILED and complaint:
            key = hostkeys.pinned(self._target.known_hosts, self._target.instance_id)
            return classify(self._target, complaint, pinned=key)
        return Unreachable(
            f"the connection to {self._target.instance_id} ended" + (f" ({said})" if said else "")
        )

    async def _read_echoes(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        # The login shell's start files may print as well; only our own words count.
        tail = b""
        while chunk := await self._process.stdout.read(4096):
            tail = (tail + chunk)[-4096:]
            if self._word in tail:
                tail = b""
                self._heard_at = self._monotonic()
                self._ready.set()


async def open_link(target: SshTarget, remote_ports: Sequence[int]) -> ProcessLink:
    """
    Start to connect, by the system's ssh where there is one, else by paramiko in a process of its own.

    Raises:
        Unreachable: No process could be started.
    """
    folder = Path(tempfile.mkdtemp(prefix="gpulab-", dir=_socket_home()))
    endpoints = _endpoints(folder, remote_ports)
    link = ProcessLink(target, endpoints, folder=folder)
    program = find_ssh()
    if program is None:
        await link.start(paramiko_argv(target, endpoints, link.log_file))
    else:
        await link.start(_openssh_argv(program, target, endpoints, link.log_file))
    return link


def paramiko_argv(
    target: SshTarget, endpoints: Mapping[int, Endpoint], log_file: Path
) -> list[str]:
    """Say how this program itself stands in for ssh; -P: a `json.py` in the current folder is not ours."""
    order = {
        "target": {
            "instance_id": target.instance_id,
            "address": target.address,
            "user": target.user,
            "key_file": str(target.key_file),
            "known_hosts": str(target.known_hosts),
            "port": target.port,
            "proxy_command": target.proxy_command,
        },
        "log_file": str(log_file),
        "endpoints": [
            [port, str(e) if isinstance(e, Path) else e] for port, e in endpoints.items()
        ],
    }
    return [sys.executable, "-P", "-m", "gpulab.remote.paramiko_link", json.dumps(order)]


def _openssh_argv(
    program: str, target: SshTarget, endpoints: Mapping[int, Endpoint], log_file: Path
) -> list[str]:
    return ssh_argv(
        target,
        ssh=program,
        command=["cat"],
        forwards=[PortForward(endpoint, port) for port, endpoint in endpoints.items()],
        log_file=log_file,
        cipher_order=accepts_cipher_order(program),
    )


def _endpoints(folder: Path, remote_ports: Sequence[int]) -> dict[int, Endpoint]:
    """Choose where ssh listens: unix sockets, which no other user can reach, else free TCP ports."""
    paths = {port: folder / f"{port}.sock" for port in remote_ports}
    fit = all(len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH for path in paths.values())
    if sys.platform != "win32" and fit:
        return dict(paths)
    return {port: _free_port() for port in remote_ports}


def _socket_home(environ: Mapping[str, str] = os.environ) -> str | None:
    """The folder for sockets: the user's own runtime folder, which no clean-up of old files touches, else /tmp."""
    own = environ.get("XDG_RUNTIME_DIR", "")
    return own if own and Path(own).is_dir() and os.access(own, os.W_OK) else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
