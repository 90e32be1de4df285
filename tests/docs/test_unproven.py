"""docs/unproven.md and tests/live say the same: every claim has the test that settles it, and every such test a claim."""

from __future__ import annotations

import ast
import re
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gpulab.bootstrap import packer
from gpulab.launch import bake
from gpulab.launch.protocol.scheduled_end import AFTER_DEADLINE
from gpulab.planning.catalogue import on_demand_prices

CHECKOUT = Path(__file__).resolve().parents[2]
_ROW = re.compile(
    r"^\| (?P<claim>.+?) \| (?P<instead>.+?) \| (?P<test>.+?) \| (?P<shown>.+?) \|$", re.M
)
_LARGEST_USD = Decimal(2)


@pytest.fixture
def prices(monkeypatch) -> ModuleType:
    """What live tests launch, and what that costs."""
    monkeypatch.syspath_prepend(str(CHECKOUT))
    from tests.live import prices

    return prices


def test_every_unproven_claim_names_its_test_and_every_live_test_its_claim():
    """A claim without a test stays unproven for ever; a test without a claim spends money for nothing."""
    named = [row["test"] for row in _rows()]

    assert sorted(_tests()) == sorted(named)


def test_every_claim_says_what_the_sandbox_shows_of_it():
    """A reader with no account must know which of these tests have ever run, and why the others could not."""
    words = {row["claim"]: row["shown"] for row in _rows()}

    known = re.compile(r"shown|(by hand|no): .{10,}")
    assert {} == {claim: word for claim, word in words.items() if not known.fullmatch(word)}
    assert 14 <= sum(word == "shown" for word in words.values())


def test_every_line_has_the_command_that_settles_it():
    """Whoever has an account for an evening runs one line at a time, and looks up nothing."""
    text = (CHECKOUT / "docs" / "unproven.md").read_text(encoding="utf-8")
    beside = text.split("\n## Not asked of AWS\n")[1].split("\n## ")[0].strip().split("\n\n")

    assert "-m live TEST" in text  # of the table, for each row's own test
    assert [] == [part for part in beside if not re.search(r"`(gpulab|aws|python) [^`]+`", part)]


def test_live_tests_cost_at_most_two_dollars_and_name_what_they_cost(prices):
    """The price is said before anything is started, so it has to be known without an account."""
    text = "".join(
        p.read_text(encoding="utf-8") for p in (CHECKOUT / "tests/live").glob("test_*.py")
    )
    marked = set(re.findall(r'mark\.costs\("(\w+)"\)', text))

    assert set(prices.NEEDS) == marked
    assert prices.total(prices.NEEDS, "us-east-1") <= _LARGEST_USD


def test_the_price_is_each_instance_for_its_whole_end_at_the_on_demand_price(prices):
    """A price for the time that a good run takes is no "at most": what is killed lives to its end."""
    listed = {name: price.usd_per_hour for (region, name), price in on_demand_prices().items() if region == "us-east-1"}  # fmt: skip
    for need, known in prices.NEEDS.items():
        ends = [(one.ends_after + one.extended_by + AFTER_DEADLINE, one) for one in known.launches]
        least = sum(
            one.times * listed[one.type] * Decimal(end.total_seconds()) / 3600 for end, one in ends
        )
        assert least + known.beside_usd <= prices.usd(need, "us-east-1")


def test_a_bake_is_paid_to_the_end_that_the_product_gives_it(prices):
    """Builder and test instance take their ends from `gpulab image bake`, not from the tests."""
    by_name = {one.name: one for need in prices.NEEDS.values() for one in need.launches}

    assert bake.BUILD <= by_name["image"].ends_after
    assert bake.TEST <= by_name["image-test"].ends_after
    assert packer._BUILD <= by_name["packer"].ends_after


def test_the_page_says_what_each_thing_costs_and_when_it_ends(prices):
    """The page is read before an account is lent; it must not promise another end than the code arms."""
    text = (CHECKOUT / "docs" / "unproven.md").read_text(encoding="utf-8")

    assert prices.bill(prices.NEEDS, "us-east-1") in text


def test_the_gates_time_limit_does_not_cut_off_a_live_wait(prices):
    """Five minutes are enough for any test of the gate; a live one that waits for a deadline was cut off by them, with its instance running."""
    from tests.live.conftest import pytest_collection_modifyitems

    marks = {"live/test_end.py": [], "docs/test_unproven.py": []}
    items = [
        SimpleNamespace(path=CHECKOUT / "tests" / name, add_marker=marks[name].append)
        for name in marks
    ]

    pytest_collection_modifyitems(items)

    assert [("timeout", (0,))] == [(m.name, m.args) for m in marks["live/test_end.py"]]
    assert [] == marks["docs/test_unproven.py"]


def test_what_was_not_in_the_price_is_not_launched(prices):
    """A test that forgot its mark would spend what nobody was told."""
    from tests.live.account import Account

    account = Account(None, None, paid=frozenset({"lab"}))

    assert prices.GPU == account._paid("lab").type
    with pytest.raises(AssertionError, match="not in the price"):
        account._paid("tf1")
    with pytest.raises(ValueError):
        account._paid("unheard-of")


def _rows() -> list[re.Match[str]]:
    text = (CHECKOUT / "docs" / "unproven.md").read_text(encoding="utf-8")
    found = _ROW.finditer(text.split("\n## ")[0])
    return [row for row in found if row["claim"] not in ("claim", "---")]


def _tests() -> list[str]:
    """Every live test, as the page writes it."""
    return [
        f"`tests/live/{path.name}::{node.name}`"
        for path in (CHECKOUT / "tests" / "live").glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
