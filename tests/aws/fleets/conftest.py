"""A class in front of the simulated AWS: a course, its students, and ways to run `fleet up` to its end."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gpulab.aws.end_schedule import course_role_name
from gpulab.fleet.enrolment import template
from gpulab.fleet.lab import as_if_now
from gpulab.fleet.seats import chosen, seats_of
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts, Outside
from gpulab.fleets.events import Finished, FleetEvent
from gpulab.model.fleet import FleetPlan, Outcome, Seat
from gpulab.sandbox import Sandbox
from gpulab.sandbox.credentials import DEFAULT_ACCOUNT
from gpulab.store.config import Config, Profile
from gpulab.store.home import Home

_BUILDERS = Path(__file__).parents[2] / "unit" / "fleet_builders.py"
_spec = importlib.util.spec_from_file_location("fleet_builders", _BUILDERS)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


@dataclass
class Run:
    """One `fleet up` that came to its end."""

    plan: FleetPlan
    events: list[FleetEvent]
    outcomes: tuple[Outcome, ...]

    def results(self) -> list[str]:
        return [str(o.result) for o in self.outcomes]


class Klass:
    """One teacher's computer with its folder, before the accounts of a class."""

    def __init__(
        self, sandbox: Sandbox, home: Path, size: int, *, kind: str = "shared", **course: str
    ) -> None:
        self.sandbox = sandbox
        self.home = home
        sandbox.set_quota("L-3819A6DF", "us-east-1", 5000)
        own = kind == "own"
        given = {"lab": 'environment = "tf2-small"\ninstance_type = "g4dn.xlarge"', **course}
        self.course = build.a_course(kind, **given)
        self.people = build.students(size, own=own)
        self.lab = as_if_now(self.course.labs[0], sandbox.now())
        for seat in self.wish().everyone if own else ():
            self.enrol(seat)

    def enrol(self, seat: Seat, **changes: str) -> None:
        """The student uploads the template, in the account it is for."""
        given = {
            "trusted": f"arn:aws:iam::{DEFAULT_ACCOUNT}:user/student",
            "external_id": seat.account.external_id,
            "end_role": course_role_name(self.course.id),
            "account": seat.account.number,
            "owners": [s.owner for s in (*seat.students, seat)],
        }
        self.sandbox.apply_template(template(self.course, **{**given, **changes}))

    def accounts(self, **outside: Any) -> Accounts:
        """A new process: nothing is remembered but what was written."""
        world = self.sandbox
        given = Outside(
            home=Home(self.home),
            config=Config("default", {"default": Profile(name="default")}),
            environment={},
            now=world.now,
            sleep=lambda s: world.advance(seconds=s),
            random=random.Random(7),
            cidr="203.0.113.0/24",
        )
        return Accounts(replace(given, **outside), self.course)

    def wish(self, *only: str, **changes: Any) -> up.Wish:
        lab = self.lab
        everyone = seats_of(self.course, lab, self.people, secret=build.SECRET)
        seats = chosen(everyone, only=only)
        wish = up.Wish(self.course, lab, everyone, seats, timedelta(hours=12))
        return replace(wish, **changes)

    def up(
        self,
        *only: str,
        prune: bool = False,
        accounts: Accounts | None = None,
        **changes: Any,
    ) -> Run:
        accounts = accounts or self.accounts()
        wish = self.wish(*only, **changes)
        with up.locked(accounts, wish.lab):
            decided = up.plan(accounts, wish, may_settle=True)
            events = list(up.up(accounts, decided, prune=prune))
        last = events[-1]
        assert isinstance(last, Finished)
        return Run(decided.plan, events, last.outcomes)

    def live(self) -> list[str]:
        """Names of what runs or is about to, as the simulated EC2 itself knows it, sorted."""
        found = self.sandbox.instances("pending", "running")
        return sorted(t["Value"] for i in found for t in i["Tags"] if t["Key"] == "gpulab:name")

    def names(self) -> list[str]:
        return sorted(seat.name for seat in self.wish().everyone)

    def operations(self, since: int = 0) -> list[str]:
        return [c.operation for c in list(self.sandbox.calls)[since:]]


@pytest.fixture
def make_class(sandbox: Sandbox, tmp_path: Path) -> Callable[..., Klass]:
    numbers = itertools.count()
    return lambda size, **more: Klass(sandbox, tmp_path / str(next(numbers)), size, **more)
