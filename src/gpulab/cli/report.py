"""`gpulab report`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

import click

from gpulab.cli.options import Amount, listing_options
from gpulab.errors import ProblemsFound, StoreError, WrongUsage, extra_hint
from gpulab.model.report import Dimension
from gpulab.model.timeline import PriceRule

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.course import Course, Student
    from gpulab.model.fact import Fact
    from gpulab.model.report import Report
    from gpulab.model.statement import Statement
    from gpulab.reporting.report import Question
    from gpulab.store.courses import Classroom

Made = TypeVar("Made")
_FILE = click.Path(path_type=Path)


@click.command(name="report")
@click.option(
    "--by",
    "dimension",
    type=click.Choice([d.value for d in Dimension]),
    default=Dimension.WEEK.value,
    show_default=True,
    help="What the table has a row for.",
)
@click.option(
    "--ledger",
    "ledgers",
    type=_FILE,
    multiple=True,
    metavar="PATH",
    help="A ledger, its export or a folder of them; repeatable.  [default: the class's in a course's folder, else your own]",
)
@click.option(
    "--course",
    type=_FILE,
    metavar="FOLDER",
    help="Folder of course.toml and roster.csv.  [default: without --ledger, $GPULAB_COURSE, else the current folder or one above]",
)
@click.option(
    "--roster",
    type=_FILE,
    metavar="FILE",
    help="roster.csv: who takes the course.  [default: the course's]",
)
@click.option(
    "--key",
    type=_FILE,
    metavar="FILE",
    help="The key the opaque ids were made with.  [default: the course's, as this computer has it]",
)
@click.option(
    "--statement",
    "statements",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A billing export of AWS (CUR, FOCUS) or a spot data feed; repeatable.",
)
@click.option(
    "--since", metavar="DATE", help="First day, such as 2026-10-01.  [default: the first charge]"
)
@click.option("--until", metavar="DATE", help="Day after the last one.  [default: now]")
@click.option(
    "--budget",
    type=Amount(),
    metavar="USD",
    help="For each student.  [default: the course's; of your own ledger your own]",
)
@click.option(
    "--timezone",
    metavar="ZONE",
    help="Of days and weeks, such as Europe/Copenhagen.  [default: the course's, else UTC]",
)
@click.option(
    "--price-rule",
    type=click.Choice([rule.value for rule in PriceRule]),
    default=PriceRule.HOUR_START.value,
    show_default=True,
    help="How a spot price that moves is read.",
)
@click.option("--names", is_flag=True, help="Show students' names instead of opaque ids only.")
@click.option(
    "--html", type=_FILE, metavar="FILE", help="Write one self-contained page with plots."
)
@click.option("--xlsx", type=_FILE, metavar="FILE", help="Write a workbook.")
@click.option(
    "--limit", default=30, show_default=True, type=click.IntRange(1), help="Rows to show."
)
@click.option("--check", is_flag=True, help="Exit with 5 when anything does not add up.")
@listing_options
@click.pass_obj
def command(
    context: Context,
    /,
    dimension: str,
    html: Path | None,
    xlsx: Path | None,
    limit: int,
    check: bool,
    as_json: bool,
    as_csv: bool,
    **asked: Any,
) -> None:
    """
    Report what was used and spent.

    By student, group, lab, week, instance type or market; what does not add up is listed with its cause. In a course's folder it is about
    the whole class: roster, budget, key and the ledgers of all its accounts are found there.

    \b
    Example:
      gpulab report
      gpulab report --by student --names
      gpulab report --by student --roster roster.csv --ledger exports/
      gpulab report --statement cur.parquet --html report.html
    """
    # Hundreds of thousands of small values that all live to the end: looking for garbage among them is a third of the time.
    gc.disable()
    click.get_current_context().call_on_close(gc.enable)
    report, title = _report(context, _Asked(**asked), has_bill_days=as_json or xlsx is not None)
    _show(context, report, dimension, as_json=as_json, as_csv=as_csv, limit=limit)
    _write(context, report, html=html, xlsx=xlsx, title=title)
    if check:
        _refuse_problems(report)


@dataclass(frozen=True)
class _Asked:
    """The options that say what is reported; the others say how it is shown."""

    ledgers: tuple[Path, ...]
    course: Path | None
    roster: Path | None
    key: Path | None
    statements: tuple[Path, ...]
    since: str | None
    until: str | None
    budget: Decimal | None
    timezone: str | None
    price_rule: str
    names: bool


def _report(context: Context, asked: _Asked, *, has_bill_days: bool) -> tuple[Report, str]:
    """Read everything that was named and make the report, and its title."""
    from gpulab.launch.money import reports
    from gpulab.reporting.report import report_of
    from gpulab.spending.facts import timeline_of
    from gpulab.store.deliveries import read_statements

    room = _classroom(context, asked)
    plan = room.course if room else None
    facts = _facts(context, asked, room)
    own = None if room or asked.ledgers else reports.own_budget(context.profile, facts)
    usual = reports.question_of(plan, now=context.now(), own_budget_usd=own)
    question = _question(asked, plan, usual)
    students = _students(context, asked, room, {f.details.get("owner", "") for f in facts} - {""})
    statements = read_statements(asked.statements)
    report = report_of(
        timeline_of([*facts, *_noted(context, statements)]),
        question,
        students=students,
        statements=statements,
        has_bill_days=has_bill_days,
    )
    return report, plan.name if plan else ""


def _classroom(context: Context, asked: _Asked) -> Classroom | None:
    """Read the course that is named, else the one whose folder this is; whoever names ledgers names the course too."""
    from gpulab.cli import classroom
    from gpulab.launch.money import reports
    from gpulab.store.courses import COURSE_FILE, find_course

    if asked.course is None:
        if asked.ledgers:
            return None
        try:
            find_course(None, environment=context.environment, here=Path.cwd())
        except WrongUsage:
            return None
    found = classroom.read(context, str(asked.course) if asked.course else None)
    # A roster that is gone, or a student whom no account can be found for, has spent all the same.
    reports.refuse_first([p for p in found.problems if p.file == COURSE_FILE])
    reports.refuse_first(found.roster.problems)
    return found


def _facts(context: Context, asked: _Asked, room: Classroom | None) -> tuple[Fact, ...]:
    """Read the ledgers that are named, else those of the class, else one's own."""
    from gpulab.launch.money import reports

    if asked.ledgers:
        return reports.read_ledgers(asked.ledgers)
    if room is None or room.course is None:
        return context.launch.ledger.facts()
    from gpulab.cli.fleet_options import open_accounts
    from gpulab.fleets import books

    accounts = open_accounts(context, room.course)
    refs, left = books.accounts_of(accounts, room.roster.students, secret=room.secret)
    return books.facts(accounts, (*refs, *left))


