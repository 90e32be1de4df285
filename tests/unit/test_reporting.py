"""The report's sums, standings and problems, from facts to rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.model.course import Student
from gpulab.model.discrepancy import DiscrepancyKind
from gpulab.model.fact import (
    Fact,
    Source,
    ended,
    intent,
    launched,
    price,
    statement_read,
    usage,
    volume,
)
from gpulab.model.market import Market
from gpulab.model.report import Attempts, Dimension, FeedCompared, Report, Standing
from gpulab.model.statement import Category, Statement, StatementSum, units_of
from gpulab.model.timeline import EndedBy
from gpulab.reporting.cells import Catalogue
from gpulab.reporting.days import LocalDays
from gpulab.reporting.report import Question, report_of
from gpulab.reporting.standing import Budget
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of
from gpulab.view.report_table import pace_text, report_lines

MONDAY = datetime(2026, 10, 19, 11, 35, tzinfo=UTC)
NOW = MONDAY + timedelta(days=10)


def a_run(
    instance: str = "i-1",
    *,
    owner: str = "s1",
    begin: datetime = MONDAY,
    hours: float = 2,
    by: EndedBy = EndedBy.USER,
    usd: str = "0.20",
    **more,
) -> list[Fact]:
    """Make one run of a known price with its disk."""
    said = {"market": Market.SPOT, "on_demand_usd_per_hour": Decimal("0.526"), "gpus": 1} | more
    return [
        launched(
            instance,
            at=begin,
            zone="us-east-1d",
            instance_type="g4dn.xlarge",
            usd_per_hour=Decimal(usd),
            owner=owner,
            **said,
        ),
        volume(
            f"vol-{instance}",
            at=begin,
            type="gp3",
            size_gb=60,
            usd_per_gb_month=Decimal("0.08"),
            instance_id=instance,
            ends_with_instance=True,
        ),
        price("us-east-1d", "g4dn.xlarge", at=begin, usd_per_hour=Decimal(usd)),
        ended(instance, at=begin + timedelta(hours=hours), by=by, source=Source.AWS),
    ]


def a_student(number: int, *, group: str = "") -> Student:
    return Student(f"id{number}", f"s{number}", f"Name {number}", f"n{number}@dtu.dk", group)


def a_report(
    facts: list[Fact], *, students=(), statements=(), has_bill_days=False, **question
) -> Report:
    return report_of(
        timeline_of(facts),
        Question(**({"now": NOW} | question)),
        students=students,
        statements=statements,
        has_bill_days=has_bill_days,
    )


def problem_kinds(report: Report) -> list[tuple[DiscrepancyKind, str]]:
    return [(one.kind, one.subject) for one in report.problems]


def test_one_run_in_every_table():
    """The figures a student compares with the bill: hours, GPU-hours, dollars, saved against on demand."""
    report = a_report(a_run(lab="week8"))

    (row,) = report.rows[Dimension.LAB]
    assert ("week8", 1, Decimal("2.0000"), Decimal("2.0000"), 0) == (
        row.key,
        row.runs,
        row.hours,
        row.gpu_hours,
        row.interruptions,
    )
    assert (Decimal("0.4000000000"), Decimal("0.0129032258"), Decimal("0.6520000000")) == (
        row.instance_usd,
        row.ebs_usd,
        row.saved_usd,
    )
    keys = {d.value: [r.key for r in report.rows[d]] for d in Dimension}
    assert {
        "student": ["s1"],
        "group": ["-"],
        "lab": ["week8"],
        "week": ["2026-W43"],
        "type": ["g4dn.xlarge"],
        "market": ["spot"],
    } == keys


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2", ""]),
            st.integers(0, 400_000),
            st.integers(0, 90_000),
            st.sampled_from(list(EndedBy)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_table_adds_up_to_the_bill(runs):
    """Whatever a report is sorted by, no cent appears or vanishes: the cells are exact, only rows are rounded."""
    facts = [
        fact
        for n, (owner, after_s, seconds, by) in enumerate(runs)
        for fact in a_run(
            f"i-{n}",
            owner=owner,
            begin=MONDAY + timedelta(seconds=after_s),
            hours=seconds / 3600,
            by=by,
        )
    ]
    expected = Usd.of(cost_of(timeline_of(facts).timeline, as_of=NOW).charges).rounded()

    report = a_report(facts, zone=ZoneInfo("Europe/Copenhagen"))

    assert expected == report.total.usd
    for dimension in Dimension:
        rows = report.rows[dimension]
        assert abs(sum(row.usd for row in rows) - expected) <= Decimal("1e-10") * len(rows)
        assert sum(row.runs for row in rows) == len(runs)


@given(
    st.sampled_from(["UTC", "Europe/Copenhagen", "Asia/Kolkata", "America/Sao_Paulo"]),
    st.integers(0, 400 * 86400),
    st.integers(1, 5 * 86400),
)
def test_days_are_looked_up_as_they_would_be_converted(zone_name, begin_s, length_s):
    """Nights with a lost or a doubled hour are nights of training too; no second of one may fall out of the sums."""
    zone, year = ZoneInfo(zone_name), datetime(2017, 1, 1, tzinfo=UTC)
    begin = year + timedelta(seconds=begin_s)
    end = begin + timedelta(seconds=length_s)

    parts = LocalDays(year, year + timedelta(days=410), zone).cut(begin, end)

    assert (begin, end) == (parts[0][1], parts[-1][2])
    assert [until for _, _, until in parts[:-1]] == [since for _, since, _ in parts[1:]]
    assert [since.astimezone(zone).date() for _, since, _ in parts] == [day for day, _, _ in parts]


def test_a_night_over_sunday_is_cut_at_the_local_week():
    """Project weeks run through the night; a week begins on Monday at midnight in Copenhagen, not in Greenwich."""
    sunday_night = datetime(2026, 10, 18, 21, 0, tzinfo=UTC)

    report = a_report(a_run(begin=sunday_night, hours=3), zone=ZoneInfo("Europe/Copenhagen"))

    assert [("2026-W42", Decimal("1.0000")), ("2026-W43", Decimal("2.0000"))] == [
        (row.key, row.hours) for row in report.rows[Dimension.WEEK]
    ]
    assert Decimal("1.00") == report.hours_by_weekday[6][23]
    assert Decimal("1.00") == report.hours_by_weekday[0][0]


def test_idle_hours_cost_what_the_instance_cost_then():
    """An hour at lunch with the instance on is money with a name."""
    facts = [*a_run(), usage("i-1", at=MONDAY, seconds=3600, idle_seconds=1800)]

    total = a_report(facts).total

    assert (Decimal("0.5000"), Decimal("0.1000000000")) == (total.idle_hours, total.wasted_usd)


def test_a_free_first_hour_counts_as_saved_and_as_an_interruption():
    """The run cost nothing, but the student lost it: both are said."""
    report = a_report(a_run(hours=0.5, by=EndedBy.AWS))

    assert (Decimal(0), Decimal("0.2630000000"), 1) == (
        report.total.instance_usd,
        report.total.saved_usd,
        report.total.interruptions,
    )
    (one,) = report.interruptions
    assert ("s1", "g4dn.xlarge", "us-east-1d", True) == (
        one.owner,
        one.instance_type,
        one.zone,
        one.was_free,
    )


def test_a_run_of_seconds_is_compared_with_the_minimum_of_both_markets():
    """AWS bills 60 s of either market; comparing them with 20 s on demand would make spot look dearer than it is."""
    report = a_report(a_run(hours=20 / 3600))

    total = report.total
    assert Decimal("0.0033333333") == total.instance_usd
    assert Decimal("0.0054333333") == total.saved_usd


def test_a_span_cuts_what_lies_outside():
    """A report of October must not contain September's half of a long run."""
    report = a_report(a_run(hours=10), begin=MONDAY + timedelta(hours=9))

    assert (Decimal("0.2000000000"), Decimal("1.0000"), 0) == (
        report.total.instance_usd,
        report.total.hours,
        report.total.runs,
    )


