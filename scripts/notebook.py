"""
Runs a notebook as a browser does: JupyterLab's HTTP API and its kernel's websocket, over whatever URL leads there. Standard library only.

Speaks only what that takes: no TLS (the tunnel ends on this computer), no compression, no binary messages.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

_TIMEOUT_S = 120
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA


class NotebookFailed(Exception):
    """A cell raised, or the server answered with something else than a notebook; the text says what."""


@dataclass(frozen=True)
class Server:
    """
    A running JupyterLab.

    Attributes:
        host: Name and port, such as `127.0.0.1:8888`.
        token: The secret of this server, as `gpulab-agent token` says it on the instance.
    """

    host: str
    token: str

    @classmethod
    def at(cls, url: str, *, token: str) -> Server:
        """Read the address that `gpulab up` prints, `http://127.0.0.1:8888/lab`."""
        return cls(host=urlsplit(url).netloc, token=token)

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        """One call of the HTTP API; the JSON of its answer, `None` where it has none."""
        request = Request(
            f"http://{self.host}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"token {self.token}",
                "Content-Type": "application/json",
            },
        )
        with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http, to this computer
            text = answer.read()
        return json.loads(text) if text else None


def run(server: Server, path: str, cells: list[str]) -> list[str]:
    """
    Write a notebook, execute its cells in a kernel, and save it with its outputs.

    Args:
        path: Where it lies on the server, below its root folder; it is replaced.
        cells: Python source, one for each cell.

    Returns:
        What each cell printed or returned, as text.

    Raises:
        NotebookFailed: A cell raised; the text is its traceback's last line.
    """
    session = server.call(
        "POST",
        "api/sessions",
        {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}},
    )
    try:
        with _channels(server, session["kernel"]["id"]) as kernel:
            outputs = [_execute(kernel, source) for source in cells]
    finally:
        server.call("DELETE", f"api/sessions/{session['id']}")
    content = _notebook(cells, outputs)
    server.call("PUT", f"api/contents/{path}", {"type": "notebook", "content": content})
    return [_text(found) for found in outputs]


def _execute(kernel: _WebSocket, source: str) -> list[dict[str, Any]]:
    """Send one cell; its outputs in the notebook's format, once the kernel is idle again and has replied."""
    asked = uuid.uuid4().hex
    kernel.send(json.dumps(_message(asked, source)))
    outputs: list[dict[str, Any]] = []
    waits_for = {"idle", "execute_reply"}
    while waits_for:
        message = json.loads(kernel.receive())
        if message.get("parent_header", {}).get("msg_id") != asked:
            continue
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "status":
            waits_for.discard(content["execution_state"])
        elif kind == "error":
            raise NotebookFailed(f"{content['ename']}: {content['evalue']}")
        elif kind == "stream":
            outputs.append(
                {"output_type": "stream", "name": content["name"], "text": content["text"]}
            )
        elif kind in ("execute_result", "display_data"):
            outputs.append({"output_type": "display_data", "data": content["data"], "metadata": {}})
        else:
            waits_for.discard(kind)
    return outputs


def _message(name: str, source: str) -> dict[str, object]:
    # https://jupyter-client.readthedocs.io/en/stable/messaging.html
    return {
        "channel": "shell",
        "header": {
            "msg_id": name,
            "msg_type": "execute_request",
            "session": uuid.uuid4().hex,
            "username": "",
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {"code": source, "silent": False, "allow_stdin": False},
    }


def _notebook(cells: list[str], outputs: list[list[dict[str, Any]]]) -> dict[str, object]:
    return {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "execution_count": number,
                "metadata": {},
                "outputs": found,
                "source": source,
            }
            for number, (source, found) in enumerate(zip(cells, outputs, strict=True), start=1)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _text(outputs: list[dict[str, Any]]) -> str:
    parts = [found.get("text") or found["data"].get("text/plain", "") for found in outputs]
    return "".join(parts).strip()


@contextmanager
def _channels(server: Server, kernel: str) -> Iterator[_WebSocket]:
    host, _, port = server.host.partition(":")
    with socket.create_connection((host, int(port or 80)), timeout=_TIMEOUT_S) as connection:
        stream = _WebSocket(connection)
        stream.open(server, f"/api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}")
        yield stream
        stream.close()


class _WebSocket:
    """The client's half of RFC 6455, for text messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb")

    def open(self, server: Server, path: str) -> None:
        """Ask for the upgrade; the key need not be checked, this is no proxy's cache."""
        key = base64.b64encode(os.urandom(16)).decode()
        self._connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: token {server.token}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        status = self._reader.readline().decode()
        if " 101 " not in status:
            raise NotebookFailed(f"the kernel's websocket was refused: {status.strip()}")
        while self._reader.readline().strip():
            pass

    def send(self, text: str) -> None:
        """Send one text message."""
        self._frame(_TEXT, text.encode())

    def receive(self) -> str:
        """Wait for the next whole text message, answering pings on the way."""
        whole = b""
        while True:
            first, second = self._exactly(2)
            kind, length = first & 0x0F, second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", self._exactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self._exactly(8))
            payload = self._exactly(length)
            if kind == _PING:
                self._frame(_PONG, payload)
            elif kind == _CLOSE:
                raise NotebookFailed("the server closed the kernel's websocket")
            elif kind != _PONG:
                whole += payload
                if first & 0x80:
                    return whole.decode()

    def close(self) -> None:
        """Say goodbye; 1000 is a normal end."""
        self._frame(_CLOSE, struct.pack("!H", 1000))

    def _frame(self, kind: int, payload: bytes) -> None:
        """One frame; a client must mask what it sends."""
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | kind, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | kind, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | kind, 0x80 | 127, size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._connection.sendall(head + mask + masked)

    def _exactly(self, size: int) -> bytes:
        found = self._reader.read(size)
        if len(found) < size:
            raise NotebookFailed("the kernel's websocket ended")
        return found
