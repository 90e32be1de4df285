"""A student's computer in front of the simulated AWS: context, request, and ways to run a launch to its end."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gpulab.errors import GpulabError
from gpulab.launch import up
from gpulab.launch.context import Context
from gpulab.launch.events import Event, Question
from gpulab.launch.upkeep.prepare import prepare
from gpulab.model.instance import Instance, LaunchRequest
from gpulab.model.market import Market
from gpulab.sandbox import Sandbox
from gpulab.store.config import Profile
from gpulab.store.home import Folder


@dataclass
class Run:
    """
    One launch as far as it went.

    Attributes:
        instance: What it led to; `None` when it led to nothing.
        error: Why it led to nothing.
    """

    events: list[Event]
    instance: Instance | None = None
    error: GpulabError | None = None

    def told(self) -> list[str]:
        return [type(e).__name__ for e in self.events]

    def of(self, kind: type[Any]) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


class Student:
    """One computer with its folder, before one simulated account."""

    def __init__(
        self, sandbox: Sandbox, folder: Path, launches: str = "launch", **profile: Any
    ) -> None:
        self.sandbox = sandbox
        numbers = itertools.count(1)
        settings: dict[str, Any] = {"regions": ("us-east-1",), **profile}
        self.context = Context(
            profile=Profile(name="test", **settings),
            folder=Folder(folder),
            environment={},
            now=sandbox.now,
            sleep=lambda s: sandbox.advance(seconds=s),
            random=random.Random(7),
            cidr="203.0.113.7/32",
            new_id=lambda: f"{launches}{next(numbers):04d}",
        )

    @classmethod
    def after_init(cls, sandbox: Sandbox, folder: Path) -> Student:
        """The same computer once `gpulab init` has made everything in the account."""
        made = prepare(cls(sandbox, folder).context)
        return cls(
            sandbox,
            folder,
            owner=made.owner,
            keep_bucket=made.keep_bucket,
            instance_role=made.instance_role,
            scheduler_role=made.scheduler_role,
        )

    def request(self, name: str = "week4", **changes: Any) -> LaunchRequest:
        wish = LaunchRequest(
            name=name,
            gpu="T4",
            instance_type="g4dn.xlarge",
            duration=timedelta(hours=4),
            max_usd_per_hour=None,
            regions=self.context.profile.regions,
            markets=(Market.SPOT,),
            environment="tf2-small",
        )
        return replace(wish, **changes)

    def up(
        self,
        name: str = "week4",
        *,
        confirm: Callable[[Question], bool] = lambda question: True,
        **changes: Any,
    ) -> Run:
        """Launch until `running`; ssh and what comes after is tested elsewhere."""
        run = Run([])
        steps = up.until_running(self.context, self.request(name, **changes), confirm=confirm)
        try:
            while True:
                run.events.append(next(steps))
        except StopIteration as end:
            run.instance = end.value[0] if end.value else None
        except GpulabError as error:
            run.error = error
        return run

    def again(self) -> Student:
        """The same folder in a new process: nothing is remembered but what was written."""
        other = Student.__new__(Student)
        other.sandbox = self.sandbox
        other.context = replace(self.context)
        return other

    def live(self) -> list[str]:
        """Ids of what runs or is about to, as the simulated EC2 itself knows it."""
        return [i["InstanceId"] for i in self.sandbox.instances("pending", "running")]

    def operations(self, since: int = 0) -> list[str]:
        return [c.operation for c in list(self.sandbox.calls)[since:]]


@pytest.fixture
def student(sandbox: Sandbox, tmp_path: Path) -> Student:
    return Student(sandbox, tmp_path)


@pytest.fixture
def make_student(sandbox: Sandbox, tmp_path: Path) -> Iterator[Callable[..., Student]]:
    numbers = itertools.count()
    yield lambda **profile: Student(sandbox, tmp_path / str(next(numbers)), **profile)
