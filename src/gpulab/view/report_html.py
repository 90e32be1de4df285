"""
A report as one page that needs nothing else: no remote asset, a Content-Security-Policy of hashes, no inline style.

Hides jinja and the policy; every text from outside is escaped and free of control characters.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources

from markupsafe import Markup

from gpulab.model.report import Dimension, Report, Row, Standing
from gpulab.model.statement import Category
from gpulab.view.report_plots import plots_of
from gpulab.view.report_table import feed_text, span_text, zone_of
from gpulab.view.words import clean, counted, money, percent

_DIMENSION_TITLES = {
    Dimension.STUDENT: "By student",
    Dimension.GROUP: "By group",
    Dimension.LAB: "By lab",
    Dimension.WEEK: "By week",
    Dimension.TYPE: "By instance type",
    Dimension.MARKET: "By market",
}


@dataclass(frozen=True)
class _Column:
    title: str
    is_number: bool = False


@dataclass(frozen=True)
class _Cell:
    text: str
    value: str | None = None
    css: str = ""


@dataclass(frozen=True)
class _Table:
    id: str
    title: str
    columns: Sequence[_Column]
    rows: Sequence[Sequence[_Cell]]
    is_searched: bool = False


@dataclass(frozen=True)
class _Card:
    name: str
    value: str
    note: str


@dataclass(frozen=True)
class _Drawn:
    title: str
    summary: str
    svg: Markup
    is_wide: bool


def page(report: Report, *, title: str = "") -> str:
    """
    Write the page.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from jinja2 import Environment, PackageLoader

    plots = plots_of(report)
    css = f"{_asset('report.css')}\n{plots.css}\n"
    js = _asset("report.js")
    environment = Environment(loader=PackageLoader("gpulab", "view"), autoescape=True)
    return environment.get_template("report.html.jinja").render(
        title=clean(title) or "What the GPUs cost",
        policy=_policy(css, js),
        css=Markup(css),  # noqa: S704 - our own file
        js=Markup(js),  # noqa: S704 - our own file
        plots=[_Drawn(p.title, p.summary, Markup(p.svg), p.is_wide) for p in plots.plots],  # noqa: S704 - matplotlib escapes its labels
        span=span_text(report),
        timezone=report.timezone,
        price_rule=report.price_rule.value,
        cards=list(_cards(report)),
        tables=list(_tables(report)),
        problems=report.problems,
    )


def _asset(name: str) -> str:
    return resources.files("gpulab.view").joinpath(name).read_text(encoding="utf-8")


