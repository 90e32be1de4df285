"""R8: limits on running vCPUs, and the Service Quotas API over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import catalogue, paging
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World


@dataclass(frozen=True)
class Quota:
    """One EC2 quota: its code and name, what AWS gives a new account, and what a ready account has."""

    code: str
    name: str
    default: int
    ready: int


QUOTAS = {
    q.code: q
    for q in (
        Quota("L-3819A6DF", "All G and VT Spot Instance Requests", 0, 64),
        Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", 0, 0),
        Quota("L-C4BD4855", "All P5 Spot Instance Requests", 0, 0),
        Quota(
            "L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 5, 64
        ),
        Quota("L-DB2E81BA", "Running On-Demand G and VT instances", 0, 64),
        Quota("L-417A185B", "Running On-Demand P instances", 0, 0),
        Quota(
            "L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 5, 64
        ),
        Quota("L-0263D0A3", "EC2-VPC Elastic IPs", 5, 5),
    )
}


@dataclass
class Increase:
    """A request for a larger quota; `status` is PENDING, CASE_OPENED, APPROVED, DENIED or CASE_CLOSED."""

    id: str
    account: str
    region: str
    code: str
    desired: float
    status: str
    created_at: datetime
    updated_at: datetime


class Quotas:
    """The limits of every account and Region, and the requests to raise them."""

    def __init__(self, *, ready: bool) -> None:
        self._ready = ready
        self._set: dict[tuple[str, str, str], int] = {}
        self.increases: list[Increase] = []

    def limit(self, code: str, account: str, region: str) -> int:
        """The limit in force, vCPUs (or addresses)."""
        quota = QUOTAS[code]
        standard = quota.ready if self._ready else quota.default
        everywhere = self._set.get(
            (code, "*", region), self._set.get((code, account, "*"), standard)
        )
        return self._set.get((code, account, region), everywhere)

    def set_limit(self, code: str, region: str, vcpus: int, account: str = "*") -> None:
        """Set a limit; `*` for all accounts or all Regions."""
        self._set[code, account, region] = vcpus


def code_of(instance_type: str, market: str) -> str:
    """The quota an instance counts against."""
    found = catalogue.facts(instance_type)
    if found is None:
        return "L-1216C47A"
    return found.quota_spot if market == "spot" else found.quota_on_demand


def used(world: World, code: str, account: str, region: str) -> int:
    """VCPUs that count against a quota now; an ended instance counts a while longer."""
    now = world.now()
    total = 0
    for instance in list(world.instances_by_id.values()):
        if (instance.account, instance.region) != (account, region) or instance.state == "stopped":
            continue
        if instance.counts_until is not None and now >= instance.counts_until:
            continue
        if code_of(instance.instance_type, instance.market) == code:
            found = catalogue.facts(instance.instance_type)
            total += found.vcpus if found else 0
    return total


def left(world: World, account: str, region: str, instance_type: str, market: str) -> int | None:
    """How many more instances of a type the quota allows; `None` without quotas."""
    found = catalogue.facts(instance_type)
    if not world.rules.quotas or found is None:
        return None
    code = code_of(instance_type, market)
    free = world.quotas.limit(code, account, region) - used(world, code, account, region)
    return max(0, free // found.vcpus)


def check(
    world: World, account: str, region: str, instance_type: str, market: str, count: int
) -> None:
    """
    Refuse a launch over the limit.

    Raises:
        Refusal: `MaxSpotInstanceCountExceeded` or `VcpuLimitExceeded`.
    """
    free = left(world, account, region, instance_type, market)
    if free is None or free >= count:
        return
    if market == "spot":
        raise Refusal("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    limit = world.quotas.limit(code_of(instance_type, market), account, region)
    raise Refusal(
        "VcpuLimitExceeded",
        f"You have requested more vCPU capacity than your current vCPU limit of {limit} allows for the instance bucket that the "
        "specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.",
    )


def get_service_quota(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetServiceQuota."""
    quota = _known(call)
    return write_result(
        call,
        {
            "Quota": _describe(
                quota, call, world.quotas.limit(quota.code, call.account, call.region)
            )
        },
    )


