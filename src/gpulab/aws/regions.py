"""Asking many regions at once. Hides the threads; one region that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from botocore.loaders import create_loader

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import GpulabError, WrongUsage
from gpulab.model.nearest import did_you_mean

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Answers(Generic[Answer]):
    """
    What the regions said.

    Attributes:
        by_region: Answers, in the order the regions were named.
        failed: What went wrong elsewhere.
    """

    by_region: Mapping[str, Answer]
    failed: Mapping[str, GpulabError] = field(default_factory=dict)

    def or_raise(self) -> Mapping[str, Answer]:
        """
        Return the answers if there is at least one.

        Raises:
            GpulabError: No region answered; the first region's error.
        """
        if not self.by_region and self.failed:
            raise next(iter(self.failed.values()))
        return self.by_region


def ask_each(regions: Iterable[str], ask: Callable[[str], Answer]) -> Answers[Answer]:
    """
    Ask every region at once.

    Args:
        ask: Called with a region, in a thread of its own; its `GpulabError` becomes that region's answer.
    """
    names = list(dict.fromkeys(regions))
    if len(names) <= 1:
        results = [_outcome(ask, name) for name in names]
    else:
        with ThreadPoolExecutor(max_workers=min(len(names), 16)) as pool:
            results = list(pool.map(lambda name: _outcome(ask, name), names))
    return Answers(
        {n: r.value for n, r in zip(names, results, strict=True) if isinstance(r, _Said)},
        {n: r for n, r in zip(names, results, strict=True) if isinstance(r, GpulabError)},
    )


def check_region(region: str) -> None:
    """
    Refuse what is no region, without asking AWS: its host would have no address, which looks like a broken network.

    Raises:
        WrongUsage: botocore knows no such region; a region newer than it is reached after an update.
    """
    partitions = create_loader().load_data("partitions")["partitions"]
    known = {name for partition in partitions for name in partition["regions"]}
    if region in known:
        return
    such_as = "Such as us-east-1 or eu-north-1"
    hint = did_you_mean(region, sorted(known), otherwise=such_as, at_least=0.75)
    raise WrongUsage(f"AWS has no region `{region}`", hint=hint)


@explained("list the regions")
def enabled_regions(cloud: Cloud, *, ask_in: str) -> tuple[str, ...]:
    """
    Name the regions that are switched on for the account, sorted.

    Args:
        ask_in: Any region that is surely on.

    Raises:
        GpulabError: AWS did not answer.
    """
    with cloud.explained("list the regions"):
        reply = cloud.client("ec2", ask_in).describe_regions(AllRegions=False)
    return tuple(sorted(r["RegionName"] for r in reply["Regions"]))


@dataclass(frozen=True)
class _Said(Generic[Answer]):
    value: Answer


def _outcome(ask: Callable[[str], Answer], region: str) -> _Said[Answer] | GpulabError:
    try:
        return _Said(ask(region))
    except GpulabError as error:
        return error
