"""Facts as lines of JSON: export, import, and what the instance's agent leaves beside the kept work. Refuses half a fact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.model.fact import Fact, FactKind, Source

_KINDS = {kind.value: kind for kind in FactKind}
_SOURCES = {source.value: source for source in Source}
_YEARS = range(1970, 2101)
_KEYS = {"kind", "subject", "at", "source", "details"}


def details_text(fact: Fact) -> str:
    """Write a fact's details, always the same for the same details."""
    return json.dumps(dict(fact.details), sort_keys=True, separators=(",", ":"))


def facts_of(rows: Sequence[tuple[str, str, str, str, str]]) -> tuple[Fact, ...]:
    """
    Read stored rows (kind, subject, moment, source, details).

    Raises:
        ValueError: A row is no fact; we only ever write them from facts.
    """
    try:
        # One parse for all of them: a term has a hundred thousand.
        details = json.loads(f"[{','.join(row[4] for row in rows)}]")
        _check_all(details)
        facts = tuple(
            Fact(_KINDS[kind], subject, datetime.fromisoformat(at), said, _SOURCES[source])
            for (kind, subject, at, source, _), said in zip(rows, details, strict=True)
        )
        for year in {fact.at.year for fact in facts}:
            _check_year(year)
        return facts
    except (KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def wrong_row(rows: Sequence[tuple[str, str, str, str, str]]) -> str:
    """Name the first of some stored rows that is no fact, by what a person can look for; `""` where each is one."""
    for number, row in enumerate(rows, 1):
        try:
            facts_of([row])
        except ValueError:
            kind, subject, at, _, _ = (str(cell)[:40] for cell in row)
            return f"the {number:,}. of {len(rows):,}, `{kind}` of `{subject}` at `{at}`"
    return ""


def export_lines(facts: Iterable[Fact]) -> Iterator[str]:
    """Yield one line of JSON for each fact."""
    return (fact.line() for fact in facts)


def import_lines(content: bytes) -> tuple[Fact, ...]:
    """
    Read lines of JSON; empty lines are skipped.

    Raises:
        WrongUsage: A line is not a fact; the message names its number. Nothing is kept then.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"the file is not UTF-8 at byte {error.start}") from error
    return tuple(_fact(line, number) for number, line in enumerate(lines, 1) if line.strip())


def _fact(line: str, number: int) -> Fact:
    try:
        parts = json.loads(line)
        if not isinstance(parts, dict) or parts.keys() != _KEYS:
            raise ValueError(f"needs exactly {', '.join(sorted(_KEYS))}")
        return Fact(
            FactKind(parts["kind"]),
            _text(parts["subject"]),
            _moment(parts["at"]),
            _details(parts["details"]),
            Source(parts["source"]),
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WrongUsage(
            f"line {number} is not a fact: {error}",
            hint="Lines come from `gpulab ledger export`; nothing was imported",
        ) from error


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError("naive_timestamp: `at` has no offset")
    _check_year(moment.year)
    return moment


def _check_year(year: int) -> None:
    # A report of two thousand years takes minutes, and nobody rented an instance in the year 1.
    if year not in _YEARS:
        raise ValueError(f"`at` is in the year {year}")


def _check_all(details: Sequence[Any]) -> None:
    """Check all at once what `_details` checks one by one, which takes as long as reading them."""
    if not {*map(type, details)} <= {dict}:
        raise ValueError("`details` is not an object")
    if not {*map(type, chain.from_iterable(map(dict.values, details)))} <= {str}:
        raise ValueError("`details` holds something else than texts")


def _details(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("`details` is not an object")
    return {_text(key): _text(text) for key, text in value.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{value}` is not a text")
    value.encode()  # half a surrogate pair is text to JSON, and to nothing else
    return value
