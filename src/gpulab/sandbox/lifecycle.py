"""R14: the states of an instance over time, and what its machine is told at each of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from gpulab.sandbox import births, moto_bridge, spot_requests
from gpulab.sandbox.machines import CannotBoot

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World

_BY_USER = ("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown")
_FROM_INSIDE = (
    "Client.InstanceInitiatedShutdown",
    "Client.InstanceInitiatedShutdown: Instance initiated shutdown",
)
_SPOT_TERMINATED = (
    "Server.SpotInstanceTermination",
    "Server.SpotInstanceTermination: Spot instance termination",
)
_SPOT_STOPPED = (
    "Server.SpotInstanceShutdown",
    "Server.SpotInstanceShutdown: Spot instance shutdown",
)

#: EC2 cuts the power of an instance that does not go off by itself.
_PATIENCE_SECONDS = 120


def begin(world: World, instance: SimInstance) -> None:
    """A launch has been accepted: `pending` now, `running` when the boot delay is over."""
    _show(instance, "pending")
    try:
        births.boot(world, instance)
    except CannotBoot as error:
        reason = ("Server.InternalError", f"Server.InternalError: {error}")
        _after(world, instance, 0, lambda: terminate(world, instance, by="aws", reason=reason))
        return
    _plan(world, instance, world.rules.delays.boot.total_seconds(), "launch")


def start(world: World, instance: SimInstance) -> None:
    """A stopped instance starts: a new run, a new launch time."""
    instance.launched_at = instance.moto.launch_time = world.now()
    instance.state_reason, instance.transition_reason = ("", ""), ""
    instance.stopped_at = None
    moto_bridge.carry_out(instance.moto, "start")
    births.reboot(instance)
    spot_requests.restarted(world, instance)
    _show(instance, "pending")
    _plan(world, instance, world.rules.delays.boot.total_seconds(), "start")


def stop(world: World, instance: SimInstance, *, by: str) -> None:
    """Begin to stop; `by` is `user`, `inside` or `aws` (an interruption)."""
    _leave(world, instance, "stopping", by, _SPOT_STOPPED)
    delay = world.rules.delays.stop.total_seconds()
    _end_machine(world, instance, delay, by)


def terminate(
    world: World, instance: SimInstance, *, by: str, reason: tuple[str, str] | None = None
) -> None:
    """Begin to terminate; `by` is `user`, `inside` or `aws` (an interruption)."""
    was_off = instance.state == "stopped"
    _leave(world, instance, "shutting-down", by, reason or _SPOT_TERMINATED)
    delay = world.rules.delays.terminate.total_seconds()
    if was_off:
        _after(world, instance, delay, lambda: _off(world, instance))
    else:
        _end_machine(world, instance, delay, by)


def went_off(world: World, instance_id: str) -> None:
    """The machine is off: by our wish, or from inside, where the shutdown behaviour decides."""
    instance = world.instances_by_id.get(instance_id)
    if instance is None:
        return
    if instance.state in ("pending", "running"):
        ends = instance.shutdown_behavior == "terminate"
        _leave(world, instance, "shutting-down" if ends else "stopping", "inside", _FROM_INSIDE)
    _off(world, instance)


def reason_text(who: str, at: datetime) -> str:
    """EC2's StateTransitionReason, `User initiated (2026-11-16 09:00:00 GMT)`."""
    return f"{who} ({at.strftime('%Y-%m-%d %H:%M:%S')} GMT)"


def _leave(
    world: World, instance: SimInstance, state: str, by: str, aws_reason: tuple[str, str]
) -> None:
    now = world.now()
    instance.attempt += 1
    change = "stop" if state == "stopping" else "terminate"
    if instance.running_at is not None and instance.stopped_at is None:
        instance.note(now, f"{'aws' if by == 'aws' else 'user'}_{change}")
    instance.running_at = None
    instance.state_reason = {"user": _BY_USER, "inside": _FROM_INSIDE}.get(by, aws_reason)
    instance.transition_reason = {
        "user": reason_text("User initiated", now),
        "inside": "",
    }.get(by, reason_text("Service initiated", now))
    _show(instance, state)
    spot_requests.leaving(world, instance, change=change, by=by)


def _end_machine(world: World, instance: SimInstance, delay: float, by: str) -> None:
    if instance.machine is None:
        _after(world, instance, delay, lambda: _off(world, instance))
        return
    machine = instance.machine
    if by == "aws":
        # AWS promises nothing after the two minutes; whoever relies on a clean end would learn it too late.
        machine.cut()
        return
    _after(world, instance, _PATIENCE_SECONDS, machine.cut)
    machine.power_off()


def _off(world: World, instance: SimInstance) -> None:
    if instance.state == "stopping":
        instance.stopped_at = world.now()
        instance.attempt += 1
        moto_bridge.carry_out(instance.moto, "stop")
        _show(instance, "stopped")
        world.capacity.give_back(instance.instance_type, instance.zone)
        spot_requests.stopped(world, instance)
    elif instance.state == "shutting-down":
        _terminated(world, instance)


def _terminated(world: World, instance: SimInstance) -> None:
    now = world.now()
    instance.attempt += 1
    held = instance.stopped_at is None
    instance.terminated_at = now
    instance.counts_until = now + world.rules.delays.quota_release
    moto_bridge.carry_out(instance.moto, "terminate")
    _show(instance, "terminated")
    if held:
        world.capacity.give_back(instance.instance_type, instance.zone)
    if instance.machine is not None:
        instance.machine.discard()
    world.books.observe(instance.account, instance.region)
    spot_requests.ended(world, instance)
    if world.rules.forgetting:
        world.after(world.rules.delays.forget.total_seconds(), instance.forget)


def _running(world: World, instance: SimInstance, event: str) -> None:
    if instance.state != "pending":
        return
    if failure := world.boot_failures.take(instance):
        instance.counts_until = world.now()
        terminate(world, instance, by="aws", reason=failure)
        return
    instance.running_at = world.now()
    instance.note(world.now(), event)
    instance.state_reason = ("", "")
    _show(instance, "running")
    births.publish(world, instance)


def _plan(world: World, instance: SimInstance, seconds: float, event: str) -> None:
    instance.attempt += 1
    _after(world, instance, seconds, lambda: _running(world, instance, event))


def _after(world: World, instance: SimInstance, seconds: float, action: Callable[[], None]) -> None:
    attempt = instance.attempt

    def still_meant() -> None:
        if instance.attempt == attempt:
            action()

    world.after(seconds if world.rules.transitions else 0, still_meant)


def _show(instance: SimInstance, state: str) -> None:
    instance.state = state
    moto_bridge.set_state(instance.moto, state)
    code, message = instance.state_reason
    moto_bridge.set_reasons(instance.moto, instance.transition_reason, code, message)
