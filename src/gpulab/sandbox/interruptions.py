"""R16: spot interruptions as EC2 makes them, and launches that end before they run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import births, lifecycle, moto_services

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World

_REBALANCE_LEAD = timedelta(seconds=120)

_WHY = {
    "Server.InsufficientInstanceCapacity": "There was insufficient capacity available to satisfy the launch request",
    "Server.InternalError": "An internal error caused the instance to terminate during launch",
    "Client.VolumeLimitExceeded": "The limit on the number of EBS volumes or total storage was exceeded",
    "Client.InternalError": "A client error caused the instance to terminate on launch",
}


@dataclass
class _Failure:
    code: str
    zone: str | None
    times: int


class BootFailures:
    """Launches that will end in `terminated` instead of `running`."""

    def __init__(self) -> None:
        self._planned: list[_Failure] = []

    def add(self, code: str, zone: str | None, times: int) -> None:
        """Plan failures for the next launches, or for those in one zone."""
        self._planned.append(_Failure(code, zone, times))

    def take(self, instance: SimInstance) -> tuple[str, str] | None:
        """The state reason with which this launch fails, used up once; `None` when it succeeds."""
        for failure in self._planned:
            if failure.times > 0 and failure.zone in (None, instance.zone):
                failure.times -= 1
                return (
                    failure.code,
                    f"{failure.code}: {_WHY.get(failure.code, 'The launch failed')}",
                )
        return None


def interrupt(
    world: World, instance_id: str, *, in_seconds: float, action: str, rebalance_first: bool
) -> None:
    """
    Announce the end of a spot instance, and bring it.

    Args:
        in_seconds: From the notice to the end; 120 on AWS.
        action: `terminate` or `stop`.
        rebalance_first: A rebalance recommendation two minutes before the notice.

    Raises:
        ValueError: There is no such running spot instance, or no such action.
    """
    instance = world.instances_by_id.get(instance_id)
    if (
        instance is None
        or instance.market != "spot"
        or instance.state not in ("pending", "running")
    ):
        raise ValueError(f"{instance_id} is not a running spot instance")
    if action not in ("terminate", "stop"):
        raise ValueError(f"an interruption can terminate or stop, not {action}")
    if not rebalance_first:
        _notice(world, instance, in_seconds, action)
        return
    instance.rebalance_at = world.now()
    births.publish(world, instance)
    _event(world, instance, "EC2 Instance Rebalance Recommendation", {"instance-id": instance.id})
    world.at(world.now() + _REBALANCE_LEAD, lambda: _notice(world, instance, in_seconds, action))


def _notice(world: World, instance: SimInstance, in_seconds: float, action: str) -> None:
    if instance.state not in ("pending", "running"):
        return
    ends_at = world.now() + timedelta(seconds=in_seconds)
    instance.notice = {"action": action, "time": _z(ends_at)}
    _mark(world, instance, "marked-for-termination" if action == "terminate" else "marked-for-stop")
    births.publish(world, instance)
    detail = {"instance-id": instance.id, "instance-action": action}
    _event(world, instance, "EC2 Spot Instance Interruption Warning", detail)
    world.at(ends_at, lambda: _end(world, instance, action))


def _end(world: World, instance: SimInstance, action: str) -> None:
    if instance.state not in ("pending", "running"):
        return
    if action == "terminate":
        lifecycle.terminate(world, instance, by="aws")
    else:
        lifecycle.stop(world, instance, by="aws")
    instance.notice = None


def _mark(world: World, instance: SimInstance, status: str) -> None:
    request = world.spot_requests.get(instance.spot_request_id)
    if request is not None and request.state == "active":
        request.become("active", status, world.now())


def _event(world: World, instance: SimInstance, detail_type: str, detail: dict[str, Any]) -> None:
    moto_services.put_event(
        instance.account,
        instance.region,
        detail_type,
        detail,
        [f"arn:aws:ec2:{instance.region}:{instance.account}:instance/{instance.id}"],
        world.now(),
    )


def _z(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
