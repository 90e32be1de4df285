"""How each format of AWS's billing exports names things, as SQL. Refuses nothing; unreadable lines come back as NULL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StatementFormat:
    """
    Where a format keeps what we add up; each field is a column.

    Attributes:
        marks: Columns that only this format has.
        line_type: Usage, credit, tax, ...
        usage_type: Empty words where the format has no such column.
        payer, period: Whose bill it is, and of which month.
        end: Of a line's time.
        invoice: Filled once the month's bill is final.
    """

    name: str
    marks: frozenset[str]
    begin: str
    resource: str
    line_type: str
    usage_type: str
    amount: str
    currency: str
    payer: str
    period: str
    end: str
    invoice: str


_CUR_2 = StatementFormat(
    name="cur-2.0",
    marks=frozenset({"line_item_usage_start_date", "line_item_unblended_cost"}),
    begin="line_item_usage_start_date",
    resource="line_item_resource_id",
    line_type="line_item_line_item_type",
    usage_type="line_item_usage_type",
    amount="line_item_unblended_cost",
    currency="line_item_currency_code",
    payer="bill_payer_account_id",
    period="bill_billing_period_start_date",
    end="line_item_usage_end_date",
    invoice="bill_invoice_id",
)
_CUR_LEGACY = StatementFormat(
    name="cur-legacy",
    marks=frozenset({"lineItem/UsageStartDate", "lineItem/UnblendedCost"}),
    begin="lineItem/UsageStartDate",
    resource="lineItem/ResourceId",
    line_type="lineItem/LineItemType",
    usage_type="lineItem/UsageType",
    amount="lineItem/UnblendedCost",
    currency="lineItem/CurrencyCode",
    payer="bill/PayerAccountId",
    period="bill/BillingPeriodStartDate",
    end="lineItem/UsageEndDate",
    invoice="bill/InvoiceId",
)
# FOCUS keeps AWS's usage type in columns of AWS's own, which not every export carries.
_FOCUS = StatementFormat(
    name="focus",
    marks=frozenset({"ChargePeriodStart", "BilledCost", "ChargeCategory"}),
    begin="ChargePeriodStart",
    resource="ResourceId",
    line_type="ChargeCategory",
    usage_type="x_UsageType",
    amount="BilledCost",
    currency="BillingCurrency",
    payer="BillingAccountId",
    period="BillingPeriodStart",
    end="ChargePeriodEnd",
    invoice="InvoiceId",
)
FORMATS = (_CUR_2, _CUR_LEGACY, _FOCUS)

# A charge of reserved capacity or a savings plan is usage too; its net is 0 and its list price is not.
_USAGE = "('Usage', 'DiscountedUsage', 'SavingsPlanCoveredUsage')"
_CATEGORY = f"""CASE
    WHEN line_type IN {_USAGE} THEN 'usage'
    WHEN line_type IN ('Credit', 'Refund') THEN 'credit'
    WHEN line_type = 'Tax' THEN 'tax'
    ELSE 'other' END"""
# Usage types carry a region before them outside us-east-1: `USW2-SpotUsage:g4dn.xlarge`.
_KIND = """CASE
    WHEN usage_type LIKE '%SpotUsage%' OR usage_type LIKE '%BoxUsage%' THEN 'instance'
    WHEN usage_type LIKE '%EBS:VolumeUsage%' THEN 'ebs'
    WHEN usage_type LIKE '%PublicIPv4%' THEN 'ipv4'
    WHEN usage_type LIKE '%DataTransfer%' THEN 'transfer'
    WHEN usage_type IS NOT NULL THEN 'other'
    WHEN resource LIKE '%/i-%' OR resource LIKE 'i-%' THEN 'instance'
    WHEN resource LIKE '%/vol-%' OR resource LIKE 'vol-%' THEN 'ebs'
    ELSE 'other' END"""


def summing(known: StatementFormat, source: str, columns: Mapping[str, str]) -> str:
    """
    Write the query that adds a file up.

    Args:
        columns: Type of each column of the file, in DuckDB's words.

    Returns:
        SQL whose rows are day, id of the resource (empty for none), category, kind, whole units of 1e-10 USD, lines and unreadable lines;
        the day is NULL for lines without a time. Our own texts and column names only; the file's name is its one parameter.
    """

    def column(name: str) -> str:
        return _column(name, columns)

    units = _units(column(known.amount), columns.get(known.amount, "VARCHAR"))
    is_usd = f"coalesce({column(known.currency)}, 'USD') = 'USD'"
    # Texts are told apart once for each group, not once for each line: that is what keeps ten million lines quick.
    return f"""
        SELECT day, coalesce(split_part(resource, '/', -1), ''), {_CATEGORY} AS category, {_KIND} AS kind,
               units, lines, CASE WHEN day IS NULL THEN lines ELSE lines - readable END
        FROM (
            SELECT TRY_CAST({column(known.begin)} AS TIMESTAMP)::DATE AS day,
                   {column(known.resource)} AS resource,
                   {column(known.line_type)} AS line_type,
                   {column(known.usage_type)} AS usage_type,
                   sum(CASE WHEN {is_usd} THEN {units} END)::BIGINT AS units,
                   count(*) AS lines,
                   count(CASE WHEN {is_usd} THEN {units} END) AS readable
            FROM {source}
            GROUP BY day, resource, line_type, usage_type
        )
    """  # noqa: S608 - our own texts; names of columns come from the lists above


def describing(known: StatementFormat, source: str, columns: Mapping[str, str]) -> str:
    """Write the query that says whose bill a file is: payer, month (the first and the last), the last begin, and the number of lines."""
    payer, period = _column(known.payer, columns), _column(known.period, columns)
    begin = f"max(TRY_CAST({_column(known.begin, columns)} AS TIMESTAMP))"
    names = ", ".join(f"{f}({c}::VARCHAR)" for c in (payer, period) for f in ("min", "max"))
    return f"SELECT {names}, {begin}, count(*) FROM {source}"  # noqa: S608 - our own texts and names from the lists above


def reaching(known: StatementFormat, source: str, columns: Mapping[str, str]) -> str:
    """Write the query that says how far a file's usage goes: the last begin, the end of the last single hour, and how many lines have no invoice yet."""
    begin, end = (
        f"TRY_CAST({_column(name, columns)} AS TIMESTAMP)" for name in (known.begin, known.end)
    )
    return f"""
        SELECT max(begin), max(CASE WHEN stop <= begin + INTERVAL 1 HOUR THEN stop END), count(*) - count(invoice)
        FROM (SELECT {begin} AS begin, {end} AS stop, nullif({_column(known.invoice, columns)}::VARCHAR, '') AS invoice
              FROM {source} WHERE {_column(known.line_type, columns)} IN {_USAGE})
    """  # noqa: S608 - our own texts; names of columns come from the lists above


