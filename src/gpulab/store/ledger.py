"""
The append-only record of facts about money, in SQLite. Hides the schema; refuses to change a fact.

A fact is durable when `append` returns. Two processes may append at once; a fact appended twice is kept once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import StateDamaged
from gpulab.model.fact import Fact, FactKind, written
from gpulab.store.fact_lines import details_text, facts_of, wrong_row
from gpulab.store.sqlite_files import SqliteFile

_VERSION = 1
_APPLICATION = 0x67706C62  # "gplb"
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
        with self._file.writing() as connection:
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
        with self._file.reading() as connection:
            if connection is None:
                return ()
            rows = connection.execute(
                f"SELECT kind, subject, at, source, details FROM facts {where} ORDER BY number",  # noqa: S608 - marks only
                [kind.value for kind in kinds],
            )
            found = rows.fetchall()
        return self._read_facts(found)

    def _read_facts(self, rows: list[tuple[str, str, str, str, str]]) -> tuple[Fact, ...]:
        try:
            return facts_of(rows)
        except ValueError as error:
            raise StateDamaged(
                f"the ledger {self.path} holds what is no fact: {wrong_row(rows)} ({error})",
                hint=_RESTORE,
            ) from error

    @property
    def _file(self) -> SqliteFile:
        return SqliteFile(
            self.path, "the ledger", _SCHEMA, _VERSION, _RESTORE, application=_APPLICATION
        )


def _row(fact: Fact) -> tuple[str, str, str, str, str, str]:
    return (
        fact.digest,
        fact.kind.value,
        fact.subject,
        written(fact.at),
        fact.source.value,
        details_text(fact),
    )


_RESTORE = (
    "Move the file away and restore it with `gpulab ledger import` or `gpulab ledger rebuild`"
)
