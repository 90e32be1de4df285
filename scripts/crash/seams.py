"""
Inside a command's process: where it meets the world. AWS calls, the clock and waiting go to the process that holds the world; every change
of a file and every statement to SQLite is counted and can be broken. The product is not told.

A boundary is named by what it does and how often that was done before: `aws ec2:RunInstances #1`, `file write journal.jsonl #2`.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import pickle
import re
import signal
import socket
import sqlite3
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from botocore import endpoint
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError
from moto.core.botocore_stubber import MockRawResponse

from gpulab.sandbox import moto_bridge
from gpulab.sandbox.in_process import _body_of, _headers, _text

#: Breaks during which the command waits, and something else happens.
PAUSES = ("asleep", "two at once", "another at once")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TEMPORARY = re.compile(
    r"(?<=\.gpulab-copy-)\d+-[a-z0-9_]{8}"  # a stage of a copy, with the id of its process
    r"|(?<=[.-])[a-z0-9_]{8}(?=$|[./])|[0-9a-f]{16,}|\d{8}T\d+"
)


@dataclass(frozen=True)
class Broken:
    """
    What goes wrong with a command.

    Attributes:
        kind: One of `faults.KINDS`.
        at: Name of the boundary; empty where the kind needs none.
        detail: An error code, a number of bytes, minutes.
    """

    kind: str
    at: str = ""
    detail: str = ""


class Line:
    """A socket that carries Python values, one question and one answer at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def ask(self, *words: Any) -> Any:
        """Send a question and wait for its answer."""
        with self._lock:
            send(self._end, words)
            return receive(self._end)


def send(end: socket.socket, value: Any) -> None:
    """Send a value with its length."""
    send_packed(end, pickle.dumps(value, protocol=5))


def send_packed(end: socket.socket, packed: bytes) -> None:
    """Send bytes with their length."""
    end.sendall(struct.pack("<I", len(packed)) + packed)


def receive(end: socket.socket) -> Any:
    """
    Receive a value.

    Raises:
        EOFError: The other side is gone.
    """
    return pickle.loads(receive_packed(end))  # noqa: S301 - our own child


def receive_packed(end: socket.socket) -> bytes:
    """
    Receive bytes that were sent with their length.

    Raises:
        EOFError: The other side is gone.
    """
    (size,) = struct.unpack("<I", _exactly(end, 4))
    return _exactly(end, size)