def _policy(css: str, js: str) -> str:
    """Allow exactly the one style sheet and the one script of this page."""
    return (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _cards(report: Report) -> Iterable[_Card]:
    total = report.total
    yield _Card("Spent", money(total.usd), f"instances {money(total.instance_usd)}")
    if report.budget_usd is not None:
        left = report.budget_usd - total.usd
        yield _Card("Left", money(left), f"{percent(total.usd, report.budget_usd)} spent")
    if report.pace:
        yield _Card("A day", money(report.pace.usd_per_day), "in the last 7 days")
    yield _Card("GPU-hours", f"{total.gpu_hours:,.1f}", counted(total.runs, "run"))
    yield _Card("Saved", money(total.saved_usd), "against on-demand")
    yield _Card("Idle", percent(total.idle_hours, total.hours), f"{money(total.wasted_usd)} wasted")
    yield _Card("Interruptions", f"{total.interruptions:,}", "runs that AWS ended")
    not_started = sum(s.standing is Standing.NOT_STARTED for s in report.students)
    if report.students:
        yield _Card("Students", f"{len(report.students):,}", f"{not_started:,} not started")


def _tables(report: Report) -> Iterable[_Table]:
    if report.problems:
        yield _problems(report)
    if report.students:
        yield _students(report)
    for dimension, title in _DIMENSION_TITLES.items():
        if dimension is not Dimension.STUDENT or not report.students:
            yield _rows(title, dimension, report.rows[dimension])
    if report.statements:
        yield _statements(report)
    if report.bill.by_category:
        yield _bill(report)


def _students(report: Report) -> _Table:
    has_names = any(s.name for s in report.students)
    columns = [_Column("Student"), *([_Column("Name")] if has_names else []), _Column("Group")]
    columns += [_Column("Standing")]
    numbers = ("Spent", "Left", "GPU-hours", "Saved", "Idle h", "Wasted", "Ended by AWS")
    columns += [_Column(title, is_number=True) for title in numbers]
    sums = {row.key: row for row in report.rows[Dimension.STUDENT]}
    rows = []
    for one in report.students:
        row = sums.get(one.owner)
        alarm = "" if one.standing in (Standing.FINE, Standing.NOT_STARTED) else "alarm"
        rows.append(
            [
                _text(one.owner),
                *([_text(one.name, css="cause")] if has_names else []),
                _text(one.group),
                _text(one.standing.value, css=alarm),
                _money(one.spent_usd),
                _money(one.left_usd),
                _number(row.gpu_hours if row else Decimal(0)),
                _money(row.saved_usd if row else Decimal(0)),
                _number(row.idle_hours if row else Decimal(0)),
                _money(row.wasted_usd if row else Decimal(0)),
                _number(Decimal(row.interruptions if row else 0), places=0),
            ]
        )
    return _Table("students", "Students", columns, rows, is_searched=True)


def _rows(title: str, dimension: Dimension, rows: Iterable[Row]) -> _Table:
    numbers = ("Runs", "Hours", "GPU-hours", "Spent", "Instances", "Disks", "Addresses")
    more = ("Saved", "Idle h", "Wasted", "Ended by AWS")
    columns = [_Column(dimension.value.capitalize())]
    columns += [_Column(name, is_number=True) for name in (*numbers, *more)]
    cells = [
        [
            _text(row.key),
            _number(Decimal(row.runs), places=0),
            _number(row.hours),
            _number(row.gpu_hours),
            *(_money(u) for u in (row.usd, row.instance_usd, row.ebs_usd, row.ipv4_usd)),
            _money(row.saved_usd),
            _number(row.idle_hours),
            _money(row.wasted_usd),
            _number(Decimal(row.interruptions), places=0),
        ]
        for row in rows
    ]
    is_long = len(cells) > 20
    return _Table(f"by-{dimension.value}", title, columns, cells, is_searched=is_long)


def _problems(report: Report) -> _Table:
    columns = [_Column("Problem"), _Column("Of"), _Column("Cause")]
    rows = [
        [_text(p.kind.value), _text(p.subject), _text(p.cause, css="cause")]
        for p in report.problems
    ]
    return _Table("problems", "What does not add up", columns, rows, is_searched=len(rows) > 20)


def _statements(report: Report) -> _Table:
    zone = zone_of(report)
    numbers = ("Lines", *(category.value.capitalize() for category in Category))
    columns = [_Column(name) for name in ("Read on", "File", "Format", "From", "To")]
    columns += [_Column(name, is_number=True) for name in numbers]
    rows = [
        [
            _text(f"{one.read_at.astimezone(zone):%Y-%m-%d}"),
            _text(one.path, css="cause"),
            _text(one.format),
            *(_text(str(day or "")) for day in (one.first_day, one.last_day)),
            _number(Decimal(one.lines), places=0),
            *(_money(one.by_category.get(category, Decimal(0))) for category in Category),
        ]
        for one in report.statements
    ]
    return _Table("statements", "Statements read", columns, rows, is_searched=len(rows) > 20)


def _bill(report: Report) -> _Table:
    bill = report.bill
    title = f"AWS's statements, {bill.first_day} to {bill.last_day}"
    rows = [[_text(name), _money(usd)] for name, usd in sorted(bill.by_category.items())]
    rows.append([_text("ledger, of what both know"), _money(bill.ledger_usd)])
    rows.append([_text("statements, of what both know"), _money(bill.statement_usd)])
    if bill.feed:
        rows.append([_text(feed_text(bill.feed), css="cause"), _text("")])
    rows += [
        [_text(f"left out, as another file holds that bill: {name}", css="cause"), _text("")]
        for name in bill.left_out
    ]
    return _Table("bill", title, [_Column("What"), _Column("USD", is_number=True)], rows)


def _text(text: str, *, css: str = "") -> _Cell:
    return _Cell(clean(text), css=css)


def _money(usd: Decimal | None) -> _Cell:
    if usd is None:
        return _Cell("", "0", "number")
    return _Cell(money(usd), format(usd, "f"), "number")


def _number(value: Decimal, *, places: int = 1) -> _Cell:
    return _Cell(f"{value:,.{places}f}", format(value, "f"), "number")
