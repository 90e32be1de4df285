"""
A handed-in notebook, read as what a grader needs to see: cells, texts, pictures. Pure.

Refuses what is no notebook. Takes nothing that a browser could run: of an output it keeps plain text and PNG or JPEG pictures, whose
bytes are what they claim; HTML, JavaScript, SVG and widgets are left out, as everything that has them has a plain text too.

Source:
    https://nbformat.readthedocs.io/en/latest/format_description.html (November 2026)
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpulab.errors import WrongUsage

_LONGEST_TEXT = 100_000
_LARGEST_PICTURE = 8 << 20
_PICTURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
# Colours of a terminal, as IPython writes them into tracebacks.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class CellKind(StrEnum):
    """What a cell is."""

    MARKDOWN = "markdown"
    CODE = "code"
    RAW = "raw"


@dataclass(frozen=True)
class Picture:
    """A picture; `mime` is `image/png` or `image/jpeg`, and the bytes begin as one does."""

    mime: str
    content: bytes


@dataclass(frozen=True)
class Output:
    """
    What a cell printed or drew.

    Attributes:
        text: Plain, without colours; cut where it is very long; `""` for a picture.
        is_error: Whether it went to stderr or is a traceback.
        left_out: What was there and is not shown, by MIME type; for people who wonder.
    """

    text: str = ""
    picture: Picture | None = None
    is_error: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """
    One cell.

    Attributes:
        number: Its execution count; `None` when it was never run, or is no code.
        outputs: Of code; the attached pictures of Markdown.
    """

    kind: CellKind
    source: str
    number: int | None
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Notebook:
    """A notebook; `language` is its kernel's, `python` where it says nothing."""

    language: str
    cells: tuple[Cell, ...]


def read_notebook(raw: bytes) -> Notebook:
    """
    Read a notebook of format 4.

    Raises:
        WrongUsage: It is none; the message completes "NAME is no notebook: ...".
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise WrongUsage("it is not JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        raise WrongUsage("it has no cells", hint=_OLD)
    metadata = _table(found.get("metadata"))
    language = _table(metadata.get("kernelspec")).get("language")
    language = language or _table(metadata.get("language_info")).get("name")
    cells = tuple(_cell(cell) for cell in found["cells"] if isinstance(cell, dict))
    return Notebook(str(language or "python")[:40], cells)


_OLD = "A notebook of format 3 or older: open it in JupyterLab and save it"


def _cell(cell: Mapping[str, Any]) -> Cell:
    kind = cell.get("cell_type")
    known = CellKind(kind) if kind in list(CellKind) else CellKind.RAW
    number = cell.get("execution_count")
    if known is CellKind.MARKDOWN:
        outputs = tuple(_attached(cell))
    else:
        said = cell.get("outputs")
        rows = said if isinstance(said, list) and known is CellKind.CODE else []
        outputs = tuple(_output(row) for row in rows if isinstance(row, dict))
    is_number = isinstance(number, int) and not isinstance(number, bool)
    return Cell(known, _text(cell.get("source")), number if is_number else None, outputs)


def _attached(cell: Mapping[str, Any]) -> Iterator[Output]:
    for bundle in _table(cell.get("attachments")).values():
        picture = _picture(_table(bundle))
        if picture is not None:
            yield Output(picture=picture)


def _output(row: Mapping[str, Any]) -> Output:
    if row.get("output_type") == "error":
        trace = row.get("traceback")
        lines = trace if isinstance(trace, list) else []
        text = "\n".join(_text(line) for line in lines)
        return Output(
            _cut(text or f"{_text(row.get('ename'))}: {_text(row.get('evalue'))}"), is_error=True
        )
    if row.get("output_type") == "stream":
        return Output(_cut(_text(row.get("text"))), is_error=row.get("name") == "stderr")
    bundle = _table(row.get("data"))
    picture = _picture(bundle)
    text = "" if picture else _cut(_text(bundle.get("text/plain")))
    shown = {"text/plain", picture.mime if picture else ""}
    others = (
        () if picture else tuple(sorted(str(mime)[:80] for mime in bundle if mime not in shown))
    )
    return Output(text, picture, left_out=others)


def _picture(bundle: Mapping[str, Any]) -> Picture | None:
    for mime, begins in _PICTURES.items():
        try:
            content = base64.b64decode(_text(bundle.get(mime)), validate=False)
        except (binascii.Error, ValueError):
            continue
        if content.startswith(begins) and len(content) <= _LARGEST_PICTURE:
            return Picture(mime, content)
    return None


def _text(value: Any) -> str:
    """Read nbformat's multi-line text: one text, or a list of its lines."""
    if isinstance(value, list):
        value = "".join(line for line in value if isinstance(line, str))
    return _COLOUR.sub("", value) if isinstance(value, str) else ""


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}\n... ({len(text) - _LONGEST_TEXT:,} more characters)"


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
