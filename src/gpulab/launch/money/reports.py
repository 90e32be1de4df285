"""Gathering what a report is made of: ledgers, roster, course and statements, from files. Decides nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from gpulab.course.roster import read_roster
from gpulab.errors import WrongUsage
from gpulab.model.course import Course, Problem, Student
from gpulab.model.fact import Fact, FactKind, statement_read
from gpulab.model.statement import Statement
from gpulab.store.config import Profile
from gpulab.store.fact_lines import import_lines
from gpulab.store.ledger import Ledger

if TYPE_CHECKING:
    from gpulab.reporting.cells import Catalogue
    from gpulab.reporting.report import Question

_OWNED = (FactKind.INTENT, FactKind.LAUNCHED, FactKind.VOLUME)


def read_ledgers(paths: Sequence[Path]) -> tuple[Fact, ...]:
    """
    Read the facts of many ledgers, each fact once; a folder stands for the ledgers and exports in it.

    In a ledger of one's own account nobody is named; among several its facts take the name of their file as owner.

    Raises:
        WrongUsage: A file is missing or not a ledger, or a folder holds none.
    """
    paths = [file for path in paths for file in _files(path)]
    if len(paths) == 1:
        return _read_ledger(paths[0])
    owned = (_owned(fact, path.stem) for path in paths for fact in _read_ledger(path))
    return tuple({fact.digest: fact for fact in owned}.values())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".sqlite"))
    if not found:
        raise WrongUsage(f"{path} holds no ledger", hint="Such as anna.jsonl or anna.sqlite")
    return found


def _read_ledger(path: Path) -> tuple[Fact, ...]:
    if _content(path, first=16) == b"SQLite format 3\0":
        return Ledger(path).facts()
    try:
        return import_lines(_content(path))
    except WrongUsage as error:
        raise WrongUsage(f"{path}: {error.message}", hint=error.hint) from error


def _owned(fact: Fact, name: str) -> Fact:
    if fact.kind not in _OWNED or fact.details.get("owner"):
        return fact
    return replace(fact, details={**fact.details, "owner": name})


def note_statements(
    ledger: Ledger, statements: Iterable[Statement], *, at: datetime
) -> tuple[Fact, ...]:
    """
    Write down that statements were read, each once however often it is read.

    Returns:
        What the ledger says of them: when each was read first.

    Raises:
        StoreError: The ledger cannot be written.
    """
    facts = {one.digest: statement_read(one, at=at) for one in statements}
    if not facts:
        return ()
    ledger.append_unheard(facts.values())
    return tuple(one for one in ledger.facts(FactKind.STATEMENT) if one.subject in facts)


def read_students(path: Path, *, key: bytes) -> tuple[Student, ...]:
    """
    Read a roster.

    Raises:
        WrongUsage: The roster has bad rows; the first is named.
    """
    roster = read_roster(_content(path), file=str(path), secret=key)
    refuse_first(roster.problems)
    return roster.students


def named_as(students: Iterable[Student], *, owners: Container[str]) -> tuple[Student, ...]:
    """Where the ledgers name students by their ids, so does the report."""
    return tuple(
        replace(student, owner=student.id) if student.id in owners else student
        for student in students
    )


def question_of(
    course: Course | None, *, now: datetime, own_budget_usd: Decimal | None = None
) -> Question:
    """Return what a course's files ask of a report: its time zone, its budget and its last day; without one, UTC and one's own budget."""
    from gpulab.reporting.report import Question
    from gpulab.reporting.standing import Budget

    return Question(
        now=now,
        zone=ZoneInfo(course.timezone if course else "UTC"),
        budget=Budget(course.budget_usd, deadline_of(course)) if course else Budget(own_budget_usd),
        catalogue=shipped_catalogue(),
    )


def own_budget(profile: Profile, facts: Iterable[Fact]) -> Decimal | None:
    """Return what a profile may spend, for the report on its own ledger; `None` where instances of several owners are in it."""
    owners = {one.details.get("owner", "") for one in facts if one.kind is FactKind.LAUNCHED}
    return profile.budget_usd if len(owners) <= 1 else None


def deadline_of(course: Course) -> datetime:
    """Return the end of the last day, in the course's own time zone."""
    return datetime.combine(
        course.last_day, time(23, 59, 59), ZoneInfo(course.timezone)
    ).astimezone(UTC)


def shipped_catalogue() -> Catalogue:
    """Return the types' GPUs and on-demand prices as shipped, for launches that did not write them down."""
    from gpulab.planning.catalogue import instance_types, on_demand_prices
    from gpulab.reporting.cells import Catalogue

    return Catalogue(
        gpus={kind.name: kind.gpus for kind in instance_types()},
        on_demand_usd_per_hour={
            key: listed.usd_per_hour for key, listed in on_demand_prices().items()
        },
    )


def refuse_first(problems: Sequence[Problem]) -> None:
    """
    Refuse files with problems.

    Raises:
        WrongUsage: There is at least one; the first is named.
    """
    if problems:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise WrongUsage(f"{first.file}, line {first.line}: {first.text}{more}", hint=first.hint)


def _content(path: Path, *, first: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(first)
    except OSError as error:
        raise WrongUsage(f"could not read {path}: {error.strerror}") from error