def _exactly(end: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = end.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


@dataclass
class Seams:
    """
    The counters and the break of one command.

    Attributes:
        line: To the process that holds the world.
        root: Only files below it count.
        clock: Shared memory with the world's time, microseconds since 1970.
        skew: How far this computer's clock is off.
    """

    line: Line
    root: Path
    clock: Any
    broken: Broken | None
    is_recording: bool = False
    skew: timedelta = timedelta()
    seen: Counter[str] = field(default_factory=Counter)
    is_full: bool = False
    _inside: threading.local = field(default_factory=threading.local)

    def now(self) -> datetime:
        """This computer's time."""
        (micros,) = struct.unpack("<q", self.clock[:8])
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros) + self.skew

    def sleep(self, seconds: float) -> None:
        """Wait in simulated time."""
        self.line.ask("sleep", max(0.0, seconds))

    def install(self) -> None:
        """Put everything in its place; this process is thrown away afterwards."""
        self._take_clock()
        self._take_aws()
        self._take_files()
        self._take_sqlite()

    @contextlib.contextmanager
    def boundary(self, label: str) -> Iterator[None]:
        """Cross one boundary on this computer: break before or after it, where this is the one."""
        if getattr(self._inside, "is_in", False):
            yield
            return
        self.seen[label] += 1
        name = f"{label} #{self.seen[label]}"
        if self.is_recording:
            self._inside.is_in = True
            self.line.ask("mark", name)
            self._inside.is_in = False
        is_here = self.broken is not None and self.broken.at == name
        if is_here:
            self._inside.is_in = True
            self.line.ask("broken")
            self._inside.is_in = False
            self._before(self.broken.kind)
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._inside.is_in = True
        try:
            yield
        finally:
            self._inside.is_in = False
        if is_here and self.broken.kind == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)

    def _before(self, kind: str) -> None:
        if kind == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif kind == "disk full":
            self.is_full = True
        elif kind in PAUSES:
            self.line.ask("pause", kind)

    # -- the clock --------------------------------------------------------------------------------------------------------------

    def _take_clock(self) -> None:
        from gpulab.cli.context import Context

        Context.now = staticmethod(self.now)  # type: ignore[method-assign]
        Context.sleep = staticmethod(self.sleep)  # type: ignore[method-assign]
        # Between botocore's own tries, where a launcher leaves them on.
        endpoint.time = SimpleNamespace(sleep=self.sleep)  # type: ignore[assignment]

    # -- AWS --------------------------------------------------------------------------------------------------------------------

    def _take_aws(self) -> None:
        def answer(stubber: Any, event_name: str, request: Any, **_: Any) -> AWSResponse:
            operation = event_name.rsplit(".", 1)[-1]
            headers = {name: _text(value) for name, value in request.headers.items()}
            said = self.line.ask(
                "aws", request.method, request.url, headers, _body_of(request), operation
            )
            if said[0] != "answer":
                raise _lost(said[0], request.url)
            _, status, found, body = said
            return AWSResponse(request.url, status, _headers(found), MockRawResponse(body))

        moto_bridge.StubberClass.__call__ = answer

    # -- files ------------------------------------------------------------------------------------------------------------------

    def _take_files(self) -> None:
        self._open_handles: set[int] = set()
        really_open, really_os_open, really_close = io.open, os.open, os.close

        def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or not self._is_ours(file):
                return really_open(file, mode, *args, **more)
            with self.boundary(f"file open {self._short(file)}"):
                return really_open(file, mode, *args, **more)

        def os_opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if not flags & _WRITES or not self._is_ours(path):
                return really_os_open(path, flags, *args, **more)
            with self.boundary(f"file open {self._short(path)}"):
                handle = really_os_open(path, flags, *args, **more)
            self._names[handle] = self._short(path)
            return handle

        def closed(handle: int) -> None:
            self._names.pop(handle, None)
            really_close(handle)

        self._names: dict[int, str] = {}
        builtins.open = io.open = opened  # type: ignore[assignment]
        os.open, os.close = os_opened, closed  # type: ignore[assignment]
        for name in ("write", "fsync"):
            self._wrap_handle(name)
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "chmod", "link"):
            self._wrap_path(name)

    def _wrap_handle(self, name: str) -> None:
        really = getattr(os, name)

        def wrapped(handle: int, *args: Any) -> Any:
            known = self._names.get(handle)
            if known is None:
                return really(handle, *args)
            with self.boundary(f"file {name} {known}"):
                return really(handle, *args)

        setattr(os, name, wrapped)

    def _wrap_path(self, name: str) -> None:
        really = getattr(os, name)

        def wrapped(path: Any, *args: Any, **more: Any) -> Any:
            if not self._is_ours(path) or (name == "mkdir" and Path(path).is_dir()):
                return really(path, *args, **more)
            shown = args[0] if name in ("replace", "rename", "link") else path
            if self.is_full and name in ("unlink", "remove", "rmdir", "chmod", "replace", "rename"):
                return really(path, *args, **more)  # a full disk still lets go
            with self.boundary(f"file {name} {self._short(shown)}"):
                return really(path, *args, **more)

        setattr(os, name, wrapped)

    def _is_ours(self, path: Any) -> bool:
        try:
            text = os.fspath(path)
        except TypeError:
            return False
        text = os.fsdecode(text)
        return text.startswith(str(self.root)) and not text.endswith(".out")

    def _short(self, path: Any) -> str:
        text = os.path.relpath(os.fsdecode(os.fspath(path)), self.root)
        return _TEMPORARY.sub("*", text)

    # -- SQLite -----------------------------------------------------------------------------------------------------------------

    def _take_sqlite(self) -> None:
        seams, really_connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            def __init__(self, database: Any, *args: Any, **more: Any) -> None:
                super().__init__(database, *args, **more)
                self.base = "notes" if "notes.sqlite" in str(database) else "ledger"

            def execute(self, sql: str, *args: Any) -> Any:
                with seams._statement(self.base, sql):
                    return super().execute(sql, *args)

            def executemany(self, sql: str, *args: Any) -> Any:
                with seams._statement(self.base, sql):
                    return super().executemany(sql, *args)

        def connected(*args: Any, **more: Any) -> Any:
            return really_connect(*args, **{**more, "factory": Connection})

        sqlite3.connect = connected  # type: ignore[assignment]

    @contextlib.contextmanager
    def _statement(self, base: str, sql: str) -> Iterator[None]:
        word = sql.split()[0].upper()
        if word not in ("BEGIN", "INSERT", "DELETE", "COMMIT", "CREATE"):
            yield
            return
        try:
            with self.boundary(f"{base} {word}"):
                yield
        except OSError as error:
            raise sqlite3.OperationalError("database or disk is full") from error


def _lost(how: str, url: str) -> Exception:
    kinds: dict[str, Callable[..., Exception]] = {
        "reply lost": ReadTimeoutError,
        "request lost": ConnectionClosedError,
        "refused": lambda endpoint_url: EndpointConnectionError(
            endpoint_url=endpoint_url, error="Connection refused"
        ),
    }
    return kinds[how](endpoint_url=url)


def exit_now(code: int) -> None:
    """End this process at once, with what it has printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
