"""From the ledger's facts to what is charged: who is believed, where prices come from, what is named as a problem."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.model.discrepancy import DiscrepancyKind
from gpulab.model.fact import (
    Fact,
    FactKind,
    Source,
    address,
    ended,
    extended,
    intent,
    launched,
    price,
    started,
    statement_read,
    usage,
    volume,
    volume_deleted,
)
from gpulab.model.market import Market
from gpulab.model.statement import Category, Statement, StatementSum, units_of
from gpulab.model.timeline import EndedBy, Run
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of

T0 = datetime(2026, 10, 23, 16, 10, tzinfo=UTC)
AS_OF = T0 + timedelta(hours=5)


def after(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def a_launch(instance_id: str = "i-1", **changes) -> Fact:
    said = {
        "at": T0,
        "zone": "us-east-1d",
        "instance_type": "g4dn.xlarge",
        "market": Market.SPOT,
        "usd_per_hour": Decimal("0.2158"),
        "token": "t-1",
        "launch_id": "l-1",
    }
    return launched(instance_id, **(said | changes))


def a_price(usd: str, minutes: float) -> Fact:
    return price("us-east-1d", "g4dn.xlarge", at=after(minutes), usd_per_hour=Decimal(usd))


def total(*facts: Fact) -> str:
    costs = cost_of(timeline_of(facts).timeline, as_of=AS_OF)
    return str(Usd.of(costs.charges).rounded())


def problems(*facts: Fact) -> list[tuple[DiscrepancyKind, str]]:
    return [(problem.kind, problem.subject) for problem in timeline_of(facts).problems]


def test_the_worked_example_as_facts_costs_the_same():
    """`gpulab cost` and the ledger are one computation: the format's example to ten decimals."""
    facts = (
        a_launch(owner="s123"),
        address("i-1", at=T0, usd_per_hour=Decimal("0.005")),
        a_price("0.2158", -250),
        a_price("0.2210", 80),
        ended("i-1", at=after(195.5), by=EndedBy.USER),
        volume(
            "vol-1", at=T0, type="gp3", size_gb=100, usd_per_gb_month=Decimal("0.08"), owner="s123"
        ),
        volume_deleted("vol-1", at=after(195.5) + timedelta(seconds=2)),
    )

    assert "0.7610251493" == total(*facts)
    assert [] == problems(*facts)


@given(st.permutations(range(8)))
def test_the_order_of_facts_is_irrelevant(order):
    """Facts come from a laptop, an instance and AWS, in whatever order they arrive."""
    facts = [
        a_launch(),
        a_price("0.20", -10),
        a_price("0.25", 30),
        ended("i-1", at=after(100), by=EndedBy.USER, is_final=False),
        started("i-1", at=after(120)),
        ended("i-1", at=after(199), by=None, source=Source.LAPTOP),
        ended("i-1", at=after(190), by=EndedBy.AWS, source=Source.AWS),
        volume(
            "v",
            at=T0,
            type="gp3",
            size_gb=60,
            usd_per_gb_month=Decimal("0.08"),
            instance_id="i-1",
            ends_with_instance=True,
        ),
    ]

    shuffled = [facts[n] for n in order]

    assert total(*facts) == total(*shuffled)


def test_the_end_aws_tells_counts_before_what_the_laptop_noticed():
    """A laptop that was asleep sees the end an hour late; the bill does not."""
    facts = (
        a_launch(),
        ended("i-1", at=after(150), by=None, source=Source.LAPTOP),
        ended("i-1", at=after(89), by=None, source=Source.AGENT),
        ended("i-1", at=after(90), by=EndedBy.AWS, source=Source.AWS),
    )

    runs = timeline_of(facts).timeline.instances[0].runs

    assert (Run(T0, after(90), EndedBy.AWS),) == runs


def test_a_restart_is_a_run_of_its_own():
    """Each start has its own minimum and its own first hour."""
    facts = (
        a_launch(),
        ended("i-1", at=after(30), by=EndedBy.USER, is_final=False),
        started("i-1", at=after(60)),
        started("i-1", at=after(61), source=Source.AGENT),
        ended("i-1", at=after(70), by=EndedBy.AWS),
    )

    runs = timeline_of(facts).timeline.instances[0].runs

    assert (Run(T0, after(30), EndedBy.USER), Run(after(60), after(70), EndedBy.AWS)) == runs


def test_an_instance_without_an_end_runs_on():
    """Money that may still flow is counted until somebody proves that it stopped."""
    assert "1.0790000000" == total(a_launch())


def test_the_launch_price_stands_in_for_a_missing_history():
    """A ledger without price points still answers, and says what the answer rests on."""
    facts = (a_launch(), ended("i-1", at=after(60), by=EndedBy.USER))

    assert "0.2158000000" == total(*facts)
    assert [(DiscrepancyKind.PRICE_GAP, "i-1")] == problems(*facts)


