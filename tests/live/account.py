"""
The account that live tests spend from: the gpulab profile of whoever runs them, everything they make under one tag, and its end.

Nothing here asks whether the account is real, but for one thing: a sandbox says what it cannot show.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.live import prices

from gpulab.aws import instances as ec2_instances
from gpulab.aws.session import Cloud
from gpulab.errors import GpulabError, NotFound
from gpulab.launch import up
from gpulab.launch.context import Context, context_of
from gpulab.launch.events import Event, Ready
from gpulab.launch.running import booting
from gpulab.model.instance import (
    TAG_COURSE,
    TAG_EXPIRES,
    TAG_NAME,
    TAG_OWNER,
    Instance,
    LaunchRequest,
)
from gpulab.model.market import Market
from gpulab.remote import keys
from gpulab.sandbox import control
from gpulab.store.home import Home

COURSE = "gpulab-live"
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
# The end of an instance that has no agent: counted from when its user data runs, which the kernel is up for.
_ENDS_ITSELF = "#!/bin/sh\nshutdown -P +{minutes}\n"
_numbers = itertools.count(1)


class NotedCloud(Cloud):
    """
    The way to AWS, with each call noted.

    Attributes:
        calls: Operation and HTTP status, in order.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.calls: list[tuple[str, int]] = []

    def _new_client(self, *arguments: Any, **options: Any) -> Any:
        made = super()._new_client(*arguments, **options)
        made.meta.events.register("after-call", self._note)
        return made

    def _note(self, http_response: Any, model: Any, **_: Any) -> None:
        self.calls.append((model.name, http_response.status_code))


class OwnCloud(Cloud):
    """The way to AWS of the tests themselves, which do what no policy of gpulab's allows; they say in each call that it is not gpulab's."""

    def _new_client(self, *arguments: Any, **options: Any) -> Any:
        made = super()._new_client(*arguments, **options)
        made.meta.events.register("before-send", _of_tests)
        return made


def _of_tests(request: Any, **_: Any) -> None:
    agent = request.headers["User-Agent"]  # text or bytes; no part of what is signed
    agent = agent.decode() if isinstance(agent, bytes) else agent
    request.headers["User-Agent"] = agent.replace("gpulab/", "gpulab-live-tests/")


@dataclass
class Launched:
    """
    An instance that `gpulab up` led to.

    Attributes:
        seconds: From the command to each event that had not been before, by its name.
        calls: What was asked of AWS meanwhile.
        is_reached: Whether ssh and JupyterLab answer; false in a sandbox without machines.
    """

    instance: Instance
    seconds: Mapping[str, float]
    calls: tuple[tuple[str, int], ...]
    is_reached: bool

    def reached(self) -> Instance:
        """The instance, for what asks it over ssh; elsewhere the test is not shown."""
        if not self.is_reached:
            pytest.skip("the sandbox runs without machines")
        return self.instance


