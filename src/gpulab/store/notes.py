"""
Notes that must not be lost, such as whose kept work has still to reach an instance: texts by key, in SQLite.

A note is there when `write` returns, for every thread, every process and every later gpulab; one that could
not be written is an error, so that nothing is done which relies on it. Nothing ends by itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpulab.store.sqlite_files import SqliteFile

_VERSION = 1
_SCHEMA = "CREATE TABLE notes (key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID"
_IF_DAMAGED = "Move the file away: work that differs is then kept in both versions"


@dataclass(frozen=True)
class Notes:
    """
    One profile's notes.

    Attributes:
        path: Made with the first note, readable by its owner only.
    """

    path: Path

    def read(self, key: str) -> str | None:
        """
        Return a note; `None` where there is none.

        Raises:
            StoreError: The file cannot be read.
        """
        return self.below(key).get(key)

    def below(self, prefix: str) -> Mapping[str, str]:
        """
        Return every note whose key begins so.

        Raises:
            StoreError: The file cannot be read.
        """
        with self._file.reading() as connection:
            if connection is None:
                return {}
            rows = connection.execute(
                "SELECT key, text FROM notes WHERE key >= ? AND key < ?",
                (prefix, f"{prefix}\U0010ffff"),
            )
            return dict(rows.fetchall())

    def write(self, notes: Mapping[str, str | None]) -> None:
        """
        Write notes, all or none; durable when this returns.

        Args:
            notes: By key; `None` takes a note away.

        Raises:
            StoreError: The disk is full, or the file cannot be written; nothing was.
        """
        with self._file.writing() as connection:
            for key, text in notes.items():
                _put(connection, key, text)

    @contextmanager
    def changing(self, key: str) -> Iterator[Change]:
        """
        Change one note by what it says now; nobody else writes meanwhile.

        Raises:
            StoreError: As `write`.
        """
        with self._file.writing() as connection:
            found = connection.execute("SELECT text FROM notes WHERE key = ?", (key,)).fetchone()
            change = Change(found[0] if found else None)
            yield change
            _put(connection, key, change.text)

    @property
    def _file(self) -> SqliteFile:
        return SqliteFile(self.path, "the notes", _SCHEMA, _VERSION, _IF_DAMAGED)


@dataclass
class Change:
    """A note that is being changed: what it says, then what it is to say."""

    text: str | None


def _put(connection: sqlite3.Connection, key: str, text: str | None) -> None:
    if text is None:
        connection.execute("DELETE FROM notes WHERE key = ?", (key,))
    else:
        connection.execute(
            "INSERT INTO notes VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET text = excluded.text",
            (key, text),
        )
