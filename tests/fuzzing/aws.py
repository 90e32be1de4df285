"""Answers of AWS that lack members or hold odd ones: every reader of one, and a whole launch, on what the sandbox said with a few values changed."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fuzzing.edits import ODD_PARSED, Choices, as_json, edited
from tests.fuzzing.files import emptied
from tests.fuzzing.oracle import Target, Wrong

from gpulab.aws import (
    accounts,
    baking,
    billing,
    budgets,
    end_schedule,
    history,
    images,
    instances,
    market,
    network,
    regions,
    tagged,
    workspace,
)
from gpulab.aws.session import Cloud
from gpulab.errors import GpulabError
from gpulab.launch import up
from gpulab.launch.context import Context
from gpulab.model.instance import LaunchRequest
from gpulab.model.market import Market
from gpulab.sandbox import Sandbox
from gpulab.store.config import Profile
from gpulab.store.home import Folder

_REGION = "us-east-1"
_ACCOUNT = "123456789012"
_INSTANCE = "i-0123456789abcdef0"


_ODD_SAID = (*ODD_PARSED, "x" * 10_000_000, ["x" * 10_000_000])


class _Recorder:
    """Keeps the first answers of each operation, as botocore read them."""

    def __init__(self) -> None:
        self.replies: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, parsed: Any, model: Any, **_: Any) -> None:
        known = self.replies.setdefault(model.name, [])
        if "Error" not in parsed and len(known) < 3 and "Body" not in parsed:
            known.append(copy.deepcopy(parsed))


def _context(
    folder: Path, now: Callable[[], datetime], cloud: Cloud | None = None, sleep: Any = None
) -> Context:
    numbers = itertools.count(1)
    context = Context(
        profile=Profile(name="test", regions=(_REGION,), owner="s1"),
        folder=Folder(folder),
        environment={},
        now=now,
        sleep=sleep or (lambda _: None),
        random=random.Random(7),
        cidr="203.0.113.7/32",
        new_id=lambda: f"launch{next(numbers):04d}",
    )
    if cloud is not None:
        object.__setattr__(context, "cloud", cloud)
    return context


def _wish(**changes: Any) -> LaunchRequest:
    wish = LaunchRequest(
        name="week4",
        gpu="T4",
        instance_type="g4dn.xlarge",
        duration=timedelta(hours=4),
        max_usd_per_hour=None,
        regions=(_REGION,),
        markets=(Market.SPOT,),
        environment="tf2-small",
    )
    return replace(wish, **changes)


@cache
def recorded() -> tuple[Mapping[str, list[dict[str, Any]]], datetime]:
    """Record a launch and every reader once, against the sandbox."""
    recorder = _Recorder()
    with Sandbox() as sandbox:
        context = _context(
            emptied("recording"), sandbox.now, sleep=lambda s: sandbox.advance(seconds=s)
        )
        context.cloud._open().register("after-call.*.*", recorder)
        for _ in up.until_running(context, _wish(), confirm=lambda _: True):
            pass
        (instance,) = instances.in_region(context.cloud, _REGION, owner=context.owner).mine
        for read in _readers(context.cloud, sandbox.now(), instance.id).values():
            try:
                read()
            except GpulabError:
                continue
        return recorder.replies, sandbox.now()


@cache
def _fullest_first() -> tuple[Mapping[str, list[dict[str, Any]]], datetime]:
    """Order what was recorded so that a reader which asks once meets the instance, not the empty account from before the launch."""
    replies, now = recorded()
    by_size = {
        name: sorted(answers, key=lambda answer: len(repr(answer)), reverse=True)
        for name, answers in replies.items()
    }
    return by_size, now


def _readers(cloud: Cloud, now: datetime, instance_id: str) -> dict[str, Callable[[], object]]:
    bucket = workspace.Bucket("b", _REGION, _ACCOUNT)
    return {
        "identity": lambda: accounts.identity(cloud),
        "plan": lambda: accounts.plan_type(cloud),
        "clock": lambda: accounts.clock_ahead(cloud),
        "baked": lambda: baking.baked(cloud, _REGION),
        "credits": lambda: billing.credits_of(cloud, now=now),
        "account plan": lambda: billing.account_plan(cloud, now=now),
        "cost explorer": lambda: billing.spent_by_cost_explorer(
            cloud, begin=now - timedelta(days=9), end=now, now=now
        ),
        "budget": lambda: budgets.read_budget(cloud, _ACCOUNT, "gpulab"),
        "actions": lambda: budgets.read_actions(cloud, _ACCOUNT, "gpulab"),
        "end_schedule": lambda: end_schedule.read(cloud, _REGION, instance_id, owner="s1"),
        "schedules": lambda: end_schedule.schedules(cloud, _REGION, owner="s1"),
        "history": lambda: history.history_of(cloud, _REGION, owner="", now=now),
        "image": lambda: images.find_image(cloud, _REGION, has_gpu=True),
        "instances": lambda: instances.in_region(cloud, _REGION, owner="", with_ended=True),
        "instance": lambda: instances.read(cloud, _REGION, instance_id),
        "many": lambda: instances.read_many(cloud, _REGION, [instance_id]),
        "console": lambda: instances.console_output(cloud, _REGION, instance_id),
        "prices": lambda: market.spot_prices(cloud, _REGION, ["g4dn.xlarge"], now=now),
        "on-demand": lambda: market.on_demand_price(cloud, _REGION, "g4dn.xlarge"),
        "quota": lambda: market.quota_limit(cloud, _REGION, "G", Market.SPOT),
        "subnets": lambda: network.find_subnets(cloud, _REGION),
        "rules": lambda: network.ingress(cloud, _REGION, "sg-0123456789abcdef0"),
        "regions": lambda: regions.enabled_regions(cloud, ask_in=_REGION),
        "leftovers": lambda: tagged.in_region(cloud, _REGION, owner="s1", now=now),
        "kept names": lambda: workspace.names(cloud, bucket, owner="s1"),
    }


# Of an operation's name, which call of the run it is, from 1, and the answer.
_Change = Callable[[str, int, dict[str, Any]], Any]


class _Replay:
    """Answers every call with what was recorded of its operation, as `change` leaves it; an unknown operation with nothing."""

    def __init__(self, replies: Mapping[str, list[dict[str, Any]]], change: _Change) -> None:
        self._replies = replies
        self._change = change
        self.calls: list[tuple[str, Any]] = []

    def __call__(self, model: Any, params: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
        known = self._replies.get(model.name) or [{}]
        reply = known[min(sum(1 for name, _ in self.calls if name == model.name), len(known) - 1)]
        self.calls.append((model.name, params))
        if len(self.calls) > 300:
            raise Wrong("it asks for ever")
        body = {key: value for key, value in reply.items() if key != "ResponseMetadata"}
        body = self._change(model.name, len(self.calls), body)
        whole = body if isinstance(body, dict) else {}
        return SimpleNamespace(status_code=200, headers={}), {
            "ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": {}},
            **whole,
        }


@cache
def _session_cloud() -> Cloud:
    """One cloud for all inputs: service models take long to read."""
    folder = emptied("aws-files")
    (folder / "config").write_text("[default]\nregion = us-east-1\n")
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAABCDEFGHIJKLMNOP\naws_secret_access_key = "
        + "s" * 40
        + "\n"
    )
    cloud = Cloud(config_file=folder / "config", credentials_file=folder / "credentials")
    cloud._open().register("before-call", _ask)
    return cloud


_replay: list[_Replay] = []


def _ask(model: Any, params: Any, **more: Any) -> Any:
    return _replay[-1](model, params, **more)


def _with(replies: Mapping[str, list[dict[str, Any]]], change: _Change) -> _Replay:
    _replay[:] = [_Replay(replies, change)]
    return _replay[0]


def _edits(choices: Choices, wanted: int) -> _Change:
    """Change every answer from one call on, for as long as there are choices."""

    def change(_: str, number: int, body: dict[str, Any]) -> Any:
        return edited(body, choices, odd=_ODD_SAID) if number >= wanted else body

    return change


def _replies(given: bytes) -> None:
    replies, now = _fullest_first()
    choices = Choices(given)
    read = choices.of(sorted(_readers(_session_cloud(), now, "i-0")))
    _with(replies, _edits(choices, 1 + choices.below(3)))
    found = _readers(_session_cloud(), now, _INSTANCE)[read]()
    json.dumps(found, default=repr)
    if read in ("instances", "instance", "many"):
        for one in found.mine if read == "instances" else found if read == "many" else (found,):
            if one.name and (set(one.name) & set("/\\\0\n") or one.name.startswith(".")):
                raise Wrong(f"an instance whose name would be a path: {one.name!r}")


def _launch(given: bytes) -> None:
    """A launch never asks twice with two tokens for one place, and ends in an instance, a refusal, or an open intent."""
    replies, now = recorded()
    choices = Choices(given)
    replay = _with(replies, _edits(choices, choices.below(40)))
    context = _context(emptied("launch"), lambda: now, _session_cloud())
    made = None
    try:
        steps = up.until_running(context, _wish(), confirm=lambda _: True)
        while True:
            next(steps)
    except StopIteration as end:
        made = end.value
    finally:
        launches = [params for name, params in replay.calls if name == "RunInstances"]
        tokens = {str(params["body"].get("ClientToken")) for params in launches}
        story = context.journal.read()
        if len(tokens) > 1 and made is None and not story.open_intents:
            raise Wrong("several launches, and none of them known")
        if story.torn_lines:
            raise Wrong("a journal that cannot be read")
        context.ledger.facts()


# One value of one answer, place by place: what `replies` only meets by chance.

_SPOILT: Mapping[str, Callable[[Any], Any]] = {
    "as it was": lambda value: value,
    "another type": lambda value: [1] if isinstance(value, str) else "x",
    "10 MB": lambda value: "x" * 10_000_000,
}


def place_inputs(chance: random.Random, *, each: int) -> list[bytes]:
    """Draw places of the answers that each reader asks for, and spoil each in every way; `missing` takes the value out."""
    replies, now = _fullest_first()
    made = []
    for name, read in sorted(_readers(_session_cloud(), now, _INSTANCE).items()):
        replay = _with(replies, lambda _, __, body: body)
        with suppress(GpulabError):
            read()
        asked = dict.fromkeys(operation for operation, _ in replay.calls if replies.get(operation))
        places = [(op, place) for op in asked for place in _places(replies[op][0])]
        for op, place in chance.sample(places, min(each, len(places))):
            made += [as_json([name, op, place, how]) for how in ("missing", *_SPOILT)]
    return made


def _places(value: Any) -> Iterator[list[Any]]:
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value[:2]) if isinstance(value, list) else parts
    for key, below in parts:
        if key != "ResponseMetadata":
            yield [key]
            yield from ([key, *place] for place in _places(below))


def _place(given: bytes) -> None:
    name, operation, place, how = json.loads(given)
    replies, now = _fullest_first()

    def change(called: str, _: int, body: dict[str, Any]) -> Any:
        if called != operation:
            return body
        whole = copy.deepcopy(body)
        parent: Any = whole
        for key in place[:-1]:
            parent = parent[key]
        if how == "missing":
            del parent[place[-1]]
        else:
            parent[place[-1]] = _SPOILT[how](parent[place[-1]])
        return whole

    _with(replies, change)
    found = _readers(_session_cloud(), now, _INSTANCE)[name]()
    json.dumps(found, default=repr)


_NAMED = (
    r"AWS's answer cannot be read \(\w+: .+\)",
    r"\b(i|ami|sg|subnet)-[0-9a-f]+",
    r"us-east-1",
)
# Not one of the fuzzer's: its inputs are made by `place_inputs`.
PLACES = Target("places", "aws", _place, (), exits=(1,), names=_NAMED)

TARGETS = (
    Target(
        "replies",
        "aws",
        _replies,
        (bytes([0, 0]), bytes([13, 0]), bytes([20, 0])),
        exits=(1,),
        names=_NAMED,
    ),
    Target(
        "launch",
        "aws",
        _launch,
        (bytes([39]), bytes([200])),
        exits=(
            1,
            3,
        ),
        names=_NAMED,
    ),
)
assert UTC
