"""
A report's plots as SVG without inline styles. Hides matplotlib; its colours become CSS variables, so that a page has a dark and a light face.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from importlib import import_module
from typing import Any

from gpulab.model.report import Dimension, Report
from gpulab.view.report_table import pace_text, zone_of
from gpulab.view.words import clean, counted, money

# matplotlib draws in these colours, and each is replaced by a variable of the page's style sheet.
_INK, _FAINT, _ACCENT = "#010203", "#010204", "#010205"
_SERIES = tuple(f"#0102{n:02x}" for n in range(16, 24))
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _ACCENT: "--accent"} | {
    colour: f"--series-{n}" for n, colour in enumerate(_SERIES)
}
_TAG = re.compile("<[^>]*>")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Plot:
    """
    One plot.

    Attributes:
        svg: An `<svg>` element that uses classes of `css` only.
        summary: What it shows, for those who cannot see it.
        is_wide: Whether it takes the page's whole width.
    """

    title: str
    svg: str
    summary: str
    is_wide: bool = False


@dataclass(frozen=True)
class Plots:
    """All plots and the style rules they use."""

    plots: tuple[Plot, ...]
    css: str


def plots_of(report: Report) -> Plots:
    """Draw a report's plots; those without anything to show are left out."""
    classes: dict[str, str] = {}
    drawn = (
        draw(report, classes) for draw in (_burn_down, _weeks, _students, _hours, _interruptions)
    )
    plots = tuple(plot for plot in drawn if plot is not None)
    css = "\n".join(f".{name}{{{rule}}}" for rule, name in classes.items())
    return Plots(plots, css)


def _burn_down(report: Report, classes: dict[str, str]) -> Plot | None:
    if not report.spent_by_day:
        return None
    days = [day for day, _ in report.spent_by_day]
    spent, sums = Decimal(0), []
    for _, usd in report.spent_by_day:
        spent += usd
        sums.append(spent)
    budget = report.budget_usd
    left = sums if budget is None else [budget - one for one in sums]

    def draw(axes: Any) -> None:
        axes.fill_between(days, [float(one) for one in left], color=_ACCENT, alpha=0.2, linewidth=0)
        axes.plot(days, [float(one) for one in left], color=_ACCENT, linewidth=2)
        for line, style, label in _pace_lines(report, days[-1], left[-1]):
            on, usd = zip(*line, strict=True)
            axes.plot(on, usd, color=_INK, linestyle=style, linewidth=1.8, label=label)
            _legend(axes, columns=2)
        axes.set_ylabel("USD left" if budget is not None else "USD spent")
        _thousands(axes)
        axes.set_ylim(bottom=min(0.0, float(min(left))))
        _date_axis(axes)

    if budget is None:
        summary = f"{money(spent)} spent by {days[-1]}"
        return Plot("Spent so far", _svg(draw, classes, "burn"), summary)
    summary = f"{money(left[-1])} of {money(budget)} left on {days[-1]}; {pace_text(report)}"
    return Plot("What is left of the budget", _svg(draw, classes, "burn"), summary)


def _pace_lines(
    report: Report, today: date, left: Decimal
) -> Iterator[tuple[list[tuple[date, float]], str, str]]:
    """Return the points, the style and the name of each line of the pace: to last until the deadline, and as it goes now."""
    pace, zone = report.pace, zone_of(report)
    if pace is None or left <= 0:
        return
    last = pace.deadline.astimezone(zone).date() if pace.deadline else None
    if last:
        yield [(today, float(left)), (last, 0.0)], "--", f"to last until {last}"
    if pace.usd_per_day:
        # As far as the deadline; without one as far ahead as the page looks back.
        end = last or today + (today - report.begin.astimezone(zone).date())
        lasts = int(left / pace.usd_per_day)
        until = min(end, today + timedelta(days=min(lasts, 3650)))
        then = max(Decimal(0), left - pace.usd_per_day * (until - today).days)
        yield [(today, float(left)), (until, float(then))], ":", "at the pace of the last 7 days"


def _weeks(report: Report, classes: dict[str, str]) -> Plot | None:
    spent = report.spent_by_week_and_lab
    if not spent:
        return None
    weeks = sorted({week for week, _ in spent})
    labs = _largest_labs(report)

    def draw(axes: Any) -> None:
        floor = [0.0] * len(weeks)
        for n, (lab, members) in enumerate(labs):
            heights = [
                float(sum((spent.get((week, one), Decimal(0)) for one in members), Decimal(0)))
                for week in weeks
            ]
            axes.bar(weeks, heights, bottom=floor, color=_SERIES[n], label=_label(lab), width=0.8)
            floor = [a + b for a, b in zip(floor, heights, strict=True)]
        axes.set_ylabel("USD")
        _thousands(axes)
        axes.set_xticks(range(len(weeks)), [week[5:] for week in weeks])
        _legend(axes, columns=len(labs))

    most = max(report.rows[Dimension.WEEK], key=lambda row: row.usd)
    summary = f"{counted(len(weeks), 'week')}; the dearest is {most.key} with {money(most.usd)}"
    return Plot("Spent per week, by lab", _svg(draw, classes, "weeks"), summary)


def _largest_labs(report: Report) -> list[tuple[str, list[str]]]:
    """Give each lab a colour; when there are too many, the smallest share the last one."""
    ranked = sorted(report.rows[Dimension.LAB], key=lambda row: (-row.usd, row.key))
    keys = [row.key for row in ranked]
    if len(keys) <= len(_SERIES):
        return [(key, [key]) for key in sorted(keys)]
    most = keys[: len(_SERIES) - 1]
    return [*((key, [key]) for key in sorted(most)), ("others", keys[len(most) :])]