def test_what_a_launch_did_not_write_comes_from_the_catalogue():
    """Old ledgers lack GPU counts; the report still has GPU-hours and savings."""
    facts = a_run(gpus=None, on_demand_usd_per_hour=None)
    catalogue = Catalogue(
        gpus={"g4dn.xlarge": 4},
        on_demand_usd_per_hour={("us-east-1", "g4dn.xlarge"): Decimal(1)},
    )

    total = a_report(facts, catalogue=catalogue).total

    assert (Decimal("8.0000"), Decimal("1.6000000000")) == (total.gpu_hours, total.saved_usd)


def test_where_each_student_stands():
    """The list a TA works through: who has not begun, who is over, who will not last until the deadline."""
    recent = NOW - timedelta(days=2)
    facts = [
        *a_run("i-1", owner="s1", hours=1),
        *a_run("i-2", owner="s2", hours=20, begin=recent),
        *a_run("i-3", owner="s3", hours=30, begin=recent),
    ]
    students = [a_student(n) for n in (1, 2, 3, 4)]

    report = a_report(
        facts,
        students=students,
        budget=Budget(Decimal(5), NOW + timedelta(days=10)),
        has_names=True,
    )

    standings = {one.owner: one.standing for one in report.students}
    assert {
        "s1": Standing.FINE,
        "s2": Standing.RUNS_OUT,
        "s3": Standing.OVER,
        "s4": Standing.NOT_STARTED,
    } == standings
    assert ("Name 1", Decimal(20)) == (report.students[0].name, report.budget_usd)
    assert [(DiscrepancyKind.OVER_BUDGET, "s3")] == problem_kinds(report)


