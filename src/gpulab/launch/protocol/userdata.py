"""What an instance is born with, from a plan and the place it is launched at."""

from __future__ import annotations

from gpulab.aws import workspace
from gpulab.bootstrap import InstanceSpec, Keep, load_environment, user_data
from gpulab.launch.account.storage import bucket_region, our_bucket, prefix
from gpulab.launch.context import Context
from gpulab.model.instance import LaunchPlan
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
    )
    return user_data(spec)


def keep_for(context: Context, name: str) -> Keep | None:
    """
    Say where an instance keeps its work, and put there what it needs for that.

    Returns:
        `None` when the profile has no bucket or no role: the work is then fetched over ssh.

    Raises:
        GpulabError: The bucket cannot be written.
    """
    bucket = context.profile.keep_bucket
    if not bucket or not context.profile.instance_role:
        return None
    region = bucket_region(bucket)
    endpoint = context.cloud.client("s3", region).meta.endpoint_url
    keep = Keep(bucket=bucket, prefix=prefix(context, name), region=region, endpoint=endpoint)
    # Each time anew: a note that it is there would outlive `gpulab rm`, a lifecycle rule, or the bucket itself.
    workspace.put(context.cloud, our_bucket(context), keep.agent_key, keep.agent_body)
    return keep