def _noted(context: Context, statements: tuple[Statement, ...]) -> tuple[Fact, ...]:
    """Write into one's own ledger which statements were read; a ledger that cannot be written is told and keeps no report back."""
    from gpulab.launch.money import reports
    from gpulab.model.fact import statement_read
    from gpulab.store.ledger import Ledger

    now = context.now()
    try:
        return reports.note_statements(Ledger(context.folder.ledger), statements, at=now)
    except StoreError as error:
        context.console.say(f"note: {error.message}; that statements were read is not kept")
        return tuple(statement_read(one, at=now) for one in statements)


def _students(
    context: Context, asked: _Asked, room: Classroom | None, owners: Collection[str]
) -> tuple[Student, ...]:
    """Read who takes the course, and say when the ledgers know none of them: then their ids were made with another key."""
    from gpulab.launch.money import reports
    from gpulab.store.courses import ROSTER_FILE, read_secret

    key = read_secret(asked.key) if asked.key else (room.secret if room else b"")
    roster = asked.roster or (room.folder / ROSTER_FILE if room and asked.key else None)
    if roster is not None:
        students = reports.read_students(roster, key=key)
    else:
        students = room.roster.students if room else ()
    students = reports.named_as(students, owners=owners)
    if students and owners and not any(student.owner in owners for student in students):
        context.console.say(
            "note: the ledgers know nobody in the roster; opaque ids need the key they were made with:"
            " `--key ~/.gpulab/courses/ID/secret`, from the computer that started the class"
        )
    return students


def _question(asked: _Asked, plan: Course | None, question: Question) -> Question:
    """Let what was typed stand for what the course says."""
    zone = _zone(asked.timezone, plan)
    return replace(
        question,
        now=_day(asked.until, zone) or question.now,
        begin=_day(asked.since, zone),
        price_rule=PriceRule(asked.price_rule),
        zone=zone,
        budget=replace(question.budget, usd=asked.budget or question.budget.usd),
        has_names=asked.names,
    )


def _refuse_problems(report: Report) -> None:
    from gpulab.view.words import counted

    if report.problems:
        first = report.problems[0]
        raise ProblemsFound(
            f"{counted(len(report.problems), 'problem')}, the first: {first.subject}: {first.cause}"
        )


def _show(
    context: Context, report: Report, dimension: str, *, as_json: bool, as_csv: bool, limit: int
) -> None:
    from gpulab.view.report_table import csv_rows, report_json, report_lines

    by = Dimension(dimension)
    if as_json:
        context.console.show_json(report_json(report))
    elif as_csv:
        context.console.show_csv(*csv_rows(report, by))
    else:
        columns = context.console.columns
        width = columns() if columns else None
        lines = report_lines(report, by, bar=_bar(context), limit=limit, width=width)
        context.console.show("\n".join(lines))


def _bar(context: Context) -> str:
    try:
        "█".encode(getattr(context.console.out, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#"
    return "█"


def _write(
    context: Context, report: Report, *, html: Path | None, xlsx: Path | None, title: str
) -> None:
    from gpulab.store.files import write_atomically

    if xlsx:
        from gpulab.view.report_xlsx import workbook

        write_atomically(xlsx, _installed(lambda: workbook(report)))
        context.console.say(f"written: {xlsx}")
    if html:
        from gpulab.view.report_html import page

        write_atomically(html, _installed(lambda: page(report, title=title)).encode())
        context.console.say(f"written: {html}")


def _installed(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except ImportError as error:
        raise StoreError(
            f"this needs {error.name}, which is not installed",
            hint=extra_hint("report"),
        ) from error


def _zone(name: str | None, plan: Course | None) -> ZoneInfo:
    wanted = name or (plan.timezone if plan else "UTC")
    try:
        return ZoneInfo(wanted)
    except (KeyError, ValueError, OSError):
        raise WrongUsage(
            f"`{wanted}` is not the name of a time zone", hint="Such as Europe/Copenhagen"
        ) from None


def _day(text: str | None, zone: ZoneInfo) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=zone)
    except ValueError:
        raise WrongUsage(f"`{text}` is not a day", hint="Such as 2026-10-01") from None
    return moment.astimezone(UTC)
