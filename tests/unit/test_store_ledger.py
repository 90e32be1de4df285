"""The ledger keeps every fact once, whatever happens to the process, the disk or the neighbour."""

from __future__ import annotations

import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.errors import StoreError, WrongUsage
from gpulab.model.fact import Fact, FactKind, Source, ended, launched, price, statement_read
from gpulab.model.market import Market
from gpulab.model.statement import Statement
from gpulab.model.timeline import EndedBy
from gpulab.store.fact_lines import export_lines, import_lines
from gpulab.store.ledger import Ledger

WRITER = Path(__file__).with_name("ledger_writer.py")
BATCH = 3
AT = datetime(2026, 10, 23, 16, 10, 0, 987654, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "profile" / "ledger.sqlite")


def a_launch(instance_id: str = "i-1") -> Fact:
    return launched(
        instance_id,
        at=AT,
        zone="us-east-1d",
        instance_type="g4dn.xlarge",
        market=Market.SPOT,
        usd_per_hour=Decimal("0.2158"),
        owner="s123",
        expires_at=AT + timedelta(hours=4),
    )


def test_facts_come_back_in_the_order_they_were_written(ledger):
    """Every figure is computed from these, so nothing may change on the way through the file."""
    facts = (
        a_launch(),
        ended("i-1", at=AT, by=EndedBy.AWS, reason="Server.SpotInstanceTermination"),
    )

    ledger.append(facts[:1])
    ledger.append(facts[1:])

    assert facts == ledger.facts()
    assert facts[1:] == ledger.facts(FactKind.ENDED)


def test_the_same_fact_twice_is_one_fact(ledger):
    """The laptop, the instance and a repeated command may all say the same; it is paid once."""
    fact = a_launch()

    written = [ledger.append([fact]), ledger.append([fact, fact]), ledger.append([])]

    assert [1, 0, 0] == written
    assert (fact,) == ledger.facts()


def test_what_may_be_said_once_keeps_the_moment_it_was_said_first(ledger):
    """The same statement is read by every report of a term; when it was read first is the fact."""
    bill = Statement(name="cur.csv", format="cur-2.0", digest="d1", lines=1, unreadable=0)
    other = replace(bill, digest="d2")
    first, again = (statement_read(bill, at=AT + timedelta(days=n)) for n in range(2))

    new = [
        ledger.append_unheard(facts)
        for facts in ([first], [again], [statement_read(other, at=AT), again])
    ]

    assert [1, 0, 1] == new
    assert (first, statement_read(other, at=AT)) == ledger.facts()


def test_a_ledger_that_was_never_written_is_empty(ledger):
    """Reading must not create files in a student's folder."""
    assert () == ledger.facts()
    assert not ledger.path.exists()


def test_only_the_owner_can_read_the_file(ledger):
    """A shared computer's other users learn neither names nor spending."""
    ledger.append([a_launch()])

    assert 0o600 == stat.S_IMODE(ledger.path.stat().st_mode)


@pytest.mark.parametrize("change", ["UPDATE facts SET details = '{}'", "DELETE FROM facts"])
def test_a_fact_cannot_be_changed_even_by_hand(ledger, change):
    """An auditor can trust that a row is what was written at the time."""
    ledger.append([a_launch()])

    with (
        sqlite3.connect(ledger.path) as connection,
        pytest.raises(sqlite3.IntegrityError, match="facts are never"),
    ):
        connection.execute(change)

    assert (a_launch(),) == ledger.facts()


def test_a_moment_needs_a_zone_and_keeps_whole_seconds():
    """Bills count whole seconds in UTC; a local time could be hours off."""
    with pytest.raises(ValueError, match="needs a time zone"):
        Fact(FactKind.STARTED, "i-1", datetime(2026, 10, 23))  # noqa: DTZ001 - the point

    assert datetime(2026, 10, 23, 16, 10, tzinfo=UTC) == a_launch().at


def test_a_newer_ledger_is_left_alone(ledger):
    """An old gpulab must not write into a layout that it does not know."""
    ledger.append([a_launch()])
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(StoreError) as refusal:
        ledger.append([a_launch("i-2")])

    assert f"{ledger.path} was written by a newer gpulab (version 99)" == refusal.value.message
    assert "Update gpulab on this computer" == refusal.value.hint


def test_a_damaged_file_says_how_to_get_the_facts_back(ledger):
    """A half-copied folder is no traceback, and the account still knows most of it."""
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_bytes(b"not a database at all, but long enough to be looked at" * 20)

    with pytest.raises(StoreError) as refusal:
        ledger.facts()

    assert f"could not read the ledger {ledger.path}: file is not a database" == (
        refusal.value.message
    )
    assert "`gpulab ledger rebuild`" in refusal.value.hint


def test_a_full_disk_loses_nothing_and_says_so(ledger):
    """What was written stays, what was not is reported, and the next try after cleaning up works."""
    ledger.append([a_launch()])
    many = [price("us-east-1a", f"t{n}", at=AT, usd_per_hour=Decimal(n)) for n in range(5000)]

    with _file_size_limit(ledger.path.stat().st_size + 40_000), pytest.raises(StoreError) as full:
        ledger.append(many)

    assert full.value.message.startswith(f"could not write the ledger {ledger.path}: ")
    assert (a_launch(),) == ledger.facts()
    assert 5000 == ledger.append(many)


