"""DescribeInstanceTypes in EC2's pages of 100; moto answers all 1,395 types in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import moto_bridge, paging
from gpulab.sandbox.calls import Answer, Call, Forward
from gpulab.sandbox.filters import Finder, matches
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World


def describe_instance_types(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeInstanceTypes; a caller who names types or filters moto alone understands gets moto's answer."""
    if call.params.get("InstanceTypes"):
        return forward(call)
    wanted = call.params.get("Filters", [])
    if any(entry["Name"] not in _FINDERS for entry in wanted):
        return forward(call)
    here = moto_bridge.types_in(call.region)
    found = [described for described in here if matches(described, wanted, _FINDERS)]
    page, token = paging.page(found, call.params, largest=100, default=100)
    return write_result(call, {"InstanceTypes": page, "NextToken": token})


_FINDERS: Mapping[str, Finder] = {
    "instance-type": "InstanceType",
    "current-generation": "CurrentGeneration",
    "bare-metal": "BareMetal",
    "free-tier-eligible": "FreeTierEligible",
    "hibernation-supported": "HibernationSupported",
    "hypervisor": "Hypervisor",
    "processor-info.supported-architecture": "ProcessorInfo.SupportedArchitectures",
    "supported-usage-class": "SupportedUsageClasses",
    "vcpu-info.default-vcpus": "VCpuInfo.DefaultVCpus",
    "memory-info.size-in-mib": "MemoryInfo.SizeInMiB",
}

OPERATIONS: Mapping[str, Any] = {"DescribeInstanceTypes": describe_instance_types}
