"""Every page we write, made of a hostile text, in a real Chromium: without escaping and policy the text runs; in ours it is read."""

from __future__ import annotations

import importlib.util
import re
import shutil

import pytest
from tests.aws.security.hostile_pages import PAGES, unescaped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and playwright",
)
# Whoever reads a page waits for no second one, and the dashboard's file would leave for the dashboard.
STAYING = [name for name in PAGES if "leading" not in name and "signing" not in name]
RUNS = "<img src=x onerror=\"document.title='ran'\">"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page from disk, as a teacher does with a report that was mailed."""

    def visit(text):
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        tab = browser.new_page()
        tab.route(re.compile("^http"), lambda route: route.abort())
        tab.goto(file.as_uri())
        tab.wait_for_load_state("load")
        title, body = tab.title(), tab.inner_text("body")
        pictures = tab.locator("img").count()
        tab.close()
        return title, pictures, body

    return visit


@pytest.mark.parametrize("name", STAYING)
def test_a_hostile_text_runs_only_where_neither_escaping_nor_policy_is(visit, name):
    """The text is a name, a lab, a file's name or a reason; whoever opens the page is logged in at the university."""
    if name == "report":
        pytest.importorskip("matplotlib")
    with unescaped():
        raw = PAGES[name](RUNS)
    assert RUNS in raw

    weak = visit(POLICY.sub("", raw))
    policed = visit(raw) if POLICY.search(raw) else None
    ours = visit(PAGES[name](RUNS))

    assert "ran" == weak[0]
    assert policed is None or policed[0] != "ran"
    assert ours[0] != "ran"
    assert 0 == ours[1]
    assert RUNS in ours[0] + ours[2]
