"""Several files of one bill, as AWS lays them down: deliveries that hold all lines again, parts, accounts, formats."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import random
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.errors import WrongUsage
from gpulab.store.deliveries import read_statements
from gpulab.store.statements import read_statement

REAL = Path(__file__).parent / "data" / "billing" / "cur_legacy_generated_2026-10.csv.gz"
PERIOD = "20261001-20261101"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("duckdb") is None, reason="needs the extra `report`"
)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """The lines of a month, in an order that says nothing."""
    with gzip.open(REAL, "rt", encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    random.Random(5).shuffle(found)
    return found


def delivered(
    rows: Iterable[dict[str, str]], *, day: int = 31, run: int = 0
) -> list[dict[str, str]]:
    """Return one delivery: all lines up to a day of the month, ids of its own, and a last day that is not yet priced in full."""
    last = f"2026-10-{day:02}"
    return [
        row
        | {"identity/LineItemId": f"{run}{row['identity/LineItemId']}"}
        | ({"lineItem/UnblendedCost": "0.0000000001"} if day < 31 and is_last else {})
        for row in rows
        if (is_last := row["lineItem/UsageStartDate"].startswith(last))
        or row["lineItem/UsageStartDate"] < last
    ]


def written(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def total(paths: Iterable[Path]) -> Decimal:
    return sum((one.usd for s in read_statements(list(paths)) for one in s.sums), Decimal(0))


@pytest.fixture(scope="module")
def month() -> Decimal:
    """What the month costs, from its one file."""
    return sum((one.usd for one in read_statement(REAL).sums), Decimal(0))


@pytest.mark.parametrize("layout", ["{run}.csv.gz", PERIOD + "/assembly-{run}/report-1.csv.gz"])
def test_a_month_delivered_three_times_counts_once(rows, month, tmp_path, layout):
    """Each delivery holds the older ones' lines; adding them up would triple the bill."""
    paths = [
        written(tmp_path / layout.format(run=run), delivered(rows, day=day, run=run))
        for run, day in enumerate([5, 20, 31])
    ]

    statements = read_statements([paths[1], paths[2], paths[0]])

    assert [(paths[1].name, paths[0].name)] == [one.instead_of for one in statements]
    assert month == sum(one.usd for one in statements[0].sums)


def test_the_parts_of_a_large_delivery_are_all_counted(rows, month, tmp_path):
    """AWS splits a large file; a part that was taken for an older delivery would be money that nobody sees."""
    cuts = [rows[:1200], rows[1200:2300], rows[2300:]]

    paths = [written(tmp_path / f"report-{n}.csv.gz", part) for n, part in enumerate(cuts, 1)]

    assert month == total(paths)


def test_two_deliveries_in_parts_of_their_own_count_once(rows, month, tmp_path):
    """The next delivery is cut elsewhere, so no file of one holds a file of the other."""
    old, new = delivered(rows, day=25), delivered(rows, run=1)
    paths = [
        written(tmp_path / PERIOD / f"assembly-{run}" / f"report-{n}.csv.gz", part)
        for run, (all_, cut) in enumerate([(old, 700), (new, 1500)])
        for n, part in enumerate([all_[:cut], all_[cut:]], 1)
    ]

    assert month == total(paths)


def test_a_bill_that_was_corrected_after_the_month_still_replaces_the_older_one(rows, month, tmp_path):  # fmt: skip
    """Credits and corrections come when the month is over; a few lines then differ and most do not."""
    corrected = [
        row | ({"lineItem/UnblendedCost": "1.0000000000"} if n % 5 == 0 else {})
        for n, row in enumerate(delivered(rows, run=1))
    ]
    credit = corrected[1] | {
        "lineItem/LineItemType": "Credit",
        "lineItem/UnblendedCost": "-3.0000000000",
    }
    paths = [
        written(tmp_path / "first.csv.gz", rows),
        written(tmp_path / "later.csv.gz", [*corrected, credit]),
    ]

    (statement,) = read_statements(paths)

    assert ("later.csv.gz", ("first.csv.gz",)) == (statement.name, statement.instead_of)


def test_every_account_and_every_month_has_a_bill_of_its_own(rows, month, tmp_path):
    """Three hundred students with an account each deliver the same month three hundred times, and each one is money."""
    other = [row | {"bill/PayerAccountId": "444455556666"} for row in rows]
    next_month = [
        {key: cell.replace("2026-10", "2026-12") for key, cell in row.items()} for row in rows
    ]
    paths = [
        written(tmp_path / f"{n}.csv.gz", some) for n, some in enumerate([rows, other, next_month])
    ]

    assert 3 * month == total(paths)


def test_one_bill_in_two_formats_counts_once(rows, month, tmp_path):
    """A course that moves from a Cost and Usage Report to Data Exports has both for some months."""
    names = {
        "bill/PayerAccountId": "bill_payer_account_id",
        "bill/BillingPeriodStartDate": "bill_billing_period_start_date",
        "lineItem/UsageStartDate": "line_item_usage_start_date",
        "lineItem/LineItemType": "line_item_line_item_type",
        "lineItem/UsageType": "line_item_usage_type",
        "lineItem/ResourceId": "line_item_resource_id",
        "lineItem/UnblendedCost": "line_item_unblended_cost",
        "lineItem/CurrencyCode": "line_item_currency_code",
    }
    exported = [{new: row[old] for old, new in names.items()} for row in rows]
    paths = [REAL, written(tmp_path / "export.csv.gz", exported)]

    (statement,) = read_statements(paths)

    assert ("cur-2.0", (REAL.name,)) == (statement.format, statement.instead_of)
    assert month == sum(one.usd for one in statement.sums)


def test_a_damaged_file_among_several_is_one_sentence(tmp_path):
    """Half a download beside a whole one."""
    broken = tmp_path / "cut.parquet"
    broken.write_bytes(b"PAR1 but then nothing")

    with pytest.raises(WrongUsage, match=r"could not read the statement .*cut\.parquet"):
        read_statements([REAL, broken])
