"""R10: EC2's token buckets per account, Region and API, after "Request throttling for the Amazon EC2 API"."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gpulab.sandbox.calls import Call, Refusal


@dataclass(frozen=True)
class Bucket:
    """How many calls fit at once, and how many come back per second."""

    size: float
    per_second: float


_UNFILTERED = frozenset(
    {
        "DescribeInstances",
        "DescribeInstanceStatus",
        "DescribeVolumes",
        "DescribeSnapshots",
        "DescribeSecurityGroups",
        "DescribeNetworkInterfaces",
        "DescribeSpotInstanceRequests",
    }
)
_LAUNCHING = Bucket(5, 2)
_ENDING = Bucket(100, 5)
_TAGGING = Bucket(100, 10)
_OTHER_CHANGES = Bucket(50, 5)
_BY_OPERATION = {
    "RunInstances": _LAUNCHING,
    "StartInstances": _LAUNCHING,
    "TerminateInstances": _ENDING,
    "CreateVolume": _ENDING,
    "DeleteVolume": _ENDING,
    "CreateSnapshot": _ENDING,
    "DeleteSnapshot": _ENDING,
    "ModifyInstanceMetadataOptions": _ENDING,
    "CreateTags": _TAGGING,
    "DeleteTags": _TAGGING,
    "CreateSpotDatafeedSubscription": Bucket(50, 3),
}
#: Counted in instances, not in calls.
_RESOURCES = {
    "RunInstances": Bucket(1000, 2),
    "StartInstances": Bucket(1000, 2),
    "TerminateInstances": Bucket(1000, 20),
    "StopInstances": Bucket(1000, 20),
}


class Throttle:
    """The level of every bucket. A bucket can be given another size for a rehearsal."""

    def __init__(self) -> None:
        self._levels: dict[tuple[str, str, str], tuple[float, datetime]] = {}
        self._overrides: dict[str, Bucket] = {}

    def set_bucket(self, operation: str, size: float, per_second: float) -> None:
        """Give one operation another bucket."""
        self._overrides[operation] = Bucket(size, per_second)

    def reset(self) -> None:
        """Give every operation AWS's own bucket again."""
        self._overrides.clear()

    def admit(self, call: Call, now: datetime) -> None:
        """
        Take the call's tokens.

        Raises:
            Refusal: `RequestLimitExceeded`; nothing was taken from the bucket of instances.
        """
        if call.service != "ec2" or not call.operation:
            return
        self._take(call, call.operation, self.bucket_of(call), 1, now)
        if call.operation in _RESOURCES:
            resources = f"{call.operation} instances"
            self._take(call, resources, _RESOURCES[call.operation], _instances_in(call), now)

    def bucket_of(self, call: Call) -> Bucket:
        """The bucket a call is counted in."""
        if call.operation in self._overrides:
            return self._overrides[call.operation]
        if call.operation.startswith(("Describe", "Get", "List")):
            asked = {"Filters", "MaxResults", "NextToken"} & set(call.params)
            return (
                Bucket(50, 10) if call.operation in _UNFILTERED and not asked else Bucket(100, 20)
            )
        return _BY_OPERATION.get(call.operation, _OTHER_CHANGES)

    def _take(self, call: Call, name: str, bucket: Bucket, tokens: int, now: datetime) -> None:
        # A filtered and an unfiltered describe draw on buckets of their own.
        key = (call.account, call.region, f"{name} {bucket.size}")
        level, since = self._levels.get(key, (bucket.size, now))
        gained = max(0.0, (now - since).total_seconds()) * bucket.per_second
        level = min(bucket.size, level + gained)
        if level < tokens:
            self._levels[key] = (level, now)
            raise Refusal("RequestLimitExceeded", "Request limit exceeded.")
        self._levels[key] = (level - tokens, now)


def _instances_in(call: Call) -> int:
    if call.operation == "RunInstances":
        return int(call.params.get("MaxCount", 1))
    return max(1, len(call.params.get("InstanceIds", [])))
