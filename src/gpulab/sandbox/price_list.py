"""R17: `pricing:GetProducts` for EC2, from the shipped table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import catalogue, moto_bridge, paging
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

#: The Price List API answers in these Regions only.
_REGIONS = ("us-east-1", "ap-south-1", "eu-central-1")

_LOCATIONS = {
    "us-east-1": "US East (N. Virginia)",
    "us-east-2": "US East (Ohio)",
    "us-west-1": "US West (N. California)",
    "us-west-2": "US West (Oregon)",
    "ca-central-1": "Canada (Central)",
    "eu-west-1": "EU (Ireland)",
    "eu-west-2": "EU (London)",
    "eu-west-3": "EU (Paris)",
    "eu-central-1": "EU (Frankfurt)",
    "eu-north-1": "EU (Stockholm)",
    "ap-south-1": "Asia Pacific (Mumbai)",
    "ap-southeast-1": "Asia Pacific (Singapore)",
    "ap-southeast-2": "Asia Pacific (Sydney)",
    "ap-northeast-1": "Asia Pacific (Tokyo)",
    "ap-northeast-2": "Asia Pacific (Seoul)",
    "sa-east-1": "South America (Sao Paulo)",
}


def get_products(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetProducts; each product is a JSON text, as on AWS."""
    if call.region not in _REGIONS:
        raise Refusal("AccessDeniedException", "The Price List API is not offered in this Region.")
    if call.params.get("ServiceCode") != "AmazonEC2":
        raise Refusal("NotFoundException", "The service code is not simulated.")
    wanted = {f["Field"].lower(): str(f["Value"]) for f in call.params.get("Filters", [])}
    found = [product for product in _products(world, wanted) if _matches(product, wanted)]
    page, token = paging.page(
        found, call.params, largest=100, default=100, error="InvalidParameterException"
    )
    texts = [json.dumps(product) for product in page]
    return write_result(call, {"FormatVersion": "aws_v1", "PriceList": texts, "NextToken": token})


def _products(world: World, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    regions = [wanted["regioncode"]] if "regioncode" in wanted else list(_LOCATIONS)
    names = [wanted["instancetype"]] if "instancetype" in wanted else list(catalogue.listed())
    for region in regions:
        for name in names:
            facts = catalogue.facts(name)
            if facts is not None and facts.is_listed and moto_bridge.offered_in(name, region):
                yield _product(world, facts, region)


def _product(world: World, facts: catalogue.TypeFacts, region: str) -> dict[str, Any]:
    sku = f"SIM{facts.name}{region}".replace("-", "").replace(".", "").upper()
    price = world.on_demand_price(facts.name, region)
    described = moto_bridge.instance_type(facts.name) or {}
    dimension = {
        "unit": "Hrs",
        "beginRange": "0",
        "endRange": "Inf",
        "description": f"${price} per On Demand Linux {facts.name} Instance Hour (simulated)",
        "rateCode": f"{sku}.JRTCKXETXF.6YS6EN2CT7",
        "appliesTo": [],
        "pricePerUnit": {"USD": f"{price:.10f}"},
    }
    term = {
        "sku": sku,
        "offerTermCode": "JRTCKXETXF",
        "effectiveDate": "2026-07-20T00:00:00Z",
        "priceDimensions": {dimension["rateCode"]: dimension},
        "termAttributes": {},
    }
    attributes = {
        "servicecode": "AmazonEC2",
        "servicename": "Amazon Elastic Compute Cloud",
        "instanceType": facts.name,
        "regionCode": region,
        "location": _LOCATIONS.get(region, region),
        "locationType": "AWS Region",
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
        "licenseModel": "No License required",
        "marketoption": "OnDemand",
        "operation": "RunInstances",
        "usagetype": f"BoxUsage:{facts.name}",
        "vcpu": str(facts.vcpus),
        "memory": f"{described['MemoryInfo']['SizeInMiB'] // 1024} GiB",
        "currentGeneration": "Yes",
    }
    return {
        "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": attributes},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": term}},
        "version": "20260720000000",
        "publicationDate": "2026-07-20T00:00:00Z",
    }


def _matches(product: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    has = {name.lower(): value for name, value in product["product"]["attributes"].items()}
    has["productfamily"] = product["product"]["productFamily"]
    return all(has.get(field, "").lower() == value.lower() for field, value in wanted.items())


OPERATIONS: Mapping[str, Any] = {"GetProducts": get_products}
