"""docs/unproven.md and tests/live say the same: every claim has the test that settles it, and every such test a claim."""

from __future__ import annotations

import ast
import re
from decimal import Decimal
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_ROW = re.compile(
    r"^\| (?P<claim>.+?) \| (?P<instead>.+?) \| (?P<test>.+?) \| (?P<shown>.+?) \|$", re.M
)
_LARGEST_USD = Decimal(2)


def test_every_unproven_claim_names_its_test_and_every_live_test_its_claim():
    """A claim without a test stays unproven for ever; a test without a claim spends money for nothing."""
    named = [row["test"] for row in _rows()]

    assert sorted(_tests()) == sorted(named)


def test_every_claim_says_what_the_sandbox_shows_of_it():
    """A reader with no account must know which of these tests have ever run."""
    words = {row["claim"]: row["shown"] for row in _rows()}

    assert {} == {c: w for c, w in words.items() if w not in ("shown", "machines", "no")}
    assert "shown" in words.values()


def test_live_tests_cost_at_most_two_dollars_and_name_what_they_cost(monkeypatch):
    """The price is said before anything is started, so it has to be known without an account."""
    monkeypatch.syspath_prepend(str(CHECKOUT))
    from tests.live.prices import PRICES, total

    text = "".join(
        p.read_text(encoding="utf-8") for p in (CHECKOUT / "tests/live").glob("test_*.py")
    )
    marked = set(re.findall(r'mark\.costs\("(\w+)"\)', text))

    assert set(PRICES) == marked
    assert total(PRICES) <= _LARGEST_USD


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
