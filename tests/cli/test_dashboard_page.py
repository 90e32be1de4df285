"""
The dashboard in a real Chromium: it opens, updates, searches, prints, in light and dark.

And the attacks: each is first shown to work on a page that lacks the guard, then to fail on ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpulab.dashboard.feed import Feed
from gpulab.dashboard.serving import Served, serving
from gpulab.view.dashboard import Standing

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
EXTRA = all(importlib.util.find_spec(name) for name in ("playwright", "starlette", "uvicorn"))
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not EXTRA, reason="needs Chromium, playwright and the extra `dashboard`"
)
_BUILDERS = Path(__file__).parents[1] / "unit" / "dashboard_builders.py"
_spec = importlib.util.spec_from_file_location("dashboard_builders", _BUILDERS)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

XSS = (
    "<img src=x onerror=\"document.title='pwned'\">",
    "<script>document.title='pwned'</script>",
    '"><svg onload="document.title=\'pwned\'">',
    "</title><script>document.title='pwned'</script>",
    "{{ 7*7 }}<iframe srcdoc=\"<script>top.document.title='pwned'</script>\">",
    "javascript:document.title='pwned'//",
)


@pytest.fixture(scope="module")
def browser():
    """A browser in which every name of `example` is this computer, as after DNS rebinding."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # Without a proxy that the environment names: such a name would be asked for there.
            args=[
                "--no-sandbox",
                "--no-proxy-server",
                "--host-resolver-rules=MAP *.example 127.0.0.1",
            ],
        )
        yield opened
        opened.close()


@pytest.fixture
def feed() -> Feed:
    made = Feed("c1 w1: Recurrent nets", now=lambda: build.NOW, sleep=time.sleep)
    made.publish(build.busy_lab())
    return made


@pytest.fixture
def served(feed, tmp_path) -> Iterator[Served]:
    with serving(feed, folder=tmp_path / "dashboard") as opened:
        yield opened


@pytest.fixture(params=["light"])
def tab(browser, request):
    """A tab of a fresh browser; what it complained about is in `tab.complaints`."""
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1280, "height": 900}
    )
    opened = context.new_page()
    opened.complaints = []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    yield opened
    context.close()


def sign_in(tab, served: Served) -> None:
    """Open the private file, as `gpulab dashboard` lets the browser do."""
    tab.goto(served.file.as_uri())
    tab.wait_for_selector(".tile")


