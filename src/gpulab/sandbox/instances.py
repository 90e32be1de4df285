"""Instances as the layer keeps them, and RunInstances, StartInstances, StopInstances, TerminateInstances (R14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import launching, lifecycle, moto_bridge, quotas, validation
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.console import HostKey
from gpulab.sandbox.faults import is_dry_run
from gpulab.sandbox.machines import Machine
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World


@dataclass
class Event:
    """Something that begins or ends a run: `launch`, `start`, `user_stop`, `user_terminate`, `aws_stop`, `aws_terminate`."""

    at: datetime
    type: str


@dataclass
class SimInstance:
    """
    One instance from its birth until it is forgotten.

    Attributes:
        moto: moto's object, which keeps tags, volumes and interfaces.
        params: The launch parameters, template merged in.
        fixed_addresses: Private and public address that the machine kind gave; `None` where moto draws them.
        launched_at: Of the current run, EC2's LaunchTime.
        visible_at: From when describe and calls by id find it.
        counts_until: Until when an ended instance still counts against the quota; `None` while it lives.
        machine: What stands behind it; `None` without machines.
        attempt: Counts starts; a planned transition of an earlier one does nothing.
        last_tags: Those it had when EC2 forgot it.
    """

    id: str
    account: str
    region: str
    zone: str
    instance_type: str
    image_id: str
    market: str
    reservation_id: str
    launch_index: int
    moto: Any
    params: Mapping[str, Any]
    created_at: datetime
    launched_at: datetime
    visible_at: datetime
    host_key: HostKey
    state: str = "pending"
    state_reason: tuple[str, str] = ("pending", "pending")
    transition_reason: str = ""
    shutdown_behavior: str = "stop"
    profile: tuple[str, str, str] | None = None
    spot_request_id: str = ""
    running_at: datetime | None = None
    stopped_at: datetime | None = None
    terminated_at: datetime | None = None
    counts_until: datetime | None = None
    is_impaired: bool = False
    protects_from_termination: bool = False
    notice: Mapping[str, str] | None = None
    rebalance_at: datetime | None = None
    credentials: Mapping[str, str] | None = None
    machine: Machine | None = None
    fixed_addresses: tuple[str, str] | None = None
    attempt: int = 0
    events: list[Event] = field(default_factory=list)
    last_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend(self) -> Any:
        """Moto's EC2 that the instance lives in."""
        return moto_bridge.ec2(self.account, self.region)

    @property
    def tags(self) -> dict[str, str]:
        """The instance's tags now; the last ones of an instance that EC2 has forgotten."""
        return moto_bridge.tags_of(self.backend, self.id) or dict(self.last_tags)

    def forget(self) -> None:
        """Let moto forget the instance as EC2 does; its last tags stay for the bill."""
        self.last_tags = self.tags
        moto_bridge.forget(self.backend, self.reservation_id, self.id)

    @property
    def had_public_address(self) -> bool:
        """Whether it has an automatic public IPv4 address while it runs."""
        return any(nic.public_ip_auto_assign for nic in self.moto.nics.values())

    @property
    def is_gone(self) -> bool:
        """Whether it has ended or is about to."""
        return self.state in ("shutting-down", "terminated")

    def behave(self, behavior: str) -> None:
        """Set what a shutdown from inside does: `stop` or `terminate`."""
        self.shutdown_behavior = behavior
        self.moto.instance_initiated_shutdown_behavior = behavior

    def note(self, at: datetime, type_: str) -> None:
        """Add to the instance's history."""
        self.events.append(Event(at, type_))


def run_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer RunInstances."""
    return write_result(call, launching.launch(world, call, forward))


def start_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer StartInstances: only from `stopped`, and only where there is quota and capacity."""
    found = by_ids(world, call)
    _end_of_dry_run(call)
    for instance in found:
        if instance.state not in ("stopped", "pending", "running"):
            raise Refusal(
                "IncorrectInstanceState",
                f"The instance '{instance.id}' is not in a state from which it can be started.",
            )
    changes = []
    for instance in found:
        before = instance.state
        if before == "stopped":
            quotas.check(
                world, instance.account, instance.region, instance.instance_type, instance.market, 1
            )
            launching.take_capacity(
                world, instance.instance_type, instance.zone, instance.region, 1
            )
            lifecycle.start(world, instance)
        changes.append(_change(instance, before))
    return write_result(call, {"StartingInstances": changes})


def stop_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer StopInstances; R4: a one-time spot instance can only be terminated."""
    found = by_ids(world, call)
    _end_of_dry_run(call)
    for instance in found:
        _check_stoppable(world, instance, hibernate=bool(call.params.get("Hibernate")))
    changes = []
    for instance in found:
        before = instance.state
        if before in ("pending", "running"):
            lifecycle.stop(world, instance, by="user")
        changes.append(_change(instance, before))
    return write_result(call, {"StoppingInstances": changes})


def terminate_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer TerminateInstances; an instance that has ended already is no error."""
    found = by_ids(world, call)
    _end_of_dry_run(call)
    for instance in found:
        if instance.protects_from_termination and not instance.is_gone:
            raise Refusal(
                "OperationNotPermitted",
                f"The instance '{instance.id}' may not be terminated. "
                "Modify its 'disableApiTermination' instance attribute and try again.",
            )
    changes = []
    for instance in found:
        before = instance.state
        if not instance.is_gone:
            lifecycle.terminate(world, instance, by="user")
        changes.append(_change(instance, before))
    return write_result(call, {"TerminatingInstances": changes})


