"""`gpulab prices`: what GPUs cost now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from gpulab.launch.context import Context
from gpulab.launch.offers.look import spot_and_on_demand
from gpulab.launch.offers.wish import check_regions
from gpulab.model.instance import LaunchRequest
from gpulab.model.market import Market, Offer
from gpulab.planning.catalogue import instance_types
from gpulab.planning.wishes import types_for


def offers(
    context: Context, *, gpu: str | None, instance_type: str | None, regions: Sequence[str]
) -> tuple[Offer, ...]:
    """
    Read what is sold now, cheapest first, both markets.

    Args:
        gpu: `None` for every single GPU.
        instance_type: An exact type instead.
        regions: Never empty.

    Raises:
        WrongUsage: Nobody knows the GPU, the type or a region.
        GpulabError: No region answered.
    """
    wish = LaunchRequest(
        name="",
        gpu=gpu,
        instance_type=instance_type,
        duration=timedelta(hours=1),
        max_usd_per_hour=None,
        regions=tuple(regions),
        markets=tuple(Market),
        environment="",
    )
    check_regions(regions)
    types = types_for(wish, instance_types())
    found = spot_and_on_demand(context, regions, types)
    return tuple(sorted(found, key=lambda o: (o.usd_per_hour, o.type.name, o.place.zone)))
