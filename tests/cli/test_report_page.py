"""The report's page in a real Chromium: it opens without a complaint, sorts, searches and prints, in light and dark."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gpulab.reporting.report import Question, report_of
from gpulab.reporting.standing import Budget
from gpulab.spending.facts import timeline_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
EXTRA = all(importlib.util.find_spec(name) for name in ("playwright", "matplotlib"))
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not EXTRA, reason="needs Chromium, playwright and the extra `report`"
)
TERM = Path(__file__).parents[2] / "scripts" / "bench" / "term.py"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A term of twelve students as a page."""
    from gpulab.view.report_html import page

    spec = importlib.util.spec_from_file_location("term", TERM)
    term = importlib.util.module_from_spec(spec)
    sys.modules["term"] = term
    spec.loader.exec_module(term)
    now = datetime(2026, 11, 12, tzinfo=UTC)
    budget = Budget(Decimal(30), datetime(2026, 12, 4, 22, 59, 59, tzinfo=UTC))
    question = Question(now=now, zone=ZoneInfo("Europe/Copenhagen"), budget=budget)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        page(report_of(timeline_of(term.term(students=12)), question)), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(browser, page_file, request):
    """The page, opened; what it complained about is in `page.complaints`."""
    tab = browser.new_page(color_scheme=request.param, viewport={"width": 1200, "height": 1400})
    tab.complaints = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("request", lambda asked: tab.complaints.append(asked.url) if not asked.url.startswith("file:") else None)  # fmt: skip
    tab.goto(page_file.as_uri())
    _keep_screenshot(tab, request.param)
    yield tab
    tab.close()


def _keep_screenshot(tab, scheme: str) -> None:
    """Keep a picture where the gate collects its output."""
    folder = os.environ.get("GPULAB_TEST_OUTPUT")
    if folder:
        tab.screenshot(path=str(Path(folder) / f"report-{scheme}.png"), full_page=True)


def students(page) -> list[str]:
    return page.locator("#students tbody tr:visible td:first-child").all_text_contents()


def test_it_opens_without_a_complaint_and_without_a_request(page):
    """The strict policy blocks nothing of its own, and nothing else is asked for."""
    assert [] == page.complaints
    assert 5 == page.locator("figure svg").count()


def test_the_burn_down_draws_the_pace_to_the_end_of_the_term(page):
    """The question of a teacher in week 11 is whether it lasts, not what is left."""
    burn = page.locator("figure").first.text_content()

    assert "at the pace of the last 7 days, $2.44 a day, it ends on 2027-01-28" in burn
    assert "to last until 2026-12-04" in burn


def test_a_click_sorts_and_a_second_click_turns_it_round(page):
    """By number, not by text: $9 comes before $10."""
    amounts = page.locator("#students tbody tr td:nth-child(4)")

    page.click("#students th:nth-child(4) button")
    rising = [float(text.removeprefix("$")) for text in amounts.all_text_contents()]
    page.click("#students th:nth-child(4) button")
    falling = [float(text.removeprefix("$")) for text in amounts.all_text_contents()]

    assert sorted(rising) == rising
    assert sorted(falling, reverse=True) == falling
    assert "descending" == page.locator("#students th:nth-child(4)").get_attribute("aria-sort")


def test_the_search_box_hides_what_does_not_match(page):
    """One student among three hundred is found by typing."""
    page.fill("#search-students", "S01")

    assert ["s010", "s011"] == students(page)
    assert "2 of 12" == page.inner_text("#count-students")


def test_ink_stands_out_from_paper(page):
    """Readable in light and dark: a contrast of at least 7, WCAG's enhanced level."""
    colours = page.evaluate(
        """() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"""
    )

    ink, paper = (_luminance(colour) for colour in colours)

    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7


def _luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_prints_without_the_search_box(page):
    """On paper a box to type in is noise."""
    page.emulate_media(media="print")

    assert not page.locator("#search-students").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