def reboot_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer RebootInstances: accepted for a running instance, which stays `running`."""
    for instance in by_ids(world, call):
        if instance.state != "running":
            raise Refusal(
                "IncorrectInstanceState", f"Instance '{instance.id}' is not in 'running' state."
            )
    _end_of_dry_run(call)
    return write_result(call, {})


def modify_instance_attribute(world: World, call: Call, forward: Forward) -> Answer:
    """Answer ModifyInstanceAttribute for what moto gets wrong: type, shutdown behaviour, termination protection."""
    instance = by_ids(world, call)[0]
    _end_of_dry_run(call)
    if wanted := call.params.get("InstanceType", {}).get("Value"):
        if instance.state != "stopped":
            raise Refusal(
                "IncorrectInstanceState",
                f"The instance '{instance.id}' is not in the 'stopped' state.",
            )
        validation.check_instance_type(wanted)
        instance.instance_type = instance.moto.instance_type = wanted
        return write_result(call, {})
    if behavior := call.params.get("InstanceInitiatedShutdownBehavior", {}).get("Value"):
        validation.check_shutdown_behavior(behavior, instance.market)
        instance.behave(behavior)
        return write_result(call, {})
    protect = call.params.get("DisableApiTermination", {}).get("Value")
    if protect is not None:
        instance.protects_from_termination = bool(protect)
    return forward(call)


def by_ids(world: World, call: Call) -> list[SimInstance]:
    """
    The instances a call names, in its order.

    Raises:
        Refusal: `InvalidInstanceID.Malformed`, or `InvalidInstanceID.NotFound` for an id that is unknown, not visible yet or forgotten.
    """
    ids = ids_in(call.params)
    if not ids:
        raise Refusal("MissingParameter", "The request must contain the parameter InstanceId")
    check_visible(world, call, ids)
    return [world.instances_by_id[id_] for id_ in ids]


def ids_in(params: Mapping[str, Any]) -> list[str]:
    """The instance ids a call names."""
    single = [params["InstanceId"]] if isinstance(params.get("InstanceId"), str) else []
    return single + list(params.get("InstanceIds", []))


def check_visible(world: World, call: Call, ids: list[str]) -> None:
    """Refuse ids that are malformed, or that this account cannot see now (R11, R13)."""
    for id_ in ids:
        if world.rules.validation and not re.fullmatch(r"i-([0-9a-f]{8}|[0-9a-f]{17})", id_):
            raise Refusal("InvalidInstanceID.Malformed", f'Invalid id: "{id_}"')
    missing = [id_ for id_ in ids if not is_visible(world, call, world.instances_by_id.get(id_))]
    if len(missing) == 1:
        raise Refusal(
            "InvalidInstanceID.NotFound", f"The instance ID '{missing[0]}' does not exist"
        )
    if missing:
        raise Refusal(
            "InvalidInstanceID.NotFound", f"The instance IDs '{', '.join(missing)}' do not exist"
        )


def is_visible(world: World, call: Call, instance: SimInstance | None) -> bool:
    """Whether a caller sees an instance: its own account's, here, old enough (R11) and not forgotten (R13)."""
    if instance is None or (instance.account, instance.region) != (call.account, call.region):
        return False
    now, delays = world.now(), world.rules.delays
    if world.rules.consistency and now < instance.visible_at:
        return False
    ended = instance.terminated_at
    return not (world.rules.forgetting and ended and now >= ended + delays.forget)


def _check_stoppable(world: World, instance: SimInstance, *, hibernate: bool) -> None:
    if hibernate and world.rules.validation:
        raise Refusal(
            "UnsupportedHibernationConfiguration",
            f"The instance '{instance.id}' is not enabled for hibernation.",
        )
    request = world.spot_requests.get(instance.spot_request_id)
    if world.rules.spot_stop and request and request.type == "one-time" and not instance.is_gone:
        raise Refusal(
            "UnsupportedOperation",
            f"You can't stop the Spot Instance '{instance.id}' because it is associated with a one-time Spot Instance request. "
            "You can only stop Spot Instances associated with persistent Spot Instance requests.",
        )
    if instance.is_gone:
        raise Refusal(
            "IncorrectInstanceState",
            f"This instance '{instance.id}' is not in a state from which it can be stopped.",
        )


def _end_of_dry_run(call: Call) -> None:
    if is_dry_run(call.params):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")


def _change(instance: SimInstance, before: str) -> dict[str, Any]:
    return {
        "InstanceId": instance.id,
        "PreviousState": {"Code": moto_bridge.state_code(before), "Name": before},
        "CurrentState": {"Code": moto_bridge.state_code(instance.state), "Name": instance.state},
    }


OPERATIONS: Mapping[str, Any] = {
    "RunInstances": run_instances,
    "StartInstances": start_instances,
    "StopInstances": stop_instances,
    "TerminateInstances": terminate_instances,
    "RebootInstances": reboot_instances,
    "ModifyInstanceAttribute": modify_instance_attribute,
}
