"""What is launched, in which order, at which worst price, and every refusal before money."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import CreditTooLow, QuotaTooLow, Refused, WrongUsage
from gpulab.model.instance import Instance, LaunchRequest, State
from gpulab.model.market import Market, Offer, Place, Quota
from gpulab.planning import Limits, Snapshot, plan_launch
from gpulab.planning.catalogue import instance_types, on_demand_prices
from gpulab.planning.plan import already_up, spot_cap

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TYPES = {t.name: t for t in instance_types()}
ON_DEMAND = {
    "g4dn.xlarge": "0.526",
    "g4dn.2xlarge": "0.752",
    "g4dn.8xlarge": "2.176",
    "g6.xlarge": "0.8048",
    "t3.micro": "0.0104",
    "t3.large": "0.0832",
}


def an_offer(
    usd: str, zone: str = "us-east-1a", kind: str = "g4dn.xlarge", market: Market = Market.SPOT
) -> Offer:
    return Offer(
        Place(zone[:-1], zone, kind, market),
        TYPES[kind],
        Decimal(usd),
        Decimal(ON_DEMAND[kind]),
        NOW,
    )


def a_request(**changes) -> LaunchRequest:
    request = LaunchRequest(
        name="week4",
        gpu="T4",
        instance_type=None,
        duration=timedelta(hours=4),
        max_usd_per_hour=None,
        regions=("us-east-1", "us-west-2"),
        markets=(Market.SPOT,),
        environment="tf2",
    )
    return replace(request, **changes)


def a_snapshot(*offers: Offer, **changes) -> Snapshot:
    return replace(Snapshot(read_at=NOW, types=instance_types(), offers=offers), **changes)


def a_quota(
    limit: int | None,
    used: int | None = 0,
    *,
    region: str = "us-east-1",
    market: Market = Market.SPOT,
) -> Quota:
    code, name = {
        Market.SPOT: ("L-3819A6DF", "All G and VT Spot Instance Requests"),
        Market.ON_DEMAND: ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    }[market]
    return Quota(code, name, region, "G", market, limit, used)


def tried(plan) -> list[tuple[str, str]]:
    return [(o.type.name, o.place.zone) for o in plan.attempts]


def test_the_order_is_zone_then_type_then_region():
    """A full zone must lead to the same machine next door before anything larger or further away."""
    snapshot = a_snapshot(
        an_offer("0.10", "us-west-2a"),
        an_offer("0.30", "us-east-1a", "g4dn.2xlarge"),
        an_offer("0.22", "us-east-1b"),
        an_offer("0.21", "us-east-1c"),
    )

    plan = plan_launch(a_request(), snapshot)

    assert [
        ("g4dn.xlarge", "us-east-1c"),
        ("g4dn.xlarge", "us-east-1b"),
        ("g4dn.2xlarge", "us-east-1a"),
        ("g4dn.xlarge", "us-west-2a"),
    ] == tried(plan)


def test_a_place_that_was_full_a_moment_ago_is_tried_last():
    """Capacity often returns in minutes, so a full place is demoted, not dropped; an old refusal is forgotten."""
    full, forgotten, dear = (
        an_offer("0.16"),
        an_offer("0.17", "us-east-1b"),
        an_offer("0.19", "us-east-1c"),
    )
    known = {full.place: NOW + timedelta(minutes=2), forgotten.place: NOW - timedelta(seconds=1)}

    plan = plan_launch(a_request(), a_snapshot(full, forgotten, dear, full_until=known))

    assert (forgotten, dear, full) == plan.attempts


def test_a_place_that_never_has_the_type_is_left_out():
    """`Unsupported` does not change by waiting."""
    good, never = an_offer("0.22", "us-east-1b"), an_offer("0.16")

    plan = plan_launch(a_request(), a_snapshot(good, never, never=frozenset({never.place})))

    assert (good,) == plan.attempts


@given(st.permutations(["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]))
def test_ties_are_broken_by_zone_whatever_order_aws_answers_in(zones):
    """The same snapshot gives the same plan, so a dry run shows what a run will do."""
    plan = plan_launch(a_request(), a_snapshot(*(an_offer("0.2", z) for z in zones)))

    assert sorted(zones) == [o.place.zone for o in plan.attempts]


def test_a_type_that_was_refused_everywhere_is_asked_for_once_more():
    """AWS lists it: a wrong word of a bad minute must not shut a student out for a month."""
    one, other = an_offer("0.22", "us-east-1b"), an_offer("0.16")

    plan = plan_launch(
        a_request(), a_snapshot(one, other, never=frozenset({one.place, other.place}))
    )

    assert (other, one) == plan.attempts


def test_a_wish_for_one_gpu_never_buys_a_large_machine_on_spot():
    """g4dn.8xlarge has one T4 as well; at $0.80/h it is not what somebody who asked for a T4 expects."""
    small, large = an_offer("0.21"), an_offer("0.80", kind="g4dn.8xlarge")

    plan = plan_launch(a_request(), a_snapshot(small, large))

    assert (small,) == plan.attempts


def test_at_most_counts_the_cap_of_the_dearest_attempt_with_disk_and_address():
    """A spot price may rise to the on-demand price while the instance runs; "at most" has to stay true."""
    snapshot = a_snapshot(an_offer("0.2158"), an_offer("0.25", "us-east-1b"))

    plan = plan_launch(a_request(), snapshot)

    disk = Decimal("0.08") * 60 / (30 * 24)
    assert (Decimal("0.526") + disk + Decimal("0.005")) * 4 == plan.at_most_usd
    assert (Decimal("0.2158") + disk + Decimal("0.005")) * 4 == plan.expected_usd
    assert NOW + timedelta(hours=4) == plan.ends_at


def test_a_price_cap_lowers_at_most_and_leaves_out_what_is_dearer():
    """The user's own cap is sent to AWS, so it bounds the hour."""
    cheap, dear = an_offer("0.21"), an_offer("0.26", "us-east-1b")

    plan = plan_launch(a_request(max_usd_per_hour=Decimal("0.25")), a_snapshot(cheap, dear))

    disk = Decimal("0.08") * 60 / (30 * 24)
    assert (cheap,) == plan.attempts
    assert (Decimal("0.25") + disk + Decimal("0.005")) * 4 == plan.at_most_usd


