"""
The ssh server of a machine: its own host key, logins by key only, and forwards only to what listens inside the machine.

Run as a program by the machine's first process: `python -P -m gpulab.sandbox.machines.process.sshd ROOT`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import asyncssh

from gpulab.sandbox.machines.process import trees
from gpulab.sandbox.machines.process.disk import Disk
from gpulab.sandbox.machines.process.session import Session

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# As an Ubuntu image answers a dead client: every 30 s, gone after four without an answer.
_ALIVE_S, _ALIVE_COUNT = 30, 4


def host_key(disk: Disk, *, hostname: str) -> asyncssh.SSHKey:
    """Return the machine's ed25519 host key; made on the first boot, it stays with the disk."""
    if disk.host_key.exists():
        return asyncssh.read_private_key(disk.host_key)
    key = asyncssh.generate_private_key("ssh-ed25519", comment=f"root@{hostname}")
    handle = os.open(disk.host_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.export_private_key())
    key.write_public_key(disk.host_key.with_name(disk.host_key.name + ".pub"))
    return key


def host_key_block(key: asyncssh.SSHKey) -> str:
    """Return the lines by which cloud-init shows the host keys on the console."""
    line = key.export_public_key().decode().strip()
    return f"-----BEGIN SSH HOST KEY KEYS-----\n{line}\n-----END SSH HOST KEY KEYS-----\n"


class Server(asyncssh.SSHServer):
    """One connection: who may log in, and where a forward leads."""

    def __init__(self, disk: Disk, environment: Mapping[str, str]) -> None:
        self._disk = disk
        self._environment = environment
        self._connection: Any = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Remember the connection."""
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        """Load the keys of the login user; nobody else has any."""
        if username == self._disk.user and self._disk.authorized_keys.exists():
            self._connection.set_authorized_keys(str(self._disk.authorized_keys))
        return True

    def public_key_auth_supported(self) -> bool:
        """Refuse a stranger in the words of OpenSSH, which offers keys to everyone."""
        return True

    def session_requested(self) -> Session:
        """Open a session: a command, a shell or a subsystem."""
        peer = self._connection.get_extra_info("peername")
        here = self._connection.get_extra_info("sockname")
        user = self._disk.user  # known only since the user data has been applied
        own = {
            "HOME": str(self._disk.home),
            "USER": user,
            "LOGNAME": user,
            "SSH_CONNECTION": " ".join(map(str, (*peer[:2], *here[:2]))),
        }
        return Session(self._disk, {**self._environment, **own})

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool | Awaitable[Any]:
        """Forward to a port inside the machine; the host's own ports are refused as if nothing listened there."""
        port = port_on_host(self._disk, dest_port) if dest_host in _LOOPBACK else None
        return False if port is None else self._forward(port)

    async def _forward(self, port: int) -> Any:
        try:
            return await self._connection.forward_connection("127.0.0.1", port)
        except asyncssh.ChannelOpenError as error:
            # In OpenSSH's words: who reads them expects no Python there.
            raise asyncssh.ChannelOpenError(error.code, "Connection refused") from error

    def unix_connection_requested(self, dest_path: str) -> bool | Awaitable[Any]:
        """Forward to a unix socket on the machine's disk."""
        try:
            place = self._disk.inside(dest_path)
        except ValueError:
            return False
        connection: Awaitable[Any] = self._connection.forward_unix_connection(str(place))
        return connection


def port_on_host(disk: Disk, port: int) -> int | None:
    """
    Return where a port of the machine is on this computer; `None` when nothing of the machine is there.

    Several machines share one loopback: the agent says in a file where its services went, everything else must be a
    listener of one of the machine's own processes.
    """
    try:
        mapped = json.loads(disk.ports.read_text(encoding="utf-8")).get(str(port))
    except (OSError, ValueError, AttributeError):
        mapped = None
    if isinstance(mapped, int) and 0 < mapped < 65536:
        return mapped
    family = trees.descendants(int(disk.init_pid.read_text(encoding="ascii")))
    return port if trees.owns_listener(family, port) else None


async def serve(disk: Disk, environment: Mapping[str, str], *, hostname: str) -> None:
    """Listen on a free port of 127.0.0.1 until cancelled; the port stands in `disk.ssh_port` once logins are taken."""
    key = host_key(disk, hostname=hostname)
    sys.stdout.write(host_key_block(key))
    sys.stdout.flush()
    while (
        not disk.born.exists()
    ):  # a real machine starts sshd after cloud-init has written the keys of its user
        await asyncio.sleep(0.05)
    listener = _listener()
    await asyncssh.listen(
        sock=listener,
        server_factory=lambda: Server(disk, environment),
        server_host_keys=[key],
        encoding=None,
        line_editor=False,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_auth=False,
        agent_forwarding=False,
        x11_forwarding=False,
        keepalive_interval=_ALIVE_S,
        keepalive_count_max=_ALIVE_COUNT,
        compression_algs=["none"],
    )
    fresh = disk.ssh_port.with_suffix(".new")
    fresh.write_text(str(listener.getsockname()[1]), encoding="ascii")
    fresh.replace(disk.ssh_port)
    await asyncio.get_running_loop().create_future()


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def main(root: Path) -> int:
    """Serve until the machine goes off."""
    disk = Disk(root)
    os.umask(0o022)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    hostname = (disk.root / "etc/hostname").read_text(encoding="ascii").strip()
    asyncio.run(serve(disk, os.environ, hostname=hostname))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
