"""What the agent's tests share: an instance in a folder, and a metadata service that says what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpulab.agent import agent
from gpulab.agent.agent import Here, Metadata

DEADLINE = datetime(2026, 11, 23, 17, 0, tzinfo=UTC)
NOW = DEADLINE.timestamp() - 4 * 3600


@dataclass
class Service:
    """A web server that answers by path; `said` and `asked` may change while it runs."""

    said: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    date: float | None = None
    tokens: int = 0
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Starts web servers that say what a test wants."""
    running: list[ThreadingHTTPServer] = []

    def start(**said: str) -> Service:
        service = Service(dict(said))
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
        service.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return service

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(timestamp or service.date, usegmt=True)

        def do_PUT(self) -> None:
            service.tokens += 1
            self._reply(200, f"token-{service.tokens}")

        def do_GET(self) -> None:
            service.asked.append(self.path)
            token = self.headers.get("X-aws-ec2-metadata-token")
            if token is not None and token != f"token-{service.tokens}":
                self._reply(401, "")
                return
            path = self.path.removeprefix("/latest/").partition("?")[0]
            self._reply(200 if path in service.said else 404, service.said.get(path, ""))

        def _reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    return Handler


@pytest.fixture
def metadata_service(serve) -> Service:
    """An instance metadata service without a notice, tags or a role."""
    service = serve()
    service.said["meta-data/instance-id"] = "i-0abc"
    return service


@pytest.fixture
def metadata(metadata_service) -> Metadata:
    """The agent's view of it."""
    return Metadata(metadata_service.url)


@pytest.fixture
def a_here(tmp_path) -> Callable[..., Here]:
    """Makes instances in folders; keyword arguments replace parts of the specification."""

    def make(name: str = "instance", **changes: Any) -> Here:
        root = tmp_path / name
        spec = {
            "version": 1,
            "launch": "l-1",
            "name": "week4",
            "owner": "s-1",
            "user": "ubuntu",
            "deadline": DEADLINE.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "idle_minutes": 60,
            "budget_usd": None,
            "usd_per_hour": "0.25",
            "jupyter_port": 8888,
            "environment": {
                "name": "tf2",
                "python": ">=3.11",
                "uv": "",
                "server": {},
                "kernel": None,
            },
            "keep": None,
        }
        write(root / "etc/gpulab/spec.json", json.dumps({**spec, **changes}))
        write(root / "usr/local/sbin/poweroff", f"#!/bin/sh\necho off >> {root}/off\n").chmod(0o755)
        write(root / "usr/bin/wall", f'#!/bin/sh\necho "$1" >> {root}/wall\n').chmod(0o755)
        (root / "home/ubuntu/work").mkdir(parents=True)
        return Here(str(root))

    return make


@pytest.fixture(autouse=True)
def _watchdogs(tmp_path: Path) -> Iterator[None]:
    """End the watchdogs that a test armed; they would sleep for hours."""
    yield
    for pid_file in tmp_path.glob("*/run/gpulab/end.pid"):
        agent._end_group(int(pid_file.read_text()))


@pytest.fixture
def here(a_here) -> Here:
    """An instance in a folder."""
    return a_here()


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
