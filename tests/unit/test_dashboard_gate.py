"""Who gets into the dashboard: every way in which another page or another user could ask, and the two ways that are ours."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

import pytest

from gpulab.dashboard.gate import Asked, Gate

GATE = Gate(port=40123, base="/unguessable/", secret="the secret", session="the session")
#: What our own page sends.
OWN = Asked(
    "GET",
    "/unguessable/state.json",
    hosts=("127.0.0.1:40123",),
    sites=("same-origin",),
    sessions=("the session",),
)
BUTTON = replace(OWN, method="POST", path="/unguessable/look", origins=("http://127.0.0.1:40123",))
ENTER = Asked(
    "POST", "/enter", hosts=("127.0.0.1:40123",), origins=("null",), sites=("cross-site",)
)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(OWN, id="our page asks"),
        pytest.param(replace(OWN, method="HEAD"), id="a tool looks"),
        pytest.param(replace(OWN, sites=("none",), path="/unguessable/"), id="a bookmark"),
        pytest.param(replace(OWN, sites=()), id="an old browser, or curl with the cookie"),
        pytest.param(replace(OWN, hosts=("localhost:40123",)), id="the other name"),
        pytest.param(replace(OWN, hosts=("LOCALHOST:40123",)), id="names have no case"),
        pytest.param(replace(OWN, sessions=("", "the session")), id="two lines of cookies"),
        pytest.param(BUTTON, id="the button"),
        pytest.param(ENTER, id="the private file's form"),
        pytest.param(replace(ENTER, origins=("http://127.0.0.1:40123",)), id="the form of the front page"),
        pytest.param(Asked("GET", "/", ("127.0.0.1:40123",), sites=("cross-site",)), id="the front page by a link"),
        pytest.param(Asked("GET", "/dashboard.css", ("127.0.0.1:40123",), sites=("same-origin",)), id="its style"),
    ],
)  # fmt: skip
def test_what_is_ours_gets_in(asked):
    """A guard that is in the way is switched off."""
    assert None is GATE.refusal(asked)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        pytest.param(replace(OWN, hosts=("evil.example:40123",)), 421, id="DNS rebinding"),
        pytest.param(replace(OWN, hosts=("127.0.0.1",)), 421, id="no port"),
        pytest.param(replace(OWN, hosts=("127.0.0.1:40124",)), 421, id="another port's name"),
        pytest.param(replace(OWN, hosts=("127.0.0.1:40123.evil.example",)), 421, id="a longer name"),
        pytest.param(replace(OWN, hosts=("[::1]:40123",)), 421, id="an address we do not listen on"),
        pytest.param(replace(OWN, hosts=()), 421, id="no Host, HTTP/1.0"),
        pytest.param(replace(OWN, hosts=("127.0.0.1:40123", "evil.example")), 421, id="two Hosts"),
        pytest.param(replace(ENTER, hosts=("evil.example:40123",)), 421, id="rebinding before the secret"),
        pytest.param(replace(BUTTON, origins=("http://evil.example",)), 403, id="a form of the web"),
        pytest.param(replace(BUTTON, origins=("http://127.0.0.1:8888",)), 403, id="a form of a tunnel's JupyterLab"),
        pytest.param(replace(BUTTON, origins=("https://127.0.0.1:40123",)), 403, id="another scheme"),
        pytest.param(replace(BUTTON, origins=("null",)), 403, id="a sandboxed frame"),
        pytest.param(replace(BUTTON, origins=("http://127.0.0.1:40123", "null")), 403, id="two Origins"),
        pytest.param(replace(ENTER, origins=("http://evil.example",)), 403, id="another site tries secrets"),
        pytest.param(replace(OWN, origins=("http://evil.example",)), 403, id="a fetch of the web"),
        pytest.param(replace(OWN, sites=("same-site",)), 403, id="a fetch of another port, with our cookie"),
        pytest.param(replace(OWN, sites=("cross-site",)), 403, id="an image of the web"),
        pytest.param(replace(OWN, sites=("same-origin", "same-site")), 403, id="two words"),
        pytest.param(replace(OWN, sessions=()), 401, id="no cookie"),
        pytest.param(replace(OWN, sessions=("the secret",)), 401, id="the secret is not the cookie"),
        pytest.param(replace(OWN, sessions=("the sessio",)), 401, id="nearly"),
        pytest.param(replace(OWN, sessions=("the session\udcff",)), 401, id="no text at all"),
        pytest.param(replace(BUTTON, sessions=()), 401, id="the button without a cookie"),
        pytest.param(replace(OWN, path="/unguessable/look"), 405, id="a change by GET"),
        pytest.param(replace(ENTER, method="GET", origins=()), 405, id="the secret by GET"),
        pytest.param(replace(OWN, method="POST"), 405, id="reading by POST"),
        pytest.param(replace(OWN, method="OPTIONS"), 405, id="a preflight"),
        pytest.param(replace(OWN, method="TRACE"), 405, id="an echo of the cookie"),
        pytest.param(replace(OWN, path="/guessed/state.json"), 404, id="another path"),
        pytest.param(replace(OWN, path="/unguessable/../unguessable/state.json"), 404, id="a crooked path"),
    ],
)  # fmt: skip
def test_what_is_not_ours_stays_out(asked, status):
    """Each is what a page of the web, of another port, or another user of the computer can send."""
    refusal = GATE.refusal(asked)

    assert HTTPStatus(status) == (refusal and refusal.status)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("the secret", True), ("the secre", False), ("", False), ("æ\udcff", False)],
)
def test_the_secret_is_compared_whole(text, is_right):
    """Whatever a form holds is compared, never an error."""
    assert is_right is GATE.is_secret(text)


def test_no_secret_is_in_what_a_log_or_a_traceback_would_show():
    """A gate in an error's file must not open the dashboard."""
    shown = repr(GATE)

    assert (False, False) == ("the secret" in shown, "the session" in shown)


def test_secrets_are_compared_in_constant_time(monkeypatch):
    """A comparison that stops at the first wrong letter tells how many were right."""
    seen = []
    compare = lambda a, b: seen.append((a, b)) or a == b  # noqa: E731 - a spy of one line

    monkeypatch.setattr("hmac.compare_digest", compare)
    GATE.is_secret("guess")
    GATE.refusal(replace(OWN, sessions=("guess",)))

    assert [(b"guess", b"the secret"), (b"guess", b"the session")] == seen
