"""The write-ahead log of an SQLite file, so that readers never wait for the one who writes."""

from __future__ import annotations

import sqlite3

_TRIES = 20


def log_ahead(connection: sqlite3.Connection) -> None:
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
