"""
AWS's limits on running vCPUs: which code counts what, what is left, and the request that raises one.

Source:
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html (November 2026)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpulab.errors import GpulabError, QuotaTooLow
from gpulab.model.market import InstanceType, Market, Offer, Quota


@dataclass(frozen=True)
class QuotaCode:
    """One quota of the service `ec2`, by the family and market it counts."""

    code: str
    name: str


CODES: dict[tuple[str, Market], QuotaCode] = {
    ("G", Market.SPOT): QuotaCode("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("P", Market.SPOT): QuotaCode("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ("P5", Market.SPOT): QuotaCode("L-C4BD4855", "All P5 Spot Instance Requests"),
    ("standard", Market.SPOT): QuotaCode("L-34B43A08", "All Standard Spot Instance Requests"),
    ("G", Market.ON_DEMAND): QuotaCode("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("P", Market.ON_DEMAND): QuotaCode("L-417A185B", "Running On-Demand P instances"),
    ("P5", Market.ON_DEMAND): QuotaCode("L-417A185B", "Running On-Demand P instances"),
    ("standard", Market.ON_DEMAND): QuotaCode("L-1216C47A", "Running On-Demand Standard instances"),
}


# EC2's two refusals for want of vCPUs.
_VCPU_REFUSALS = frozenset({"MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"})


def family_of(instance_type: str) -> str:
    """Name the quota family of any instance type by its letters: `G`, `P`, `P5` or `standard`."""
    series = instance_type.partition(".")[0]
    if series.startswith(("p5", "p6")):
        return "P5"
    if series.startswith("p"):
        return "P"
    if series.startswith(("g", "vt")):
        return "G"
    return "standard"


def free_vcpus(quota: Quota) -> int | None:
    """Return what is left of a quota; `None` when the limit could not be read."""
    if quota.limit_vcpus is None:
        return None
    return max(0, quota.limit_vcpus - (quota.used_vcpus or 0))


def quota_for(offer: Offer, quotas: Iterable[Quota]) -> Quota | None:
    """Find the quota that counts an offer, if it was read."""
    code = CODES[(offer.type.quota_family, offer.place.market)].code
    return next((q for q in quotas if q.code == code and q.region == offer.place.region), None)


def has_room(offer: Offer, quotas: Iterable[Quota]) -> bool:
    """Whether the offer fits into its quota; a quota nobody could read is taken to have room."""
    quota = quota_for(offer, quotas)
    free = free_vcpus(quota) if quota else None
    return free is None or free >= offer.type.vcpus


def too_low(quota: Quota, kind: InstanceType) -> QuotaTooLow:
    """Describe a quota that leaves no room for a type, with the request that raises it."""
    message = (
        f"the {quota.market} quota in {quota.region} is {quota.limit_vcpus} vCPUs"
        f" ({quota.used_vcpus or 0} in use), and {kind.name} needs {kind.vcpus}"
    )
    return QuotaTooLow(message, hint=raise_hint(quota, needed_vcpus=kind.vcpus), code=quota.code)


def raise_hint(quota: Quota, *, needed_vcpus: int) -> str:
    """Say how to raise a quota: the console's form with its link, and the command."""
    wanted = max((quota.used_vcpus or 0) + needed_vcpus, 4)
    return (
        f'Ask AWS to raise "{quota.name}" ({quota.code}) to {wanted}, with your use case, at {console_link(quota)}'
        f" or with `{raise_command(quota, wanted)}`; it takes minutes to days"
    )


def raise_command(quota: Quota, wanted_vcpus: int) -> str:
    """Return the AWS CLI's request for a larger quota, ready to paste."""
    return (
        "aws service-quotas request-service-quota-increase --service-code ec2"
        f" --quota-code {quota.code} --desired-value {wanted_vcpus} --region {quota.region}"
    )


def with_request(
    error: GpulabError, offer: Offer, *, known: Quota | None = None, needed_vcpus: int = 0
) -> GpulabError:
    """
    Add the request that raises a quota to EC2's refusal, which does not even name the quota; any other error stays as it is.

    Args:
        known: The quota as it was read before; what else runs was not seen then, so the request goes beyond it.
        needed_vcpus: Of all launches it counts; at least those of the one that was refused.
    """
    if not isinstance(error, QuotaTooLow) or error.code not in _VCPU_REFUSALS:
        return error
    quota = known or unread(offer.type.quota_family, offer.place.market, offer.place.region)
    beyond = (quota.limit_vcpus or 0) - (quota.used_vcpus or 0) + offer.type.vcpus
    hint = raise_hint(quota, needed_vcpus=max(needed_vcpus, beyond))
    return QuotaTooLow(error.message, hint=hint, code=error.code, detail=error.detail)


def console_link(quota: Quota) -> str:
    """Return the page of the AWS console where a person asks for a larger quota."""
    return f"https://{quota.region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{quota.code}"


def unread(family: str, market: Market, region: str) -> Quota:
    """Name a quota whose figures are not known."""
    code = CODES[(family, market)]
    return Quota(code.code, code.name, region, family, market, limit_vcpus=None, used_vcpus=None)
