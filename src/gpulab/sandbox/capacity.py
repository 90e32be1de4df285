"""R7: how many instances of a type a zone has left, and what EC2 says when it has none."""

from __future__ import annotations

from gpulab.sandbox import moto_bridge
from gpulab.sandbox.calls import Refusal


class Capacity:
    """Free slots per (type, zone); a place that was never set has enough."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, str], int] = {}

    def set_slots(self, instance_type: str, zone: str, slots: int | None) -> None:
        """Say how many more instances fit; `None` for as many as wanted."""
        if slots is None:
            self._free.pop((instance_type, zone), None)
        else:
            self._free[instance_type, zone] = slots

    def free(self, instance_type: str, zone: str) -> int | None:
        """How many more instances fit; `None` for as many as wanted."""
        return self._free.get((instance_type, zone))

    def has(self, instance_type: str, zone: str, count: int = 1) -> bool:
        """Whether so many more fit."""
        free = self.free(instance_type, zone)
        return free is None or free >= count

    def take(self, instance_type: str, zone: str, count: int = 1) -> None:
        """Use slots up."""
        if (free := self.free(instance_type, zone)) is not None:
            self._free[instance_type, zone] = free - count

    def give_back(self, instance_type: str, zone: str) -> None:
        """An instance has ended: its slot is free again."""
        if (free := self.free(instance_type, zone)) is not None:
            self._free[instance_type, zone] = free + 1

    def others(self, instance_type: str, zone: str, region: str) -> list[str]:
        """The other zones of the region that would do, sorted."""
        offered = moto_bridge.offered_in(instance_type, region)
        return sorted(name for name in offered - {zone} if self.has(instance_type, name))

    def table(self) -> dict[tuple[str, str], int]:
        """What was set, as it stands now."""
        return dict(self._free)


def no_capacity(instance_type: str, zone: str, others: list[str]) -> Refusal:
    """EC2's answer for a full zone, with the zones it would take instead (aws/aws-parallelcluster#2716)."""
    if not zone:
        return Refusal(
            "InsufficientInstanceCapacity",
            f"We currently do not have sufficient {instance_type} capacity in the region you requested. "
            "Our system will be working on provisioning additional capacity.",
        )
    choose = f" or choosing {', '.join(others)}" if others else ""
    return Refusal(
        "InsufficientInstanceCapacity",
        f"We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested ({zone}). "
        "Our system will be working on provisioning additional capacity. "
        f"You can currently get {instance_type} capacity by not specifying an Availability Zone in your request{choose}.",
    )


def not_offered(instance_type: str, zone: str, others: list[str]) -> Refusal:
    """EC2's answer for a zone that does not have the type at all."""
    choose = f" or choosing {', '.join(others)}" if others else ""
    return Refusal(
        "Unsupported",
        f"Your requested instance type ({instance_type}) is not supported in your requested Availability Zone ({zone}). "
        f"Please retry your request by not specifying an Availability Zone{choose}.",
    )
