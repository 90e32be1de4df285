"""Opening an SQLite file of the user's folder: what is committed is on the disk, and readers never wait for the one who writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gpulab.errors import StoreError

_TRIES = 20


def connected(path: Path, *, newest: int, busy_s: float) -> sqlite3.Connection:
    """
    Open a file; transactions are begun and ended by the caller.

    Args:
        newest: The newest version of the file that this gpulab can read.
        busy_s: How long a neighbour who writes is waited for.

    Raises:
        StoreError: A newer gpulab wrote it.
        sqlite3.Error: It is damaged, or cannot be read or written.
    """
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
    try:
        _log_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > newest:
            raise StoreError(
                f"{path} was written by a newer gpulab (version {version})",
                hint="Update gpulab on this computer",
            )
    except BaseException:
        connection.close()
        raise
    return connection


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