def test_without_a_known_on_demand_price_a_cap_of_twice_the_price_is_sent():
    """Otherwise nothing would bound what an hour can cost."""
    offer = replace(an_offer("0.2"), on_demand_usd_per_hour=None)

    assert Decimal("0.4") == spot_cap(offer, a_request())
    assert spot_cap(an_offer("0.2"), a_request()) is None


def test_on_demand_is_offered_apart_and_never_attempted_unasked():
    """On demand costs more than twice as much: only a person may choose it."""
    spot, fixed = an_offer("0.21"), an_offer("0.526", market=Market.ON_DEMAND)

    plan = plan_launch(a_request(), a_snapshot(spot, fixed))

    assert ((spot,), (fixed,)) == (plan.attempts, plan.on_demand)


def test_both_markets_asked_for_are_tried_in_that_order():
    """`--on-demand` as a fallback comes after every spot place, in every region."""
    fixed = an_offer("0.526", market=Market.ON_DEMAND)
    west = an_offer("0.3", "us-west-2a")

    plan = plan_launch(a_request(markets=(Market.SPOT, Market.ON_DEMAND)), a_snapshot(fixed, west))

    assert ((west, fixed), ()) == (plan.attempts, plan.on_demand)


def test_the_disk_grows_to_the_image():
    """EC2 refuses a root volume below its snapshot."""
    plan = plan_launch(a_request(disk_gib=30), a_snapshot(an_offer("0.21"), root_gib=75))

    assert 75 == plan.disk_gib
    assert ("the disk is 75 GiB, as the image needs that much",) == plan.warnings


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("g4dn.xlarge", ()),
        ("t3.large", ("t3.large has no GPU: everything is computed on its CPUs",)),
        (
            "t3.micro",
            (
                "t3.micro has no GPU: everything is computed on its CPUs",
                "t3.micro has 1 GiB of memory, which JupyterLab and TensorFlow in one notebook fill",
            ),
        ),
    ],
)
def test_a_type_that_lacks_what_a_lab_needs_is_told_before_it_is_bought(kind, said):
    """A kernel that dies at `import tensorflow` on the cheapest type reads as a fault of the notebook."""
    plan = plan_launch(a_request(instance_type=kind), a_snapshot(an_offer("0.003", kind=kind)))

    assert said == plan.warnings


