"""
Measure the tunnel against plain `ssh -L` in one run, and what happens when it breaks. Needs sshd (openssh-server).

    python scripts/bench/tunnel.py [--rounds 7] [--mib 200] [--kills 7] [--skip-faults]

Everything is interleaved and given as a ratio, because seconds of a shared machine mean nothing. It takes about two
minutes, opens only ports of this computer and changes nothing outside a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import http.client
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpulab.remote import hostkeys, ports
from gpulab.remote.keys import make_key_pair
from gpulab.remote.supervisor import EventKind, TunnelEvent
from gpulab.remote.target import PortForward, SshTarget, ssh_argv
from gpulab.remote.tunnel import Tunnel, running

_ID = "i-0123456789abcdef0"
_BLOCK = b"x" * (1 << 20)


def main() -> None:
    """Run the measurements and print two tables."""
    wanted = _arguments()
    with tempfile.TemporaryDirectory(prefix="gpulab-bench-") as name, web_server() as web:
        with sshd(Path(name)) as server, way_to(server.port) as way:
            _speed(server, web, wanted.rounds, wanted.mib)
            if not wanted.skip_faults:
                _faults(server, way, web, wanted.kills)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=200, help="size of one download and upload")
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--skip-faults", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.serve:
        ThreadingHTTPServer(("127.0.0.1", wanted.serve), _Page).serve_forever()
    return wanted


def _speed(server: Sshd, web: int, rounds: int, mib: int) -> None:
    with (
        _plain_ssh(server, web, our_ciphers=False) as plain,
        _plain_ssh(server, web, our_ciphers=True) as tuned,
        _our_tunnel(server.target(), web) as ours,
    ):
        rows: dict[str, list[tuple[float, float, float]]] = {
            "down, MiB/s": [],
            "up, MiB/s": [],
            "new connection, 1/ms": [],
            "kept connection, 1/ms": [],
        }
        for number in range(rounds):
            all_three = (plain, tuned, ours)
            order = all_three[number % 3 :] + all_three[: number % 3]
            for row, measure in zip(
                rows,
                (
                    lambda port: _download(port, mib),
                    lambda port: _upload(port, mib),
                    lambda port: 1 / _new_connection_ms(port),
                    lambda port: 1 / _kept_connection_ms(port),
                ),
                strict=True,
            ):
                seen = {port: measure(port) for port in order}
                rows[row].append((seen[plain], seen[tuned], seen[ours]))
    print("ssh -L as it is typed; with the order of ciphers that the tunnel asks for; the tunnel")
    print(
        f"{'':24}{'typed':>10}{'ciphers':>10}{'tunnel':>10}{'to typed':>10}{'spread':>14}"
        f"{'to ciphers':>12}   wanted of the first"
    )
    for row, wanted in zip(
        rows, (">= 0.9", ">= 0.9", "<= 1.3 (time)", "<= 1.3 (time)"), strict=True
    ):
        _print_row(row, rows[row], wanted)


def _print_row(name: str, rounds: list[tuple[float, float, float]], wanted: str) -> None:
    if name.endswith("1/ms"):
        name = name.replace("1/ms", "ms")
        rounds = [(1 / typed, 1 / tuned, 1 / ours) for typed, tuned, ours in rounds]
    to_typed = sorted(ours / typed for typed, _, ours in rounds)
    to_tuned = statistics.median(ours / tuned for _, tuned, ours in rounds)
    spread = f"{to_typed[0]:.2f} to {to_typed[-1]:.2f}"
    seen = "".join(f"{statistics.median(column):10.2f}" for column in zip(*rounds, strict=True))
    print(
        f"{name:24}{seen}{statistics.median(to_typed):10.2f}{spread:>14}{to_tuned:12.2f}   {wanted}"
    )


def _faults(server: Sshd, way: Way, web: int, kills: int) -> None:
    print(
        f"\n{'fault':24}{'requests':>10}{'failed':>10}{'noticed s':>12}{'back s, median and worst':>28}"
    )
    log = Log()
    sockets = ports.listen("bench", [web])
    with running(server.target(port=way.port), sockets, on_event=log) as tunnel:
        tunnel.wait_connected(60)
        faults: list[tuple[str, Callable[[], list[float]]]] = [
            (f"ssh killed, {kills}x", lambda: _repeat(kills, kill_ssh, log)),
            (f"sshd killed, {kills}x", lambda: _repeat(kills, server.kill_sessions, log)),
            ("server frozen", lambda: _repeat(1, server.freeze, log)),
            ("25 s black hole", lambda: _black_hole(way, log)),
        ]
        for name, fault in faults:
            browser = Browser(tunnel.ports[web])
            log.clear()
            away = fault()
            browser.close()
            # A kill is noticed with the process; silence only by waiting.
            back = f"{statistics.median(away):.2f}  {max(away):.2f}"
            noticed = (
                f"{log.lost_at - log.broken_at:.1f}" if name[:4] in ("serv", "25 s") else "at once"
            )
            print(
                f"{name:24}{browser.answered:10}{len(browser.failures):10}{noticed:>12}{back:>28}"
            )
            for failure in browser.failures[:3]:
                print(f"    {failure}")


def _repeat(times: int, fault: Callable[[], None], log: Log) -> list[float]:
    """Break the tunnel so often; return the seconds from each loss to its return."""
    away = []
    for _ in range(times):
        time.sleep(1.5)
        log.broken_at = time.monotonic()
        fault()
        away.append(log.next_connection())
    time.sleep(0.5)
    return away


def _black_hole(way: Way, log: Log) -> list[float]:
    """Let nothing through for 25 s; return the seconds from its end to the tunnel's return."""
    log.broken_at = time.monotonic()
    way.freeze()
    time.sleep(25)
    thawed = time.monotonic()
    way.thaw()
    log.next_connection()
    back = time.monotonic() - thawed
    time.sleep(0.5)
    return [back]


