"""
What became of a launch whose answer nobody has, and how long AWS may take to show what it has made. Pure: the same for one launch and for a class.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from gpulab.aws.errors import from_code
from gpulab.errors import AwsError, GpulabError
from gpulab.model.instance import Instance
from gpulab.model.market import Market, Place
from gpulab.model.timeline import EndedBy
from gpulab.store.journal import Intent, Made

LAUNCHED = "launched"
NEVER = "never-took-effect"
# EC2 needs some seconds until an instance runs; asking earlier than it can be is a call for nothing.
FIRST_LOOK_S = 9.0
# By its id a new instance is known everywhere within so long.
SHOWN = timedelta(seconds=30)
# For so long after a launch, a listing may miss the instance.
UNLISTED = timedelta(minutes=2)
# Longer than any start takes: something is wrong, and whoever waits is told.
STILL_PENDING = timedelta(minutes=8)
# After so long EC2 shows everywhere what it has made: nothing shown means nothing made.
SETTLED = timedelta(minutes=10)
_BY_SOMEBODY = "Client.UserInitiatedShutdown"


def made_by(intent: Intent, found: Iterable[Instance]) -> Instance | None:
    """
    Return the instance that an intent made, ended or not.

    Other attempts of the same launch were at other places (spot and on demand are two), or took a new token for the same one: what came of
    those, and may have ended, must not stand for this one while EC2 does not show it yet.
    """
    zone = intent.parameters["Placement"]["AvailabilityZone"]
    place = Place(intent.region, zone, intent.parameters["InstanceType"], market_of(intent))
    ours = (i for i in found if (i.launch_id, i.place) == (intent.launch_id, place))
    return next((i for i in ours if i.token in ("", intent.token)), None)


def market_of(intent: Intent) -> Market:
    """Return the market at which an intent asks."""
    return Market.SPOT if intent.parameters.get("InstanceMarketOptions") else Market.ON_DEMAND


def is_open(intent: Intent, made: Instance | None, *, now: datetime) -> bool:
    """Whether nobody can tell yet: EC2 shows nothing, and may still show it later."""
    return made is None and now - intent.at < SETTLED


def result_of(made: Instance | None) -> tuple[str, str]:
    """Return what the journal is told of an intent that is not open, and the instance's id."""
    return (LAUNCHED, made.id) if made else (NEVER, "")


def is_unlisted(made: Made, *, now: datetime) -> bool:
    """Whether a listing may miss what was made."""
    return now - made.at < UNLISTED


def still_pending(instance: Instance) -> AwsError:
    """Say that an instance takes longer than any start does."""
    return AwsError(
        f"{instance.id} is still pending after {STILL_PENDING // timedelta(minutes=1)} min",
        hint="`gpulab ls` shows it; `gpulab stop` ends it",
    )


def ended_by(instance: Instance) -> EndedBy:
    """Say who ended an instance that was just launched: AWS, unless somebody asked it to."""
    return EndedBy.USER if instance.state_reason == _BY_SOMEBODY else EndedBy.AWS


def ended_early(instance: Instance) -> GpulabError:
    """Say why an instance that was just launched has ended, in the class that says what to do next."""
    place = instance.place
    code = instance.state_reason or "Server.InternalError"
    if code == _BY_SOMEBODY:
        return AwsError(
            f"{instance.id} was ended while it was starting ({code})",
            hint="Another command ended it, or somebody in the AWS console; the same command again starts another",
        )
    return from_code(code, "", f"launch {place.instance_type} in {place.zone}")
