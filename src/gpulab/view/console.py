"""Where words go: data to stdout, everything else to stderr, plain when piped. Refuses control characters from outside."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, TextIO

from gpulab.errors import GpulabError, WrongUsage
from gpulab.view.words import clean, in_line, seconds

# Longer than this without a word reads as a hang.
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Console:
    """
    The two streams and what they can show.

    Attributes:
        out: stdout; data only.
        err: stderr; progress, prompts and errors.
        is_live: Whether a person watches stderr, so that lines may be redrawn.
        has_colour: False under `NO_COLOR` or when piped.
        monotonic: Seconds that only grow, for steps.
        ask: Reads one line a person types, `""` at the end of input; `None` where nobody can be asked.
        ticking: Calls a function every second until the function it returns is called; `None` to let steps stand still.
        columns: Width of the terminal; `None` for no limit.
        is_watched: Whether a person watches stdout too, so that a whole screen may be redrawn.
    """

    out: TextIO
    err: TextIO
    is_live: bool
    has_colour: bool
    monotonic: Callable[[], float]
    ask: Callable[[], str] | None = None
    ticking: Callable[[Callable[[], None]], Callable[[], None]] | None = None
    columns: Callable[[], int] | None = None
    is_watched: bool = False

    def say(self, text: str = "") -> None:
        """Write a line for people to stderr."""
        self.err.write(clean(text) + "\n")
        self.err.flush()

    def show(self, text: str) -> None:
        """Write lines of data to stdout."""
        self.out.write(clean(text) + "\n")
        self.out.flush()

    def show_json(self, value: Any) -> None:
        """Write one JSON document to stdout."""
        self.out.write(json.dumps(value, default=plain, indent=1, ensure_ascii=True) + "\n")
        self.out.flush()

    def show_csv(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Write rows as CSV whose texts no spreadsheet takes for a formula."""
        writer = csv.writer(self.out, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([csv_cell(row.get(column)) for column in columns])
        self.out.flush()

    def show_table(
        self, rows: Sequence[Sequence[str]], headings: Sequence[str], *, right: Iterable[int] = ()
    ) -> None:
        """Write aligned columns to stdout; `right` names the columns of numbers."""
        self.show(table(rows, headings, right=right))

    def width(self) -> int | None:
        """How many columns a person who reads stdout has; `None` where it goes elsewhere, so that nothing is left out."""
        return self.columns() if self.is_watched and self.columns else None

    def confirm(self, question: str, *, hint: str = "Add `--yes` to agree beforehand") -> bool:
        """
        Ask for a yes; anything else is a no.

        Args:
            hint: What to do where nobody can be asked.

        Raises:
            WrongUsage: Nobody can be asked, so `--yes` has to be said.
        """
        if self.ask is None:
            raise WrongUsage(
                f"nobody is there to answer: {question}",
                hint=hint,
            )
        self.err.write(f"{clean(question)} [y/N] ")
        self.err.flush()
        return self.ask().strip().lower() in ("y", "yes", "j", "ja")

    def redraw(self, text: str, *, is_first: bool) -> None:
        """Replace the screen of a person who watches, line over line so that nothing flickers; piped, write the text."""
        if not self.is_watched:
            self.show(text)
            return
        lines = "".join(f"{line}\x1b[K\n" for line in clean(text).split("\n"))
        self.out.write(("\x1b[2J" if is_first else "") + f"\x1b[H{lines}\x1b[J")
        self.out.flush()

    def say_error(self, error: GpulabError) -> None:
        """Write `error: ...`, a blank line and `hint: ...` to stderr."""
        self.err.write(f"{self._marked('error:', '1;31')} {in_line(error.message)}\n")
        if error.hint:
            self.err.write(f"\n{self._marked('hint:', '1')} {in_line(error.hint)}\n")
        self.err.flush()

    def _marked(self, word: str, colour: str) -> str:
        return f"\x1b[{colour}m{word}\x1b[0m" if self.has_colour else word

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """
        Show one step and, at its end, how many seconds it took.

        On a terminal the line is redrawn; in a file each step is one line, written when it ends, after one for each minute it took.
        """
        step = Step(self, text, self.monotonic())
        step.draw()
        try:
            yield step
        except BaseException:
            step.end("failed")
            raise
        step.end("done")

    @contextmanager
    def patience(self, text: str) -> Iterator[None]:
        """Show a step once it takes longer than two seconds; one that does not is never seen."""
        step = Step(self, text, self.monotonic(), hidden_s=_PATIENCE_S)
        step.draw()
        try:
            yield
        except BaseException:
            step.end("failed")
            raise
        step.end("done")


class Step:
    """
    One line of progress, whose seconds run on while a person watches; in a file a line each minute says that it goes on.

    Args:
        hidden_s: It is not shown before it has taken so long.
    """

    def __init__(self, console: Console, text: str, began: float, *, hidden_s: float = 0.0) -> None:
        self._console = console
        self._hidden_s = hidden_s
        self._text = text
        self._began = began
        self._detail = ""
        self._is_drawn = False
        self._told_minutes = 0
        self._lock = threading.Lock()
        self._stop = console.ticking(self._tick) if console.ticking else _nothing

    def detail(self, text: str) -> None:
        """Replace what is said behind the step's name, such as a zone or a count."""
        if text != self._detail:
            self._detail = text
            self.draw()

    def draw(self) -> None:
        """Redraw the line; only on a terminal."""
        with self._lock:
            self._is_drawn = self._console.is_live
            self._write()

    def erase(self) -> None:
        """Take the line back, unfinished, until it is drawn again."""
        with self._lock:
            self._is_drawn = False
            if self._console.is_live:
                self._console.err.write("\r\x1b[2K")
                self._console.err.flush()

    def drop(self) -> None:
        """Take the line back for good; another line tells its end."""
        self._stop()
        self.erase()

    def end(self, how: str) -> None:
        """Write the final line."""
        took = self._console.monotonic() - self._began
        if took < self._hidden_s:
            self._stop()
            return
        self.drop()
        self._console.say(f"  {self._line()}: {how}, {seconds(took)}")

    def _tick(self) -> None:
        with self._lock:
            self._write() if self._console.is_live else self._tell_minutes()

    def _tell_minutes(self) -> None:
        """Whoever reads a log takes minutes without a line for a hang: AWS needs four for an image."""
        minutes = int(self._console.monotonic() - self._began) // 60
        if minutes > self._told_minutes:
            self._told_minutes = minutes
            self._console.say(f"  {self._line()}: still under way, {minutes} min")

    def _write(self) -> None:
        """Write the line over itself, cut where it would wrap: a wrapped line cannot be taken back."""
        if not self._is_drawn:
            return
        took_s = self._console.monotonic() - self._began
        if took_s < self._hidden_s:
            return
        took = seconds(took_s)
        width = self._console.columns() - 1 if self._console.columns else 10_000
        line = f"  {self._line()}"[: max(10, width - len(took) - 5)]
        self._console.err.write(f"\r\x1b[2K{line} ... {took}")
        self._console.err.flush()

    def _line(self) -> str:
        return in_line(f"{self._text} {self._detail}".rstrip())


def _nothing() -> None:
    """Stop what never began."""


def table(
    rows: Sequence[Sequence[str]], headings: Sequence[str], *, right: Iterable[int] = ()
) -> str:
    """Align columns, two blanks between them; no trailing blanks."""
    to_right = set(right)
    lines = [[in_line(cell) for cell in line] for line in (headings, *rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n in to_right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plain(value: Any) -> Any:
    """Turn a value of ours into what JSON can say: decimals and moments as text, frozen values as objects."""
    if isinstance(value, Decimal):
        return format(_rounded(value), "f")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return str(value)


def _rounded(amount: Decimal) -> Decimal:
    """Cut the endless digits of a division; ten decimals are what `gpulab cost` speaks too."""
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -10:
        return amount.quantize(Decimal("1e-10"))
    return amount


def csv_cell(value: Any) -> str:
    """
    Write one cell; a text that a spreadsheet would take for a formula gets a leading quote.

    Source:
        CWE-1236, https://cwe.mitre.org/data/definitions/1236.html
    """
    if value is None:
        return ""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return format(_rounded(value), "f") if isinstance(value, Decimal) else str(value)
    raw = value if isinstance(value, str) else str(plain(value))
    is_formula = raw.strip()[:1] in _FORMULA or raw[:1] in ("\t", "\r")
    text = in_line(raw)
    return f"'{text}" if raw and is_formula else text


# What spreadsheets read as the start of a formula, and the full-width forms some fold into them.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