class _file_size_limit:  # noqa: N801 - reads as a function
    """Let no file of this process grow past a size, as on a full disk."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        self._old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self._old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, self._old[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._old)
        signal.signal(signal.SIGXFSZ, self._old_signal)


def test_threads_that_write_the_same_facts_at_once_write_each_once(ledger):
    """A fleet's launches report side by side, from the first fact on."""
    facts = [a_launch(f"i-{n}") for n in range(20)]
    start = threading.Barrier(4)
    new: list[int] = []

    def write() -> None:
        start.wait()
        new.extend(ledger.append([fact]) for fact in facts)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (80, 20) == (len(new), sum(new))
    assert 20 == len(ledger.facts())


def test_the_first_writer_waits_for_a_neighbour_that_has_the_new_file(ledger):
    """Two first commands at once: SQLite gives up at once where it should wait, and a fact would be lost."""
    ledger.path.parent.mkdir()
    neighbour = sqlite3.connect(ledger.path, check_same_thread=False, isolation_level=None)
    neighbour.execute("BEGIN IMMEDIATE")
    leaving = threading.Timer(0.2, neighbour.close)
    leaving.start()

    new = ledger.append([a_launch()])

    leaving.join()
    assert (1, (a_launch(),)) == (new, ledger.facts())


def test_two_processes_that_write_at_once_lose_nothing(ledger):
    """`gpulab up` and `gpulab ls` in two terminals share one file."""
    writers = [_start(ledger, first, 15) for first in (0, 10)]

    codes = [writer.wait() for writer in writers]

    assert [0, 0] == codes
    assert dict.fromkeys(range(25 * BATCH), 1) == dict(Counter(_positions(ledger)))


def test_a_killed_process_loses_no_fact_and_doubles_none(ledger):
    """A lid closed, a battery gone: what was said to be written is there, the rest is whole or absent."""
    rng = random.Random(4)
    acknowledged: set[int] = set()
    for turn in range(24):
        writer = _start(ledger, turn * 4, 8)
        wanted = rng.randrange(0, 5)
        for _ in range(wanted):
            acknowledged.add(int(writer.stdout.readline()))
        writer.kill()
        acknowledged |= {int(line) for line in writer.stdout if line.endswith("\n")}
        writer.wait()

    found = Counter(_positions(ledger))
    assert acknowledged
    assert set(found.values()) <= {1}
    assert acknowledged <= {position // BATCH for position in found}
    assert all(_is_whole(found, number) for number in {p // BATCH for p in found})


def _start(ledger: Ledger, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(ledger.path), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _positions(ledger: Ledger) -> list[int]:
    """Number each fact of the writer: append number times the batch size, plus its place in the batch."""
    begin = datetime(2026, 10, 1, tzinfo=UTC)
    return [
        int((fact.at - begin).total_seconds()) // 60 * BATCH + _place(fact)
        for fact in ledger.facts()
    ]


def _place(fact: Fact) -> int:
    if fact.kind is FactKind.STATEMENT:
        return int(fact.subject.split("-")[1])
    return (FactKind.INTENT, FactKind.ADDRESS, FactKind.PRICE).index(fact.kind)


def _is_whole(found: Counter[int], number: int) -> bool:
    return all(found[number * BATCH + n] == 1 for n in range(BATCH))


def test_export_and_import_keep_every_fact(ledger, tmp_path):
    """A new laptop starts with the old one's ledger, and importing twice changes nothing."""
    facts = (a_launch(), ended("i-1", at=AT, by=None, source=Source.AGENT))
    ledger.append(facts)
    lines = "\n".join(export_lines(ledger.facts())).encode()
    other = Ledger(tmp_path / "other.sqlite")

    written = [other.append(import_lines(lines)) for _ in range(2)]

    assert [2, 0] == written
    assert facts == other.facts()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 is not a fact: Expecting property name"),
        ("[]", "line 2 is not a fact: needs exactly at, details, kind, source, subject"),
        (
            '{"kind":"gift","subject":"i","at":"2026-01-01T00:00:00Z","source":"aws","details":{}}',
            "line 2 is not a fact: 'gift' is not a valid FactKind",
        ),
        (
            '{"kind":"started","subject":"i","at":"2026-01-01T00:00:00","source":"aws","details":{}}',
            "line 2 is not a fact: naive_timestamp",
        ),
        (
            '{"kind":"started","subject":"i","at":"2026-01-01T00:00:00Z","source":"aws","details":{"a":1}}',
            "line 2 is not a fact: `1` is not a text",
        ),
    ],
)
def test_half_a_fact_is_refused_with_its_line(line, problem):
    """A cut-off download imports nothing and names the place."""
    with pytest.raises(WrongUsage) as refusal:
        import_lines(f"{a_launch().line()}\n{line}\n".encode())

    assert refusal.value.message.startswith(problem)
