"""The dashboard as a web application. Hides Starlette; asks the gate about every request, and sends every answer under one strict policy."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gpulab.dashboard.gate import COOKIE, ENTER, FRONT, LOOK, STATE, Asked, Gate
from gpulab.view import dashboard_page as pages

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gpulab.dashboard.feed import Feed

_LARGEST_FORM = 4096
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not `no-referrer`: with it our own form's origin would be `null`.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def application(gate: Gate, feed: Feed) -> ASGIApp:
    """Make the application; it looks at nothing itself."""

    async def front(request: Request) -> Response:
        return HTMLResponse(pages.sign_in_page(static=FRONT, is_wrong=False))

    async def enter(request: Request) -> Response:
        if not gate.is_secret(await _secret_of(request)):
            page = pages.sign_in_page(static=FRONT, is_wrong=True)
            return HTMLResponse(page, HTTPStatus.FORBIDDEN)
        # A page that leads on, not a redirect: a strict cookie is not sent on a redirect that another site began.
        answer = HTMLResponse(pages.leading_page(gate.base))
        answer.set_cookie(COOKIE, gate.session, path=gate.base, httponly=True, samesite="strict")
        return answer

    async def page(request: Request) -> Response:
        return HTMLResponse(pages.page(feed.title, static=FRONT))

    async def state(request: Request) -> Response:
        return JSONResponse(feed.state())

    async def look(request: Request) -> Response:
        feed.want()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def no_icon(request: Request) -> Response:
        return Response(status_code=HTTPStatus.NO_CONTENT)

    routes = [
        Route(FRONT, front),
        Route(ENTER, enter, methods=["POST"]),
        Route("/dashboard.css", _asset("dashboard.css", "text/css")),
        Route("/dashboard.js", _asset("dashboard.js", "text/javascript")),
        Route("/favicon.ico", no_icon),
        Route(gate.base, page),
        Route(gate.base + STATE, state),
        Route(gate.base + LOOK, look, methods=["POST"]),
    ]
    return _Guarded(gate, Starlette(routes=routes))


class _Guarded:
    """Stands before the application: what the gate refuses never reaches it, and every answer carries the policy."""

    def __init__(self, gate: Gate, inner: ASGIApp) -> None:
        self._gate = gate
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._gate.refusal(_asked(scope))
        inner = PlainTextResponse(refusal.text, refusal.status) if refusal else self._inner
        await inner(scope, receive, send_with_policy)


def _asked(scope: Scope) -> Asked:
    headers = Headers(scope=scope)
    return Asked(
        method=scope["method"],
        path=scope["path"],
        hosts=tuple(headers.getlist("host")),
        origins=tuple(headers.getlist("origin")),
        sites=tuple(headers.getlist("sec-fetch-site")),
        sessions=tuple(_session(line) for line in headers.getlist("cookie")),
    )


def _session(line: str) -> str:
    """Read our cookie out of a `Cookie` line; other ports of 127.0.0.1 may have put any others there."""
    found = [part.strip().partition("=") for part in line.split(";")]
    return next((value for name, _, value in found if name == COOKIE), "")


async def _secret_of(request: Request) -> str:
    """Read the form, as far as one of ours is long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            return ""
    form = parse_qs(body.decode("utf-8", "replace"))
    return form.get("secret", [""])[0].strip()


def _asset(name: str, media_type: str) -> Callable[[Request], Response]:
    text = pages.asset(name)

    def answer(request: Request) -> Response:
        return Response(text, media_type=media_type)

    return answer
