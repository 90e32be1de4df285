"""Money in a real account: what is shipped, what is left, what a spot hour costs, and what a spent budget forbids."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from typing import Any

import pytest
from tests.live import feed
from tests.live.account import Account

from gpulab.aws.errors import from_code
from gpulab.aws.workspace_setup import ensure_bucket
from gpulab.errors import GpulabError
from gpulab.launch.money.balance import read_balance
from gpulab.launch.money.told_costs import told_by
from gpulab.launch.upkeep import guards
from gpulab.model.fact import FactKind
from gpulab.model.timeline import InstanceLife, PriceSeries
from gpulab.planning.catalogue import instance_types, on_demand_prices
from gpulab.planning.quotas import family_of
from gpulab.spending.facts import LedgerReading, timeline_of

_TYPES = ("g4dn.xlarge", "g4dn.2xlarge", "g5.xlarge", "g6.xlarge")
_FEED = "spot-feed/"
_BOOTS_WITHIN_S = 60
_QUOTAS = ("L-3819A6DF", "L-DB2E81BA")


def test_shipped_prices_are_those_of_the_price_list(account, record_property):
    """They stand in where an account may not ask, and the plan's upper bound is made of them."""
    pricing = account.cloud.client("pricing", "us-east-1")
    differ = []
    for name in _TYPES:
        filters = {
            "instanceType": name,
            "regionCode": "us-east-1",
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        }
        listed = pricing.get_products(
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in filters.items()],
        )["PriceList"]
        said = {_on_demand_usd(json.loads(product)) for product in listed}
        shipped = on_demand_prices()["us-east-1", name].usd_per_hour
        differ += [f"{name}: shipped {shipped}, listed {usd}" for usd in said if usd != shipped]

    record_property("seen", "; ".join(differ) or f"{len(_TYPES)} prices agree")
    assert [] == differ


def test_shipped_types_and_quotas_are_those_of_ec2(account, record_property):
    """A type with other vCPUs, or a quota under another code, would make the plan refuse or AWS."""
    known = {t.name: t for t in instance_types()}
    said = account.ec2.describe_instance_types(InstanceTypes=list(_TYPES))["InstanceTypes"]
    vcpus = {t["InstanceType"]: t["VCpuInfo"]["DefaultVCpus"] for t in said}
    quotas = account.cloud.client("service-quotas", account.region)
    names = [
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["QuotaName"]
        for code in _QUOTAS
    ]

    record_property("seen", "; ".join(names))
    assert {name: known[name].vcpus for name in _TYPES} == vcpus
    assert {known[name].quota_family for name in _TYPES} == {family_of(name) for name in _TYPES}
    assert all("G and VT" in name for name in names)


def test_the_credit_is_read_from_aws(account, record_property):
    """GetCredits is new, and the balance is what a student trusts most."""
    balance = read_balance(account.context, is_fresh=True).balance

    sources = {a.source: a.unavailable or f"{len(a.credits)} credits" for a in balance.answers}
    record_property("seen", f"left {balance.left_usd}; {sources}")
    assert [] == [s for s, text in sources.items() if "not allowed" in text]
    assert balance.left_usd is not None


@pytest.mark.costs("lab")
def test_an_instance_tells_its_costs_as_the_laptop_does(account, lab, record_property):
    """A rebuilt ledger rests on it: the metadata's launch time must be EC2's, and the kernel begins when AWS begins to bill."""
    instance = lab.reached()
    if not account.context.profile.keep_bucket:
        pytest.skip("the account has no bucket; `gpulab init` makes it where it may")
    account.run(instance, "gpulab-agent save")

    told = {one.kind: one for one in told_by(account.context, [instance.id])}

    launched, started = told[FactKind.LAUNCHED], told.get(FactKind.STARTED)
    seconds = (started.at - launched.at).total_seconds() if started else None
    record_property("seen", f"launched {launched.at:%H:%M:%S}, kernel {seconds} s later")
    assert instance.launched_at.replace(microsecond=0) == launched.at
    assert instance.place.zone == launched.details["zone"]
    assert {FactKind.VOLUME, FactKind.ADDRESS} <= told.keys()
    assert seconds is None or 0 <= seconds <= _BOOTS_WITHIN_S


