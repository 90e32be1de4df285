"""What holds for every bill, shown on random timelines; and an independent computation that must agree."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpulab.model.market import Market
from gpulab.model.timeline import InstanceLife, PriceRule, PriceSeries, Run, Timeline
from gpulab.spending.charging import cost_of
from gpulab.spending.document import read_document, render
from gpulab.spending.exact import Usd
from gpulab.spending.windows import within


def _beside(name: str):
    """Load a module that lies beside this file; tests are not a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


oracle = _beside("spending_oracle").oracle
documents = _beside("spending_strategies").documents
RULES = [rule.value for rule in PriceRule]
slowly = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def answer_to(document: dict, rule: str) -> dict:
    read = read_document(json.dumps(document).encode())
    costs = cost_of(read.timeline, as_of=read.as_of, price_rule=PriceRule(rule))
    return render(costs, credit_usd=read.credit_usd)


def charges_of(document: dict, rule: str = "hour-start"):
    read = read_document(json.dumps(document).encode())
    return cost_of(read.timeline, as_of=read.as_of, price_rule=PriceRule(rule)).charges


@pytest.mark.parametrize("rule", RULES)
@slowly
@given(document=documents())
def test_the_sum_of_every_second_is_the_bill(rule, document):
    """Two computations that share no code agree to ten decimals, the second of exhaustion included."""
    assert oracle(document, rule) == answer_to(document, rule)


@often
@given(document=documents(), seed=st.integers())
def test_the_order_in_the_file_is_irrelevant(document, seed):
    """A ledger is a set of facts; sorting it must not move a cent."""
    shuffled = json.loads(json.dumps(document))
    for key in ("instances", "volumes", "spot_prices"):
        random.Random(seed).shuffle(shuffled[key])
    for instance in shuffled["instances"]:
        random.Random(seed).shuffle(instance["events"])

    assert answer_to(document, "hour-start") == answer_to(shuffled, "hour-start")


@often
@given(document=documents(), rule=st.sampled_from(RULES))
def test_no_charge_is_negative_and_owners_add_up(document, rule):
    """Everybody's share, and nobody's, make the total: no cent is lost between students."""
    charges = charges_of(document, rule)
    owners = {charge.owner for charge in charges}

    by_owner = [Usd.of(c for c in charges if c.owner == owner) for owner in owners]

    assert all(Usd.of([charge]) >= Usd() and charge.seconds > 0 for charge in charges)
    assert Usd.of(charges) == sum(by_owner, Usd())


@often
@given(document=documents(), rule=st.sampled_from(RULES), step_s=st.sampled_from([3600, 900, 77]))
def test_charges_add_up_over_any_split_of_the_time(document, rule, step_s):
    """Weeks, days and hours of a report sum to the bill."""
    charges = charges_of(document, rule)
    first = min((c.begins_at for c in charges), default=None)
    last = max((c.begins_at + timedelta(seconds=c.seconds) for c in charges), default=None)

    parts, at = Usd(), first
    while first and at < last:
        parts += Usd.of(within(charges, at, at + timedelta(seconds=step_s)))
        at += timedelta(seconds=step_s)

    assert Usd.of(charges) == parts


@often
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    prices=st.lists(st.decimals("0", "4", places=4), min_size=16, max_size=16),
)
def test_a_run_cut_at_its_hours_costs_the_same(lengths, prices):
    """Stopping and starting again at a full hour neither saves nor costs: hours count from the start."""
    begin = read_document(b'{"as_of": "2026-03-28T20:00:00Z"}').as_of
    ends = [begin + timedelta(hours=sum(lengths[: n + 1])) for n in range(len(lengths))]
    series = PriceSeries(tuple(begin + timedelta(hours=n) for n in range(16)), tuple(prices))

    whole = _cost([Run(begin, ends[-1])], series)
    cut = _cost([Run(a, b) for a, b in zip([begin, *ends], ends, strict=False)], series)

    assert whole == cut


def _cost(runs: list[Run], series: PriceSeries) -> Usd:
    life = InstanceLife("i", None, "g5.xlarge", "us-east-1a", Market.SPOT, tuple(runs), series)
    costs = cost_of(Timeline((life,)), as_of=runs[-1].ends_at)
    return Usd.of(costs.charges)


@often
@given(document=documents(), rule=st.sampled_from(RULES), later_s=st.integers(0, 5000))
def test_an_hour_later_never_costs_less(document, rule, later_s):
    """What runs on only ever grows the bill."""
    read = read_document(json.dumps(document).encode())
    later = read.as_of + timedelta(seconds=later_s)

    now, then = (
        Usd.of(cost_of(read.timeline, as_of=at, price_rule=PriceRule(rule)).charges)
        for at in (read.as_of, later)
    )

    assert now <= then


@given(
    usd=st.decimals("0", "1e6", places=12), times=st.integers(0, 10**6), places=st.integers(0, 10)
)
def test_rounding_is_half_up_of_the_exact_amount(usd, times, places):
    """Rounded once, at the end; half a unit goes up, as on a bill."""
    exact = Usd(usd) * times

    unit = Decimal(1).scaleb(-places)
    below = exact.rounded(places) - unit / 2

    assert Usd(below) <= exact < Usd(below + unit)