def test_names_stay_out_unless_asked_for():
    """A report that is passed on must not carry personal data by accident."""
    report = a_report(a_run(), students=[a_student(1)])

    assert [("s1", "")] == [(one.owner, one.name) for one in report.students]


def test_groups_come_from_the_roster():
    """Project budgets are shared, so groups are added up."""
    facts = [*a_run("i-1", owner="s1"), *a_run("i-2", owner="s2"), *a_run("i-3", owner="s9")]
    students = [a_student(1, group="G7"), a_student(2, group="G7")]

    report = a_report(facts, students=students)

    assert [("-", 1), ("G7", 2)] == [(row.key, row.runs) for row in report.rows[Dimension.GROUP]]
    assert [(DiscrepancyKind.UNKNOWN_OWNER, "s9")] == problem_kinds(report)


def test_an_instance_past_its_end_is_named():
    """The commonest hole in a ledger: the laptop was shut when the instance ended itself."""
    open_run = a_run(expires_at=MONDAY + timedelta(hours=4))[:-1]

    report = a_report(open_run)

    assert [(DiscrepancyKind.NO_END, "i-1")] == problem_kinds(report)
    assert "should have ended at 2026-10-19T15:35Z" in report.problems[0].cause


def test_an_unknown_price_is_named_and_the_sum_is_called_too_low():
    """A sum with a hole in it must not look like a sum."""
    disk = volume("vol-9", at=MONDAY, type="io2", size_gb=10, usd_per_gb_month=None)

    report = a_report([disk])

    assert [(DiscrepancyKind.NO_PRICE, "vol-9")] == problem_kinds(report)
    assert report.problems[0].cause.endswith("it is left out, so the sums are too low")


def test_rows_are_in_the_order_in_which_people_count():
    """`g10` between `g1` and `g2` is where nobody looks for it."""
    groups = ("g10", "g2", "g1", "", "10", "9b", "9a")
    students = [a_student(n, group=group) for n, group in enumerate(groups)]
    facts = [fact for n in range(len(groups)) for fact in a_run(f"i-{n}", owner=f"s{n}")]

    rows = a_report(facts, students=students).rows[Dimension.GROUP]

    assert ["9a", "9b", "10", "-", "g1", "g2", "g10"] == [row.key for row in rows]


def test_an_empty_ledger_is_a_report_of_nothing():
    """The first day of a course."""
    report = a_report([])

    assert (Decimal(0), 0, (), ()) == (
        report.total.usd,
        report.total.runs,
        report.spent_by_day,
        report.problems,
    )


# Statements.


def a_statement(*lines: StatementSum, digest: str = "a", unreadable: int = 0) -> Statement:
    return Statement("cur.csv", "cur-2.0", digest, len(lines), unreadable, lines)


def a_line(resource: str, usd: str, *, kind: str = "instance", category=Category.USAGE):
    return StatementSum(MONDAY.date(), resource, category, kind, units_of(Decimal(usd)))


def test_a_bill_that_agrees_is_no_problem():
    """Within one percent the estimate is confirmed, with gross, credit and tax apart."""
    statement = a_statement(
        a_line("i-1", "0.4030"),
        a_line("vol-i-1", "0.0129", kind="ebs"),
        a_line("", "-0.4159", category=Category.CREDIT),
        a_line("", "0.10", category=Category.TAX),
    )

    report = a_report(a_run(), statements=[statement, statement])

    assert [] == problem_kinds(report)
    assert {
        "usage": Decimal("0.4159"),
        "credit": Decimal("-0.4159"),
        "tax": Decimal("0.10"),
    } == report.bill.by_category
    assert (Decimal("0.4129032258"), Decimal("0.4159")) == (
        report.bill.ledger_usd,
        report.bill.statement_usd,
    )


