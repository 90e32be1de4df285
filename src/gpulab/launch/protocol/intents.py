"""What one launch call says, built beforehand as an intent for the journal: the same bytes can then be sent again, with the same token."""

from __future__ import annotations

from datetime import UTC

from gpulab.aws import instances
from gpulab.bootstrap import Keep
from gpulab.errors import NotOffered
from gpulab.launch.account.setup import Setup
from gpulab.launch.context import Context
from gpulab.launch.protocol.tries import Attempt
from gpulab.launch.protocol.userdata import render
from gpulab.model import instance as tags_of
from gpulab.model.instance import LaunchPlan
from gpulab.model.setup import ImageChoice
from gpulab.planning.plan import spot_cap
from gpulab.store.journal import Intent


def intent_of(
    context: Context,
    plan: LaunchPlan,
    attempt: Attempt,
    *,
    found: Setup,
    boot: ImageChoice,
    keep: Keep | None,
) -> Intent:
    """
    Build everything that one launch call says.

    Args:
        boot: What it boots from.
        keep: Where the work is kept; `None` when it is fetched over ssh.

    Raises:
        NotOffered: The zone has no subnet.
        WrongUsage: There is no such environment.
        InvalidRequest: The user data does not fit into EC2's 16 kB.
    """
    zone = attempt.offer.place.zone
    subnet = found.network.subnet(zone)
    if subnet is None:
        raise NotOffered(f"there is no subnet in {zone}", code="NoSubnet")
    call = instances.LaunchCall(
        place=attempt.offer.place,
        image=boot.baked or found.image,
        subnet=subnet,
        security_group_id=found.network.security_group_id,
        key_name=found.network.key_name,
        token=attempt.token,
        tags=_tags(context, plan, attempt.launch_id),
        user_data=render(context, plan, attempt.offer, launch_id=attempt.launch_id, keep=keep),
        disk_gib=plan.disk_gib,
        initialization_mib_s=boot.rate_mib_s,
        spot_cap=spot_cap(attempt.offer, plan.request),
        instance_role=context.profile.instance_role if keep else "",
    )
    return Intent(
        launch_id=attempt.launch_id,
        attempt=attempt.number,
        token=attempt.token,
        name=plan.request.name,
        region=attempt.offer.place.region,
        parameters=instances.launch_parameters(call),
        user_data=call.user_data,
        at=context.now(),
        keep_prefix=keep.prefix if keep else "",
    )


def _tags(context: Context, plan: LaunchPlan, launch_id: str) -> dict[str, str]:
    request = plan.request
    tags = {
        tags_of.TAG_NAME: request.name,
        tags_of.TAG_OWNER: context.owner,
        tags_of.TAG_COURSE: request.course,
        tags_of.TAG_LAB: request.lab,
        tags_of.TAG_LAUNCH: launch_id,
        tags_of.TAG_EXPIRES: plan.ends_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tags_of.TAG_ENVIRONMENT: request.environment,
    }
    return {key: value for key, value in tags.items() if value}