def kill_ssh(port: int | None = None) -> None:
    """Kill the ssh clients that have a tunnel's socket in their arguments; only those that go to one port, if it is given."""
    shown = subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    for line in shown.stdout.splitlines():
        pid, parent, arguments = line.split(None, 2)
        is_tunnel = int(parent) == os.getpid() and ".sock:127.0.0.1:" in arguments
        if is_tunnel and (port is None or f" -p {port} " in arguments):
            os.kill(int(pid), signal.SIGKILL)


class _Page(BaseHTTPRequestHandler):
    """Answers GET /N with N MiB, GET / with two bytes, and swallows what is put."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        mib = int(self.path[1:] or 0)
        self.send_response(200)
        self.send_header("Content-Length", str(mib << 20 or 2))
        self.end_headers()
        for _ in range(mib):
            self.wfile.write(_BLOCK)
        if not mib:
            self.wfile.write(b"ok")

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()


def _download(port: int, mib: int) -> float:
    buffer, left = bytearray(1 << 18), mib << 20
    with socket.create_connection(("127.0.0.1", port)) as end:
        began = time.perf_counter()
        end.sendall(f"GET /{mib} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while left > 0:
            left -= end.recv_into(buffer)
    return mib / (time.perf_counter() - began)


def _upload(port: int, mib: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as end:
        began = time.perf_counter()
        end.sendall(f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {mib << 20}\r\n\r\n".encode())
        for _ in range(mib):
            end.sendall(_BLOCK)
        end.recv(4096)
    return mib / (time.perf_counter() - began)


def _new_connection_ms(port: int, requests: int = 300) -> float:
    def once() -> None:
        with socket.create_connection(("127.0.0.1", port)) as end:
            _ask(end)

    # A pause, so that opening one is measured and not the closing of the one before.
    return _median_ms(once, requests, pause_s=0.003)


def _kept_connection_ms(port: int, requests: int = 300) -> float:
    with socket.create_connection(("127.0.0.1", port)) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _median_ms(lambda: _ask(end), requests)


def _ask(end: socket.socket) -> None:
    end.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        answer += end.recv(4096)


def _median_ms(what: Callable[[], None], times: int, pause_s: float = 0.0) -> float:
    seconds = []
    for _ in range(times):
        time.sleep(pause_s)
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


class Browser:
    """Asks without a pause longer than 10 ms, with new and with kept connections."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._poll, args=(keeps,)) for keeps in (0, 1)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _poll(self, keeps: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.wait(0.01):
            try:
                connection.request("GET", "/")
                connection.getresponse().read()
                self.answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            if not keeps:
                connection.close()