def test_too_many_hours_are_refused_with_what_is_allowed():
    """The commonest way to lose money is an instance that runs for days."""
    with pytest.raises(Refused) as refusal:
        plan_launch(a_request(duration=timedelta(hours=99)), a_snapshot(an_offer("0.21")))

    assert "99 h is over the 12 h limit" == refusal.value.message
    assert (
        "`--hours 12` and `gpulab extend` later, or raise `hours_limit` in the configuration"
        == refusal.value.hint
    )


def test_the_limit_itself_is_allowed():
    """A limit of 12 h allows 12 h."""
    plan = plan_launch(
        a_request(duration=timedelta(hours=24)),
        a_snapshot(an_offer("0.21")),
        limits=Limits(timedelta(hours=24)),
    )

    assert NOW + timedelta(hours=24) == plan.ends_at


def test_a_quota_of_zero_comes_with_the_request_that_raises_it():
    """New accounts have no GPU quota at all; this is what most students meet first."""
    with pytest.raises(QuotaTooLow) as refusal:
        plan_launch(a_request(), a_snapshot(an_offer("0.21"), quotas=(a_quota(0),)))

    assert (
        "the spot quota in us-east-1 is 0 vCPUs (0 in use), and g4dn.xlarge needs 4"
        == refusal.value.message
    )
    assert (
        'Ask AWS to raise "All G and VT Spot Instance Requests" (L-3819A6DF) to 4, with your use case, at'
        " https://us-east-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/L-3819A6DF"
        " or with `aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF"
        " --desired-value 4 --region us-east-1`; it takes minutes to days"
    ) == refusal.value.hint
    assert 3 == refusal.value.exit_code


def test_a_quota_in_use_is_refused_with_the_sum_to_ask_for():
    """Four of four in use: asking for four again would change nothing."""
    with pytest.raises(QuotaTooLow) as refusal:
        plan_launch(a_request(), a_snapshot(an_offer("0.21"), quotas=(a_quota(4, 4),)))

    assert (
        "the spot quota in us-east-1 is 4 vCPUs (4 in use), and g4dn.xlarge needs 4"
        == refusal.value.message
    )
    assert "--desired-value 8 " in refusal.value.hint


def test_a_quota_excludes_its_region_and_market_only():
    """Quotas are per family, market and region; another region may serve, and the user is told why the first does not."""
    east, west = an_offer("0.21"), an_offer("0.25", "us-west-2a")
    fixed = an_offer("0.526", market=Market.ON_DEMAND)

    plan = plan_launch(
        a_request(),
        a_snapshot(east, west, fixed, quotas=(a_quota(0), a_quota(8, region="us-west-2"))),
    )

    assert ((west,), (fixed,)) == (plan.attempts, plan.on_demand)
    assert ("us-east-1 is left out: its quota L-3819A6DF is 0 vCPUs, 0 in use",) == plan.warnings


def test_a_quota_that_could_not_be_read_stops_nothing():
    """A student account may lack the right to read quotas and still launch."""
    plan = plan_launch(a_request(), a_snapshot(an_offer("0.21"), quotas=(a_quota(None, None),)))

    assert [("g4dn.xlarge", "us-east-1a")] == tried(plan)


def test_a_type_too_large_for_the_quota_is_left_out():
    """Four vCPUs are one xlarge; the 2xlarge would be refused by AWS."""
    plan = plan_launch(
        a_request(),
        a_snapshot(an_offer("0.21"), an_offer("0.2", kind="g4dn.2xlarge"), quotas=(a_quota(4),)),
    )

    assert [("g4dn.xlarge", "us-east-1a")] == tried(plan)


def test_credit_that_does_not_cover_the_worst_case_is_refused():
    """Past the credit the card is charged; the hint says what fits."""
    with pytest.raises(CreditTooLow) as refusal:
        plan_launch(a_request(), a_snapshot(an_offer("0.21"), credit_left_usd=Decimal("1.00")))

    assert "this may cost up to $2.15, and $1.00 of your credit is left" == refusal.value.message
    assert "`--hours 1.8` fits, or cap the price with `--max-price 0.21`" == refusal.value.hint


