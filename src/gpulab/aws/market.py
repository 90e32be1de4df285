"""What AWS sells and at what price, and how much of it the account may have. Hides paging; refuses nothing: what may not be read is `None`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import InvalidRequest, NotAllowed, NotFound
from gpulab.model.market import Market, SpotPrice
from gpulab.planning.quotas import CODES

if TYPE_CHECKING:
    from mypy_boto3_pricing import PricingClient
    from mypy_boto3_service_quotas import ServiceQuotasClient

_LINUX = "Linux/UNIX"


@explained("read the spot prices")
def spot_prices(
    cloud: Cloud, region: str, instance_types: Iterable[str], *, now: datetime
) -> tuple[SpotPrice, ...]:
    """
    Read the spot prices in force now, one per type and zone; a zone that does not sell a type has none.

    Raises:
        AwsError: AWS did not answer; the class says what to do.

    Source:
        EC2 `DescribeSpotPriceHistory`; the last change before `StartTime` is part of the answer.
    """
    newest: dict[tuple[str, str], SpotPrice] = {}
    wanted = set(instance_types)
    pages = cloud.pages(
        "ec2",
        region,
        "describe_spot_price_history",
        doing=f"read spot prices in {region}",
        InstanceTypes=sorted(wanted),
        ProductDescriptions=[_LINUX],
        StartTime=now,
        EndTime=now,
    )
    for row in (row for page in pages for row in page["SpotPriceHistory"]):
        price = _spot_price(row)
        if price.instance_type not in wanted:
            continue
        key = (price.instance_type, price.zone)
        if key not in newest or newest[key].seen_at < price.seen_at:
            newest[key] = price
    return tuple(newest[key] for key in sorted(newest))


@explained("read on-demand prices")
def on_demand_price(cloud: Cloud, region: str, instance_type: str) -> Decimal | None:
    """
    Read today's on-demand price, USD per hour, Linux, shared tenancy; `None` where the account may not ask or AWS lists none.

    Raises:
        AwsError: AWS did not answer, or the credentials are not accepted.

    Source:
        Price List `GetProducts`; it is served in us-east-1 for all regions.
    """
    pricing: PricingClient = cloud.client("pricing", "us-east-1")
    wanted = {
        "regionCode": region,
        "instanceType": instance_type,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    try:
        with cloud.explained("read on-demand prices"):
            reply = pricing.get_products(
                ServiceCode="AmazonEC2",
                FormatVersion="aws_v1",
                Filters=[{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()],
            )
    except (NotAllowed, NotFound, InvalidRequest):
        return None
    return next((p for p in map(_listed_price, reply["PriceList"]) if p is not None), None)


@explained("read the quota")
def quota_limit(cloud: Cloud, region: str, family: str, market: Market) -> int | None:
    """
    Read how many vCPUs of a family may run; `None` where the account may not ask.

    Raises:
        AwsError: AWS did not answer, or the credentials are not accepted.

    Source:
        Service Quotas `GetServiceQuota`; `GetAWSDefaultServiceQuota` where the account never had its own value.
    """
    client: ServiceQuotasClient = cloud.client("service-quotas", region)
    code = CODES[(family, market)].code
    try:
        with cloud.explained(f"read quota {code} in {region}"):
            reply = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except (NotAllowed, NotFound, InvalidRequest):
        return None
    return int(reply["Quota"]["Value"])


def _spot_price(row: Mapping[str, Any]) -> SpotPrice:
    return SpotPrice(
        instance_type=row["InstanceType"],
        zone=row["AvailabilityZone"],
        usd_per_hour=Decimal(row["SpotPrice"]),
        seen_at=row["Timestamp"].astimezone(UTC),
    )


def _listed_price(text: str) -> Decimal | None:
    """Read one product of the Price List: the hourly rate of its on-demand term."""
    try:
        terms = json.loads(text)["terms"]["OnDemand"].values()
        rates = [d for t in terms for d in t["priceDimensions"].values() if d["unit"] == "Hrs"]
        prices = [Decimal(d["pricePerUnit"]["USD"]) for d in rates]
    except (KeyError, TypeError, AttributeError, ValueError, InvalidOperation):
        return None
    return next((p for p in prices if p > 0), None)
