"""Locks: exact to the file, small enough to travel, and expanded on the instance to what was locked or to nothing."""

from __future__ import annotations

import hashlib
from datetime import date

import pytest

from gpulab.agent.agent import Problem, expand
from gpulab.bootstrap.environments import environment_names, load_environment
from gpulab.bootstrap.locks import Lock, Pin, parse_lock
from gpulab.errors import WrongUsage

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
TEXT = f"""# Made by scripts/locks.py; do not edit.
# locked-on: 2026-11-23
# download-mib: 50
zlib-ng==0.5.1 \\
    --hash=sha256:{C}
absl-py==2.1.0 \\
    --hash=sha256:{B} \\
    --hash=sha256:{A}
"""


def test_a_lock_file_is_read_whole():
    """Versions and hashes decide what runs as the student; a line read wrong is a package nobody chose."""
    lock = parse_lock(TEXT)

    assert (
        Lock(
            (Pin("absl-py", "2.1.0", (A, B)), Pin("zlib-ng", "0.5.1", (C,))), date(2026, 11, 23), 50
        )
        == lock
    )
    assert parse_lock(lock.requirements()).pins == lock.pins


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6",
        f"numpy>=2.4.6 --hash=sha256:{A}",
        f"numpy==2.* --hash=sha256:{A}",
        f"numpy==2.4.6 --hash=sha256:{A[:63]}",
        f"numpy==2.4.6 --hash=md5:{A}",
        f"numpy @ https://example.org/numpy.whl --hash=sha256:{A}",
        "-r other.txt",
        "--index-url https://example.org/simple",
        f"numpy==2.4.6 ; python_version < '3' --hash=sha256:{A}",
    ],
)
def test_a_line_that_is_not_an_exact_hashed_pin_is_refused(line):
    """One line without a hash makes the whole lock a wish."""
    with pytest.raises(WrongUsage, match=r"my\.lock has a line that is not an exact, hashed pin"):
        parse_lock(line, source="my.lock")


def test_a_package_pinned_twice_is_refused():
    """Two versions of one package: whoever reads the lock sees the wrong one."""
    with pytest.raises(WrongUsage, match="the lock pins a twice"):
        parse_lock(f"a==1 --hash=sha256:{A}\na==2 --hash=sha256:{B}\n")


def test_the_compact_form_is_as_architecture_says():
    """The agent on instances that are already running reads this form."""
    compact = parse_lock(TEXT).compact()
    lines = f"absl-py==2.1.0 sha256:{A}\nabsl-py==2.1.0 sha256:{B}\nzlib-ng==0.5.1 sha256:{C}"

    assert {
        "pins": "absl-py==2.1.0 aaaa bbbb;zlib-ng==0.5.1 cccc",
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    } == compact


def offered(**files: list[str]) -> str:
    """What `uv pip compile --generate-hashes` prints."""
    return "".join(
        f"{name.replace('_', '-')}"
        + "".join(f" \\\n    --hash=sha256:{one}" for one in hashes)
        + "\n"
        for name, hashes in files.items()
    )


def test_the_instance_picks_the_locked_files_among_all():
    """An index offers files for every platform; only those that were locked may be installed."""
    compact = parse_lock(TEXT).compact()
    everything = offered(**{"absl-py==2.1.0": [D, A, B], "zlib-ng==0.5.1": [C, D]})

    chosen = expand(compact, everything)

    assert (
        f"absl-py==2.1.0 --hash=sha256:{A} --hash=sha256:{B}\nzlib-ng==0.5.1 --hash=sha256:{C}\n"
        == chosen
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"absl-py==2.1.0": [A, B], "zlib-ng==0.5.1": ["cccc" + "0" * 60]}, "other hashes"),
        ({"absl-py==2.1.0": [A, B]}, "zlib-ng==0.5.1"),
        ({"absl-py==2.1.0": [A], "zlib-ng==0.5.1": [C]}, "other hashes"),
        ({}, "absl-py==2.1.0, zlib-ng==0.5.1"),
    ],
    ids=["a forged file with the right beginning", "a yanked package", "a file is gone", "nothing"],
)
def test_an_index_that_offers_something_else_is_refused(files, said):
    """A prefix of four digits is easily forged; the digest over the full hashes is not."""
    with pytest.raises(Problem, match="does not offer the locked files") as refused:
        expand(parse_lock(TEXT).compact(), offered(**files))

    assert said in str(refused.value)


def test_a_lock_without_pins_is_all_that_was_brought():
    """From the bucket come exactly the locked files; a changed one is refused like a forged one from the index."""
    lock = parse_lock(TEXT)

    chosen = expand(lock.named(), lock.requirements())

    assert parse_lock(TEXT).pins == parse_lock(chosen).pins
    with pytest.raises(Problem, match="does not offer the locked files"):
        expand(lock.named(), lock.requirements().replace(C, D))


def test_no_shipped_prefix_is_ambiguous_within_its_own_pin():
    """Two files of one pin with the same beginning would be told apart by nothing."""
    locks = [
        lock
        for name in environment_names()
        for lock in (
            load_environment(name).core_server,
            load_environment(name).cpu,
            load_environment(name).gpu,
        )
    ]

    clashes = [
        pin.name
        for lock in locks
        for pin in lock.pins
        if len({h[:4] for h in pin.hashes}) < len(pin.hashes)
    ]

    assert [] == clashes