@pytest.mark.parametrize(
    ("lines", "expected", "words"),
    [
        (
            [("i-1", "0.50")],
            (DiscrepancyKind.BILL_DIFFERS, "i-1"),
            "the ledger counts 0.4000 USD, AWS billed 0.5000 USD; most apart on 2026-10-19",
        ),
        (
            [("i-1", "0.40"), ("i-7", "3.00")],
            (DiscrepancyKind.ONLY_IN_BILL, "i-7"),
            "AWS billed 3.0000 USD for it and the ledger does not know it",
        ),
        (
            [("i-7", "0.001")],
            (DiscrepancyKind.ONLY_IN_LEDGER, "i-1"),
            "the ledger counts 0.4000 USD and no statement names it for these days",
        ),
    ],
)
def test_what_the_bill_and_the_ledger_disagree_on_is_named(lines, expected, words):
    """More than one percent apart, or known to one side only: a TA must look."""
    facts = [fact for fact in a_run() if fact.kind != "volume"]

    report = a_report(facts, statements=[a_statement(*(a_line(*line) for line in lines))])

    assert [expected] == problem_kinds(report)
    assert report.problems[0].cause.startswith(words)


def test_only_the_days_of_the_statement_are_compared():
    """A statement of October says nothing about November's instances."""
    later = a_run("i-2", begin=MONDAY + timedelta(days=3))

    report = a_report(
        [*(f for f in a_run() if f.kind != "volume"), *later],
        statements=[a_statement(a_line("i-1", "0.40"))],
    )

    assert [] == problem_kinds(report)


def test_lines_that_could_not_be_read_are_counted():
    """A total that leaves lines out must say how many."""
    report = a_report([], statements=[a_statement(unreadable=3)])

    assert [(DiscrepancyKind.UNREADABLE_STATEMENT, "cur.csv")] == problem_kinds(report)


def a_feed(*lines: StatementSum, digest: str = "feed") -> Statement:
    return replace(a_statement(*lines, digest=digest), format="spot-feed", name="feed.gz")


def test_what_feed_and_bill_both_have_counts_once():
    """A teaching assistant hands in everything there is; no dollar may be there twice."""
    bill = a_statement(a_line("i-1", "0.40"), a_line("vol-i-1", "0.0129", kind="ebs"))
    feed = a_feed(a_line("i-1", "0.3990"), a_line("i-9", "0.25"))

    report = a_report(a_run(), statements=[feed, bill, feed])

    assert {"usage": Decimal("0.6629")} == report.bill.by_category
    assert Decimal("0.4129") == report.bill.statement_usd
    assert FeedCompared(1, Decimal("0.3990"), Decimal("0.40")) == report.bill.feed
    assert (
        "the spot data feed's 1 instance-day that the statements have too are compared and not counted:"
        " feed $0.40, statements $0.40"
    ) in report_lines(report, Dimension.WEEK, bar="#", limit=9)


@pytest.mark.parametrize(
    ("fed", "whole", "counts", "from_feed"),
    [
        ("0.60", -1, "0.60", 1),  # the feed is ahead
        ("0.20", -1, "0.40", 0),  # the bill is
        ("0.60", 0, "0.40", 0),  # the bill has the whole day
        ("0.60", None, "0.40", 0),  # it is final
    ],
)
def test_of_a_day_that_goes_on_whoever_says_more_counts(fed, whole, counts, from_feed):
    """The bill's last day is as a rule half a day; taken for a whole one, it hides what the feed knows already."""
    until = None if whole is None else MONDAY.date() + timedelta(days=whole)
    disk = a_line("vol-i-1", "0.0129", kind="ebs")
    bill = replace(a_statement(a_line("i-1", "0.40"), disk), whole_until=until)

    found = a_report(a_run(), statements=[a_feed(a_line("i-1", fed)), bill]).bill

    assert {"usage": Decimal(counts) + Decimal("0.0129")} == found.by_category
    assert from_feed == found.feed.from_feed
    assert ((MONDAY.date(),) * from_feed) == found.feed.open_days


def test_a_final_bill_beside_one_that_goes_on_has_the_day_whole():
    """Of two parts or payers one may end sooner; the day is whole as soon as one of them says so."""
    final = a_statement(a_line("i-1", "0.30"))
    goes_on = replace(
        a_statement(a_line("i-1", "0.10"), digest="b"),
        whole_until=MONDAY.date() - timedelta(days=1),
    )

    bill = a_report(a_run(), statements=[a_feed(a_line("i-1", "0.60")), goes_on, final]).bill

    assert ({"usage": Decimal("0.40")}, 0) == (bill.by_category, bill.feed.from_feed)


@pytest.mark.parametrize("statements", [[a_feed(a_line("i-1", "0.40"))], []])
def test_a_feed_alone_counts_and_is_compared_with_nothing(statements):
    """Before the month's first bill the feed is all there is."""
    bill = a_report(a_run(), statements=statements).bill

    assert (None, bool(statements)) == (bill.feed, "usage" in bill.by_category)


