"""The whole tunnel over a real sshd, with everything broken that breaks on a laptop."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpulab.errors import HostKeyMismatch, LoginRefused
from gpulab.remote import hostkeys, link, ports
from gpulab.remote.keys import make_key_pair
from gpulab.remote.supervisor import EventKind, Gone, Pace, TunnelEvent
from gpulab.remote.tunnel import running, serve

# One second of silence instead of eleven; everything else as people get it.
QUICK = Pace(ping=0.1, silence=1.0, wake=1e9, connect=5.0, refresh=0.1, knock=0.1)


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True


@pytest.fixture
def web() -> Iterator[int]:
    """A web server on the instance; answers with the path it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


class Browser:
    """Asks again and again, once with a new connection and once with a kept one, and counts failures."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._poll, kwargs={"keeps": keeps}) for keeps in (False, True)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _poll(self, *, keeps: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.wait(0.01):
            try:
                connection.request("GET", "/page")
                assert connection.getresponse().read() == b"/page"
                self.answered += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{'kept' if keeps else 'new'}: {error!r}")
                connection.close()
            if not keeps:
                connection.close()


class Log:
    """What a tunnel told; can be waited for."""

    def __init__(self) -> None:
        self.events: list[TunnelEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: TunnelEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, kind: EventKind, count: int) -> list[TunnelEvent]:
        def have() -> list[TunnelEvent]:
            return [event for event in self.events if event.kind is kind]

        with self._changed:
            assert self._changed.wait_for(lambda: len(have()) >= count, 60), self.events
            return have()


@pytest.fixture
def log() -> Log:
    """A log of events."""
    return Log()


def get(port: int, path: str = "/page") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def kill_ssh() -> None:
    """Kill the ssh client: the process that has the tunnel's socket in its arguments."""
    shown = subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    for line in shown.stdout.splitlines():
        pid, parent, arguments = line.split(None, 2)
        if int(parent) == os.getpid() and " -L " in arguments:
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("by", ["ssh", "paramiko"])
def test_requests_pass_and_every_port_has_its_own_way(sshd, web, log, monkeypatch, by):
    """Jupyter and TensorBoard are reached at the same time."""
    if by == "paramiko":
        monkeypatch.setattr(link, "find_ssh", lambda: None)
    other = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    sockets = ports.listen("lab", [web, other.server_port])

    with running(sshd.target(), sockets, on_event=log) as tunnel:
        tunnel.wait_connected(60)
        answer = get(tunnel.ports[web], "/lab")
        other.handle_error = lambda *arguments: None
        threading.Thread(target=other.handle_request).start()
        second = get(tunnel.ports[other.server_port], "/board")
    other.server_close()

    assert (200, b"/lab") == answer
    assert (200, b"/board") == second
    assert "i-0123456789abcdef0 at 127.0.0.1" == log.events[0].detail


@pytest.mark.parametrize("what", ["ssh", "sshd"])
def test_no_request_fails_when_either_end_is_killed(sshd, web, log, what):
    """This happens on every change of the network; the tab must not notice."""
    with running(sshd.target(), ports.listen("lab", [web]), on_event=log, pace=QUICK) as tunnel:
        tunnel.wait_connected(60)
        browser = Browser(tunnel.ports[web])
        for killed in range(1, 4):
            kill_ssh() if what == "ssh" else sshd.kill_sessions()
            log.wait_for(EventKind.CONNECTED, killed + 1)
        answer = get(tunnel.ports[web])
        browser.close()

    assert [] == browser.failures
    assert (200, b"/page") == answer
    assert browser.answered > 0


def test_a_frozen_server_is_noticed_and_left_behind(sshd, web, log):
    """A machine out of memory keeps its connections open for hours and answers nothing."""
    with running(sshd.target(), ports.listen("lab", [web]), on_event=log, pace=QUICK) as tunnel:
        tunnel.wait_connected(60)
        browser = Browser(tunnel.ports[web])
        sshd.freeze()
        log.wait_for(EventKind.CONNECTED, 2)
        answer = get(tunnel.ports[web])
        browser.close()

    lost = log.wait_for(EventKind.LOST, 1)[0]
    assert [] == browser.failures
    assert "no answer for 1 s" == lost.detail
    assert (200, b"/page") == answer


def test_a_network_that_swallows_everything_is_noticed_and_outlived(sshd, network, web, log):
    """A train tunnel: nothing is refused, nothing arrives, and afterwards everything works."""
    target = sshd.target(port=network.port)
    with running(target, ports.listen("lab", [web]), on_event=log, pace=QUICK) as tunnel:
        tunnel.wait_connected(60)
        browser = Browser(tunnel.ports[web])
        network.freeze()
        log.wait_for(EventKind.LOST, 1)
        network.thaw()
        log.wait_for(EventKind.CONNECTED, 2)
        answer = get(tunnel.ports[web])
        browser.close()

    assert [] == browser.failures
    assert (200, b"/page") == answer


def test_a_short_freeze_costs_nothing(sshd, network, web, log):
    """Wi-Fi roaming takes a second; cutting the connections would kill every kernel's socket."""
    target = sshd.target(port=network.port)
    pace = replace(QUICK, silence=30.0)
    with running(target, ports.listen("lab", [web]), on_event=log, pace=pace) as tunnel:
        tunnel.wait_connected(60)
        kept = http.client.HTTPConnection("127.0.0.1", tunnel.ports[web], timeout=60)
        kept.request("GET", "/one")
        first = kept.getresponse().read()
        network.freeze()
        kept.request("GET", "/two")
        threading.Timer(0.5, network.thaw).start()
        second = kept.getresponse().read()

    assert (b"/one", b"/two") == (first, second)
    assert ["connected"] == [event.kind.value for event in log.events]


