"""
A handed-in notebook as a page to read and grade. Whatever is in the notebook, nothing of it runs: every text is escaped, pictures are
data, and the page's own policy forbids scripts, frames, forms and every request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpulab.course.notebook import Cell, CellKind, Notebook, Output
from gpulab.view.words import clean

_CSS = """\
body{font:11pt/1.5 sans-serif;margin:0 auto;max-width:60em;padding:1em;color:#111;background:#fff}
p{white-space:pre-wrap;overflow-wrap:anywhere;margin:.5em 0}
pre{font:10pt/1.4 monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.3em 0;padding:.5em}
section{display:flex}section pre{flex:1;min-width:0}
.n{font:9pt/2.4 monospace;color:#666;min-width:3.5em}
.code{background:#f4f4f4;border-left:3px solid #4a7ebb}
.raw{background:#fafafa}
.out,.error{margin-left:3.5em;max-height:40em;overflow:auto}
.error{background:#fdecea}
.left{margin-left:3.5em;color:#666;font-size:9pt}
img{display:block;margin:.3em 0 .3em 3.5em;max-width:90%}
h1{font-size:15pt;border-bottom:1px solid #ccc}.h1{font-size:16pt}.h2{font-size:14pt}.h3{font-size:12pt}
"""
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t#]*")


@dataclass(frozen=True)
class _Part:
    """A piece of Markdown: a heading of a level, a block of code, or a paragraph as it was written."""

    text: str
    level: int = 0
    is_code: bool = False


def notebook_html(notebook: Notebook, *, title: str) -> str:
    """Write one page that needs nothing else. Markdown's headings and blocks of code are drawn, the rest of it stands as written."""
    digest = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
    page: str = _template().render(
        title=clean(title),
        css=_CSS,
        style_hash=f"sha256-{digest}",
        cells=[_shown(cell) for cell in notebook.cells],
    )
    return page


@cache
def _template() -> Any:
    """Compile the template once for a whole class."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("gpulab", "view"), autoescape=True)
    return environment.get_template("notebook.html.jinja")


def _shown(cell: Cell) -> dict[str, Any]:
    return {
        "kind": cell.kind.value,
        "number": cell.number,
        "source": clean(cell.source),
        "parts": list(_parts(clean(cell.source))) if cell.kind is CellKind.MARKDOWN else [],
        "outputs": [_output(output) for output in cell.outputs],
    }


def _output(output: Output) -> dict[str, Any]:
    picture = output.picture
    data = base64.b64encode(picture.content).decode() if picture else ""
    return {
        "text": clean(output.text),
        "picture": f"data:{picture.mime};base64,{data}" if picture else "",
        "is_error": output.is_error,
        "left_out": clean(", ".join(output.left_out)),
    }


def _parts(markdown: str) -> Iterator[_Part]:
    lines: list[str] = []
    fence = ""
    for line in markdown.split("\n"):
        mark = line.strip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            yield from _flushed(lines, is_code=bool(fence))
            fence, lines = ("" if fence else mark), []
        elif not fence and (heading := _HEADING.fullmatch(line)):
            yield from _flushed(lines, is_code=False)
            lines = []
            yield _Part(heading[2], level=min(3, len(heading[1])))
        elif not fence and not line.strip():
            yield from _flushed(lines, is_code=False)
            lines = []
        else:
            lines.append(line)
    yield from _flushed(lines, is_code=bool(fence))


def _flushed(lines: list[str], *, is_code: bool) -> Iterator[_Part]:
    if lines:
        yield _Part("\n".join(lines), is_code=is_code)
