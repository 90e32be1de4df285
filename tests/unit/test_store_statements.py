"""AWS's billing exports as they really are: every format's sums against a plain reading of the same file."""

from __future__ import annotations

import csv
import gzip
import importlib.util
from collections import defaultdict
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

import pytest

from gpulab.errors import WrongUsage
from gpulab.model.statement import Category
from gpulab.store.statements import read_statement, whole_until

FOLDER = Path(__file__).parent / "data" / "billing"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("duckdb") is None, reason="needs the extra `report`"
)


def plain_sums(name: str, amount: str, line_type: str) -> dict[str, Decimal]:
    """Add a column up by line type, line by line, with nothing but the csv module."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    with gzip.open(FOLDER / name, "rt", encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            try:
                sums[row[line_type]] += round(Decimal(row[amount]), 10)
            except InvalidOperation:
                continue
    return dict(sums)


@pytest.mark.parametrize(
    ("name", "format", "amount", "line_type"),
    [
        ("cur_legacy_generated_2026-10.csv.gz", "cur-legacy", "lineItem/UnblendedCost", "lineItem/LineItemType"),
        ("cur_legacy_anonymous_1281.csv.gz", "cur-legacy", "lineItem/UnblendedCost", "lineItem/LineItemType"),
        ("focus_1.0_sample_1000.csv.gz", "focus", "BilledCost", "ChargeCategory"),
    ],
)  # fmt: skip
def test_every_cent_of_a_real_export_is_found_again(name, format, amount, line_type):  # noqa: A002
    """Usage, credit and tax apart, to ten decimals: the net of the three would hide what is spent."""
    expected = plain_sums(name, amount, line_type)

    statement = read_statement(FOLDER / name)

    found: dict[Category, Decimal] = defaultdict(Decimal)
    for one in statement.sums:
        found[one.category] += one.usd
    assert (format, 0) == (statement.format, statement.unreadable)
    assert sum(expected.values()) == sum(found.values())
    assert expected.get("Usage", 0) == found[Category.USAGE]
    assert expected.get("Tax", 0) == found[Category.TAX]
    assert expected.get("Credit", 0) == found[Category.CREDIT]


def test_an_instances_days_and_kinds():
    """What is compared with the ledger: one instance, one UTC day, instances and disks apart."""
    statement = read_statement(FOLDER / "cur_legacy_generated_2026-10.csv.gz")

    kinds = {one.kind for one in statement.sums}
    first = min(s.day for s in statement.sums if s.resource == "i-55555551")

    assert {"instance", "ebs", "transfer", "other"} == kinds
    assert date(2026, 10, 1) == first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cur_legacy_anonymous_1281.csv.gz", date(2023, 11, 13)),
        ("cur_legacy_generated_2026-10.csv.gz", date(2026, 10, 31)),
        ("focus_1.0_sample_1000.csv.gz", date(2024, 9, 30)),
    ],
)
def test_how_far_a_bill_goes_is_told_by_its_last_hour(name, expected):
    """The anonymous one was delivered on 14 November with hours until 04:00, and with lines that reach to the month's end."""
    assert expected == whole_until(FOLDER / name)


@pytest.mark.parametrize(
    ("end", "invoice", "expected"),
    [
        ("2026-10-15T00:00:00Z", "", date(2026, 10, 13)),
        ("2026-10-14T01:00:00Z", "", date(2026, 10, 13)),
        ("2026-10-14T01:00:00Z", "1234567890", None),
        ("", "", date(2026, 10, 13)),
    ],
)
def test_a_bill_of_whole_days_and_a_final_one(tmp_path, end, invoice, expected):
    """A bill of days cannot say whether its last one is over; one with an invoice gets no more lines."""
    path = tmp_path / "cur.csv"
    path.write_text(
        "line_item_usage_start_date,line_item_usage_end_date,line_item_unblended_cost,line_item_line_item_type,bill_invoice_id\n"
        f"2026-10-14T00:00:00Z,{end},1.50,Usage,{invoice}\n"
        "2026-10-01T00:00:00Z,2026-11-01T00:00:00Z,1.50,Tax,\n"
    )

    assert expected == whole_until(path)