def test_a_stale_history_does_not_outweigh_the_price_seen_at_launch():
    """Prices are saved only while something runs; last week's must not price today."""
    facts = (
        a_launch(),
        a_price("0.9999", -60 * 24 * 7),
        a_price("0.30", 70),
        ended("i-1", at=after(180), by=EndedBy.USER),
    )

    assert "0.7316000000" == total(*facts)


def test_a_root_disk_ends_with_its_instance_but_not_with_a_stop():
    """A stopped instance's disk costs on, which is what surprises students."""
    disk = volume(
        "v",
        at=T0,
        type="gp3",
        size_gb=60,
        usd_per_gb_month=Decimal("0.08"),
        instance_id="i-1",
        ends_with_instance=True,
    )
    stopped = ended("i-1", at=after(60), by=EndedBy.USER, is_final=False)
    gone = ended("i-1", at=after(60), by=EndedBy.USER)

    lives = [timeline_of((a_launch(), disk, end)).timeline.volumes[0] for end in (stopped, gone)]

    assert [None, after(60)] == [life.deleted_at for life in lives]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ((started("i-9", at=T0),), (DiscrepancyKind.NO_LAUNCH, "i-9")),
        ((ended("i-9", at=T0, by=None),), (DiscrepancyKind.NO_LAUNCH, "i-9")),
        (
            (
                a_launch(),
                a_price("0.2", 0),
                ended("i-1", at=after(30), by=None, source=Source.AGENT),
            ),
            (DiscrepancyKind.ENDED_BY_UNKNOWN, "i-1"),
        ),
        (
            (Fact(FactKind.PRICE, "a/b/Linux/UNIX", T0, {"usd_per_hour": "cheap"}),),
            (DiscrepancyKind.UNREADABLE_FACT, "a/b/Linux/UNIX"),
        ),
        ((Fact(FactKind.LAUNCHED, "i-1", T0, {}),), (DiscrepancyKind.UNREADABLE_FACT, "i-1")),
        (
            (Fact(FactKind.VOLUME, "v", T0, {"size_gb": "-1"}),),
            (DiscrepancyKind.UNREADABLE_FACT, "v"),
        ),
        (
            (Fact(FactKind.USAGE, "i-1", T0, {"seconds": "x", "idle_seconds": "0"}),),
            (DiscrepancyKind.UNREADABLE_FACT, "i-1"),
        ),
    ],
)
def test_what_does_not_fit_is_named_and_the_rest_is_counted(facts, expected):
    """One bad line in a ledger of a term must neither stop a report nor vanish."""
    other = a_launch("i-2", usd_per_hour=Decimal("0.1"), market=Market.ON_DEMAND)

    assert [expected] == problems(*facts, other)
    assert "i-2" in timeline_of((*facts, other)).launches


def an_address(instance_id="i-1", *, usd: str | None = "0.005", source=Source.LAPTOP) -> Fact:
    rate = None if usd is None else Decimal(usd)
    return address(instance_id, at=T0, usd_per_hour=rate, source=source)


def test_an_address_costs_while_its_instance_runs_and_once_whoever_tells_of_it():
    """AWS takes an automatic address back at every stop; the laptop and the account tell of the same one."""
    free = a_launch(market=Market.ON_DEMAND, usd_per_hour=Decimal(0))
    facts = (
        free,
        an_address(),
        an_address(source=Source.AWS),
        ended("i-1", at=after(60), by=EndedBy.USER, is_final=False),
        started("i-1", at=after(180)),
        ended("i-1", at=after(240), by=EndedBy.USER),
    )

    assert "0.0100000000" == total(*facts)
    assert Decimal(0) == Decimal(total(free, *facts[3:]))


def test_an_address_of_unknown_price_is_named_and_not_free():
    """A price that nobody wrote down must not read as 0."""
    reading = timeline_of([a_launch(), a_price("0.2", 0), an_address(usd=None)])

    costs = cost_of(reading.timeline, as_of=after(60))

    assert ["the price of a public IPv4 address"] == [one.what for one in costs.unpriced]


def an_attempt(number: int, *, zone: str = "us-east-1d") -> Fact:
    return intent(
        f"l-1-{number}",
        at=after(number - 10),
        launch_id="l-1",
        zone=zone,
        instance_type="g4dn.xlarge",
        market=Market.SPOT,
        at_most_usd_per_hour=Decimal("0.526"),
    )


