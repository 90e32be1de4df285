"""
What every test may rely on: a stranger's empty computer, a closed network, no waiting, and the same random examples each time.

Tests under `unit`, `aws`, `cli` and `docs` reach nothing but this host; tests under `machine` and `live` carry the marker of
their folder.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, settings
from tests.judge import Judge, Kept

from gpulab.sandbox import witnesses

CHECKOUT = Path(__file__).resolve().parent.parent
_CLOSED = ("unit", "aws", "cli", "docs")
_LONGEST_SLEEP_S = 0.1
_homes = itertools.count()

# Read when a test module is imported: a schema newer than Debian 12's cloud-init, which misses unknown keys.
os.environ.setdefault(
    "CLOUDINIT_SCHEMA",
    str(CHECKOUT / "tests" / "unit" / "cases" / "cloud-init" / "schema-cloud-config-v1.json"),
)

# The gate must say the same twice; `--hypothesis-profile=explore` looks for new examples.
settings.register_profile(
    "gate",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("gate")


class NetworkIsClosed(BaseException):
    """A test tried to leave this host; not an `Exception`, so that no retry hides it."""


class WaitsForReal(BaseException):
    """A unit test slept; pass it a `sleep` of its own instead."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests of `machine` and `live` the marker of their folder; what costs money is chosen by `-m live` only."""
    for item in items:
        tier = _tier(item)
        if tier in ("machine", "live"):
            item.add_marker(tier)
    live = [item for item in items if item.get_closest_marker("live")]
    if config.option.markexpr != "live" and live:
        config.hook.pytest_deselected(items=live)
        items[:] = [item for item in items if item not in live]
    elif live and not os.environ.get("GPULAB_LIVE_BUDGET_USD"):
        raise pytest.UsageError(
            "live tests spend money: say how much they may with GPULAB_LIVE_BUDGET_USD=2"
        )


@pytest.fixture(scope="session", autouse=True)
def _strangers_computer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Give the whole run an empty HOME and none of the developer's AWS settings, profiles or time zone."""
    if any(item.get_closest_marker("live") for item in request.session.items):
        yield  # live tests are asked for by name and use the developer's own credentials
        return
    with pytest.MonkeyPatch.context() as patch:
        home = Path.home()
        for name in [n for n in os.environ if n.startswith(("AWS_", "GPULAB_", "BOTO_"))]:
            if not name.startswith("GPULAB_TEST_"):
                patch.delenv(name)
        # Downloads and base systems of machines stay where they are: they take minutes to make again.
        patch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(home / ".cache"))
        patch.setenv("XDG_DATA_HOME", os.environ.get("XDG_DATA_HOME") or str(home / ".local/share"))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("USERPROFILE", os.environ["HOME"])
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("TZ", "UTC")
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "XDG_CONFIG_HOME"):
            patch.delenv(name, raising=False)
        _read_time_zone()
        yield
    _read_time_zone()


@pytest.fixture(autouse=True)
def _own_gpulab_home(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Give each test a `GPULAB_HOME` of its own that does not exist yet; live tests use the developer's, as they use the account."""
    if _tier(request.node) == "live":
        return
    home = tmp_path_factory.getbasetemp() / f"gpulab-home-{next(_homes)}"
    monkeypatch.setenv("GPULAB_HOME", str(home))


@pytest.fixture(scope="session", autouse=True)
def _kept_by_sandboxes(
    request: pytest.FixtureRequest,
    _strangers_computer: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kept | None]:
    """Let every sandbox that any test starts in a process of its own, by whichever program, keep what it is asked for."""
    if any(item.get_closest_marker("live") for item in request.session.items):
        yield None  # live tests that are played on a sandbox have one that another test started
        return
    kept = Kept(tmp_path_factory.mktemp("asked"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(witnesses.KEPT_IN, str(kept.folder))
        yield kept
    last = Judge(kept)
    last.read()
    assert [] == last.forbidden


@pytest.fixture(autouse=True)
def judge(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    _kept_by_sandboxes: Kept | None,
) -> Iterator[Judge | None]:
    """
    Let every call that gpulab makes to any simulated AWS be one that the published policies allow to whoever makes it.

    What came to a sandbox in a process of its own is looked at after the test, with what came since the test before: a call that a
    fixture of a whole module makes, or an instance in between, fails the next test.

    A new call without a right fails the test that makes it; a test that asks for too much on purpose says so by taking it out of
    `judge.forbidden`.
    """
    if _kept_by_sandboxes is None:
        yield None
        return
    found = Judge(_kept_by_sandboxes)
    monkeypatch.setattr(click.Command, "invoke", found.listening(click.Command.invoke))
    witnesses.EVERYWHERE.append(found)
    yield found
    witnesses.EVERYWHERE.remove(found)
    found.read()
    assert [] == found.forbidden


@pytest.fixture(autouse=True)
def _closed_network(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Close the way out for this process, and for what it starts as far as a proxy can."""
    is_machine = request.node.get_closest_marker("machine") is not None
    _guard.tier = "" if is_machine else _tier(request.node)
    if _guard.tier in _CLOSED:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "localhost,127.0.0.1,::1")
    yield
    _guard.tier = ""


@pytest.fixture(autouse=True)
def _no_waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse `time.sleep` in unit tests, but for the short ones that let another thread run."""
    sleep = time.sleep

    def refuse(seconds: float) -> None:
        if seconds > _LONGEST_SLEEP_S:
            raise WaitsForReal(f"a test under unit sleeps {seconds} s")
        sleep(seconds)

    if _tier(request.node) == "unit":
        monkeypatch.setattr(time, "sleep", refuse)


class _Guard:
    """An audit hook, which cannot be removed, so it looks at which folder the running test is from."""

    tier = ""

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.tier not in _CLOSED:
            return
        if event == "socket.connect":
            address = arguments[1]
            if isinstance(address, tuple) and not _is_here(address[0]):
                raise NetworkIsClosed(f"a test under {self.tier} connects to {address[0]}")
        elif event == "socket.getaddrinfo" and not _is_here(arguments[0]):
            raise NetworkIsClosed(f"a test under {self.tier} looks up {arguments[0]}")


_guard = _Guard()
sys.addaudithook(_guard)


def _is_here(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _tier(item: pytest.Item) -> str:
    """The folder under `tests` an item is from; empty for one that lies elsewhere."""
    folder = CHECKOUT / "tests"
    return item.path.relative_to(folder).parts[0] if item.path.is_relative_to(folder) else ""


def _read_time_zone() -> None:
    if hasattr(time, "tzset"):
        time.tzset()
