"""`gpulab report`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

import click

from gpulab.cli.options import Amount, listing_options
from gpulab.errors import ProblemsFound, StoreError, WrongUsage
from gpulab.model.report import Dimension
from gpulab.model.timeline import PriceRule

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.course import Course
    from gpulab.model.fact import Fact
    from gpulab.model.report import Report
    from gpulab.reporting.report import Question

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
    metavar="FILE",
    help="A ledger or its export; repeatable.  [default: your own]",
)
@click.option(
    "--course", type=_FILE, metavar="FILE", help="course.toml: budget, time zone, last day."
)
@click.option("--roster", type=_FILE, metavar="FILE", help="roster.csv: who takes the course.")
@click.option(
    "--key",
    type=_FILE,
    metavar="FILE",
    help="The course's key, which the opaque ids were made with.",
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
    "--budget", type=Amount(), metavar="USD", help="For each student.  [default: the course's]"
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

    By student, group, lab, week, instance type or market; what does not add up is listed with its cause.

    \b
    Example:
      gpulab report
      gpulab report --by student --course course.toml --roster roster.csv --ledger s1.jsonl --ledger s2.jsonl
      gpulab report --statement cur.parquet --html report.html
    """
    # Hundreds of thousands of small values that all live to the end: looking for garbage among them is a third of the time.
    gc.disable()
    click.get_current_context().call_on_close(gc.enable)
    report, title = _report(context, _Asked(**asked))
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


def _report(context: Context, asked: _Asked) -> tuple[Report, str]:
    """Read everything that was named and make the report, and its title."""
    from gpulab.launch.money import reports
    from gpulab.reporting.report import report_of
    from gpulab.spending.facts import timeline_of
    from gpulab.store.deliveries import read_statements

    plan = reports.read_plan(asked.course) if asked.course else None
    facts = reports.read_ledgers(asked.ledgers) if asked.ledgers else context.launch.ledger.facts()
    students = (
        reports.read_students(asked.roster, key=_key(asked.key), owners=_owners(facts))
        if asked.roster
        else ()
    )
    report = report_of(
        timeline_of(facts),
        _question(asked, plan, now=context.now()),
        students=students,
        statements=read_statements(asked.statements),
    )
    return report, plan.name if plan else ""


def _question(asked: _Asked, plan: Course | None, *, now: datetime) -> Question:
    from gpulab.launch.money import reports
    from gpulab.reporting.report import Question
    from gpulab.reporting.standing import Budget

    zone = _zone(asked.timezone, plan)
    usd = asked.budget or (plan.budget_usd if plan else None)
    return Question(
        now=_day(asked.until, zone) or now,
        begin=_day(asked.since, zone),
        price_rule=PriceRule(asked.price_rule),
        zone=zone,
        budget=Budget(usd, reports.deadline_of(plan) if plan else None),
        catalogue=reports.shipped_catalogue(),
        has_names=asked.names,
    )


def _refuse_problems(report: Report) -> None:
    from gpulab.view.report_table import counted

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
            hint="Install it with `pip install 'gpulab[report]'`",
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


def _key(path: Path | None) -> bytes:
    from gpulab.cli.cost import content_of

    return content_of(str(path)).strip() if path else b""


def _owners(facts: Sequence[Fact]) -> set[str]:
    return {fact.details["owner"] for fact in facts if "owner" in fact.details}
