"""
Who may ask the dashboard for what. Pure: headers in, a refusal or nothing out; knows no web framework.

What it refuses is what a page of the web, a page of another port of this computer, or another user of it could send.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from http import HTTPStatus

FRONT, ENTER = "/", "/enter"
PUBLIC = frozenset({FRONT, ENTER, "/dashboard.css", "/dashboard.js", "/favicon.ico"})
STATE, LOOK = "state.json", "look"
COOKIE = "gpulab"
#: Pages other sites may lead to: they show nothing about anybody.
_OPEN_TO_LINKS = frozenset({FRONT, ENTER})


@dataclass(frozen=True)
class Asked:
    """
    One request, as far as it decides who may have what.

    Attributes:
        hosts, origins, sites: Every value of `Host`, `Origin` and `Sec-Fetch-Site`; a browser sends at most one of each.
        sessions: Every value of our cookie.
    """

    method: str
    path: str
    hosts: tuple[str, ...]
    origins: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Why not, as HTTP says it and in a sentence."""

    status: HTTPStatus
    text: str


@dataclass(frozen=True)
class Gate:
    """
    The dashboard's one judge.

    Attributes:
        port: On 127.0.0.1.
        base: Path of everything that shows something, `/RANDOM/`; unguessable, so that the cookie stays off other ports.
        secret: What the private file shows.
        session: What the cookie carries.
    """

    port: int
    base: str
    secret: str = field(repr=False)
    session: str = field(repr=False)

    def refusal(self, asked: Asked) -> Refusal | None:
        """Say why a request is refused; `None` when it is not."""
        return (
            self._wrong_host(asked)
            or self._wrong_origin(asked)
            or self._wrong_path(asked)
            or self._wrong_method(asked)
            or self._wrong_site(asked)
            or self._wrong_session(asked)
        )

    def is_secret(self, text: str) -> bool:
        """Compare in constant time."""
        return _same(text, self.secret)

    def _wrong_host(self, asked: Asked) -> Refusal | None:
        """A name of the web that was made to mean 127.0.0.1 (DNS rebinding) is not ours."""
        if len(asked.hosts) == 1 and asked.hosts[0].lower() in self._hosts():
            return None
        return Refusal(HTTPStatus.MISDIRECTED_REQUEST, "The dashboard answers to 127.0.0.1 only.")

    def _wrong_origin(self, asked: Asked) -> Refusal | None:
        if not asked.origins:
            return None
        own = {f"http://{host}" for host in self._hosts()}
        # A page that is a file has the origin `null`, and so has the private one; the secret in it is what counts.
        allowed = {*own, "null"} if (asked.method, asked.path) == ("POST", ENTER) else own
        if len(asked.origins) == 1 and asked.origins[0].lower() in allowed:
            return None
        return Refusal(HTTPStatus.FORBIDDEN, "Another site asked.")

    def _wrong_path(self, asked: Asked) -> Refusal | None:
        private = {self.base, self.base + STATE, self.base + LOOK}
        if asked.path in PUBLIC or asked.path in private:
            return None
        return Refusal(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _wrong_method(self, asked: Asked) -> Refusal | None:
        changes = asked.path in (ENTER, self.base + LOOK)
        if asked.method in (("POST",) if changes else ("GET", "HEAD")):
            return None
        return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "Not by this method.")

    def _wrong_site(self, asked: Asked) -> Refusal | None:
        """Another port of 127.0.0.1 is the same site, so that our cookie comes along; it is not the same origin."""
        if asked.path in _OPEN_TO_LINKS or all(s in ("same-origin", "none") for s in asked.sites):
            return None
        return Refusal(HTTPStatus.FORBIDDEN, "Another site asked.")

    def _wrong_session(self, asked: Asked) -> Refusal | None:
        if asked.path in PUBLIC or any(_same(s, self.session) for s in asked.sessions):
            return None
        return Refusal(HTTPStatus.UNAUTHORIZED, "Open the dashboard by its file first.")

    def _hosts(self) -> tuple[str, str]:
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())
