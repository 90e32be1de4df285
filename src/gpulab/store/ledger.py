"""
The append-only record of facts about money, in SQLite. Hides transactions, schema and modes; refuses to change a fact.

A fact is durable when `append` returns. Two processes may append at once; a fact appended twice is kept once.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import StateDamaged, StoreError
from gpulab.model.fact import Fact, FactKind, written
from gpulab.store.fact_lines import details_text, facts_of
from gpulab.store.files import private_folder
from gpulab.store.sqlite_files import connected

_VERSION = 1
_APPLICATION = 0x67706C62  # "gplb"
_BUSY_MS = 15_000
_SCHEMA = """
CREATE TABLE facts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    at TEXT NOT NULL,
    source TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE INDEX facts_by_kind ON facts (kind, at);
CREATE TRIGGER facts_stay BEFORE UPDATE ON facts BEGIN SELECT RAISE(ABORT, 'facts are never changed'); END;
CREATE TRIGGER facts_remain BEFORE DELETE ON facts BEGIN SELECT RAISE(ABORT, 'facts are never deleted'); END;
"""


@dataclass(frozen=True)
class Ledger:
    """
    One profile's ledger.

    Attributes:
        path: Made with the first fact, readable by its owner only.
    """

    path: Path

    def append(self, facts: Iterable[Fact]) -> int:
        """
        Write facts, all or none; durable when this returns.

        Returns:
            How many were new.

        Raises:
            StoreError: The disk is full, the file is locked for too long, damaged or of a newer gpulab.
                Nothing was written then; the same call again is safe.
        """
        return self._insert("VALUES (?, ?, ?, ?, ?, ?)", [_row(fact) for fact in facts])

    def append_unheard(self, facts: Iterable[Fact]) -> int:
        """
        Write those facts of whose subject none of the same kind is known, in one step: of two commands that say it at once, one is kept.

        Returns, Raises:
            As `append`.
        """
        # A row's kind and subject are its second and third value.
        rows = [(*row, row[1], row[2]) for row in map(_row, facts)]
        unheard = "NOT EXISTS (SELECT 1 FROM facts WHERE kind = ? AND subject = ?)"
        return self._insert(f"SELECT ?, ?, ?, ?, ?, ? WHERE {unheard}", rows)

    def _insert(self, values: str, rows: Sequence[tuple[str, ...]]) -> int:
        with self._writing() as connection:
            before = connection.total_changes
            connection.executemany(
                f"INSERT INTO facts (digest, kind, subject, at, source, details) {values}"
                " ON CONFLICT (digest) DO NOTHING",
                rows,
            )
            return connection.total_changes - before

    def facts(self, *kinds: FactKind) -> tuple[Fact, ...]:
        """
        Return the facts in the order in which they were written; of some kinds, or all.

        Raises:
            StoreError: The file is damaged or of a newer gpulab.
        """
        # All of them are read as they lie: an index would have to be sorted again.
        where = f"WHERE kind IN ({', '.join('?' for _ in kinds)})" if kinds else ""
        if not self.path.exists():
            return ()
        with self._reading() as connection:
            if not _is_laid_out(connection):
                return ()
            rows = connection.execute(
                f"SELECT kind, subject, at, source, details FROM facts {where} ORDER BY number",  # noqa: S608 - marks only
                [kind.value for kind in kinds],
            )
            return self._read_facts(rows.fetchall())

    def _read_facts(self, rows: list[tuple[str, str, str, str, str]]) -> tuple[Fact, ...]:
        try:
            return facts_of(rows)
        except ValueError as error:
            raise StateDamaged(
                f"the ledger {self.path} holds what is no fact ({error})", hint=_RESTORE
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._explained("read"), closing(self._connect()) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that nobody else can write beside; commit it, or leave nothing."""
        with self._explained("write"):
            self._make_private()
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    _create(connection)
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise

    def _connect(self) -> sqlite3.Connection:
        return connected(self.path, newest=_VERSION, busy_s=_BUSY_MS / 1000)

    def _make_private(self) -> None:
        """Create the file closed to others before SQLite does; its side files take over the mode."""
        private_folder(self.path.parent)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            kind = StateDamaged if _is_damage(error) else StoreError
            raise kind(
                f"could not {verb} the ledger {self.path}: {error}", hint=_hint(error)
            ) from error


def _create(connection: sqlite3.Connection) -> None:
    """Lay out an empty file, inside the caller's transaction."""
    if _is_laid_out(connection):
        return
    for part in _SCHEMA.split(";\n"):
        if part.strip():
            connection.execute(part)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {_VERSION}")


def _is_laid_out(connection: sqlite3.Connection) -> bool:
    """Whether the file has its tables; one that a killed process left empty has none."""
    return bool(connection.execute("PRAGMA user_version").fetchone()[0])


def _row(fact: Fact) -> tuple[str, str, str, str, str, str]:
    return (
        fact.digest,
        fact.kind.value,
        fact.subject,
        written(fact.at),
        fact.source.value,
        details_text(fact),
    )


def _is_damage(error: Exception) -> bool:
    return any(words in str(error) for words in ("malformed", "not a database"))


_RESTORE = (
    "Move the file away and restore it with `gpulab ledger import` or `gpulab ledger rebuild`"
)


def _hint(error: Exception) -> str:
    text = str(error)
    if "full" in text or "No space" in text:
        return "Free some space and repeat the command; nothing was written"
    if "locked" in text:
        return "Another gpulab is writing; repeat the command"
    if _is_damage(error):
        return _RESTORE
    return "Check the folder's owner and free space, then repeat the command"