def test_the_spot_price_rule_against_the_data_feed(account, record_property):
    """Each instance-hour costs the price in force when it began: the ledger's rule, against AWS's own account of it."""
    number = account.cloud.client("sts", account.region).get_caller_identity()["Account"]
    bucket = ensure_bucket(account.cloud, number, account.region).name
    try:
        account.ec2.describe_spot_datafeed_subscription()
    except account.ec2.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "InvalidSpotDatafeed.NotFound":
            raise
        account.ec2.create_spot_datafeed_subscription(Bucket=bucket, Prefix=_FEED.rstrip("/"))
    lives = {life.id: life for life in _ledger(account).timeline.instances if life.runs}
    lines = [line for line in _feed_lines(account, bucket) if line.instance in lives]
    if not lines:
        pytest.skip(
            "subscribed; the feed comes an hour or two later: run this again then, it ends the subscription"
        )

    rule = {line: _by_our_rule(account, line, lives[line.instance]) for line in lines}
    wrong = [f"{line}: ours {usd}" for line, usd in rule.items() if line.charged_usd != usd]

    record_property("seen", f"{len(lines)} hours, {len(wrong)} differ: {wrong[:2]}")
    account.ec2.delete_spot_datafeed_subscription()
    assert [] == wrong


def test_a_spent_budget_forbids_launches(account, record_property):
    """AWS counts cost a day late, so it is armed one day (`gpulab guard arm --budget 1`) and looked at on another."""
    found = {check.name: check for check in guards.checks(account.context)}
    armed = [name for name, check in found.items() if check.is_armed]
    if "no launches" not in armed:
        pytest.skip("not armed: `gpulab guard arm --budget 1 --email ...`, and again a day later")

    code = ""
    try:
        account.ec2.run_instances(
            DryRun=True,
            ImageId="ami-00000000000000000",
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=1,
        )
    except account.ec2.exceptions.ClientError as error:
        code = error.response["Error"]["Code"]

    record_property("seen", f"{found['no launches'].text}; a launch answers {code}")
    assert "UnauthorizedOperation" == code
    assert isinstance(from_code(code, "", "launch"), GpulabError)


def _on_demand_usd(product: dict[str, Any]) -> Decimal:
    (term,) = product["terms"]["OnDemand"].values()
    (dimension,) = term["priceDimensions"].values()
    return Decimal(dimension["pricePerUnit"]["USD"]).normalize()


def _feed_lines(account: Account, bucket: str) -> list[feed.Line]:
    s3, found = account.cloud.client("s3", account.region), []
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=_FEED).get("Contents", [])
    for key in sorted(entry["Key"] for entry in listed):
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        found += feed.lines_of(gzip.decompress(body).decode())
    return found


def _ledger(account: Account) -> LedgerReading:
    return timeline_of(account.context.ledger.facts())


def _by_our_rule(account: Account, line: feed.Line, life: InstanceLife) -> Decimal | None:
    """Ask AWS for the price of the instance's own zone when the hour began, and charge by it."""
    run = next(run for run in reversed(life.runs) if run.begins_at <= line.at)
    begin = feed.hour_of(line, run)
    points = account.ec2.describe_spot_price_history(
        InstanceTypes=[life.instance_type],
        ProductDescriptions=["Linux/UNIX"],
        AvailabilityZone=life.zone,
        StartTime=begin,
        EndTime=begin,
    )["SpotPriceHistory"]
    series = sorted((p["Timestamp"], Decimal(p["SpotPrice"])) for p in points)
    prices = PriceSeries(tuple(at for at, _ in series), tuple(usd for _, usd in series))
    return feed.expected_usd(line, run, prices)