@dataclass
class Account:
    """
    One account for one run.

    Attributes:
        context: Of gpulab itself, whose calls are noted.
        cloud: For what the tests do by themselves.
        machines: What stands behind instances in a sandbox; empty for a real account.
        paid: The needs whose price was said before anything began; nothing else is launched.
    """

    context: Context
    cloud: OwnCloud
    machines: str = ""
    paid: frozenset[str] = frozenset(prices.NEEDS)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Account:
        """Open the profile that `GPULAB_PROFILE` names, or the default one."""
        home = Home.of(environment)
        profile = home.config().profile(environment.get("GPULAB_PROFILE"))
        own: dict[str, Any] = {
            "aws_profile": profile.aws_profile,
            "config_file": profile.aws_config_file,
            "credentials_file": profile.aws_credentials_file,
        }
        noted, cloud = NotedCloud(**own), OwnCloud(**own)
        context = context_of(
            replace(profile, course=COURSE),
            home.folder(profile.name),
            environment=environment,
            now=lambda: datetime.now(UTC),
            sleep=time.sleep,
            random=random.Random(),
            cidr=profile.cidr,
        )
        context = replace(context, open_cloud=lambda: noted)
        keys.make_key_pair(context.folder.key, environ=environment)
        machines = ""
        if "127.0.0.1" in cloud.client("ec2", profile.regions[0]).meta.endpoint_url:
            machines = control.find(control.folder_of(environment)).machines
        return cls(context, cloud, machines)

    @property
    def _noted(self) -> list[tuple[str, int]]:
        way: Any = self.context.cloud
        return way.calls

    @property
    def region(self) -> str:
        """Where the tests launch."""
        return self.context.profile.regions[0]

    @property
    def ec2(self) -> Any:
        """EC2 in that region, asked once for each call."""
        return self.cloud.client("ec2", self.region, is_patient=False)

    # -- instances -------------------------------------------------------------------------------------------------------------

    def wish(self, name: str, **changes: Any) -> LaunchRequest:
        """What is launched: spot, tagged as ours, of the type and with the end that its price was computed from."""
        known = self._paid(name)
        wish = LaunchRequest(
            name=f"live-{name}",
            gpu=None,
            instance_type=known.type,
            duration=known.ends_after,
            max_usd_per_hour=None,
            regions=(self.region,),
            markets=(Market.SPOT,),
            environment=self.context.profile.environment,
            disk_gib=known.disk_gib,
            idle_minutes=known.ends_after // timedelta(minutes=1),
            course=COURSE,
        )
        return replace(wish, **changes)

    def _paid(self, name: str) -> prices.Launch:
        need, known = prices.launch(name)
        assert need in self.paid, f"`{name}` is not in the price that was said: costs({need!r})"
        return known

    def launched(self, wish: LaunchRequest) -> Launched:
        """Run `gpulab up` to its end; in a sandbox without machines to the pinned host key, since nothing answers behind it."""
        began, seconds, before = time.monotonic(), dict[str, float](), len(self._noted)
        is_reached = self.machines != "none"
        steps = self._up(wish) if is_reached else self._until_pinned(wish)
        instance = None
        for event in steps:
            name = getattr(event, "name", "") or type(event).__name__
            key = f"{name} {event.state}" if hasattr(event, "state") else type(event).__name__
            seconds.setdefault(key, round(time.monotonic() - began, 1))
            instance = getattr(event, "instance", instance)
        assert instance is not None
        self._has_its_end(wish, instance)
        return Launched(instance, seconds, tuple(self._noted[before:]), is_reached)

    def _has_its_end(self, wish: LaunchRequest, instance: Instance) -> None:
        """The price holds only as long as AWS has been told the end that it was computed from."""
        assert instance.expires_at is not None
        lives = instance.expires_at - instance.launched_at
        assert lives <= self._paid(wish.name.removeprefix("live-")).ends_after, lives

    def _up(self, wish: LaunchRequest) -> Iterator[Event]:
        yield from up.up(self.context, wish, confirm=lambda _: True)

    def _until_pinned(self, wish: LaunchRequest) -> Iterator[Event]:
        found = yield from up.until_running(self.context, wish, confirm=lambda _: True)
        assert found is not None
        yield from booting.pin(self.context, found[0])
        yield Ready(self.context.now(), found[0], None, True)  # type: ignore[arg-type]

    def small(self, name: str = "small", *, user_data: str = "", **changes: Any) -> str:
        """Launch an instance without an agent: one-time spot, tagged as ours, which ends itself by a timer in its user data; returns its id."""
        known = self._paid(name)
        image = self.cloud.client("ssm", self.region).get_parameter(Name=_UBUNTU)
        minutes = known.ends_after // timedelta(minutes=1)
        call = {
            "ImageId": image["Parameter"]["Value"],
            "InstanceType": known.type,
            "MinCount": 1,
            "MaxCount": 1,
            "InstanceMarketOptions": {"MarketType": "spot"},
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required"},
            "UserData": _ENDS_ITSELF.format(minutes=minutes) + user_data,
            "TagSpecifications": self.tags("instance", "volume", "spot-instances-request"),
        }
        return str(self.ec2.run_instances(**{**call, **changes})["Instances"][0]["InstanceId"])

    def tags(self, *kinds: str) -> list[dict[str, Any]]:
        """The tags of what is made without `gpulab up`: those by which a sweep finds it."""
        tags = {
            TAG_NAME: f"live-small-{next(_numbers)}",
            TAG_OWNER: self.context.owner,
            TAG_COURSE: COURSE,
            TAG_EXPIRES: f"{datetime.now(UTC) + timedelta(minutes=15):%Y-%m-%dT%H:%M:%SZ}",
        }
        said = [{"Key": key, "Value": value} for key, value in tags.items()]
        return [{"ResourceType": kind, "Tags": said} for kind in kinds]

    def wait_for(self, instance_id: str, state: str, *, minutes: float) -> Instance:
        """Wait until EC2 shows a state."""
        until = time.monotonic() + minutes * 60
        while True:
            with contextlib.suppress(GpulabError):
                seen = ec2_instances.read(self.cloud, self.region, instance_id)
                if seen.state == state:
                    return seen
            assert time.monotonic() < until, f"{instance_id} is not {state} after {minutes} min"
            time.sleep(5)

    def run(self, instance: Instance, command: str, *, timeout_s: float = 300) -> str:
        """Run a line of shell on an instance and return what it printed."""
        from gpulab.launch.running.instances import host

        said = host(self.context, instance).run(["sh", "-c", command], timeout_s=timeout_s)
        return said.text.strip()

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def end(self, instance_id: str) -> None:
        """End an instance that EC2 may not know everywhere yet."""
        until = time.monotonic() + 60
        while True:
            try:
                return ec2_instances.terminate(self.cloud, self.region, [instance_id])
            except NotFound:
                if time.monotonic() > until:
                    raise
                time.sleep(2)