def usage_lines(known: StatementFormat, source: str, columns: Mapping[str, str]) -> str:
    """Write the query for what makes a line of usage the same in two deliveries: AWS's own ids of lines change with each."""
    texts = [
        f"coalesce({_column(name, columns)}::VARCHAR, '') AS {alias}"
        for name, alias in ((known.resource, "resource"), (known.usage_type, "usage_type"))
    ]
    amount = _units(_column(known.amount, columns), columns.get(known.amount, "VARCHAR"))
    return f"""
        SELECT TRY_CAST({_column(known.begin, columns)} AS TIMESTAMP) AS begin, {", ".join(texts)}, {amount} AS units
        FROM {source} WHERE {_column(known.line_type, columns)} IN {_USAGE} AND {amount} <> 0
    """  # noqa: S608 - our own texts; names of columns come from the lists above


def _column(name: str, columns: Mapping[str, str]) -> str:
    return f'"{name}"' if name in columns else "NULL::VARCHAR"


def _units(column: str, type_: str) -> str:
    """Write an amount in whole units of 1e-10 USD, NULL when it is none; a text never passes through a double."""
    if type_ in ("DOUBLE", "FLOAT"):
        return f"TRY_CAST(round({column} * 1e10) AS BIGINT)"
    return f"(TRY_CAST({column} AS DECIMAL(18, 10)) * 10000000000::HUGEINT)::HUGEINT"
