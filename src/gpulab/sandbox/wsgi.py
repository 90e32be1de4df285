"""The simulated AWS as a WSGI application: the same `World.handle`, in front of moto's server application."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from gpulab.sandbox.calls import Answer, Call, ConnectionLost
from gpulab.sandbox.wire import read_call
from gpulab.sandbox.world import World

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

#: Beside these, WSGI keeps a header under `HTTP_` and its name.
_PLAIN = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
# The server in front writes these itself, and an answer with two dates has none that a client can read.
_FROM_SERVER = frozenset({"date", "server"})


def wsgi_app(world: World) -> Application:
    """
    Put a world behind HTTP.

    The caller opens and closes the world. The application may be called from many threads. A connection that a fault breaks is
    shut down through `environ["werkzeug.socket"]`, which werkzeug's server provides; under another server it is a 500 without
    a body.
    """
    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        body = _body_of(environ)
        call = read_call(environ["REQUEST_METHOD"], _url_of(environ), _headers_of(environ), body)

        def forward(inner: Call) -> Answer:
            return _through(moto, environ, inner)

        try:
            answer = world.handle(call, forward)
        except ConnectionLost:
            _break(environ)
            start_response("500 Connection Lost", [("Content-Length", "0")])
            return []
        headers = {n: str(v) for n, v in answer.headers.items() if n.lower() not in _FROM_SERVER}
        start_response(f"{answer.status} {_word(answer.status)}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    return application


def _through(moto: Any, environ: dict[str, Any], call: Call) -> Answer:
    inner = {
        **environ,
        **{_environ_name(name): value for name, value in call.headers.items()},
        "CONTENT_LENGTH": str(len(call.body)),
        "wsgi.input": io.BytesIO(call.body),
        "wsgi.input_terminated": True,
    }
    # What has been read and joined is no longer in chunks.
    inner.pop("HTTP_TRANSFER_ENCODING", None)
    found: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        found.update(status=int(status.split()[0]), headers=dict(headers))

    chunks = moto(inner, start_response)
    try:
        body = b"".join(chunks)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    return Answer(found["status"], found["headers"], body)


def _body_of(environ: dict[str, Any]) -> bytes:
    stream = environ["wsgi.input"]
    if environ.get("wsgi.input_terminated"):
        return bytes(stream.read())
    return bytes(stream.read(int(environ.get("CONTENT_LENGTH") or 0)))


def _url_of(environ: dict[str, Any]) -> str:
    host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw and raw.startswith("/"):
        return f"{environ['wsgi.url_scheme']}://{host}{raw}"
    path = quote(environ.get("PATH_INFO", "/").encode("latin-1"))
    query = environ.get("QUERY_STRING")
    return f"{environ['wsgi.url_scheme']}://{host}{path}" + (f"?{query}" if query else "")


def _headers_of(environ: dict[str, Any]) -> dict[str, str]:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return headers | {plain: environ[name] for name, plain in _PLAIN.items() if environ.get(name)}


def _environ_name(header: str) -> str:
    name = header.upper().replace("-", "_")
    return name if name in _PLAIN else f"HTTP_{name}"


def _break(environ: dict[str, Any]) -> None:
    connection = environ.get("werkzeug.socket")
    if connection is None:
        return
    # Without lingering the peer sees a reset, as from a router that died.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _word(status: int) -> str:
    return {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found"}.get(
        status, "Status"
    )
