"""
AWS's billing exports, added up by resource and UTC day. Hides four formats and DuckDB; refuses a file it does not know.

Credits and tax stay apart from usage: the net hides everything while credits pay. Amounts are summed as decimals.

Sources:
    https://docs.aws.amazon.com/cur/latest/userguide/data-dictionary.html (legacy CUR and CUR 2.0)
    https://focus.finops.org/focus-specification/ (FOCUS 1.0 and later)
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-data-feeds.html
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulab.errors import StoreError, WrongUsage, extra_hint
from gpulab.model.statement import Category, Statement, StatementSum, units_of
from gpulab.store.statement_sql import FORMATS, StatementFormat, reaching, summing

if TYPE_CHECKING:
    import duckdb

_CATEGORIES = {category.value: category for category in Category}
_MEMORY = "768MB"
# A feed file is one hour of one account: some kilobytes. gzip can make a thousand times its size of nothing.
_LONGEST_FEED = 64 << 20
# Of one instance-hour; with ten decimals, as AWS bills, any number of them is summed exactly.
_MOST_USD = 1_000_000


def read_statement(path: Path) -> Statement:
    """
    Read a CUR (legacy or 2.0), a FOCUS export (both CSV or Parquet, gzip or not) or a spot data feed file.

    Raises:
        WrongUsage: The file is missing, damaged or none of these.
        StoreError: DuckDB is not installed, or this computer has too little memory or disk for the file.
    """
    digest = _digest(path)
    feed = feed_lines(path)
    if feed is not None:
        return _read_feed(path, digest, feed)
    return _read_table(path, digest)


def whole_until(path: Path) -> date | None:
    """
    Say until which UTC day a table has all hours of usage; `None` where its bill is final, or it does not tell.

    Its last day is as a rule still going on when a bill is delivered. Where all lines are of whole days nobody can tell, and the last
    one is taken for unfinished.

    Raises:
        WrongUsage, StoreError: As `read_statement` raises.
    """
    duckdb = duckdb_module()
    with damaged(path), duckdb.connect(config=SETTINGS) as connection:
        source, columns = opened(connection, path)
        query = reaching(format_of(path, columns), source, columns)
        row = connection.execute(query, [str(path)]).fetchone()
    last, hour_end, without_invoice = row or (None, None, 0)
    reached: datetime | None = hour_end or last
    return (reached - timedelta(hours=24)).date() if reached and without_invoice else None


def _read_table(path: Path, digest: str) -> Statement:
    duckdb = duckdb_module()
    with damaged(path), duckdb.connect(config=SETTINGS) as connection:
        source, columns = opened(connection, path)
        known = format_of(path, columns)
        rows = connection.execute(summing(known, source, columns), [str(path)]).fetchall()
    sums, lines, unreadable = _added(rows)
    return Statement(path.name, known.name, digest, lines, unreadable, sums, path=str(path))


@contextmanager
def damaged(path: Path, *others: Path) -> Iterator[None]:
    """
    Say in one sentence what DuckDB finds wrong with a file, or with others that are read with it.

    Raises:
        WrongUsage: The file is damaged.
        StoreError: This computer has too little memory or disk for it.
    """
    duckdb = duckdb_module()
    try:
        yield
    except duckdb.Error as error:
        why = f"could not read the statement {path}: {str(error).splitlines()[0]}"
        # An error of the disk names the file it was about: one of these, or one that DuckDB spills to.
        is_elsewhere = isinstance(error, duckdb.IOException) and not any(
            str(read) in str(error) for read in (path, *others)
        )
        if is_elsewhere or isinstance(error, duckdb.OutOfMemoryException):
            raise StoreError(why, hint="Free memory and disk space, then read it again") from error
        raise WrongUsage(why, hint="Download it again; it may be cut off") from error


# No extension is fetched from anywhere, and a statement larger than memory spills to disk.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": _MEMORY,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def opened(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[str, dict[str, str]]:
    """Return the table function that reads a file, with `?` for its name, and the type of each column."""
    magic = _magic(path)
    packing = "gzip" if magic.startswith(_GZIP) else "none"
    source = "read_parquet(?)" if magic == b"PAR1" else _CSV.format(packing=packing)
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}", [str(path)]).fetchall()  # noqa: S608 - one of two fixed texts
    return source, {row[0]: row[1] for row in described}


# As texts: a decimal must not pass through a double, and the anonymous samples write NULL for nothing.
_CSV = "read_csv(?, header = true, all_varchar = true, nullstr = ['', 'NULL'], compression = '{packing}')"
_GZIP = b"\x1f\x8b"


def _magic(path: Path) -> bytes:
    """Read what tells the formats apart; a download's name does not."""
    with path.open("rb") as file:
        return file.read(4)


