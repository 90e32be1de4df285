"""Notes that guard students' work: not lost between threads, processes and versions, and never silently unwritten."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpulab.errors import StateDamaged, StoreError
from gpulab.store.notes import Notes


def test_what_thirty_threads_write_at_once_is_all_there(tmp_path):
    """Thirty students' instances come up at one o'clock: a lost note would push old work over their new one."""
    path, start = tmp_path / "notes.sqlite", threading.Barrier(30)
    Notes(path).write({f"owed/{n}": "yes" for n in range(30)})

    def settle(number):
        start.wait()
        Notes(path).write({f"owed/{number}": None, f"has/{number}": "yes"})

    with ThreadPoolExecutor(30) as pool:
        list(pool.map(settle, range(30)))

    assert ({}, 30) == (dict(Notes(path).below("owed/")), len(Notes(path).below("has/")))


def test_two_processes_lose_nothing_of_each_other(tmp_path):
    """A teacher has two terminals."""
    path = tmp_path / "notes.sqlite"
    program = (
        "import sys\nfrom pathlib import Path\nfrom gpulab.store.notes import Notes\n"
        "for n in range(20): Notes(Path(sys.argv[1])).write({f'{sys.argv[2]}/{n}': 'yes'})"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, path, who]) for who in ("a", "b")]

    assert [0, 0] == [one.wait(60) for one in both]
    assert (20, 20) == (len(Notes(path).below("a/")), len(Notes(path).below("b/")))


def test_a_change_sees_what_others_wrote_before(tmp_path):
    """What a folder holds is added to by two commands at once."""
    notes = Notes(tmp_path / "notes.sqlite")

    def add(_):
        with notes.changing("sum") as change:
            change.text = str(int(change.text or 0) + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))

    assert "40" == notes.read("sum")


def test_a_note_that_cannot_be_written_is_an_error(tmp_path):
    """A full disk stops what relies on the note; the old notes stay."""
    notes = Notes(tmp_path / "notes.sqlite")
    notes.write({"a": "1"})
    with sqlite3.connect(notes.path) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON notes BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )

    with pytest.raises(StoreError, match=r"could not write the notes .* disk is full"):
        notes.write({"a": None, "b": "2"})
    assert {"a": "1"} == notes.below("")


def test_only_its_owner_reads_them_and_damage_is_named(tmp_path):
    """They name seats; and an unreadable file must not pass for an empty one."""
    notes = Notes(tmp_path / "notes.sqlite")
    before = notes.read("a")
    notes.write({"a": "1"})
    mode = stat.S_IMODE(notes.path.stat().st_mode)
    for file in tmp_path.glob("notes.sqlite-*"):
        file.unlink()
    notes.path.write_bytes(b"no database at all" * 100)

    assert (None, 0o600) == (before, mode)
    with pytest.raises(StateDamaged, match="could not read the notes"):
        notes.read("a")
