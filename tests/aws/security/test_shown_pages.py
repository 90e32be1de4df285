"""Names, labs, notebooks' names and an instance's words in every page we write: texts, whatever is in them."""

from __future__ import annotations

import importlib.util
import re

import pytest
from tests.aws.security.hostile import DRIVING, SCRIPT, Live, drives, unfiltered
from tests.aws.security.hostile_pages import PAGES, added, report, unescaped

from gpulab.remote.supervisor import Gone
from gpulab.remote.tunnel import gone_page

needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs the extra `report`"
)
EACH = [pytest.param(name, marks=needs_plots if name == "report" else ()) for name in PAGES]
# These have been through a parser that takes no such character, or hold a secret of ours.
UNSEEN = (
    "gone",
    "leading to JupyterLab",
    "leading to the dashboard",
    "signing in to the dashboard",
)


@pytest.mark.parametrize("name", EACH)
def test_every_page_shows_what_comes_from_outside_as_a_text(name):
    """A student's name comes from a form they filled in; the page is opened where its reader is logged in."""
    make = PAGES[name]
    with unescaped():
        weak = added(make(SCRIPT), make("harmless"))

    ours = added(make(SCRIPT), make("harmless"))

    assert {"img", "onerror"} <= set(weak)
    assert [] == ours


@pytest.mark.parametrize("name", [p for p in EACH if p.values[0] not in UNSEEN])
def test_no_page_turns_its_texts_round(name):
    """A name that writes from right to left makes another grade of the one beside it."""
    make = PAGES[name]
    with unfiltered():
        weak = make(f"Ann{DRIVING}" if "name" not in name else "Ann\u202e")

    ours = make(f"Ann{DRIVING}" if "name" not in name else "Ann\u202e")

    assert "\u202e" in drives(weak)
    assert [] == drives(ours)
    assert "Ann" in ours


@pytest.mark.parametrize("name", EACH)
def test_every_page_but_the_served_ones_carries_its_own_policy(name):
    """What escaping would miss once must not run either; the dashboard's policy is in its headers, and leading pages run nothing."""
    head = PAGES[name]("x").partition("</head>")[0]

    is_served = name in ("gone", "dashboard", "leading to the dashboard", "leading to JupyterLab")
    found = re.findall(r'Content-Security-Policy" content="([^"]+)"', head)
    assert (0 if is_served else 1) == len(found)
    assert [] == [p for p in found if not p.startswith(("default-src 'none'", "default-src &#39;none"))]  # fmt: skip
    assert [] == [p for p in found if "unsafe" in p]


def test_the_page_of_a_gone_instance_carries_its_policy_in_its_head():
    """The reason is AWS's, or the instance's own."""
    heads = [
        gone_page(Gone(SCRIPT, is_final)).decode().partition("\r\n\r\n")[0]
        for is_final in (True, False)
    ]

    assert [True, True] == ["default-src 'none'" in head for head in heads]
    assert [[], []] == [Live(head).found for head in heads]


@needs_plots
def test_a_labs_name_in_a_plot_is_a_text_and_writes_no_rule_of_the_page(monkeypatch):
    """Plots go into the page as they are, and their styles into its own: a lab called like one would hide whom it likes."""
    from matplotlib.backends import backend_svg

    from gpulab.view import report_plots

    hostile = report("s1", "<img src=x onerror=a()>", 'style="}*{display:none"')
    ours = report_plots.plots_of(hostile)
    monkeypatch.setattr(backend_svg, "_escape_cdata", lambda text: text)
    monkeypatch.setattr(report_plots, "_TAG", re.compile(r".*", re.DOTALL))

    weak = report_plots.plots_of(hostile)

    assert {"img", "onerror"} <= set(Live(_drawn(weak)).found)
    assert "}*{display:none}" in weak.css
    assert set(Live(_drawn(ours)).found) <= {"svg"} | _own_links(ours)
    assert "display:none" not in ours.css
    assert 'style="}*{display:none"</text>' in _drawn(ours)


def _drawn(plots):
    return "".join(plot.svg for plot in plots.plots)


def _own_links(plots):
    """Parts of a plot that are used again."""
    return set(re.findall(r'xlink:href="(#[^"]+)"', _drawn(plots)))
