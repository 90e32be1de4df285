"""Readers of bad input take time in proportion to it, and none unpacks or reads more than it says. Compares CPU times with each other, never with a clock."""

from __future__ import annotations

import gzip
import time
from dataclasses import replace

import pytest
from tests.fuzzing.large import large_inputs
from tests.fuzzing.oracle import Target, judge
from tests.fuzzing.targets import targets_of

from gpulab.course.plan import read_course
from gpulab.errors import WrongUsage
from gpulab.store.config import read_config
from gpulab.store.statements import feed_lines

_SMALL, _TIMES = 16_000, 4
# Linear would be 4, the square 16; what takes less CPU than a tick of the scheduler says nothing.
_MOST, _TICK_S = 9, 0.004
_SAMPLE = 40

# Readers with a parser of gpulab's own, or with work of gpulab's on each line, cell or member.
_NAMES = {
    "course": ("roster", "course-plan", "environment", "hand-in"),
    "store": (
        "config",
        "journal",
        "ledger-import",
        "credentials",
        "known-hosts",
        "cost-timeline",
        "spot-feed",
    ),
    "remote": ("status", "hashes", "listing", "tar", "kept-manifest", "console"),
    "instance": ("metadata-http", "data-list"),
}
_TARGETS = [targets_of(room)[name] for room, names in _NAMES.items() for name in names]


@pytest.mark.parametrize("target", _TARGETS, ids=lambda target: target.name)
def test_four_times_the_input_takes_no_sixteen_times_the_time(target):
    """A pasted file of a megabyte must not hang a laptop; a loop that copies its rest at each step would."""
    assert [] == _growing(target)


def test_a_key_that_is_there_twice_is_found_without_looking_for_each():
    """Ten thousand different keys before the one that is twice: each was once looked for among all."""
    target = targets_of("store")["cost-timeline"]
    assert _ratio(target, _last_twice(1_000), _last_twice(4_000)) <= _MOST


def test_a_reader_whose_time_grows_with_the_square_is_noticed():
    """The measure itself: else the test above could not fail."""

    def read(given: bytes) -> None:
        for _ in range(0, len(given), 64):
            given.count(b"never")

    square = Target("square", "course", read, (), exits=(), names=())

    assert _ratio(square, bytes(_SMALL), bytes(_SMALL * _TIMES)) > _MOST


def _last_twice(count: int) -> bytes:
    members = ", ".join(f'"{number}": 0' for number in range(count))
    return f'{{{members}, "last": 0, "last": 1}}'.encode()


def _growing(target: Target) -> list[bytes]:
    """Return the beginnings of what a reader takes too long for, four times as much against once."""
    small, large = (
        list(large_inputs(replace(target, large=size))) for size in (_SMALL, _SMALL * _TIMES)
    )
    step = max(1, len(small) // _SAMPLE)
    pairs = list(zip(small, large, strict=True))[::step]
    return [few[:40] for few, many in pairs if _ratio(target, few, many) > _MOST]


def _ratio(target: Target, few: bytes, many: bytes) -> float:
    """Divide the least times of up to five readings: another process may have been in the way of one."""
    least = [float("inf"), float("inf")]
    for _ in range(5):
        least = [min(was, _cpu(target, one)) for was, one in zip(least, (few, many), strict=True)]
        if least[1] < max(_TICK_S, _MOST * least[0]):
            return 0.0
    return least[1] / least[0]


def _cpu(target: Target, given: bytes) -> float:
    began = time.process_time()
    assert judge(target, given) is None
    return time.process_time() - began


def test_toml_of_more_than_200_kb_is_not_read(tmp_path):
    """A megabyte takes tomllib seconds, and a key of many parts minutes: the file is refused for its length, and named."""
    path = tmp_path / "config.toml"
    whole = b"# x\n" * 50_000
    path.write_bytes(whole + b"#")

    course, problems = read_course(whole + b"#", file="course.toml")
    with pytest.raises(WrongUsage) as caught:
        read_config(path)

    said = "200,001 bytes, and the limit is 200,000"
    assert (None, "course.toml") == (course, problems[0].file)
    assert said in problems[0].text
    assert f"{path}: " in caught.value.message
    assert said in caught.value.message
    path.write_bytes(whole)
    assert {} == dict(read_config(path).profiles)


def test_a_spot_feed_that_unpacks_to_gigabytes_is_refused_by_its_name(tmp_path):
    """A gzip bomb: 64 kB that would fill the laptop's memory. What fits is read."""
    bomb, full = tmp_path / "bomb.gz", tmp_path / "full.gz"
    head = b"#Version:"
    with gzip.open(bomb, "wb", compresslevel=1) as packed:
        packed.write(head)
        for _ in range(65):
            packed.write(bytes(1 << 20))
    with gzip.open(full, "wb", compresslevel=1) as packed:
        packed.write(head + b" 1.0\n" + b"#\n" * (1 << 20))

    with pytest.raises(WrongUsage) as caught:
        feed_lines(bomb)

    assert f"{bomb} unpacks to more than 64 MiB" in caught.value.message
    assert 1 << 20 < len(feed_lines(full) or ())
