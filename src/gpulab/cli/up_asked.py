"""What was typed behind `gpulab up`, and the wish it makes. Refuses what contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from gpulab.cli.options import tomorrow_note, until_moment
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpulab.cli.context import Context
    from gpulab.model.course import Notebooks
    from gpulab.model.instance import LaunchRequest


@dataclass(frozen=True)
class Asked:
    """
    The options as they were typed; `None`, `()` or false where one was not. Their help says what each is.

    Attributes:
        gpu: Excludes `instance_type`.
        duration: Excludes `until`.
        spot_only: Excludes `is_on_demand`.
        data: Needs `notebooks`.
    """

    gpu: str | None
    instance_type: str | None
    duration: timedelta | None
    until: str | None
    max_price: Decimal | None
    budget: Decimal | None
    regions: tuple[str, ...]
    spot_only: bool
    is_on_demand: bool
    environment: str | None
    idle: timedelta | None
    disk_gib: int | None
    cidr: str | None
    notebooks: str | None
    data: tuple[str, ...]

    def __post_init__(self) -> None:
        pairs = [
            ("--gpu", self.gpu, "--type", self.instance_type),
            ("--hours", self.duration, "--until", self.until),
            ("--spot-only", self.spot_only, "--on-demand", self.is_on_demand),
        ]
        for one, is_one, other, is_other in pairs:
            if is_one and is_other:
                raise WrongUsage(
                    f"`{one}` and `{other}` exclude each other", hint="Leave one of them out"
                )

    @property
    def names_end(self) -> bool:
        """Whether it was said how long the instance may live."""
        return bool(self.duration or self.until)

    @property
    def flags(self) -> Mapping[str, object]:
        """What an instance that is up can't follow any more, by flag; a text as it was typed, `True` for a flag without a value."""
        return {
            "--gpu": self.gpu,
            "--type": self.instance_type,
            "--region": " --region ".join(self.regions),
            "--env": self.environment,
            "--on-demand": self.is_on_demand,
            "--spot-only": self.spot_only,
        }


def wish_of(context: Context, asked: Asked, *, name: str, now: datetime) -> LaunchRequest:
    """
    Make the wish, with what the profile says where nothing was typed.

    Raises:
        WrongUsage: The end is no time or has passed, or the notebooks cannot be named so.
    """
    from gpulab.model.instance import LaunchRequest
    from gpulab.model.market import Market

    profile = context.profile
    # An empty text is refused later on: it comes of a variable that was never set.
    gpu = profile.gpu if asked.gpu is None else asked.gpu
    return LaunchRequest(
        name=name,
        gpu=None if asked.instance_type else gpu,
        instance_type=asked.instance_type,
        duration=_duration(context, asked, now),
        max_usd_per_hour=asked.max_price or profile.max_usd_per_hour,
        regions=tuple(dict.fromkeys(asked.regions)) or profile.regions,
        markets=(Market.ON_DEMAND,) if asked.is_on_demand else (Market.SPOT,),
        environment=profile.environment if asked.environment is None else asked.environment,
        disk_gib=asked.disk_gib or profile.disk_gib,
        idle_minutes=_minutes(asked.idle) if asked.idle else profile.idle_minutes,
        budget_usd=asked.budget,
        course=profile.course,
        notebooks=_notebooks(asked.notebooks, asked.data),
        spot_only=asked.spot_only,
    )


def _duration(context: Context, asked: Asked, now: datetime) -> timedelta:
    if asked.until is not None:
        moment = until_moment(asked.until, now=now)
        if note := tomorrow_note(asked.until, moment, now=now):
            context.console.say(note)
        return moment - now
    return asked.duration or context.profile.lifetime


def _minutes(length: timedelta) -> int:
    return max(1, int(length.total_seconds() // 60))


def _notebooks(source: str | None, data: tuple[str, ...]) -> Notebooks | None:
    from gpulab.launch.running.notebooks import read_notebooks

    if source is not None:
        return read_notebooks(source, data)
    if data:
        raise WrongUsage(
            "`--data` comes with `--notebooks`", hint="Name the notebooks that read it"
        )
    return None
