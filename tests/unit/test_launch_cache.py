"""What AWS said a while ago: believed for so long, never fatal, and never in the way of the truth."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from gpulab.launch.cache import Cache
from gpulab.model.status import read_status

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_what_is_remembered_ends_in_time(tmp_path, clock):
    """A full zone is believed for three minutes, no longer."""
    cache = Cache(tmp_path / "c.json", clock)
    cache.put("full/a", value=True, lasting=timedelta(minutes=3))

    believed = cache.get("full/a")
    clock.now += timedelta(minutes=3)

    assert (True, None, {}) == (believed, cache.get("full/a"), cache.below("full/"))


def test_another_process_reads_what_one_has_written(tmp_path, clock):
    """A fleet and a second terminal share what is full."""
    Cache(tmp_path / "c.json", clock).put("k", [1, "a"], lasting=timedelta(days=1))

    assert [1, "a"] == Cache(tmp_path / "c.json", clock).get("k")


def test_forgetting_takes_a_whole_branch(tmp_path, clock):
    """A repaired region is looked at anew, the others are not."""
    cache = Cache(tmp_path / "c.json", clock)
    for key in ("net/a", "net/b", "image/a"):
        cache.put(key, 1, lasting=timedelta(days=1))

    cache.drop("net/")

    assert {"image/a": 1} == cache.below("")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"k": 1}',
        '{"k": {"until": "soon", "value": 1}}',
        '{"k": {"until": 3}}',
        "\x00",
    ],
)
def test_a_spoilt_cache_is_an_empty_one(tmp_path, clock, content):
    """It costs calls, never a launch."""
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    cache = Cache(tmp_path / "c.json", clock)

    before = cache.get("k")
    cache.put("k", 2, lasting=timedelta(days=1))

    assert (None, 2) == (before, cache.get("k"))


STATUS = {
    "version": 1,
    "at": "2026-11-23T12:00:00Z",
    "phases": [{"name": "armed", "state": "done", "seconds": 0.4, "message": ""}],
    "deadline": "2026-11-23T16:00:00Z",
    "idle_minutes": 60,
    "idle_since": None,
    "spent_usd": "0.12",
    "budget_usd": None,
    "gpu": [{"name": "Tesla T4", "use_percent": 97, "memory_used_mib": 1, "memory_total_mib": 2}],
    "jupyter": {"port": 8888, "ready": True},
    "saved_at": None,
    "notice": {"action": "terminate", "time": "2026-11-23T12:02:00Z"},
    "ending": None,
}


def test_a_status_is_read_as_the_agent_writes_it():
    """The words between the instance and the laptop are a contract."""
    status = read_status(json.dumps(STATUS))

    assert ("armed", "done", 0.4) == (
        status.phases[0].name,
        status.phases[0].state,
        status.phases[0].seconds,
    )
    assert (True, 8888, 97) == (
        status.is_jupyter_ready,
        status.jupyter_port,
        status.gpus[0].use_percent,
    )
    assert ("terminate", datetime(2026, 11, 23, 12, 2, tzinfo=UTC)) == status.notice


@pytest.mark.parametrize("key", list(STATUS))
@pytest.mark.parametrize("value", [None, 7, "x", [], {}, [1, None], {"port": "x"}, -1e308, True])
def test_a_status_of_wrong_types_is_empty_there_not_fatal(key, value):
    """The file comes from an instance where any notebook is root."""
    spoilt = {**STATUS, key: value}

    if key == "version":
        with pytest.raises(ValueError, match="not a status of version 1"):
            read_status(json.dumps({**spoilt, "version": value if value is not True else 2}))
    else:
        assert isinstance(read_status(json.dumps(spoilt)).phases, tuple)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"version": 2}', "Infinity"])
def test_what_is_no_status_is_refused(text):
    """An agent of another version must not be misread."""
    with pytest.raises(ValueError):
        read_status(text)


def test_contexts_that_share_a_file_lose_nothing_of_each_other(tmp_path, clock):
    """Each of a class's thirty threads has a context, and so a cache, of its own."""
    start = threading.Barrier(16)

    def put(number):
        start.wait()
        Cache(tmp_path / "c.json", clock).put(f"k/{number}", number, lasting=timedelta(days=1))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(16)))

    assert {f"k/{n}": n for n in range(16)} == Cache(tmp_path / "c.json", clock).below("k/")
