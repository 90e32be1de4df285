"""A handed-in notebook: what a grader sees of it, and that nothing of it can run."""

from __future__ import annotations

import base64
import html.parser
import json

import pytest

from gpulab.course.notebook import CellKind, read_notebook
from gpulab.errors import WrongUsage
from gpulab.store.hand_in import HandIn, export
from gpulab.view.notebook import notebook_html

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def a_notebook(*cells, **more):
    return json.dumps({"cells": list(cells), "nbformat": 4, "metadata": {}, **more}).encode()


def code(source, *outputs, number=1):
    return {"cell_type": "code", "source": source, "outputs": outputs, "execution_count": number}


def data(**bundle):
    mimes = {
        key.replace("_", "/").replace("svg", "svg+xml"): value for key, value in bundle.items()
    }
    return {"output_type": "display_data", "data": mimes}


def page(*cells):
    return notebook_html(read_notebook(a_notebook(*cells)), title="s1/week4.ipynb")


class Tags(html.parser.HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.texts.append(text)


def test_cells_texts_and_pictures_are_shown_in_order():
    """What a peer needs to grade: the question, the code, what it printed and drew."""
    text = page(
        {
            "cell_type": "markdown",
            "source": ["# Week 4\n", "\n", "We train a net.\n", "```\n", "x\n", "```"],
        },
        code("print(1)", {"output_type": "stream", "name": "stdout", "text": ["1\n"]}, number=7),
        code("plot()", data(image_png=base64.b64encode(PNG).decode(), text_plain="<Figure>")),
    )

    seen = Tags(text)
    shown = [t.strip() for t in seen.texts if t.strip()]
    assert ["Week 4", "We train a net.", "x", "[7]", "print(1)", "1", "[1]", "plot()"] == shown[3:]
    assert [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"] == [
        a["src"] for t, a in seen.tags if t == "img"
    ]


HOSTILE = [
    code(EVIL),
    code("1", {"output_type": "stream", "name": "stdout", "text": EVIL}),
    code("1", {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL]}),
    code("1", data(text_html=EVIL, text_plain=EVIL)),
    code("1", {"output_type": "display_data", "data": {"application/javascript": "alert(1)"}}),
    code("1", {"output_type": "display_data", "data": {"image/svg+xml": "<svg onload=alert(1)>"}}),
    code("1", data(image_png=base64.b64encode(EVIL.encode()).decode())),
    code("1", {"output_type": "display_data", "data": {EVIL: "x"}}),
    {"cell_type": "markdown", "source": f"# {EVIL}\n[x](javascript:alert(1))\n{EVIL}"},
    {"cell_type": "markdown", "source": "x", "attachments": {EVIL: {"image/png": EVIL}}},
    {"cell_type": EVIL, "source": EVIL},
]


@pytest.mark.parametrize("cell", HOSTILE, ids=lambda c: str(c)[:40])
def test_nothing_of_a_hostile_notebook_becomes_an_element(cell):
    """300 pages are opened by 300 peers who are logged in everywhere."""
    plain = {
        tag for tag, _ in Tags(page(code("1"), {"cell_type": "markdown", "source": "# x\ny"})).tags
    }

    seen = Tags(page(cell))

    assert set() == {tag for tag, _ in seen.tags} - plain - {"img"}
    allowed = {"class", "lang", "charset", "http-equiv", "content", "name", "alt"}
    assert set() == {name for tag, a in seen.tags for name in a} - allowed


def test_the_page_forbids_whatever_could_run_or_call_home():
    """The second wall, should the first one have a hole."""
    policy = next(
        a["content"]
        for t, a in Tags(page()).tags
        if a.get("http-equiv") == "Content-Security-Policy"
    )

    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert policy.endswith("; form-action 'none'; base-uri 'none'")


def test_what_is_not_shown_is_named():
    """A grader must not think that a student handed in nothing."""
    text = page(code("df", data(text_html="<table>")))

    assert "not shown: text/html" in text


def test_colours_of_a_traceback_are_taken_off():
    """IPython writes them for terminals."""
    trace = ["\x1b[0;31mValueError\x1b[0m: no"]
    found = read_notebook(a_notebook(code("x", {"output_type": "error", "traceback": trace})))

    assert ("ValueError: no", True) == (
        found.cells[0].outputs[0].text,
        found.cells[0].outputs[0].is_error,
    )


def test_an_endless_output_is_cut_and_says_so():
    """A loop that printed all night must not fill the grader's browser."""
    long = {"output_type": "stream", "name": "stdout", "text": "x" * 300_000}

    found = read_notebook(a_notebook(code("x", long))).cells[0].outputs[0].text

    assert found.endswith("\n... (200,000 more characters)")
    assert 101_000 > len(found)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x00", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "it has no cells"),
        (json.dumps({"worksheets": [{"cells": []}], "nbformat": 3}).encode(), "it has no cells"),
    ],
)
def test_what_is_no_notebook_says_so(raw, said):
    """One file that somebody renamed must not stop the other 299."""
    with pytest.raises(WrongUsage, match=said):
        read_notebook(raw)


@pytest.mark.parametrize("value", [None, 1, [1], {}, True, "x"])
def test_any_wrong_value_anywhere_is_survived(value):
    """Notebooks are written by many programs, and by hand."""
    cells = [{name: value} for name in ("cell_type", "source", "outputs", "attachments")]
    cells += [{**code("x"), name: value} for name in ("source", "outputs", "execution_count")]
    cells += [code("x", {"output_type": value, "text": value, "data": value, "traceback": value})]

    found = read_notebook(a_notebook(*cells, metadata=value))

    assert len(cells) == len(found.cells)
    assert {CellKind.RAW, CellKind.CODE} == {cell.kind for cell in found.cells}
    assert notebook_html(found, title="x").startswith("<!doctype html>")


def test_a_hand_in_is_the_students_own_file_with_a_page_beside_it(tmp_path):
    """The notebook counts, the page is for reading; checkpoints and links are nobody's hand-in."""
    work = tmp_path / "collected" / "s1"
    (work / "labs" / ".ipynb_checkpoints").mkdir(parents=True)
    (work / "labs" / "a.ipynb").write_bytes(a_notebook(code("1")))
    (work / "broken.ipynb").write_bytes(b"{")
    (work / "labs" / ".ipynb_checkpoints" / "a.ipynb").write_bytes(b"{}")
    (work / "link.ipynb").symlink_to("/etc/passwd")
    into = tmp_path / "grade"

    found = list(export(work, into, "s1", render=lambda raw, title: page_of(raw, title)))

    assert [
        HandIn("s1/broken.ipynb", "it is not JSON"),
        HandIn("s1/labs/a.ipynb"),
    ] == found
    files = sorted(p.relative_to(into).as_posix() for p in into.rglob("*") if p.is_file())
    assert ["s1/broken.ipynb", "s1/labs/a.ipynb", "s1/labs/a.ipynb.html"] == files
    assert a_notebook(code("1")) == (into / "s1/labs/a.ipynb").read_bytes()


def test_writing_a_hand_in_again_touches_nothing(tmp_path):
    """Collected every ten minutes until the deadline; the graders' tools look at the time of a file."""
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "a.ipynb").write_bytes(a_notebook(code("1")))
    list(export(tmp_path / "s1", tmp_path / "out", "s1", render=page_of))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}

    list(export(tmp_path / "s1", tmp_path / "out", "s1", render=page_of))

    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}


def page_of(raw, title):
    return notebook_html(read_notebook(raw), title=title)