def get_aws_default_service_quota(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetAWSDefaultServiceQuota."""
    quota = _known(call)
    return write_result(call, {"Quota": _describe(quota, call, quota.default)})


def list_service_quotas(world: World, call: Call, forward: Forward) -> Answer:
    """Answer ListServiceQuotas."""
    return _list(call, lambda q: world.quotas.limit(q.code, call.account, call.region))


def list_aws_default_service_quotas(world: World, call: Call, forward: Forward) -> Answer:
    """Answer ListAWSDefaultServiceQuotas."""
    return _list(call, lambda q: q.default)


def request_service_quota_increase(world: World, call: Call, forward: Forward) -> Answer:
    """Answer RequestServiceQuotaIncrease: PENDING, until the world's owner decides."""
    quota = _known(call)
    desired = float(call.params.get("DesiredValue", 0))
    if desired <= world.quotas.limit(quota.code, call.account, call.region):
        raise Refusal(
            "IllegalArgumentException",
            f"You must provide a quota value greater than or equal to the current quota value for quota code: {quota.code}",
        )
    still_open = [
        i
        for i in _own(world, call)
        if i.code == quota.code and i.status in ("PENDING", "CASE_OPENED")
    ]
    if still_open:
        raise Refusal(
            "ResourceAlreadyExistsException",
            f"Only one open service quota increase request is allowed per quota: {quota.code}",
        )
    now = world.now()
    increase = Increase(
        world.new_id("", 32), call.account, call.region, quota.code, desired, "PENDING", now, now
    )
    world.quotas.increases.append(increase)
    return write_result(call, {"RequestedQuota": _describe_increase(increase)})


def get_requested_service_quota_change(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetRequestedServiceQuotaChange."""
    for increase in _own(world, call):
        if increase.id == call.params.get("RequestId"):
            return write_result(call, {"RequestedQuota": _describe_increase(increase)})
    raise Refusal(
        "NoSuchResourceException",
        "The request failed because the specified resource does not exist.",
    )


def list_requested_service_quota_change_history(
    world: World, call: Call, forward: Forward
) -> Answer:
    """Answer both histories of requests, newest first."""
    code, status = call.params.get("QuotaCode"), call.params.get("Status")
    rows = [
        _describe_increase(increase)
        for increase in reversed(_own(world, call))
        if code in (None, increase.code) and status in (None, increase.status)
    ]
    page, token = paging.page(rows, call.params, largest=100, default=100)
    return write_result(call, {"RequestedQuotas": page, "NextToken": token})


def decide(world: World, code: str, status: str, *, account: str | None = None) -> None:
    """Decide the open requests of a quota; APPROVED raises the limit."""
    for increase in world.quotas.increases:
        is_open = increase.status in ("PENDING", "CASE_OPENED")
        if increase.code == code and is_open and account in (None, increase.account):
            increase.status, increase.updated_at = status, world.now()
            if status == "APPROVED":
                world.quotas.set_limit(
                    code, increase.region, int(increase.desired), increase.account
                )


def _known(call: Call) -> Quota:
    quota = QUOTAS.get(str(call.params.get("QuotaCode")))
    service = call.params.get("ServiceCode")
    if quota is None or service not in ("ec2", "vpc"):
        raise Refusal(
            "NoSuchResourceException",
            "The request failed because the specified resource does not exist.",
        )
    return quota


def _own(world: World, call: Call) -> list[Increase]:
    here = (call.account, call.region)
    return [i for i in world.quotas.increases if (i.account, i.region) == here]


def _list(call: Call, value: Any) -> Answer:
    if call.params.get("ServiceCode") != "ec2":
        raise Refusal(
            "NoSuchResourceException",
            "The request failed because the specified resource does not exist.",
        )
    rows = [_describe(quota, call, value(quota)) for quota in QUOTAS.values()]
    page, token = paging.page(rows, call.params, largest=100, default=100)
    return write_result(call, {"Quotas": page, "NextToken": token})


def _describe(quota: Quota, call: Call, value: int) -> dict[str, Any]:
    return {
        "ServiceCode": "ec2",
        "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaArn": f"arn:aws:servicequotas:{call.region}:{call.account}:ec2/{quota.code}",
        "QuotaCode": quota.code,
        "QuotaName": quota.name,
        "Value": float(value),
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }


def _describe_increase(increase: Increase) -> dict[str, Any]:
    return {
        "Id": increase.id,
        "ServiceCode": "ec2",
        "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaCode": increase.code,
        "QuotaName": QUOTAS[increase.code].name,
        "DesiredValue": increase.desired,
        "Status": increase.status,
        "Created": increase.created_at,
        "LastUpdated": increase.updated_at,
        "Requester": f'{{"accountId":"{increase.account}"}}',
        "QuotaArn": f"arn:aws:servicequotas:{increase.region}:{increase.account}:ec2/{increase.code}",
        "GlobalQuota": False,
        "Unit": "None",
    }


OPERATIONS: Mapping[str, Any] = {
    "GetServiceQuota": get_service_quota,
    "GetAWSDefaultServiceQuota": get_aws_default_service_quota,
    "ListServiceQuotas": list_service_quotas,
    "ListAWSDefaultServiceQuotas": list_aws_default_service_quotas,
    "RequestServiceQuotaIncrease": request_service_quota_increase,
    "GetRequestedServiceQuotaChange": get_requested_service_quota_change,
    "ListRequestedServiceQuotaChangeHistory": list_requested_service_quota_change_history,
    "ListRequestedServiceQuotaChangeHistoryByQuota": list_requested_service_quota_change_history,
}
