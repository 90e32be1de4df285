"""What AWS does to a term: interruptions at a rate of each zone's own, zones that are full for an hour, outages of minutes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta

from gpulab.sandbox.faults import Fault
from gpulab.sandbox.world import World
from soaking.clockwork import Clockwork
from soaking.machines import Machine

TYPE = "g4dn.xlarge"
_MOST_INTERRUPTED_AN_HOUR = 0.20
_WITHOUT_NOTICE = 0.03
_HORIZON_H = 14.0


class Weather:
    """
    All that goes wrong outside of gpulab, repeatable with the seed.

    Args:
        zones: Where instances are.
        share: Whose instances; others have other interruptions in the same weather.
    """

    def __init__(
        self, clockwork: Clockwork, zones: Iterable[str], seed: int, *, share: int = 0
    ) -> None:
        self.outages: Counter[str] = Counter()
        self.rates: dict[str, float] = {}
        self._clockwork, self._world = clockwork, clockwork.world
        self._zones = tuple(zones)
        self._random = random.Random(f"{seed}/weather")
        self._interruptions = random.Random(f"{seed}/interruptions/{share}")

    def begin_week(self, monday: datetime) -> None:
        """Draw the week: each zone's rate of interruption, full zones at the peak, three outages of which one is at the peak."""
        chance = self._random
        self.rates = {
            zone: _MOST_INTERRUPTED_AN_HOUR * n / max(1, len(self._zones) - 1)
            for n, zone in enumerate(chance.sample(self._zones, len(self._zones)))
        }
        for zone in chance.sample(self._zones, len(self._zones) // 2):
            at = monday + timedelta(minutes=chance.uniform(0, 20))
            self._fill(zone, at, timedelta(minutes=chance.uniform(10, 60)))
        self._outage(monday + timedelta(minutes=chance.uniform(0, 12)))
        for _ in range(2):
            self._outage(monday + timedelta(hours=chance.uniform(0, 110)))

    def interrupt_later(self, machine: Machine) -> None:
        """Draw when AWS takes a new spot instance back; often never."""
        rate = self.rates.get(machine.birth.zone, 0.0)
        if machine.birth.market != "spot" or rate <= 0:
            return
        hours = self._interruptions.expovariate(rate)
        notice_s = 1.0 if self._interruptions.random() < _WITHOUT_NOTICE else 120.0
        if hours < _HORIZON_H:
            self._world.after(hours * 3600, lambda: self._interrupt(machine, notice_s))

    def _interrupt(self, machine: Machine, notice_s: float) -> None:
        with suppress(ValueError):  # it has ended meanwhile
            self._world.interrupt(machine.birth.instance_id, in_seconds=notice_s)

    def _fill(self, zone: str, at: datetime, span: timedelta) -> None:
        self._world.at(at, lambda: self._world.set_capacity(TYPE, zone, 0))
        self._world.at(at + span, lambda: self._world.set_capacity(TYPE, zone, None))

    def _outage(self, at: datetime) -> None:
        name, strike = self._random.choice(_OUTAGES)
        span = timedelta(minutes=self._random.uniform(2, 9))

        def begin() -> None:
            self.outages[name] += 1
            for fault in strike(self._world):
                self._world.at(at + span, lambda fault=fault: _lift(fault))  # type: ignore[misc]

        self._world.at(at, begin)


def _lift(fault: Fault) -> None:
    fault.times = 0


def _refused(*operations: str, code: str) -> Callable[[World], list[Fault]]:
    return lambda world: [world.refuse(operation, code) for operation in operations]


_OUTAGES: list[tuple[str, Callable[[World], list[Fault]]]] = [
    ("every service answers 503", _refused("*", code="ServiceUnavailable")),
    ("every call is throttled", _refused("*", code="RequestLimitExceeded")),
    ("no connection to AWS", lambda world: [world.drop_request("*", times=None)]),
    ("AWS acts, its answers are lost", lambda world: [world.lose_reply("*", times=None)]),
    (
        "launches take effect and answer 500",
        lambda world: [world.fail_after_effect("RunInstances", times=None)],
    ),
    ("S3 is slow down", _refused("PutObject", "GetObject", code="SlowDown")),
    ("no zone has capacity", _refused("RunInstances", code="InsufficientInstanceCapacity")),
]
