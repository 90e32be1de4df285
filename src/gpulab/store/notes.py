"""
Notes that must not be lost, such as whose kept work has still to reach an instance: texts by key, in SQLite.

Hides transactions and modes. A note is there when `write` returns, for every thread, every process and every later gpulab; one that could
not be written is an error, so that nothing is done which relies on it. Nothing ends by itself.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import StateDamaged, StoreError
from gpulab.store.files import private_folder
from gpulab.store.sqlite_files import connected

_VERSION = 1
_BUSY_S = 15.0
_SCHEMA = "CREATE TABLE notes (key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID"


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
        if not self.path.exists():
            return {}
        with self._explained("read"), closing(self._connect()) as connection:
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
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
        with self._writing() as connection:
            for key, text in notes.items():
                _put(connection, key, text)

    @contextmanager
    def changing(self, key: str) -> Iterator[Change]:
        """
        Change one note by what it says now; nobody else writes meanwhile.

        Raises:
            StoreError: As `write`.
        """
        with self._writing() as connection:
            found = connection.execute("SELECT text FROM notes WHERE key = ?", (key,)).fetchone()
            change = Change(found[0] if found else None)
            yield change
            _put(connection, key, change.text)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._explained("write"):
            private_folder(self.path.parent)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    if not connection.execute("PRAGMA user_version").fetchone()[0]:
                        connection.execute(_SCHEMA)
                        connection.execute(f"PRAGMA user_version = {_VERSION}")
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise

    def _connect(self) -> sqlite3.Connection:
        return connected(self.path, newest=_VERSION, busy_s=_BUSY_S)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            text = str(error)
            is_damaged = any(words in text for words in ("malformed", "not a database"))
            raise (StateDamaged if is_damaged else StoreError)(
                f"could not {verb} the notes {self.path}: {text}", hint=_hint(is_damaged=is_damaged)
            ) from error


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


def _hint(*, is_damaged: bool) -> str:
    if is_damaged:
        return "Move the file away: work that differs is then kept in both versions"
    return "Free some space or check the folder's owner, then repeat the command"
