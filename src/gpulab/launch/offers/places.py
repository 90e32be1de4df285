"""Places that were full a moment ago, and places that never have a type; shared by every launch of a profile, fleets too."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from gpulab.launch.context import Context
from gpulab.model.market import Market, Place
from gpulab.planning.failover import FULL_FOR

_NEVER_FOR = timedelta(days=30)


def full_places(context: Context) -> Mapping[Place, datetime]:
    """Return the places believed to be full, and until when."""
    found = {}
    for key in context.cache.below(f"{context.account}/full/"):
        until = context.cache.until(key)
        if until is not None:
            found[_place(key)] = until
    return found


def never_places(context: Context) -> frozenset[Place]:
    """Return the places AWS said it does not offer."""
    return frozenset(map(_place, context.cache.below(f"{context.account}/never/")))


def remember_full(context: Context, place: Place) -> None:
    """Demote a place for three minutes."""
    context.cache.put(_key(context, "full", place), value=True, lasting=FULL_FOR)


def remember_never(context: Context, place: Place) -> None:
    """Leave a place out for a month."""
    context.cache.put(_key(context, "never", place), value=True, lasting=_NEVER_FOR)


def _key(context: Context, what: str, place: Place) -> str:
    parts = (place.region, place.zone, place.instance_type, place.market.value)
    return "/".join((context.account, what, *parts))


def _place(key: str) -> Place:
    region, zone, instance_type, market = key.split("/")[-4:]
    return Place(region, zone, instance_type, Market(market))
