"""What an instance is born with, from a plan and the place it is launched at."""

from __future__ import annotations

from gpulab.bootstrap import InstanceSpec, Keep, load_environment, user_data
from gpulab.launch.context import Context
from gpulab.launch.keeping import bucket_region, prefix
from gpulab.model.instance import LaunchPlan
from gpulab.model.market import Offer


def render(context: Context, plan: LaunchPlan, offer: Offer, *, launch_id: str) -> bytes:
    """
    Render the user data of one attempt; the same bytes for the same arguments and clock.

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
        environment=load_environment(request.environment),
        has_gpu=offer.type.gpus > 0,
        budget_usd=request.budget_usd,
        course=request.course,
        lab=request.lab,
        keep=_keep(context, request.name),
    )
    return user_data(spec)


def _keep(context: Context, name: str) -> Keep | None:
    bucket = context.profile.keep_bucket
    if not bucket or not context.profile.instance_role:
        return None
    region = bucket_region(bucket)
    endpoint = context.cloud.client("s3", region).meta.endpoint_url
    return Keep(bucket=bucket, prefix=prefix(context, name), region=region, endpoint=endpoint)