def test_an_attempt_costs_nothing_and_is_joined_with_what_came_of_it():
    """Two zones were full and a third took it: three times asked, one instance, one charge."""
    attempts = (an_attempt(1, zone="us-east-1a"), an_attempt(2), an_attempt(3))
    facts = (
        a_launch(launch_id="l-1"),
        a_price("0.2", 0),
        ended("i-1", at=after(60), by=EndedBy.USER),
    )

    reading = timeline_of([*reversed(attempts), *facts])

    assert ["", "", "i-1"] == [one.instance_id for one in reading.asked]
    assert total(*facts) == total(*attempts, *facts)
    assert ([], Decimal(0)) == (problems(*attempts), Decimal(total(*attempts)))
    assert {} == timeline_of(attempts).launches


def test_a_span_that_is_told_twice_counts_once():
    """`gpulab stop` tells of it while it goes on, and the instance once more at its end."""
    told = [usage("i-1", at=T0, seconds=n, idle_seconds=n // 2) for n in (600, 1800, 1200)]
    next_span = usage("i-1", at=after(60), seconds=60, idle_seconds=0)

    found = timeline_of([*told, next_span]).usage

    assert [(1800, 900), (60, 0)] == [(one.seconds, one.idle_seconds) for one in found]


def a_bill(**changes) -> Statement:
    sums = (
        StatementSum(T0.date(), "i-1", Category.USAGE, "instance", units_of(Decimal("1.25"))),
        StatementSum(T0.date(), "", Category.CREDIT, "other", units_of(Decimal("-1.25"))),
    )
    plain = {"name": "cur.csv", "path": "bills/cur.csv", "format": "cur-2.0", "digest": "d1"}
    return Statement(**(plain | {"lines": 7, "unreadable": 0, "sums": sums} | changes))


def test_a_statement_is_remembered_with_its_days_and_sums():
    """Gross and credit stay apart: their net is zero as long as credits pay."""
    facts = (statement_read(a_bill(), at=after(60)), statement_read(a_bill(), at=after(5)))

    (read,) = timeline_of(facts).statements

    day = T0.date()
    assert (after(5), "bills/cur.csv", 7, day, day) == (
        read.read_at,
        read.path,
        read.lines,
        read.first_day,
        read.last_day,
    )
    assert {Category.USAGE: Decimal("1.25"), Category.CREDIT: Decimal("-1.25")} == read.by_category


def test_a_statement_without_an_amount_is_remembered_too():
    """An empty month was read as well."""
    (read,) = timeline_of([statement_read(a_bill(sums=()), at=T0)]).statements

    assert (None, None, {}) == (read.first_day, read.last_day, read.by_category)


def test_what_is_known_of_a_launch_comes_from_every_source():
    """The laptop knows the owner, AWS knows the time; together they are the record."""
    early = after(-1)

    launch = timeline_of(
        (a_launch(owner="s123", gpus=1, lab="week4"), a_launch(at=early, source=Source.AWS))
    ).launches["i-1"]

    assert ("s123", 1, "week4", early) == (
        launch.owner,
        launch.gpus,
        launch.lab,
        launch.launched_at,
    )


def test_the_end_that_was_moved_last_is_the_planned_one():
    """Money is kept for the time to come, and an instance past its old end is no problem."""
    born = a_launch(expires_at=after(240), source=Source.AWS)
    later, sooner = (
        extended("i-1", at=after(10), until=after(600)),
        extended("i-1", at=after(20), until=after(300)),
    )

    ends = [timeline_of(facts).launches["i-1"].expires_at for facts in ([born], [sooner, born, later])]  # fmt: skip

    assert [after(240), after(300)] == ends


def test_usage_is_read_as_spans():
    """Idle time is money that a student can save."""
    spans = timeline_of((usage("i-1", at=T0, seconds=600, idle_seconds=300),)).usage

    assert [("i-1", 600, 300)] == [(s.instance_id, s.seconds, s.idle_seconds) for s in spans]


def a_disk(number: int) -> Fact:
    return volume(
        f"vol-{number}",
        at=T0,
        type="gp3",
        size_gb=60,
        usd_per_gb_month=Decimal("0.08"),
        instance_id=f"i-{number}",
        ends_with_instance=True,
    )


@pytest.mark.parametrize(
    ("seen_s", "outlives_s"),
    [
        pytest.param([], 0, id="nobody looked"),
        pytest.param([33], 33, id="one was seen"),
        pytest.param([31, 900, 34, 20], 31, id="the median of those seen to go"),
    ],
)
def test_a_disk_nobody_saw_go_went_when_disks_of_this_account_go(seen_s, outlives_s):
    """AWS deletes it half a minute after the end and tells nobody; of a run that cost next to nothing that is a percent."""
    end = after(30)
    facts = []
    for number, seconds in enumerate([None, *seen_s]):
        ending = ended(f"i-{number}", at=end, by=EndedBy.USER, source=Source.AWS)
        facts += [a_launch(f"i-{number}"), a_disk(number), ending]
        if seconds is not None:
            facts.append(volume_deleted(f"vol-{number}", at=end + timedelta(seconds=seconds)))

    unseen = timeline_of(facts).timeline.volumes[0]

    assert ("vol-0", end + timedelta(seconds=outlives_s)) == (unseen.id, unseen.deleted_at)


def test_a_restart_seen_by_aws_keeps_the_first_run():
    """EC2 overwrites the launch time at a restart; the first run must not vanish from the books."""
    facts = (
        a_launch(),
        ended("i-1", at=after(30), by=EndedBy.USER, is_final=False, source=Source.AWS),
        a_launch(at=after(60), source=Source.AWS),
    )

    assert (Run(T0, after(30), EndedBy.USER), Run(after(60))) == (
        timeline_of(facts).timeline.instances[0].runs
    )


def test_a_look_that_came_late_does_not_shorten_the_run():
    """A laptop whose network was away sees `running` minutes after AWS began to bill it; the soak found runs too cheap by five."""
    late = started("i-1", at=after(4))

    runs = timeline_of((a_launch(), late)).timeline.instances[0].runs

    assert (Run(T0),) == runs


def test_a_run_counts_from_the_state_running():
    """AWS bills from running, some seconds after the launch time; a stop in between is no such sighting."""
    seen = started("i-1", at=after(0.25))
    ended_before = ended("i-1", at=after(0.1), by=EndedBy.USER, is_final=False)

    runs = [
        timeline_of(facts).timeline.instances[0].runs
        for facts in ((a_launch(), seen), (a_launch(), ended_before, seen))
    ]

    assert (Run(after(0.25)),) == runs[0]
    assert (Run(T0, after(0.1), EndedBy.USER), Run(after(0.25))) == runs[1]


@pytest.mark.parametrize(
    ("end", "ends_at"),
    [
        (ended("i-1", at=after(60), by=EndedBy.USER, source=Source.AGENT), None),
        (ended("i-1", at=after(60), by=None), None),
        (ended("i-1", at=after(60), by=EndedBy.USER), after(60)),
        (ended("i-1", at=after(60), by=EndedBy.USER, source=Source.AWS), after(60)),
        (ended("i-1", at=after(89), by=EndedBy.USER, source=Source.AGENT), after(89)),
    ],
)
def test_an_end_that_was_foreseen_and_outlived_is_none(end, ends_at):
    """Who came back in the last seconds of an idle hour kept the instance; its agent's own count of use says so."""
    used = usage("i-1", at=after(2), seconds=88 * 60, idle_seconds=0)

    life = timeline_of([a_launch(), end, used]).timeline.instances[0]

    assert ends_at == life.runs[-1].ends_at


def test_use_after_a_restart_does_not_undo_the_stop_before_it():
    """A count begins anew with each boot; only the one that began before an end can contradict it."""
    stop = ended("i-1", at=after(60), by=None, is_final=False, source=Source.AGENT)
    uses = [usage("i-1", at=after(at), seconds=50 * 60, idle_seconds=0) for at in (5, 200)]
    again = a_launch(at=after(195), source=Source.AGENT)

    life = timeline_of([a_launch(), stop, again, *uses]).timeline.instances[0]

    assert (Run(T0, after(60), EndedBy.USER), Run(after(195))) == life.runs


@pytest.mark.parametrize("source", [Source.LAPTOP, Source.AWS])
def test_an_instance_is_not_believed_about_its_launch_before_others(source):
    """Its user writes what it tells: another's name, a price of nothing, a year in which nobody rented anything."""
    forged = a_launch(
        at=T0.replace(year=1999),
        owner="other",
        usd_per_hour=Decimal(0),
        market=Market.ON_DEMAND,
        source=Source.AGENT,
    )

    reading = timeline_of([forged, a_launch(owner="s123", source=source)])

    launch = reading.launches["i-1"]
    assert (T0, "s123", Market.SPOT) == (launch.launched_at, launch.owner, launch.market)
    assert (Run(T0),) == reading.timeline.instances[0].runs


def test_an_instance_that_was_stopped_remembers_its_first_run_itself():
    """On a new computer AWS tells the launch time of the restart only; the first run is in what the instance wrote."""
    stop = ended("i-1", at=after(30), by=EndedBy.USER, is_final=False, source=Source.AGENT)
    facts = [a_launch(source=Source.AGENT), stop, a_launch(at=after(60), source=Source.AWS)]

    runs = timeline_of(facts).timeline.instances[0].runs

    assert (Run(T0, after(30), EndedBy.USER), Run(after(60))) == runs
