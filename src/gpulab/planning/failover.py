"""
An error of AWS -> what to try next, which attempts are left, and what a failed launch is told as. Pure.

The rule behind the table: another place is tried only when AWS said that *this place* cannot serve. An answer that was lost, a missing
permission or a bad value is the same everywhere, and going on would hide it, or launch twice.

Source:
    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html, github.com/aws/karpenter-provider-aws (its list of
    unfulfillable capacity errors), github.com/aws/aws-parallelcluster/issues/2716 (zones named in the message)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from gpulab.errors import (
    Ambiguous,
    AwsError,
    GpulabError,
    NoCapacity,
    NotFound,
    NotOffered,
    QuotaTooLow,
    SetupMissing,
    SpotPriceAboveCap,
    Throttled,
)
from gpulab.model.market import Market, Offer

# How long a full place is believed to stay full (Karpenter's figure).
FULL_FOR = timedelta(minutes=3)
# Within one class it is asked again sooner: the others of 300 must not hammer it, but capacity often returns in minutes.
ASKED_AGAIN_AFTER = timedelta(seconds=60)


class Next(StrEnum):
    """What an error leaves to do."""

    SAME_CALL = "the same call again, with the same token"
    ADOPT = "find what the token already made"
    NEW_TOKEN = "the same place again, with a new token"  # noqa: S105 - not a secret
    OTHER_ZONE = "the next zone or type"
    OTHER_QUOTA = "a place that another quota counts"
    OTHER_REGION = "another region"
    ON_DEMAND = "on demand, if the user agrees"
    REPAIR = "make the missing thing anew, once"
    STOP = "stop"


@dataclass(frozen=True)
class Failure:
    """One attempt that came to nothing."""

    offer: Offer
    error: GpulabError


_BY_CODE: dict[str, Next] = {
    "IdempotentParameterMismatch": Next.ADOPT,
    "IdempotentInstanceTerminated": Next.NEW_TOKEN,
    "OptInRequired": Next.OTHER_REGION,
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": Next.ON_DEMAND,
}
# On demand has a quota of its own and needs no role.
_SPOT_ALONE = frozenset(
    {"MaxSpotInstanceCountExceeded", "AuthFailure.ServiceLinkedRoleCreationNotPermitted"}
)
_BY_CLASS: tuple[tuple[type[GpulabError], Next], ...] = (
    (Ambiguous, Next.SAME_CALL),
    (Throttled, Next.SAME_CALL),
    (NotFound, Next.SAME_CALL),
    (NoCapacity, Next.OTHER_ZONE),
    (NotOffered, Next.OTHER_ZONE),
    (SpotPriceAboveCap, Next.OTHER_ZONE),
    (QuotaTooLow, Next.OTHER_QUOTA),
    (SetupMissing, Next.REPAIR),
)


def what_next(error: GpulabError) -> Next:
    """Say what an error of a launch leaves to do; whatever is not listed stops."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return next((then for kind, then in _BY_CLASS if isinstance(error, kind)), Next.STOP)


@contextmanager
def beside_the_place() -> Iterator[None]:
    """
    What a launch needs is found or made: whatever AWS refuses there, it says nothing of the place, and must not be remembered of it.

    Raises:
        AwsError: For a refusal whose code would, of a launch, mean the place.
    """
    try:
        yield
    except (NoCapacity, NotOffered, SpotPriceAboveCap) as error:
        hint = "Repeat the command in a minute"
        raise AwsError(error.message, hint=hint, code=error.code, detail=error.detail) from error


def remaining(attempts: Sequence[Offer], failure: Failure) -> tuple[Offer, ...]:
    """
    Return the attempts still worth making after a failure, in order.

    A full zone drops that place only. If AWS named zones that would do, those of the same type come first.
    A quota drops every place it counts (family, market, region). Everything else leaves nothing.

    Args:
        attempts: What was left before, without the failed one or with it.
    """
    rest = [o for o in attempts if o.place != failure.offer.place]
    then = what_next(failure.error)
    if then is Next.OTHER_ZONE:
        return _hinted_first(rest, failure)
    if then is Next.OTHER_QUOTA:
        return tuple(o for o in rest if _quota_of(o) != _quota_of(failure.offer))
    if then is Next.OTHER_REGION:
        return tuple(o for o in rest if o.place.region != failure.offer.place.region)
    if then is Next.ON_DEMAND:
        return tuple(o for o in rest if o.place.market is Market.ON_DEMAND)
    return ()


