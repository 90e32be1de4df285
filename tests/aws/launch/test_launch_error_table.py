"""The whole table of AWS's refusals (`tests/unit/cases/aws_errors.csv`), each met by a real launch."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.aws.launch.conftest import Student

from gpulab import errors
from gpulab.launch.events import Attempting, BuyOnDemand, PlaceRefused
from gpulab.sandbox import Sandbox

CASES = list(
    csv.DictReader((Path(__file__).parents[2] / "unit/cases/aws_errors.csv").open(encoding="utf-8"))
)
ELSEWHERE = ("NoCapacity", "NotOffered", "SpotPriceAboveCap")
# How often the same place is asked: lost answers five times, a missing thing until EC2 must know it, then once more anew.
TRIES = {"Ambiguous": 5, "Throttled": 5, "NotFound": 5, "SetupMissing": 10}
# What the token made is looked up instead; what it made has ended, so a new token is tried once.
TRIES |= {"IdempotentParameterMismatch": 1, "IdempotentInstanceTerminated": 2}


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    """One account for the whole table: every launch in it is refused, so nothing is left for the next case."""
    with Sandbox() as opened:
        yield opened


@pytest.mark.parametrize("case", CASES, ids=[c["code"] for c in CASES])
def test_each_refusal_becomes_its_class_and_is_tried_elsewhere_only_if_the_place_is_at_fault(
    shared, tmp_path, case
):
    """A permission fault told as lack of capacity sends a student waiting for nothing; a lost answer tried elsewhere costs twice."""
    shared.faults.clear()
    shared.refuse("RunInstances", case["code"])
    student, before = Student(shared, tmp_path), len(shared.calls)

    run = student.up(confirm=lambda question: not isinstance(question, BuyOnDemand))

    kind = getattr(errors, case["class"])
    seen = run.of(PlaceRefused)[0].error if run.of(PlaceRefused) else run.error
    places = {e.offer.place for e in run.of(Attempting)}
    calls = student.operations(before).count("RunInstances")
    assert (kind, case["code"]) == (type(seen), seen.code)
    assert f"{case['says']} ({case['code']})" in seen.message
    assert seen.hint
    assert (case["class"] in ELSEWHERE) == (len(places) > 1)
    tries = TRIES.get(case["code"], TRIES.get(case["class"], 1))
    assert calls == (len(places) if case["class"] in ELSEWHERE else tries)
    assert [] == student.live()
