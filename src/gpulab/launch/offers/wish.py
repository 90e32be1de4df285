"""What is wrong with a wish that this computer can see: told before AWS is asked, and long before money."""

from __future__ import annotations

from collections.abc import Iterable

from gpulab.aws.network import checked_cidr
from gpulab.aws.regions import check_region
from gpulab.bootstrap import load_environment
from gpulab.launch.context import Context
from gpulab.model.instance import LaunchRequest
from gpulab.planning.catalogue import instance_types
from gpulab.planning.wishes import types_for
from gpulab.store.config import DEFAULT_REGIONS


def check_wish(context: Context, request: LaunchRequest) -> None:
    """
    Look whether the environment, the type, the regions and the address range of a request exist; asks nobody.

    Raises:
        WrongUsage: One does not; named, with a near one.
    """
    load_environment(request.environment, context.profile.environment_folders)
    types_for(request, instance_types())
    check_regions(request.regions)
    if context.cidr:
        checked_cidr(context.cidr)


def check_regions(regions: Iterable[str]) -> None:
    """
    Refuse what is no region of AWS: asking there would look like a broken network.

    Raises:
        WrongUsage: Naming the first one, and a near one.
    """
    for region in regions:
        if region not in DEFAULT_REGIONS:
            check_region(region)