def _students(report: Report, classes: dict[str, str]) -> Plot | None:
    spent = sorted(float(one.spent_usd) for one in report.students)
    if len(spent) < 2:
        return None

    def draw(axes: Any) -> None:
        axes.hist(spent, bins=min(24, max(5, len(spent) // 5)), color=_ACCENT, rwidth=0.9)
        axes.set_xlabel("USD spent")
        axes.set_ylabel("students")
        budget = next((s.budget_usd for s in report.students if s.budget_usd is not None), None)
        if budget is not None:
            axes.axvline(float(budget), color=_INK, linestyle="--", linewidth=1.5)

    middle = Decimal(str(spent[len(spent) // 2]))
    summary = f"{counted(len(spent), 'student')}; the middle one spent {money(middle)}, the most {money(Decimal(str(spent[-1])))}"
    return Plot("What each student spent", _svg(draw, classes, "students"), summary)


def _hours(report: Report, classes: dict[str, str]) -> Plot | None:
    hours = report.hours_by_weekday
    most = max((hour for day in hours for hour in day), default=Decimal(0))
    if not most:
        return None

    def draw(axes: Any) -> None:
        for day, row in enumerate(hours):
            for hour, value in enumerate(row):
                if value:
                    share = max(0.04, float(value / most))
                    axes.bar(
                        hour + 0.5, 0.92, bottom=day + 0.04, width=0.94, color=_ACCENT, alpha=share
                    )
        axes.set_xlim(0, 24)
        axes.set_ylim(7, 0)
        axes.set_xticks(range(0, 25, 3))
        axes.set_yticks([n + 0.5 for n in range(7)], _DAYS)
        axes.set_xlabel(f"hour of the day, {report.timezone}")
        axes.grid(visible=False)

    day, hour = max(
        ((d, h) for d in range(7) for h in range(24)), key=lambda at: hours[at[0]][at[1]]
    )
    summary = f"the stronger, the more; most: {_DAYS[day]} {hour}-{hour + 1}, {hours[day][hour]:,.0f} instance-hours"
    return Plot("When instances ran", _svg(draw, classes, "hours"), summary)


def _interruptions(report: Report, classes: dict[str, str]) -> Plot | None:
    found = report.interruptions
    if not found:
        return None
    types = sorted({one.instance_type for one in found})
    zone = zone_of(report)

    def draw(axes: Any) -> None:
        # Two lanes for each type, and a thin stroke for each run: many may end in one night.
        for is_free, lane, label in (
            (True, 0.22, "in its first hour, free"),
            (False, -0.22, "later, paid"),
        ):
            some = [one for one in found if one.was_free is is_free]
            axes.plot(
                [one.at.astimezone(zone).replace(tzinfo=None) for one in some],
                [types.index(one.instance_type) + lane for one in some],
                "|",
                color=_SERIES[0 if is_free else 1],
                label=label,
                markersize=18,
                markeredgewidth=1.6,
            )
        axes.set_yticks(range(len(types)), [_label(one) for one in types])
        axes.set_ylim(-0.7, len(types) - 0.3)
        axes.set_xlim(
            report.begin.astimezone(zone).replace(tzinfo=None) - timedelta(days=1),
            report.end.astimezone(zone).replace(tzinfo=None) + timedelta(days=1),
        )
        _legend(axes, columns=2)
        _date_axis(axes)

    summary = (
        f"AWS ended {counted(len(found), 'run')}, {sum(one.was_free for one in found)} of them free"
    )
    drawn = _svg(draw, classes, "interruptions", size=(14.8, 1.4 + 0.7 * len(types)))
    return Plot("Runs that AWS ended", drawn, summary, is_wide=True)


def _legend(axes: Any, *, columns: int) -> None:
    axes.figure.legend(frameon=False, ncols=min(4, columns), loc="outside upper left", fontsize=9)


def _date_axis(axes: Any) -> None:
    dates: Any = import_module("matplotlib.dates")
    locator = dates.AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _thousands(axes: Any) -> None:
    ticker: Any = import_module("matplotlib.ticker")
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))


def _label(text: str) -> str:
    """Keep a label from outside short, and from being read as an instruction not to show it."""
    shown = clean(text).strip().lstrip("_") or "-"
    return shown if len(shown) <= 24 else shown[:23] + "…"


def _svg(
    draw: Callable[[Any], None],
    classes: dict[str, str],
    name: str,
    *,
    size: tuple[float, float] = (7.2, 3.2),
) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl: Any = import_module("matplotlib")
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _FAINT,
    }
    content = io.StringIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        # A label in a script that the measuring font lacks is drawn by the reader's font.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", linewidth=0.6, alpha=0.5)
        axes.set_axisbelow(True)
        draw(axes)
        figure.savefig(content, format="svg", metadata={"Date": None})
    return _without_styles(content.getvalue(), classes)


def _without_styles(svg: str, classes: dict[str, str]) -> str:
    """Cut the file's head off and turn each style attribute into a class, as a strict page allows no other style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL
    )
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        r'<svg \1 role="img" xmlns:xlink="http://www.w3.org/1999/xlink">',
        svg,
        count=1,
    )
    # Within tags only: a label that reads `style="..."` would otherwise write a rule of its own into the page's style sheet.
    return _TAG.sub(lambda tag: _with_class(tag[0], classes), svg)


def _with_class(tag: str, classes: dict[str, str]) -> str:
    return re.sub(r'style="([^"]*)"', lambda found: f'class="{_class(found[1], classes)}"', tag)


def _class(rule: str, classes: dict[str, str]) -> str:
    for colour, variable in _VARIABLES.items():
        rule = rule.replace(colour, f"var({variable})")
    rule = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", rule)
    return classes.setdefault(rule, f"p{len(classes)}")