class Log:
    """When the tunnel was lost and came back."""

    def __init__(self) -> None:
        self.broken_at = 0.0
        self.lost_at = 0.0
        self._back = threading.Semaphore(0)
        self._back_s: list[float] = []

    def __call__(self, event: TunnelEvent) -> None:
        """Take an event."""
        if event.kind is EventKind.LOST:
            self.lost_at = time.monotonic()
        elif event.kind is EventKind.CONNECTED:
            self._back_s.append(event.seconds)
            self._back.release()

    def clear(self) -> None:
        """Forget the returns so far."""
        while self._back.acquire(blocking=False):
            pass

    def next_connection(self) -> float:
        """Wait for it; return the seconds it was away."""
        self._back.acquire()
        return self._back_s[-1]


class Sshd:
    """A private sshd on a port of this computer."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self._folder = folder
        host_key = make_key_pair(folder / "host_key")
        (folder / "authorized_keys").write_text(make_key_pair(folder / "user_key") + "\n")
        key = hostkeys.parse_public_key(host_key.split()[1])
        assert key is not None
        hostkeys.pin(folder / "known_hosts", _ID, [key])
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder / 'host_key'}\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nAllowTcpForwarding local\nMaxStartups 100\n"
        )
        sshd = shutil.which("sshd", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
        if sshd is None:
            sys.exit("error: needs sshd\n\nhint: apt-get install openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sshd, "-D", "-f", str(folder / "config")], stderr=subprocess.DEVNULL
        )
        _wait_for_port(self.port)

    def target(self, port: int = 0) -> SshTarget:
        """Say how it is reached, directly or through another port."""
        return SshTarget(
            _ID,
            "127.0.0.1",
            getpass.getuser(),
            self._folder / "user_key",
            self._folder / "known_hosts",
            port=port or self.port,
        )

    def kill_sessions(self) -> None:
        """Kill every session, frozen ones too."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop every session; new ones are served."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it with its sessions."""
        self.kill_sessions()
        self._process.terminate()
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in descendants(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Way:
    """A proxy between ssh and sshd that can swallow everything."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open = threading.Event()
        self._open.set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Let nothing through."""
        self._open.clear()

    def thaw(self) -> None:
        """Let everything through again, what was held as well."""
        self._open.set()

    def close(self) -> None:
        """Take no more connections."""
        self._open.set()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.wait()
        server = socket.create_connection(("127.0.0.1", self._to))
        threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
        self._copy(server, client)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                self._open.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Run a private sshd."""
    server = Sshd(folder)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def way_to(port: int) -> Iterator[Way]:
    """Put a network before a port."""
    way = Way(port)
    try:
        yield way
    finally:
        way.close()


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    """A web server in a process of its own, so that it does not compete for our interpreter."""
    port = _free_port()
    child = subprocess.Popen([sys.executable, __file__, "--serve", str(port)])
    try:
        _wait_for_port(port)
        yield port
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _plain_ssh(server: Sshd, web: int, *, our_ciphers: bool) -> Iterator[int]:
    port = _free_port()
    forwards = [PortForward(port, web)]
    argv = ssh_argv(server.target(), forwards=forwards, command=["cat"], cipher_order=our_ciphers)
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        _wait_for_port(port)
        yield port
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _our_tunnel(target: SshTarget, web: int) -> Iterator[int]:
    """The tunnel in a process of its own, as people run it."""
    sockets = ports.listen("bench-speed", [web])
    port = sockets[web].getsockname()[1]
    child = os.fork()
    if child == 0:
        with running(target, sockets) as tunnel:
            _stay(tunnel)
        os._exit(0)
    sockets[web].close()
    try:
        _wait_for_answer(port)
        yield port
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def _stay(tunnel: Tunnel) -> None:
    with contextlib.suppress(BaseException):
        tunnel.wait_ended()


def _wait_for_port(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    sys.exit(f"error: nothing answers on port {port}")


def _wait_for_answer(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as end:
        _ask(end)


def descendants(pid: int) -> list[int]:
    """Name the processes below one."""
    shown = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    children: dict[int, list[int]] = {}
    for line in shown.stdout.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, []))
    for child in found:  # grows while it is walked: children of children follow
        found += children.get(child, [])
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
