"""A real sshd on a loopback port with its own host key, and a network in between that can be frozen."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpulab.remote import hostkeys
from gpulab.remote.host import Host
from gpulab.remote.keys import make_key_pair, public_key
from gpulab.remote.target import SshTarget

INSTANCE_ID = "i-0123456789abcdef0"


class Sshd:
    """One sshd process; it can lose its sessions, freeze them, or stop listening."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.host_key_file = folder / "host_key"
        self.user_key_file = folder / "user_key"
        make_key_pair(self.host_key_file)
        public = make_key_pair(self.user_key_file)
        (folder / "authorized_keys").write_text(public + "\n")
        self._config = folder / "sshd_config"
        self._config.write_text(self._settings())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> hostkeys.HostKey:
        key = hostkeys.parse_public_key(public_key(self.host_key_file).split()[1])
        assert key is not None
        return key

    def target(self, **changes: object) -> SshTarget:
        values = {
            "instance_id": INSTANCE_ID,
            "address": "127.0.0.1",
            "user": getpass.getuser(),
            "key_file": self.user_key_file,
            "known_hosts": self.folder / "known_hosts",
            "port": self.port,
        }
        return SshTarget(**{**values, **changes})  # type: ignore[arg-type]

    def start(self) -> None:
        sshd = shutil.which("sshd", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
        assert sshd is not None
        if os.geteuid() == 0:
            # sshd as root wants its empty folder.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log = (self.folder / "sshd.log").open("ab")
        self._process = subprocess.Popen(
            [sshd, "-D", "-e", "-f", str(self._config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        wait_for(lambda: _connects(self.port))

    def stop(self) -> None:
        if self._process is None:
            return
        # It must not serve one more while its sessions are ended: such a one would live on without it.
        _signal(self._process.pid, signal.SIGSTOP)
        self.kill_sessions()
        self._process.kill()
        self._process.wait()
        self._process = None

    def sessions(self) -> list[int]:
        """The processes behind every logged-in connection, and what they run."""
        assert self._process is not None
        return descendants(self._process.pid)

    def kill_sessions(self) -> None:
        for pid in self.sessions():
            _signal(pid, signal.SIGKILL)

    def freeze(self) -> None:
        for pid in self.sessions():
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.sessions():
            _signal(pid, signal.SIGCONT)

    def _settings(self) -> str:
        return f"""
            ListenAddress 127.0.0.1
            Port {self.port}
            HostKey {self.host_key_file}
            AuthorizedKeysFile {self.folder / "authorized_keys"}
            PidFile none
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password
            AllowTcpForwarding local
            X11Forwarding no
            ClientAliveInterval 30
            MaxStartups 100
            Subsystem sftp internal-sftp
        """


class Network:
    """A TCP proxy in this process: what flows through it can be frozen, as a black hole would."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._listener.close()
        self._open.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            client.close()
            return
        threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
        self._copy(server, client)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(1 << 16):
                self._open.wait()
                sink.sendall(chunk)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(holds: object, *, tries: int = 1000) -> None:
    """Wait until something holds; a hundred times longer than it needs."""
    for _ in range(tries):
        if holds():  # type: ignore[operator]
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def descendants(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = [child for child, parent in pairs if parent == pid]
    return found + [deeper for child in found for deeper in descendants(child)]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A running sshd whose host key is pinned."""
    if (
        sys.platform == "win32"
        or shutil.which("sshd", path=os.defpath + ":/usr/sbin:/usr/local/sbin") is None
    ):
        pytest.skip("needs sshd (package openssh-server)")
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh (package openssh-client)")
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    server = Sshd(folder)
    server.start()
    hostkeys.pin(folder / "known_hosts", INSTANCE_ID, [server.host_key])
    yield server
    server.stop()


@pytest.fixture
def host(sshd: Sshd) -> Host:
    """That sshd as the instance."""
    return Host(sshd.target())


@pytest.fixture
def network(sshd: Sshd) -> Iterator[Network]:
    """A way to that sshd that can be frozen."""
    proxy = Network(sshd.port)
    yield proxy
    proxy.close()
