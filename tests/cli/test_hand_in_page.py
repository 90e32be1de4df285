"""A hostile notebook's page in a real Chromium: nothing runs, nothing is asked for, even if the escaping had a hole."""

from __future__ import annotations

import http.server
import importlib.util
import json
import shutil
import threading

import pytest

from gpulab.course.notebook import read_notebook
from gpulab.view.notebook import notebook_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and playwright",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def home():
    """Where a hostile notebook calls home: an address, and the paths that were asked for there."""
    asked = []

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture
def visit(browser, tmp_path, home):
    """Open a page from disk, as a grader does; return its title and what was asked for at home."""

    def visit(text):
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        home[1].clear()
        tab = browser.new_page()
        tab.goto(file.as_uri())
        tab.wait_for_load_state("load")
        title = tab.title()
        tab.close()
        return title, sorted(home[1])

    return visit


def evil(home):
    return (
        f"<script>document.title='ran'</script><img src='{home[0]}/x' onerror=\"document.title='ran'\">"
        f"<link rel=stylesheet href='{home[0]}/y'><iframe src='{home[0]}/z'></iframe>"
    )


def hostile_page(home):
    text = evil(home)
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "display_data", "data": {"text/html": text, "text/plain": text}},
        {"output_type": "error", "ename": text, "evalue": text, "traceback": [text]},
    ]
    cells = [
        {"cell_type": "markdown", "source": f"# {text}\n{text}"},
        {"cell_type": "code", "source": text, "outputs": outputs, "execution_count": 1},
    ]
    notebook = read_notebook(json.dumps({"cells": cells, "metadata": {}}).encode())
    return notebook_html(notebook, title="hand-in")


def test_nothing_of_a_hostile_notebook_runs(visit, home):
    """A peer opens thirty of them while logged in at the university."""
    assert ("hand-in", []) == visit(hostile_page(home))


def test_the_pages_policy_stops_what_escaping_would_have_missed(visit, home):
    """The same markup, put in raw: with the policy nothing happens; without it, the attack is real."""
    raw = hostile_page(home).replace("</body>", f"{evil(home)}</body>")
    begin = raw.index('<meta http-equiv="Content-Security-Policy"')
    bare = raw[:begin] + raw[raw.index(">", begin) + 1 :]

    assert ("hand-in", []) == visit(raw)
    assert ("ran", ["/x", "/y", "/z"]) == visit(bare)
