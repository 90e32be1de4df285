"""
An SQLite file of the user's folder. Hides transactions, modes and SQLite's errors: what is committed is on the disk, readers never wait for
the one who writes, and the file is its owner's only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import StateDamaged, StoreError
from gpulab.store.files import private_folder

_TRIES = 20
_BUSY_S = 15.0


@dataclass(frozen=True)
class SqliteFile:
    """
    One file; made with the first transaction.

    Attributes:
        title: What messages call it: `the ledger`.
        schema: Its tables, a statement each, with `;` and a new line between them.
        version: The newest version of the file that this gpulab can read, and the one it makes.
        if_damaged: What to do about a damaged one.
        application: SQLite's number of an application; 0 for none.
    """

    path: Path
    title: str
    schema: str
    version: int
    if_damaged: str
    application: int = 0

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """
        Open the file to read; `None` where nothing was ever written.

        Raises:
            StoreError: It cannot be read, is damaged (`StateDamaged`) or of a newer gpulab.
        """
        if not self.path.exists():
            yield None
            return
        with self._explained("read"), closing(self._connected()) as connection:
            yield connection if _is_laid_out(connection) else None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """
        Open a transaction that nobody else can write beside; commit it, or leave nothing.

        Raises:
            StoreError: The disk is full, the file is locked for too long, damaged (`StateDamaged`) or of a newer gpulab; nothing was written.
        """
        with self._explained("write"):
            self._make_private()
            with closing(self._connected()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._lay_out(connection)
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            _log_ahead(connection)
            connection.execute("PRAGMA synchronous = FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > self.version:
                raise StoreError(
                    f"{self.path} was written by a newer gpulab (version {version})",
                    hint="Update gpulab on this computer",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_private(self) -> None:
        """Create the file closed to others before SQLite does; its side files take over the mode."""
        private_folder(self.path.parent)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))

    def _lay_out(self, connection: sqlite3.Connection) -> None:
        """Lay out an empty file, inside the transaction."""
        if _is_laid_out(connection):
            return
        for part in self.schema.split(";\n"):
            if part.strip():
                connection.execute(part)
        connection.execute(f"PRAGMA application_id = {self.application}")
        connection.execute(f"PRAGMA user_version = {self.version}")

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            text = str(error)
            kind = StateDamaged if _is_damage(text) else StoreError
            raise kind(
                f"could not {verb} {self.title} {self.path}: {text}", hint=self._hint(text)
            ) from error

    def _hint(self, text: str) -> str:
        if "full" in text or "No space" in text:
            return "Free some space and repeat the command; nothing was written"
        if "locked" in text:
            return "Another gpulab is writing; repeat the command"
        if _is_damage(text):
            return self.if_damaged
        return "Check the folder's owner and free space, then repeat the command"


def _is_laid_out(connection: sqlite3.Connection) -> bool:
    """Whether the file has its tables; one that a killed process left empty has none."""
    return bool(connection.execute("PRAGMA user_version").fetchone()[0])


def _is_damage(text: str) -> bool:
    return any(words in text for words in ("malformed", "not a database"))


def _log_ahead(connection: sqlite3.Connection) -> None:
    """
    Let a file have a write-ahead log, once for all.

    Changing to it is the one statement for which SQLite does not wait while a neighbour has the file; the neighbour is waited for apart.
    """
    for left in reversed(range(_TRIES)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or not left:
                raise
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
