"""EventBridge Scheduler: schedules fire on the world's clock, with the rights of their role."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gpulab.sandbox import moto_services
from gpulab.sandbox.calls import Answer, Call, ConnectionLost, Forward, Refusal, from_inside
from gpulab.sandbox.iam_policies import Decision, decide
from gpulab.sandbox.iam_requests import asked_by
from gpulab.sandbox.witnesses import EVERYWHERE

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

_AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
_TARGET = re.compile(r"arn:aws:scheduler:::aws-sdk:([a-z0-9-]+):([A-Za-z]+)")

# How a target is called that does not answer, where its schedule says nothing else; the pause is a guess, AWS's grows.
# https://docs.aws.amazon.com/scheduler/latest/APIReference/API_RetryPolicy.html
_TRIES = 186
_TRIES_FOR = timedelta(hours=24)
_PAUSE_S = 60.0


def create_schedule(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CreateSchedule, and plan what it is to do."""
    _check_role(world, call)
    moment = fires_at(call.params)
    answer = forward(call)
    if answer.ok and moment is not None:
        _plan(world, call, moment)
    return answer


def update_schedule(world: World, call: Call, forward: Forward) -> Answer:
    """Answer UpdateSchedule; the earlier plan finds nothing to do."""
    return create_schedule(world, call, forward)


def fires_at(schedule: Mapping[str, Any]) -> datetime | None:
    """When a one-time schedule fires; `None` for one that repeats."""
    expression = str(schedule.get("ScheduleExpression", ""))
    found = _AT.fullmatch(expression)
    if found is None:
        if re.fullmatch(r"(rate|cron)\(.+\)", expression):
            return None
        raise Refusal("ValidationException", f"Invalid Schedule Expression {expression}.")
    zone = ZoneInfo(schedule.get("ScheduleExpressionTimezone") or "UTC")
    return datetime.fromisoformat(found[1]).replace(tzinfo=zone).astimezone(UTC)


def _plan(world: World, call: Call, moment: datetime) -> None:
    name, group = str(call.params["Name"]), str(call.params.get("GroupName") or "default")
    expression = str(call.params["ScheduleExpression"])
    account, region = call.account, call.region

    def fire() -> None:
        for schedule in moto_services.schedules(account, region):
            if (schedule.name, schedule.group_name or "default") != (name, group):
                continue
            if schedule.schedule_expression == expression and schedule.state != "DISABLED":
                # First, because the call lets everything happen that is due: a plan of the same schedule for the same moment too.
                if schedule.action_after_completion == "DELETE":
                    moto_services.delete_schedule(account, region, group, name)
                _invoke(world, account, region, schedule.target)

    world.at(moment, fire)


def _invoke(world: World, account: str, region: str, target: Mapping[str, Any]) -> None:
    found = _TARGET.fullmatch(str(target.get("Arn", "")))
    if found is None:
        return
    service, operation = found[1], found[2][0].upper() + found[2][1:]
    role = str(target.get("RoleArn", ""))
    policies = moto_services.role_policies(account, role)
    params = json.loads(target.get("Input") or "{}")
    call = from_inside(account, region, service, operation, params)
    asked = asked_by(world, call, caller=role, tags={})
    if policies is None or any(decide(policies, one) is not Decision.ALLOWED for one in asked):
        # AWS tells nobody either, unless the schedule has a dead-letter queue.
        world.note_refused(account, region, service, operation, params, "AccessDenied")
        return
    for witness in EVERYWHERE:
        witness(call, asked)
    _deliver(world, call, until=world.now() + _TRIES_FOR, tries=_TRIES)


def _deliver(world: World, call: Call, *, until: datetime, tries: int) -> None:
    """Call a target, again and again while AWS itself does not answer."""
    try:
        status = world.act(
            call.account, call.region, call.service, call.operation, call.params
        ).status
    except ConnectionLost:
        status = 500
    if status >= 500 and tries > 1 and world.now() < until:
        world.after(_PAUSE_S, lambda: _deliver(world, call, until=until, tries=tries - 1))


def _check_role(world: World, call: Call) -> None:
    """
    Refuse a role that the scheduler cannot assume; for some seconds it cannot assume a new one either.

    Source:
        https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html (changes are not always immediately visible)
    """
    role = str(call.params.get("Target", {}).get("RoleArn", ""))
    trust = moto_services.trust_policy(call.account, role)
    is_seen = world.consistency.shows(role)
    if trust is None or not is_seen or "scheduler.amazonaws.com" not in trust:
        raise Refusal(
            "ValidationException",
            "The execution role you provide must allow AWS EventBridge Scheduler to assume the role.",
        )


OPERATIONS: Mapping[str, Any] = {
    "CreateSchedule": create_schedule,
    "UpdateSchedule": update_schedule,
}
