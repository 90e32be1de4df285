"""How each format of AWS's billing exports names things, as SQL. Refuses nothing; unreadable lines come back as NULL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StatementFormat:
    """
    Where a format keeps what we add up; each field is a column.

    Attributes:
        marks: Columns that only this format has.
        on_demand: The same usage at public on-demand prices; empty when the format does not say.
        types: Words of `line_type` by category; any other word is `other`.
    """

    name: str
    marks: frozenset[str]
    begin: str
    resource: str
    account: str
    line_type: str
    usage_type: str
    amount: str
    currency: str
    on_demand: str = ""


_CUR_2 = StatementFormat(
    name="cur-2.0",
    marks=frozenset({"line_item_usage_start_date", "line_item_unblended_cost"}),
    begin="line_item_usage_start_date",
    resource="line_item_resource_id",
    account="line_item_usage_account_id",
    line_type="line_item_line_item_type",
    usage_type="line_item_usage_type",
    amount="line_item_unblended_cost",
    currency="line_item_currency_code",
    on_demand="pricing_public_on_demand_cost",
)
_CUR_LEGACY = StatementFormat(
    name="cur-legacy",
    marks=frozenset({"lineItem/UsageStartDate", "lineItem/UnblendedCost"}),
    begin="lineItem/UsageStartDate",
    resource="lineItem/ResourceId",
    account="lineItem/UsageAccountId",
    line_type="lineItem/LineItemType",
    usage_type="lineItem/UsageType",
    amount="lineItem/UnblendedCost",
    currency="lineItem/CurrencyCode",
    on_demand="pricing/publicOnDemandCost",
)
# FOCUS keeps AWS's usage type in columns of AWS's own, which not every export carries.
_FOCUS = StatementFormat(
    name="focus",
    marks=frozenset({"ChargePeriodStart", "BilledCost", "ChargeCategory"}),
    begin="ChargePeriodStart",
    resource="ResourceId",
    account="SubAccountId",
    line_type="ChargeCategory",
    usage_type="x_UsageType",
    amount="BilledCost",
    currency="BillingCurrency",
    on_demand="ListCost",
)
FORMATS = (_CUR_2, _CUR_LEGACY, _FOCUS)

# A charge of reserved capacity or a savings plan is usage too; its net is 0 and its list price is not.
_CATEGORY = """CASE
    WHEN line_type IN ('Usage', 'DiscountedUsage', 'SavingsPlanCoveredUsage') THEN 'usage'
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


def summing(known: StatementFormat, source: str, columns: tuple[str, ...]) -> str:
    """
    Write the query that adds a file up.

    Returns:
        SQL whose rows are day, resource, account, category, kind, USD, USD on demand, lines and unreadable lines; the day is NULL for
        lines without a time. Our own texts and column names only; the file's name is its one parameter.
    """
    present = set(columns)

    def column(name: str) -> str:
        return f'"{name}"' if name in present else "NULL::VARCHAR"

    # Texts are told apart once for each group, not once for each line: that is what keeps ten million lines quick.
    return f"""
        SELECT day, resource, account, {_CATEGORY} AS category, {_KIND} AS kind, usd, on_demand, lines, unreadable
        FROM (
            SELECT TRY_CAST({column(known.begin)} AS TIMESTAMP)::DATE AS day,
                   {column(known.resource)} AS resource,
                   {column(known.account)} AS account,
                   {column(known.line_type)} AS line_type,
                   {column(known.usage_type)} AS usage_type,
                   sum({_decimal(column(known.amount))}) FILTER (WHERE {_is_usd(column(known.currency))}) AS usd,
                   sum({_decimal(column(known.on_demand))}) AS on_demand,
                   count(*) AS lines,
                   count(*) FILTER (
                       WHERE {_decimal(column(known.amount))} IS NULL OR NOT {_is_usd(column(known.currency))}
                   ) AS unreadable
            FROM {source}
            GROUP BY day, resource, account, line_type, usage_type
        )
    """  # noqa: S608 - our own texts; names of columns come from the lists above


def _decimal(column: str) -> str:
    return f"TRY_CAST({column} AS DECIMAL(18, 10))"


def _is_usd(column: str) -> str:
    return f"coalesce({column}, 'USD') = 'USD'"
