"""What an instance is born with, from a plan and the place it is launched at."""

from __future__ import annotations

from gpulab.aws import workspace
from gpulab.bootstrap import InstanceSpec, Keep, load_environment, user_data
from gpulab.launch.account.storage import (
    baking_prefix,
    bucket_region,
    has_bucket,
    our_bucket,
    prefix,
)
from gpulab.launch.context import Context
from gpulab.launch.money.facts import told_at_birth
from gpulab.model.instance import LaunchPlan, LaunchRequest
from gpulab.model.market import Offer


def render(
    context: Context, plan: LaunchPlan, offer: Offer, *, launch_id: str, keep: Keep | None
) -> bytes:
    """
    Render the user data of one attempt; the same bytes for the same arguments and clock.

    Args:
        keep: From `keep_for`; `None` when the work is fetched over ssh instead.

    Raises:
        WrongUsage: There is no such environment.
        InvalidRequest: It does not fit into EC2's 16 kB.
    """
    request = plan.request
    beside = plan.disk_usd_per_hour + plan.address_usd_per_hour
    spec = InstanceSpec(
        launch=launch_id,
        name=request.name,
        owner=context.owner,
        user=context.profile.login_user,
        made_at=context.now(),
        deadline=plan.ends_at,
        idle_minutes=request.idle_minutes,
        usd_per_hour=offer.usd_per_hour + beside,
        environment=load_environment(request.environment, context.profile.environment_folders),
        has_gpu=offer.type.gpus > 0,
        budget_usd=request.budget_usd,
        course=request.course,
        lab=request.lab,
        keep=keep,
        notebooks=request.notebooks,
        is_bake=request.is_bake,
        facts=told_at_birth(offer, plan),
    )
    return user_data(spec)


def keep_for(context: Context, request: LaunchRequest) -> Keep | None:
    """
    Say where an instance keeps its work, and put there what has no room in user data: the rest of the agent, and the locks.

    Returns:
        `None` when the profile has no bucket or no role: the work is then fetched over ssh, and the locks must fit.

    Raises:
        WrongUsage: There is no such environment.
        GpulabError: The bucket cannot be written.
    """
    if not has_bucket(context):
        return None
    bucket = context.profile.keep_bucket
    region = bucket_region(context.profile)
    endpoint = context.cloud.client("s3", region).meta.endpoint_url
    environment = load_environment(request.environment, context.profile.environment_folders)
    place = baking_prefix(context, environment.name) if request.is_bake else None
    keep = Keep(
        bucket,
        place or prefix(context, request.name),
        region,
        endpoint,
        environment.locks,
        check=environment.check(),
    )
    # Each time anew: a note that it is there would outlive `gpulab rm`, a lifecycle rule, or the bucket itself.
    workspace.put(context.cloud, our_bucket(context), keep.agent_key, keep.agent_body)
    return keep
