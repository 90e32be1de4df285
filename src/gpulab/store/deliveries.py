"""
Several files of AWS's bill, each line of it once. Hides how an older delivery is told from a part of the same one.

AWS delivers a month's report at least once a day, and each delivery holds all lines of the month again; a large one is split into
several files. Neither a line nor its columns name the delivery, and the ids of lines change with each. So two files are compared: an
older delivery's lines of usage are in the newer one too, a part's are not.

Sources:
    https://docs.aws.amazon.com/cur/latest/userguide/understanding-report-versions.html (deliveries, assembly ids, parts)
    https://docs.aws.amazon.com/cur/latest/userguide/identity-columns.html (ids are not the same in the next delivery)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gpulab.model.statement import Statement
from gpulab.store.statement_sql import FORMATS, StatementFormat, describing, usage_lines
from gpulab.store.statements import (
    SETTINGS,
    damaged,
    duckdb_module,
    feed_lines,
    format_of,
    opened,
    read_statement,
    whole_until,
)

if TYPE_CHECKING:
    import duckdb

_SAMPLE = 1000
# Of an older delivery's lines nearly all are found again (AWS corrects some), of a part's next to none.
_SAME = 0.5
_NEVER = datetime.min  # noqa: DTZ901 - DuckDB's timestamps are naive UTC; compared among themselves only


@dataclass(frozen=True)
class _File:
    path: Path
    format: StatementFormat
    bill: tuple[str, ...]
    last: datetime
    lines: int
    usage: str


def read_statements(paths: Sequence[Path]) -> tuple[Statement, ...]:
    """
    Read statements; of several deliveries of one bill only the newest, which says for which files it stands.

    Files of one folder are parts of a delivery or deliveries, as their lines say; those of several folders are deliveries, as AWS
    lays them down. The same bill in two formats counts in the one that is further on.

    Where there is a spot data feed beside them, each says also until which day it is whole: the feed may know more of a later one.

    Raises:
        WrongUsage, StoreError: As `read_statement` raises.
    """
    tables = [path for path in paths if feed_lines(path) is None]
    instead = _instead_of(tables) if len(tables) > 1 else {}
    left_out = {older for names in instead.values() for older in names}
    beside_feed = set(tables) if len(tables) < len(paths) else set()
    return tuple(
        replace(
            read_statement(path),
            instead_of=tuple(older.name for older in instead.get(path, ())),
            whole_until=whole_until(path) if path in beside_feed else None,
        )
        for path in paths
        if path not in left_out
    )


def _instead_of(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return for each file that stands for others which ones they are."""
    duckdb = duckdb_module()
    found: dict[Path, list[Path]] = defaultdict(list)
    with duckdb.connect(config=SETTINGS) as connection:
        bills: dict[tuple[str, ...], list[_File]] = defaultdict(list)
        for path in dict.fromkeys(paths):
            with damaged(path):
                file = _described(connection, path)
            bills[file.bill].append(file)
        for files in bills.values():
            newest = max(files, key=lambda f: (f.last, -FORMATS.index(f.format)))
            others = [f for f in files if f.format is not newest.format]
            if others and all(newest.bill):
                found[newest.path] += [f.path for f in others]
                files = [f for f in files if f.format is newest.format]
            _sort_out(connection, files, found)
    return found


def _described(connection: duckdb.DuckDBPyConnection, path: Path) -> _File:
    source, columns = opened(connection, path)
    known = format_of(path, columns)
    row = connection.execute(describing(known, source, columns), [str(path)]).fetchone()
    assert row is not None
    *names, end, lines = row
    named = source.replace("?", "'" + str(path).replace("'", "''") + "'")
    bill = tuple(name or "" for name in names)
    return _File(path, known, bill, end or _NEVER, lines, usage_lines(known, named, columns))


def _sort_out(
    connection: duckdb.DuckDBPyConnection, files: Sequence[_File], found: dict[Path, list[Path]]
) -> None:
    """Go from the newest delivery to the oldest; one whose lines are known already is left out."""
    kept: list[list[_File]] = []
    for unit in sorted(_units(files), key=_age):
        with damaged(*(file.path for file in unit)):
            newer = next((k for k in kept if _is_in(connection, unit, k)), None)
        if newer is None:
            kept.append(unit)
        else:
            found[newer[0].path] += [f.path for f in unit]


def _units(files: Sequence[_File]) -> list[list[_File]]:
    folders: dict[Path, list[_File]] = defaultdict(list)
    for file in files:
        folders[file.path.resolve().parent].append(file)
    return list(folders.values()) if len(folders) > 1 else [[file] for file in files]


def _age(unit: Sequence[_File]) -> tuple[float, int, str]:
    last = max(file.last for file in unit)
    return -(last - _NEVER).total_seconds(), -sum(f.lines for f in unit), str(unit[0].path)


def _is_in(
    connection: duckdb.DuckDBPyConnection, unit: Sequence[_File], newer: Sequence[_File]
) -> bool:
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE sampled AS SELECT * FROM ({_all(unit)})"  # noqa: S608 - our own texts and quoted names
        f" USING SAMPLE reservoir({_SAMPLE} ROWS) REPEATABLE (1)"
    )
    row = connection.execute(
        f"SELECT count(*), (SELECT count(*) FROM sampled) FROM sampled SEMI JOIN ({_all(newer)})"  # noqa: S608 - our own texts and quoted names
        " USING (begin, resource, usage_type, units)"
    ).fetchone()
    assert row is not None
    return bool(row[1]) and row[0] / row[1] >= _SAME


def _all(files: Iterable[_File]) -> str:
    return " UNION ALL ".join(file.usage for file in files)