def test_a_focus_resource_is_its_id_not_its_arn():
    """`arn:aws:ec2:...:instance/i-0abc` and the ledger's `i-0abc` are one instance."""
    statement = read_statement(FOLDER / "focus_1.0_sample_1000.csv.gz")

    assert {"instance"} == {s.kind for s in statement.sums if s.resource.startswith("i-")}
    assert not any("/" in s.resource for s in statement.sums)


def test_a_cur_2_parquet_is_read_like_its_csv(tmp_path):
    """Data Exports deliver Parquet; both faces of one bill give one sum."""
    import duckdb

    parquet, text = tmp_path / "cur.parquet", tmp_path / "cur.csv"
    rows = """
        SELECT TIMESTAMP '2026-10-01 13:00:00' + INTERVAL (n) HOUR AS line_item_usage_start_date,
               'i-' || (n % 3) AS line_item_resource_id, '1' AS line_item_usage_account_id,
               CASE WHEN n % 10 = 0 THEN 'Credit' ELSE 'Usage' END AS line_item_line_item_type,
               'USE2-SpotUsage:g4dn.xlarge' AS line_item_usage_type,
               (CASE WHEN n % 10 = 0 THEN -1 ELSE 1 END) * 0.2158 AS line_item_unblended_cost,
               'USD' AS line_item_currency_code
        FROM range(100) t(n)
    """
    duckdb.sql(f"COPY ({rows}) TO '{parquet}' (FORMAT parquet)")
    duckdb.sql(f"COPY ({rows}) TO '{text}' (HEADER)")

    first, second = read_statement(parquet), read_statement(text)

    assert ("cur-2.0", 100, 0) == (first.format, first.lines, first.unreadable)
    assert sorted(first.sums, key=repr) == sorted(second.sums, key=repr)
    credit = sum(s.usd for s in first.sums if s.category is Category.CREDIT)
    assert (Decimal("-2.1580000000"), {"instance"}) == (credit, {s.kind for s in first.sums})


def test_a_spot_data_feed_is_hours_of_instances(tmp_path):
    """The one source that names the spot price AWS really charged; its decimals vary."""
    packed = tmp_path / "111122223333.2023-12-09-07.001.abcd.gz"
    packed.write_bytes(gzip.compress((FOLDER / "spot_data_feed_samples.tsv").read_bytes()))

    statement = read_statement(packed)

    assert ("spot-feed", 2, 0) == (statement.format, statement.lines, statement.unreadable)
    assert [
        (date(2019, 11, 3), "i-05487b228492b1a54", Decimal("0.004")),
        (date(2023, 12, 9), "i-0c3e0c0b046e050df", Decimal("0.0142000000")),
    ] == [(s.day, s.resource, s.usd) for s in statement.sums]


def test_lines_without_an_amount_or_in_another_currency_are_counted_not_summed(tmp_path):
    """A euro is no dollar, and a broken line is no zero."""
    path = tmp_path / "cur.csv"
    path.write_text(
        "line_item_usage_start_date,line_item_unblended_cost,line_item_line_item_type,line_item_currency_code\n"
        "2026-10-01T00:00:00Z,1.50,Usage,USD\n"
        "2026-10-01T00:00:00Z,9.99,Usage,EUR\n"
        "2026-10-01T00:00:00Z,cheap,Usage,USD\n"
        "soon,2.00,Usage,USD\n"
    )

    statement = read_statement(path)

    assert (4, 3) == (statement.lines, statement.unreadable)
    assert [Decimal("1.5000000000")] == [s.usd for s in statement.sums]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"a,b\n1,2\n", WrongUsage, "is no billing export gpulab knows"),
        (b"PAR1 but then nothing", WrongUsage, "could not read the statement"),
        (b"\x1f\x8b broken", WrongUsage, "could not read"),
    ],
)
def test_what_is_no_statement_is_one_sentence(tmp_path, content, error, words):
    """The wrong file from a downloads folder is the commonest mistake."""
    path = tmp_path / "download"
    path.write_bytes(content)

    with pytest.raises(error, match=words):
        read_statement(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    """A mistyped path must not be a traceback."""
    with pytest.raises(WrongUsage, match="No such file"):
        read_statement(tmp_path / "cur.csv")