class Plain(ThreadingHTTPServer):
    """A small server without any guard: the weak page, or the attacker's. It remembers what it was asked."""

    daemon_threads = True

    def __init__(
        self,
        pages: dict[str, str],
        *,
        cookie: str = "",
        wants_cookie: bool = False,
        is_polite: bool = False,
    ) -> None:
        self.pages, self.cookie = pages, cookie
        self.wants_cookie, self.is_polite = wants_cookie, is_polite
        self.asked: list[tuple[str, str, str]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def took(self, method: str, path: str) -> bool:
        return any((method, path) == (m, p) for m, p, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer()

    def answer(self) -> None:
        server, cookie = self.server, self.headers.get("Cookie", "")
        if (
            server.wants_cookie
            and server.cookie.partition(";")[0] not in cookie
            and self.path != "/"
        ):
            self.send_error(401)
            return
        server.asked.append((self.command, self.path, cookie))
        body = server.pages.get(self.path, "").encode()
        self.send_response(200)
        kind = "application/json" if self.path.endswith(".json") else "text/html; charset=utf-8"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if server.cookie:
            self.send_header("Set-Cookie", server.cookie)
        if server.is_polite:
            self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
            self.send_header("Access-Control-Allow-Credentials", "true")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing."""


@contextlib.contextmanager
def a_server(pages: dict[str, str], **options) -> Iterator[Plain]:
    server = Plain(pages, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


# The page.


@pytest.mark.parametrize("tab", ["light", "dark"], indirect=True)
def test_it_opens_by_the_file_without_a_complaint_and_stands_out_from_paper(tab, served, request):
    """Readable in an auditorium, light and dark: a contrast of 7 for text and 4.5 for every standing; the policy blocks nothing of ours."""
    sign_in(tab, served)
    tab.wait_for_load_state("networkidle")
    scheme = request.node.callspec.params["tab"]
    _keep_screenshot(tab, scheme)

    words = tab.evaluate(_CONTRASTS)

    assert [] == tab.complaints
    assert ("3 of 25", 25) == (_search(tab, "G2"), tab.locator(".tile").count())
    assert [] == [name for name, ratio, least in words if ratio < least]


def _search(tab, text: str) -> str:
    tab.fill("#search", text)
    return tab.inner_text("#found")


def _keep_screenshot(tab, scheme: str) -> None:
    """Keep a picture where the gate collects its output."""
    folder = os.environ.get("GPULAB_TEST_OUTPUT")
    if folder:
        tab.screenshot(path=str(Path(folder) / f"dashboard-{scheme}.png"), full_page=True)


# Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
_CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((n) => n / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (node, paper) => {
    const [a, b] = [light(getComputedStyle(node).color), light(getComputedStyle(paper).backgroundColor)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const tiles = [...document.querySelectorAll(".tile")];
  return [["text", ratio(document.body, document.body), 7]].concat(
    tiles.map((tile) => [tile.className + " " + ratio(tile.querySelector(".standing"), tile), ratio(tile.querySelector(".standing"), tile), 4.5]),
    tiles.map((tile) => [tile.className + " who", ratio(tile.querySelector("b"), tile), 4.5]));
}"""


def test_it_follows_what_happens_by_itself(tab, served, feed):
    """It hangs on the wall for four hours."""
    sign_in(tab, served)
    first = tab.locator(".tile").first
    calm = [replace(tile, standing=Standing.UP, words="ready") for tile in build.busy_lab().tiles]

    feed.publish(build.board(*calm[:-1]))
    tab.wait_for_selector("#log >> text=s170024: has ended")

    assert "s170000" in first.inner_text()
    assert ["24 up"] == [text.strip() for text in tab.locator("#counts li").all_inner_texts()]
    assert [] == tab.locator("#notes li").all_inner_texts()


def test_counts_choose_and_choose_again(tab, served):
    """Who is idle, in one click."""
    sign_in(tab, served)
    idle = tab.locator("#counts button", has_text="idle")

    idle.click()
    chosen = [t.inner_text().split()[0] for t in tab.locator(".tile:visible").all()]
    idle.click()

    assert ["s170016", "s170017"] == chosen
    assert 25 == tab.locator(".tile:visible").count()


def test_what_has_ended_is_said_and_greyed(tab, feed, tmp_path):
    """A board that stands still must not be taken for the present."""
    with serving(feed, folder=tmp_path) as served:
        sign_in(tab, served)

    tab.wait_for_selector("body.stale")

    assert "The dashboard does not answer" in tab.inner_text("#notes")


def test_it_prints_without_what_is_to_be_clicked(tab, served):
    """On paper a box to type in is noise."""
    sign_in(tab, served)
    tab.emulate_media(media="print")

    assert (False, False) == (
        tab.locator("#search").is_visible(),
        tab.locator("#look").is_visible(),
    )
    assert b"%PDF-" == tab.pdf()[:5]


def test_the_code_can_be_typed_where_the_file_cannot_be_read(tab, served):
    """A browser from a snap may not read hidden folders."""
    tab.goto(served.url)
    tab.fill("#secret", "wrong")
    tab.click("button")
    refused = tab.inner_text("[role=alert]")

    tab.fill("#secret", served.gate.secret)
    tab.click("button")
    tab.wait_for_selector(".tile")

    assert "That is not the code" in refused


def test_the_secret_and_the_cookie_stand_in_no_address(tab, served):
    """Addresses stay in the browser's history, and in whatever synchronises it."""
    addresses = []
    tab.on("request", lambda asked: addresses.append(asked.url))

    sign_in(tab, served)

    assert len(addresses) > 4
    assert [] == [a for a in addresses if served.gate.secret in a or served.gate.session in a]


# The attacks.


def hostile_board():
    """What a student with root on an instance, or with a pen for a group's name, can put before the teacher."""
    return build.board(
        *(
            build.tile(
                text, words=text, names=text, group=text, place=text, instance=text, key=text
            )
            for text in XSS
        ),
        notes=XSS,
    )


WEAK_SCRIPT = """<ul></ul><script>
fetch("state.json").then((a) => a.json()).then((state) => {
  for (const tile of state.tiles) document.querySelector("ul").innerHTML += `<li><b>${tile.who}</b> ${tile.words}</li>`;
  document.body.dataset.done = "yes";
});</script>"""


def test_a_hostile_text_stays_a_text(tab, tmp_path):
    """Cross-site scripting: a page that writes HTML runs the student's script with the teacher's cookie; ours shows it."""
    feed = Feed(XSS[3], now=lambda: build.NOW, sleep=time.sleep)
    feed.publish(hostile_board())
    with a_server({"/": WEAK_SCRIPT, "/state.json": json.dumps(feed.state())}) as weak:
        tab.goto(f"http://127.0.0.1:{weak.server_port}/")
        tab.wait_for_function("document.title === 'pwned'")
    tab.complaints.clear()

    with serving(feed, folder=tmp_path) as served:
        sign_in(tab, served)
        tab.wait_for_timeout(200)
        texts = tab.locator(".tile b").all_inner_texts()
        parts = tab.locator("main img, .tile img, .tile svg, .tile iframe, #log img, #notes img")

        assert (XSS[3], list(XSS)) == (tab.title(), texts)
        assert (0, []) == (parts.count(), tab.complaints)


def test_scripts_that_would_read_html_are_refused_by_the_policy(tab, served):
    """A later change that writes HTML fails in the first test instead of in an auditorium."""
    sign_in(tab, served)

    said = tab.evaluate(
        "() => { try { document.body.innerHTML = '<i>x</i>'; return 'written' } catch (e) { return e.name } }"
    )

    assert "TypeError" == said


def test_a_name_of_the_web_that_leads_here_reads_nothing(tab, served):
    """DNS rebinding: the attacker's own name is made to mean 127.0.0.1, so that the browser takes our page for the attacker's."""
    with a_server({"/state.json": '{"tiles": ["s170000"]}'}) as weak:
        tab.goto(f"http://evil.example:{weak.server_port}/state.json")
        stolen = tab.inner_text("body")

    answer = tab.goto(f"http://evil.example:{served.gate.port}{served.gate.base}state.json")

    assert "s170000" in stolen
    assert 421 == answer.status
    assert "s170000" not in tab.inner_text("body")


def form(target: str) -> str:
    return (
        f'<form method="post" action="{target}"></form><script>document.forms[0].submit()</script>'
    )


def test_a_form_of_another_port_changes_nothing(tab, served, feed):
    """Request forgery: a page of another port, such as JupyterLab behind a tunnel, is the same site, so even a strict cookie comes along."""
    strict = "gpulab=s3cret; Path=/; HttpOnly; SameSite=Strict"
    with a_server({"/": "weak"}, cookie=strict, wants_cookie=True) as weak:
        tab.goto(f"http://127.0.0.1:{weak.server_port}/")
        with a_server({"/": form(f"http://127.0.0.1:{weak.server_port}/look")}) as evil:
            tab.goto(f"http://127.0.0.1:{evil.server_port}/")
            tab.wait_for_url("**/look")
        was_taken = weak.took("POST", "/look")
    sign_in(tab, served)

    with a_server({"/": form(f"{served.url.rstrip('/')}{served.gate.base}look")}) as evil:
        with tab.expect_response("**/look") as answer:
            tab.goto(f"http://127.0.0.1:{evil.server_port}/")

    assert (True, 403) == (was_taken, answer.value.status)
    assert "gpulab=" in answer.value.request.all_headers()["cookie"]


def test_another_port_does_not_get_the_cookie(tab, served):
    """Cookies know no ports: any server of this computer that the browser visits would get a cookie for `/`, and could come with it."""
    everywhere = "gpulab=s3cret; Path=/; HttpOnly; SameSite=Strict"
    with a_server({"/": "listens"}) as other:
        with a_server({"/": "weak"}, cookie=everywhere) as weak:
            tab.goto(f"http://127.0.0.1:{weak.server_port}/")
            tab.goto(f"http://127.0.0.1:{other.server_port}/")
        stolen = other.asked[0][2]
        sign_in(tab, served)
        tab.goto(f"http://127.0.0.1:{other.server_port}/again")

    assert "gpulab=s3cret" in stolen
    assert served.gate.session not in str(other.asked)


def test_another_page_cannot_frame_it(tab, served):
    """A transparent frame under the mouse makes the teacher click; a frame of the same site has the cookie."""
    with a_server({"/": "<p>s170000</p>"}) as weak:
        with a_server(
            {"/": f'<iframe src="http://127.0.0.1:{weak.server_port}/"></iframe>'}
        ) as evil:
            tab.goto(f"http://127.0.0.1:{evil.server_port}/")
            framed = tab.frames[1].inner_text("body")
    sign_in(tab, served)

    with a_server({"/": f'<iframe src="{tab.url}"></iframe>'}) as evil:
        tab.goto(f"http://127.0.0.1:{evil.server_port}/")
        refused = tab.frames[1].evaluate("document.body.innerText")

    assert ("s170000", False) == (framed, "s170000" in refused)


def test_another_page_cannot_read_it_with_the_teachers_cookie(tab, served):
    """A script of another port asks for the JSON; a server that is polite to every origin hands it out."""
    sign_in(tab, served)
    state = f"{tab.url}state.json"
    read = "(url) => fetch(url, {credentials: 'include'}).then((a) => a.text(), (e) => e.name)"
    with (
        a_server({"/": "evil"}) as evil,
        a_server({"/state.json": '{"tiles": ["s170000"]}'}, is_polite=True) as weak,
    ):
        tab.goto(f"http://127.0.0.1:{evil.server_port}/")
        stolen = tab.evaluate(read, f"http://127.0.0.1:{weak.server_port}/state.json")
        refused = tab.evaluate(read, state)

    assert ('{"tiles": ["s170000"]}', "TypeError") == (stolen, refused)
