"""
Live tests: the price first, a budget, one account, a sweep at the end, and a report to paste into docs/unproven.md.

    GPULAB_LIVE_BUDGET_USD=2 python -m pytest tests/live -m live

They spend from the gpulab profile that `GPULAB_PROFILE` names, or the default one; `gpulab init` comes first.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pytest
from tests.live.account import Account, Launched
from tests.live.prices import bill, total
from tests.live.sweeping import sweep

from gpulab.store.home import Home

BUDGET = "GPULAB_LIVE_BUDGET_USD"
_REPORT = Path(__file__).parents[2] / "build" / "live" / "report.md"
_verdicts: dict[str, tuple[str, str]] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of these tests."""
    config.addinivalue_line(
        "markers", "costs(name): what a live test needs, by its name in prices.py"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the gate's limit off: these tests wait for deadlines and bakes, and each wait has a limit of its own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say the price of what was chosen, and stop where it passes the budget."""
    if not any(item.get_closest_marker("live") for item in session.items):
        return
    if BUDGET not in os.environ:
        return
    needs, region = _needs(session), _region()
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line(bill(needs, region))
    if total(needs, region) > _budget():
        pytest.exit(f"that is over {BUDGET}={_budget()}; choose fewer with `-k`", returncode=3)


def _needs(session: pytest.Session) -> frozenset[str]:
    """What the chosen tests need, by its names in `prices.py`."""
    chosen = [item for item in session.items if item.get_closest_marker("live")]
    marks = [mark for item in chosen for mark in item.iter_markers("costs")]
    return frozenset(name for mark in marks for name in mark.args)


def _region() -> str:
    """Where the account's profile launches first; prices are that region's."""
    config = Home.of(os.environ).config()
    return config.profile(os.environ.get("GPULAB_PROFILE")).regions[0]


def _budget() -> Decimal:
    try:
        return Decimal(os.environ[BUDGET])
    except InvalidOperation:
        pytest.exit(f"{BUDGET} is not an amount of dollars", returncode=2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Say what a sandbox cannot show, instead of failing."""
    try:
        return (yield)
    except Exception as error:
        _skip_what_is_not_simulated(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
    """The same for what several tests share."""
    try:
        return (yield)
    except Exception as error:
        _skip_what_is_not_simulated(error)
        raise


def _skip_what_is_not_simulated(error: Exception) -> None:
    said = getattr(error, "response", {}).get("Error", {}).get("Code") or getattr(error, "code", "")
    if said == "NotSimulated":
        pytest.skip("the sandbox does not simulate it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep each verdict, and what was seen, for the report."""
    report = yield
    seen = "; ".join(str(value) for name, value in item.user_properties if name == "seen")
    if report.failed:
        _verdicts[item.nodeid] = ("refuted", seen or _last_line(report.longreprtext))
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        _verdicts[item.nodeid] = ("not shown", str(reason).removeprefix("Skipped: "))
    elif report.when == "call":
        _verdicts[item.nodeid] = ("proved", seen)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the report and say where it is."""
    if not _verdicts:
        return
    where = Path(os.environ.get("GPULAB_LIVE_REPORT", _REPORT))
    where.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"| `{id_}` | {verdict} | {seen.replace('|', '/')} |"
        for id_, (verdict, seen) in _verdicts.items()
    ]
    head = [f"Seen {datetime.now(UTC).date()}, by `pytest tests/live -m live`:", ""]
    table = ["| test | verdict | what was seen |", "|---|---|---|", *rows]
    where.write_text("\n".join([*head, *table]) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"the report for docs/unproven.md is {where}")


def _last_line(text: str) -> str:
    errors = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
    return errors[0] if errors else text.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    """The account, swept before and after: a run that was killed has left what it made to the next one, and instances to their own end."""
    opened = replace(Account.of(os.environ), paid=_needs(request.session))
    sweep(opened)
    try:
        yield opened
    finally:
        assert () == sweep(opened), "end these by hand: they cost money"


@pytest.fixture(scope="session")
def lab(account: Account) -> Launched:
    """An instance with a GPU and JupyterLab, which most tests share."""
    return account.launched(account.wish("lab"))
