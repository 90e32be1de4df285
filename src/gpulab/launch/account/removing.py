"""Removing what gpulab has made in an account. Refuses nothing: whether it may go is decided before."""

from __future__ import annotations

from collections.abc import Callable

from gpulab.errors import Throttled
from gpulab.launch.account import setup
from gpulab.launch.context import Context
from gpulab.model.leftover import Kind, Tagged

_TRIES = 6
_PAUSE_S = 10.0


def remove(context: Context, resource: Tagged, call: Callable[[], None]) -> None:
    """
    Remove one resource; a group or volume is released some time after its instance, so those are asked again for a minute.

    Args:
        call: Removes it.

    Raises:
        Throttled: It is still in use.
        GpulabError: AWS refuses.
    """
    for left in reversed(range(_TRIES)):
        try:
            call()
            break
        except Throttled:
            if not left:
                raise
            context.sleep(_PAUSE_S)
    if resource.kind in (Kind.SECURITY_GROUP, Kind.KEY_PAIR):
        setup.forget_network(context, resource.region)