def on_demand_cures(failures: Sequence[Failure]) -> bool:
    """Whether buying on demand gets around every failure: full zones, spot prices over the cap, and what limits spot alone."""
    return all(
        isinstance(f.error, NoCapacity | SpotPriceAboveCap | NotOffered)
        or f.error.code in _SPOT_ALONE
        for f in failures
    )


def zones_that_would_do(message: str) -> tuple[str, ...]:
    """Read the zones AWS names in a refusal ("... or choosing us-east-1b, us-east-1c."); empty if it names none."""
    named = re.search(r"choosing ([a-z0-9, -]+)", message)
    return tuple(re.findall(r"[a-z]{2}(?:-[a-z]+)+-\d+[a-z]", named[1])) if named else ()


def conclusion(failures: Sequence[Failure]) -> GpulabError:
    """
    Put all failures of one launch into the one error the user reads: distinct causes, other causes before lack of capacity.

    Args:
        failures: In the order of trying; never empty.
    """
    decisive = [f for f in failures if not isinstance(f.error, NoCapacity | NotOffered)]
    if not decisive:
        return _all_full(failures)
    last = decisive[-1].error
    hints = dict.fromkeys(f.error.hint for f in _first_of_each_quota(decisive) if f.error.hint)
    causes = _causes(decisive)
    full = [f for f in failures if f not in decisive]
    if full:
        causes.append(f"no capacity at {_places(full)}")
    return type(last)("; ".join(causes), hint="; ".join(hints), code=last.code, detail=last.detail)


def _first_of_each_quota(failures: Sequence[Failure]) -> list[Failure]:
    """Leave out a quota that refused in a further region: raising it in the preferred one is the one thing to do."""
    seen: dict[object, Failure] = {}
    for number, f in enumerate(failures):
        seen.setdefault(_quota_of(f.offer)[:2] if _is_quota(f) else number, f)
    return list(seen.values())


def _causes(failures: Sequence[Failure]) -> list[str]:
    """Say each cause once; a quota that refused in several regions names them together."""
    causes = []
    for first in _first_of_each_quota(failures):
        also = _further_regions(first, failures) if _is_quota(first) else []
        causes.append(first.error.message + (f" (the same in {', '.join(also)})" if also else ""))
    return list(dict.fromkeys(causes))


def _further_regions(first: Failure, failures: Sequence[Failure]) -> list[str]:
    counted = _quota_of(first.offer)[:2]
    alike = [f for f in failures if _is_quota(f) and _quota_of(f.offer)[:2] == counted]
    regions = dict.fromkeys(f.offer.place.region for f in alike)
    return [region for region in regions if region != first.offer.place.region]


def _is_quota(failure: Failure) -> bool:
    return isinstance(failure.error, QuotaTooLow)


def _all_full(failures: Sequence[Failure]) -> GpulabError:
    if all(isinstance(f.error, NotOffered) for f in failures):
        return NotOffered(
            f"no zone sells it: {_places(failures)}",
            hint="Name another region with `--region`, or another type; `gpulab prices` shows where there are some",
            code=failures[-1].error.code,
        )
    spot = all(f.offer.place.market is Market.SPOT for f in failures)
    hint = "Try again in a few minutes, in another region with `--region`"
    return NoCapacity(
        f"no place had an instance free: {_places(failures)}",
        hint=f"{hint}, or at a fixed price with `--on-demand`" if spot else hint,
        code=failures[-1].error.code,
    )


def _places(failures: Sequence[Failure]) -> str:
    """Name places by type: `g4dn.xlarge in us-east-1a, us-east-1b; g4dn.2xlarge in us-east-1a`."""
    by_type: dict[str, list[str]] = {}
    for f in failures:
        zones = by_type.setdefault(f.offer.type.name, [])
        if f.offer.place.zone not in zones:
            zones.append(f.offer.place.zone)
    return "; ".join(f"{kind} in {', '.join(zones)}" for kind, zones in by_type.items())


def _hinted_first(rest: Sequence[Offer], failure: Failure) -> tuple[Offer, ...]:
    zones = zones_that_would_do(failure.error.detail)
    would_do = [
        o
        for o in rest
        if o.place.zone in zones
        and o.type.name == failure.offer.type.name
        and o.place.market == failure.offer.place.market
    ]
    return (*would_do, *(o for o in rest if o not in would_do))


def _quota_of(offer: Offer) -> tuple[str, Market, str]:
    return (offer.type.quota_family, offer.place.market, offer.place.region)