def test_a_replaced_instance_is_reached_through_the_same_port(sshd, web, log):
    """Interrupted, relaunched elsewhere: the tab says so, and then shows Jupyter again."""
    answers: list[object] = [Gone("AWS needed <the capacity> back")]
    successor = sshd.target(instance_id="i-0fedcba9876543210")
    hostkeys.pin(successor.known_hosts, successor.instance_id, [sshd.host_key])
    sshd_is_back = threading.Event()

    def refresh(target):
        return successor if sshd_is_back.is_set() else answers[0]

    with running(
        sshd.target(), ports.listen("lab", [web]), refresh=refresh, on_event=log, pace=QUICK
    ) as tunnel:
        tunnel.wait_connected(60)
        sshd.stop()
        log.wait_for(EventKind.GONE, 1)
        status, page = get(tunnel.ports[web])
        sshd.start()
        sshd_is_back.set()
        log.wait_for(EventKind.CONNECTED, 2)
        answer = get(tunnel.ports[web])

    assert 503 == status
    assert b"<h1>Interrupted, relaunching</h1>" in page
    assert b"AWS needed &lt;the capacity&gt; back" in page
    assert (200, b"/page") == answer
    assert "i-0fedcba9876543210 at 127.0.0.1" == log.wait_for(EventKind.REPLACED, 1)[0].detail


def test_the_end_of_an_instance_ends_the_tunnel(sshd, web, log):
    """A tunnel to nothing would hold its port for ever."""
    gone = Gone("you stopped it", is_final=True)
    with running(
        sshd.target(),
        ports.listen("lab", [web]),
        refresh=lambda target: gone,
        on_event=log,
        pace=QUICK,
    ) as tunnel:
        tunnel.wait_connected(60)
        sshd.stop()
        ended = tunnel.wait_ended(60)

    assert gone == ended


@pytest.mark.parametrize("by", ["ssh", "paramiko"])
def test_another_machine_in_the_middle_stops_it(sshd, web, tmp_path, monkeypatch, by):
    """It must not go on trying until the student's patience ends."""
    if by == "paramiko":
        monkeypatch.setattr(link, "find_ssh", lambda: None)
    other = hostkeys.parse_public_key(make_key_pair(tmp_path / "other").split()[1])
    target = sshd.target(known_hosts=tmp_path / "known_hosts")
    hostkeys.pin(target.known_hosts, target.instance_id, [other])

    with running(target, ports.listen("lab", [web])) as tunnel:
        with pytest.raises(HostKeyMismatch) as error:
            tunnel.wait_connected(60)

    assert f"pinned is {other.fingerprint}, it shows {sshd.host_key.fingerprint}" in str(
        error.value
    )


@pytest.mark.parametrize("by", ["ssh", "paramiko"])
def test_a_refused_login_stops_it(sshd, web, tmp_path, monkeypatch, by):
    """Every further try would be a step towards a ban."""
    if by == "paramiko":
        monkeypatch.setattr(link, "find_ssh", lambda: None)
    make_key_pair(tmp_path / "foreign")

    with running(sshd.target(key_file=tmp_path / "foreign"), ports.listen("lab", [web])) as tunnel:
        with pytest.raises(LoginRefused):
            tunnel.wait_connected(60)


def test_paramiko_notices_a_frozen_server_too(sshd, web, log, monkeypatch):
    """Its own keepalive never looks at the answer; ours does."""
    monkeypatch.setattr(link, "find_ssh", lambda: None)
    pace = replace(QUICK, connect=20.0)
    with running(sshd.target(), ports.listen("lab", [web]), on_event=log, pace=pace) as tunnel:
        tunnel.wait_connected(60)
        sshd.freeze()
        log.wait_for(EventKind.CONNECTED, 2)
        answer = get(tunnel.ports[web])

    assert (200, b"/page") == answer


def test_nothing_is_left_when_it_stops(sshd, web, log):
    """No ssh, no socket, no open port."""
    sockets = ports.listen("lab", [web])
    with running(sshd.target(), sockets, on_event=log) as tunnel:
        tunnel.wait_connected(60)
        port = tunnel.ports[web]

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    for _ in range(500):
        if not sshd.sessions():
            break
        threading.Event().wait(0.02)
    assert [] == sshd.sessions()


def test_ssh_ends_when_gpulab_is_killed(sshd, web):
    """`kill -9`, a full memory, a crash: no ssh may stay behind that nobody knows of."""
    program = (
        "import sys, json; from pathlib import Path\n"
        "from gpulab.remote import ports; from gpulab.remote.tunnel import running\n"
        "from gpulab.remote.target import SshTarget\n"
        "t = json.loads(sys.argv[1]); [t.update({k: Path(t[k])}) for k in ('key_file', 'known_hosts')]\n"
        "t['proxy_command'] = ()\n"
        "with running(SshTarget(**t), ports.listen('killed', [int(sys.argv[2])])) as tunnel:\n"
        "    tunnel.wait_connected(60); print('up', flush=True); sys.stdin.read()\n"
    )

    target = json.dumps(dataclasses.asdict(sshd.target()), default=str)
    child = subprocess.Popen(
        [sys.executable, "-c", program, target, str(web)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    up = child.stdout.readline()

    child.kill()
    child.communicate()

    assert "up\n" == up
    for _ in range(500):
        if not sshd.sessions():
            break
        threading.Event().wait(0.02)
    assert [] == sshd.sessions()


def test_serve_stops_when_it_is_told(sshd, web):
    """Ctrl-C in `gpulab open` sets the event; the command then ends by itself."""

    async def main() -> object:
        stop = asyncio.Event()
        return await serve(
            sshd.target(), ports.listen("lab", [web]), stop=stop, on_event=lambda event: stop.set()
        )

    assert asyncio.run(main()) is None