def test_the_bill_by_day_holds_every_dollar_of_the_statements():
    """A sheet whose sum is not the bill's sum is no proof of anything."""
    later = a_line("i-1", "0.10")._replace(day=MONDAY.date() + timedelta(days=1))
    statement = a_statement(
        a_line("i-1", "0.4030"),
        a_line("i-1", "0.02", kind="transfer"),
        later,
        a_line("i-1", "-0.4030", category=Category.CREDIT),
        a_line("", "0.10", category=Category.TAX),
        a_line("eni-1", "0.01", kind="ipv4"),
    )

    bill = a_report(a_run(), statements=[statement], has_bill_days=True).bill

    day, after = MONDAY.date(), MONDAY.date() + timedelta(days=1)
    assert [(day, ""), (day, "i-1"), (day, "vol-i-1"), (after, "i-1")] == [
        (one.day, one.resource) for one in bill.days
    ]
    rest, run, disk, unknown = bill.days
    assert (None, Decimal("0.03"), Decimal("0.10")) == (
        rest.ledger_usd,
        rest.usage_usd,
        rest.tax_usd,
    )
    assert (Decimal("0.4"), Decimal("0.4030"), Decimal("-0.4030")) == (
        run.ledger_usd,
        run.usage_usd,
        run.credit_usd,
    )
    assert (Decimal("0.0129032258"), Decimal(0)) == (disk.ledger_usd, disk.usage_usd)
    assert (Decimal(0), Decimal("0.10")) == (unknown.ledger_usd, unknown.usage_usd)
    for category in (Category.USAGE, Category.CREDIT, Category.TAX):
        amounts = (getattr(one, f"{category}_usd") for one in bill.days)
        assert bill.by_category[category] == sum(amounts)


def test_the_bill_by_day_is_made_only_when_asked_for():
    """A term's statement has hundreds of thousands of resources and days."""
    assert () == a_report(a_run(), statements=[a_statement(a_line("i-1", "0.40"))]).bill.days


def test_a_budget_has_a_pace_and_what_it_takes_until_the_deadline():
    """The teacher asks on Monday whether the credit lasts until the exam."""
    begin = NOW - timedelta(days=2)
    deadline = NOW + timedelta(days=28)

    report = a_report(a_run(begin=begin), budget=Budget(Decimal(1), deadline))

    pace = report.pace
    week = report.total.usd
    assert (week / 7).quantize(Decimal("1E-10")) == pace.usd_per_day
    assert (week * 4, deadline) == (pace.needed_usd, pace.deadline)
    left_days = (1 - week) / (week / 7)
    assert abs((pace.ends_at - NOW) / timedelta(days=1) - float(left_days)) < 0.001
    assert f"needed until {deadline:%Y-%m-%d}, $0.59 left" in pace_text(report)


def test_without_a_budget_there_is_no_pace_and_after_the_deadline_nothing_is_needed():
    """What is over needs nothing any more."""
    over = a_report(a_run(), budget=Budget(Decimal(5), NOW - timedelta(days=1))).pace

    assert None is a_report(a_run()).pace
    assert (None, None, None) == (over.deadline, over.needed_usd, over.ends_at)


def test_a_report_says_how_often_aws_was_asked():
    """A market that refuses nine of ten is told from a tool that does not work."""
    tried = [
        intent(
            f"l-{n}",
            at=MONDAY - timedelta(minutes=n),
            launch_id="l",
            zone="us-east-1d",
            instance_type="g4dn.xlarge",
            market=Market.SPOT,
            at_most_usd_per_hour=None,
        )
        for n in range(3)
    ]

    report = a_report([*tried, *a_run(launch_id="l")])

    assert Attempts(3, 1) == report.attempts
    assert Attempts(0, 0) == a_report(tried, begin=MONDAY + timedelta(days=1)).attempts
    assert "asked AWS 3 times, 1 taken" in report_lines(report, Dimension.WEEK, bar="#", limit=9)


def test_a_report_says_when_each_statement_was_read():
    """Next week somebody asks which bill the figures were held against."""
    bill = replace(a_statement(a_line("i-1", "0.40")), path="bills/cur.csv")

    report = a_report([*a_run(), statement_read(bill, at=MONDAY)])

    assert (
        "statement read on 2026-10-19: bills/cur.csv, cur-2.0, 1 line, 2026-10-19 to 2026-10-19: usage $0.40"
    ) in report_lines(report, Dimension.WEEK, bar="#", limit=9)