def test_credit_nobody_knows_stops_nothing():
    """Many accounts may not read their credit."""
    assert plan_launch(a_request(), a_snapshot(an_offer("0.21"))).credit_left_usd is None


def test_a_cap_below_every_offer_names_the_cheapest():
    """The user learns the price to ask for without another command."""
    with pytest.raises(Refused) as refusal:
        plan_launch(
            a_request(max_usd_per_hour=Decimal("0.10")),
            a_snapshot(an_offer("0.22"), an_offer("0.21", "us-east-1b")),
        )

    assert (
        "every offer is over $0.10/h; the cheapest is g4dn.xlarge in us-east-1b at $0.21/h"
        == refusal.value.message
    )
    assert "`--max-price 0.21` or more, or `gpulab prices` for other GPUs" == refusal.value.hint


def test_a_price_is_told_with_the_digits_it_has():
    """AWS writes six decimals; a student types two."""
    with pytest.raises(Refused) as refusal:
        plan_launch(a_request(max_usd_per_hour=Decimal("0.1")), a_snapshot(an_offer("0.500000")))

    assert (
        "is over $0.10/h; the cheapest is g4dn.xlarge in us-east-1a at $0.50/h"
        in refusal.value.message
    )


def test_nothing_sold_in_the_region_names_the_way_out():
    """Not every region has every GPU."""
    with pytest.raises(Refused) as refusal:
        plan_launch(a_request(regions=("eu-north-1",)), a_snapshot(an_offer("0.21")))

    assert "no zone of eu-north-1 sells a T4 on spot" == refusal.value.message


@pytest.mark.parametrize(
    ("wish", "kind", "message", "hint"),
    [
        ({"gpu": "T5"}, WrongUsage, "gpulab knows no GPU `T5`", "Did you mean `T4`?"),
        ({"gpu": "A10"}, WrongUsage, "gpulab knows no GPU `A10`", "Did you mean `A10G`?"),
        (
            {"gpu": "A100"},
            Refused,
            "AWS sells no single A100: p4d.24xlarge has 8",
            "Ask for it by type: `--type p4d.24xlarge`",
        ),
        (
            {"instance_type": "g4dn.xlrage"},
            WrongUsage,
            "gpulab knows no instance type `g4dn.xlrage`",
            "Did you mean `g4dn.xlarge`?",
        ),
        (
            {"instance_type": "p3dn.24xlarge"},
            Refused,
            "p3dn.24xlarge has a V100, and the images have no driver for it",
            "`--gpu T4` is the cheapest GPU with a driver",
        ),
    ],
)
def test_a_wish_nobody_can_meet_is_answered_with_near_names(wish, kind, message, hint):
    """A typing slip costs one line, not a search."""
    with pytest.raises(kind) as refusal:
        plan_launch(a_request(**wish), a_snapshot(an_offer("0.21")))

    assert (message, hint) == (refusal.value.message, refusal.value.hint)


def test_a_gpu_is_found_however_it_is_written():
    """`nvidia t4` and `t4` are a T4."""
    plan = plan_launch(a_request(gpu="nvidia t4"), a_snapshot(an_offer("0.21")))

    assert [("g4dn.xlarge", "us-east-1a")] == tried(plan)


def test_the_newest_live_instance_of_the_name_is_up():
    """`gpulab up` again opens it; an ended one of the same name does not count."""
    place = an_offer("0.2").place
    ended, old, new = (
        Instance(
            f"i-{n}", "week4", "o", place, state, "", "", "", NOW + timedelta(minutes=n), None, ""
        )
        for n, state in enumerate([State.TERMINATED, State.RUNNING, State.PENDING])
    )

    assert new == already_up(a_request(), a_snapshot(instances=(new, old, ended)))
    assert already_up(a_request(name="other"), a_snapshot(instances=(new,))) is None


def test_the_shipped_prices_say_how_old_they_are():
    """A price list frozen in a package goes stale: AWS cut p4d by a third in 2025."""
    price = on_demand_prices()[("us-east-1", "g4dn.xlarge")]

    assert (Decimal("0.526"), datetime(2026, 7, 20, 13, 44, 30, tzinfo=UTC)) == (
        price.usd_per_hour,
        price.as_of,
    )
    assert (False, True) == (price.is_old(NOW), price.is_old(NOW + timedelta(days=90)))
