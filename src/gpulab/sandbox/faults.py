"""R21: faults on demand. Errors n times, latency, and connections that break before or after the call took effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpulab.sandbox.calls import Call, ConnectionLost, Refusal

#: A dry run checks permissions and syntax; it sees none of these.
_UNSEEN_BY_DRY_RUN = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientFreeAddressesInSubnet",
        "MaxSpotInstanceCountExceeded",
        "VcpuLimitExceeded",
        "InstanceLimitExceeded",
        "VolumeLimitExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",
        "PendingVerification",
        "InvalidParameterCombination",
    }
)

When = Literal["before", "after"]


@dataclass
class Fault:
    """
    Something that goes wrong with matching calls.

    Attributes:
        operation: API operation, or `*` for every one.
        kind: Refuse the call, or lose the connection.
        when: Before the call takes effect, or after it did.
        zone: Only calls placed in this availability zone.
        contains: Only calls with this text among their parameters.
        skip: So many matching calls pass first.
        times: So many matching calls fail; `None` is for ever.
        latency: Matching calls take this many seconds.
    """

    operation: str
    kind: Literal["refuse", "lose"]
    when: When = "before"
    code: str = ""
    message: str = ""
    status: int | None = None
    zone: str | None = None
    region: str | None = None
    account: str | None = None
    contains: str | None = None
    skip: int = 0
    times: int | None = None

    def matches(self, call: Call, zone: str) -> bool:
        """Whether the fault is meant for this call; does not use it up."""
        return (
            self.times != 0
            and self.operation in ("*", call.operation, f"{call.service}:{call.operation}")
            and self.region in (None, call.region)
            and self.account in (None, call.account)
            and self.zone in (None, zone)
            and (self.contains is None or self.contains in str(call.params))
            and not (is_dry_run(call.params) and self.code in _UNSEEN_BY_DRY_RUN)
        )

    def strike(self) -> bool:
        """Use it up once; false while it still lets calls pass."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def as_error(self, message: str = "") -> Exception:
        """What the fault turns the call into."""
        if self.kind == "lose":
            return ConnectionLost(took_effect=self.when == "after")
        return Refusal(self.code, self.message or message, status=self.status)


class Faults:
    """All faults in force, tried in the order they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._latency: dict[str, float] = {}

    def add(self, fault: Fault) -> Fault:
        """Put a fault in force."""
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Lift every fault and latency."""
        self._faults.clear()
        self._latency.clear()

    def set_latency(self, operation: str, seconds: float) -> None:
        """Make calls of an operation (`*` for all) take this long; 0 lifts it."""
        self._latency[operation] = seconds

    def latency_of(self, call: Call) -> float:
        """How long a call takes, seconds."""
        return self._latency.get(call.operation, self._latency.get("*", 0.0))

    def fills(self, call: Call, zone: str) -> bool:
        """Whether a zone is kept full by a fault, so that EC2 would not choose it by itself; uses nothing up."""
        return any(
            fault.kind == "refuse"
            and fault.zone == zone
            and fault.code == "InsufficientInstanceCapacity"
            and fault.matches(call, zone)
            for fault in self._faults
        )

    def due(self, call: Call, when: When, zone: str) -> Fault | None:
        """The fault that strikes this call now, used up once; `None` when it passes."""
        for fault in self._faults:
            if fault.when == when and fault.matches(call, zone) and fault.strike():
                return fault
        return None


def is_dry_run(params: Mapping[str, Any]) -> bool:
    """Whether the caller asked for a dry run."""
    return params.get("DryRun") is True