def format_of(path: Path, columns: Collection[str]) -> StatementFormat:
    """
    Tell a table's format by its columns.

    Raises:
        WrongUsage: It is none.
    """
    for known in FORMATS:
        if known.marks <= set(columns):
            return known
    raise WrongUsage(
        f"{path} is no billing export gpulab knows",
        hint="A CUR (legacy or 2.0), a FOCUS export or a spot data feed file",
    )


def _added(
    rows: Sequence[tuple[Any, ...]],
) -> tuple[tuple[StatementSum, ...], int, int]:
    """
    Return the sums, the lines and the unreadable lines.

    Column by column and without a call for each row: ten million lines give some hundred thousand of them.
    """
    lines, unreadable = sum(row[5] for row in rows), sum(row[6] for row in rows)
    readable = [row for row in rows if row[0] is not None and row[4] is not None]
    if not readable:
        return (), lines, unreadable
    days, names, categories, kinds, units, _, _ = zip(*readable, strict=True)
    cells = zip(days, names, map(_CATEGORIES.__getitem__, categories), kinds, units, strict=True)
    return tuple(map(tuple.__new__, repeat(StatementSum), cells)), lines, unreadable


def feed_lines(path: Path) -> list[str] | None:
    """Return the lines of a spot data feed file; `None` when it is something else."""
    try:
        with path.open("rb") as raw:
            is_packed = raw.read(2) == _GZIP
        with gzip.open(path) if is_packed else path.open("rb") as file:
            if file.read(9) != b"#Version:":
                return None
            content = file.read(_LONGEST_FEED + 1)
            if len(content) > _LONGEST_FEED:
                raise WrongUsage(
                    f"{path} unpacks to more than {_LONGEST_FEED >> 20} MiB, which no spot data feed file does"
                )
            return content.decode().split("\n")[1:]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise WrongUsage(f"could not read {path}: {error}") from error


def _read_feed(path: Path, digest: str, lines: list[str]) -> Statement:
    """Add up a spot data feed: one line is one instance-hour."""
    sums: dict[tuple[date, str], Decimal] = defaultdict(Decimal)
    data = [line for line in lines if line.strip() and not line.startswith("#")]
    unreadable = 0
    for line in data:
        cells = line.split("\t")
        charge = _usd(cells[7]) if len(cells) >= 9 else None
        day = _feed_day(cells[0])
        if charge is None or day is None:
            unreadable += 1
        else:
            sums[day, cells[3]] += charge
    return Statement(
        name=path.name,
        path=str(path),
        format="spot-feed",
        digest=digest,
        lines=len(data),
        unreadable=unreadable,
        sums=tuple(
            StatementSum(day, instance, Category.USAGE, "instance", units_of(usd))
            for (day, instance), usd in sorted(sums.items())
        ),
    )


def _usd(cell: str) -> Decimal | None:
    amount, _, currency = cell.partition(" ")
    try:
        value = Decimal(amount)
    except InvalidOperation:
        return None
    is_amount = value.is_finite() and abs(value) < _MOST_USD and _decimals(value) <= 10
    return value if is_amount and currency == "USD" else None


def _decimals(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def _feed_day(cell: str) -> date | None:
    try:
        return datetime.strptime(cell, "%Y-%m-%d %H:%M:%S UTC").date()  # noqa: DTZ007 - UTC by its own words
    except ValueError:
        return None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WrongUsage(f"could not read {path}: {error.strerror}") from error


def duckdb_module() -> Any:
    """
    Import DuckDB.

    Raises:
        StoreError: It is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise StoreError(
            "reading a billing export needs DuckDB, which is not installed",
            hint=extra_hint("report"),
        ) from error
    return duckdb
