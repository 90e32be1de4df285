"""What the dashboard reads of a class: one call a look, nobody waits for a machine that boots, a lost account is a line."""

from __future__ import annotations

import json

import pytest

from gpulab.dashboard.feed import Feed
from gpulab.dashboard.looking import ClassLook
from gpulab.fleets.accounts import Accounts
from gpulab.remote import hostkeys
from gpulab.remote.process import Completed
from gpulab.view.dashboard import Standing

STATUS = {
    "version": 1,
    "at": "2026-11-16T09:10:00Z",
    "phases": [],
    "deadline": None,
    "idle_minutes": 60,
    "spent_usd": "0.12",
    "gpu": [{"name": "T4", "use_percent": 42}],
}


class FakeHost:
    """An instance over ssh whose agent answers."""

    def __init__(self, target) -> None:
        self.target = target

    def run(self, command, **_) -> Completed:
        return Completed(0, json.dumps(STATUS).encode(), "")


@pytest.fixture
def klass(make_class):
    """Three students whose instances run; none has shown its host key yet."""
    made = make_class(3)
    made.up()
    return made


def a_look(klass, accounts: Accounts | None = None) -> ClassLook:
    wish = klass.wish()
    opened = accounts or klass.accounts(connect=FakeHost)
    return ClassLook(opened, wish.lab, wish.everyone, has_all=True, has_names=False)


def pin(klass, look: ClassLook) -> None:
    folder = look.accounts.account(look.seats[0].account).context.folder
    for n, found in enumerate(klass.sandbox.instances("running")):
        key = hostkeys.HostKey(bytes([n]) * 32)
        hostkeys.pin(folder.known_hosts, found["InstanceId"], [key])


def test_a_look_is_one_paginated_call_however_many_pages_are_open(klass, sandbox):
    """EC2's calls are the class's: twenty open pages must not take them."""
    look = a_look(klass)
    pin(klass, look)
    feed = Feed("c1 w1", now=sandbox.now, sleep=sandbox.advance)
    feed.look(look)
    calls = len(sandbox.calls)

    feed.look(look)
    shown = [feed.state() for _ in range(20)]

    assert ["DescribeInstances"] == klass.operations(since=calls)
    assert [3] * 20 == [len(state["tiles"]) for state in shown]


def test_it_shows_what_the_agents_say_and_what_it_costs(klass):
    """The words of `gpulab fleet watch`, and the ledger's dollars."""
    look = a_look(klass)
    pin(klass, look)

    last = list(look())[-1]

    assert [(Standing.UP, "GPU 42 %")] * 3 == [(t.standing, t.words) for t in last.tiles]
    assert last.gauges[0].spent_usd > 0


def test_what_ec2_says_is_shown_before_the_last_agent_has_answered(klass):
    """Three hundred silent machines take minutes to ask; who is up must be seen at once, as it was last heard of."""
    look = a_look(klass)
    pin(klass, look)
    first = [list(board.tiles) for board in look()]

    second = next(look())

    assert [Standing.STARTING, Standing.UP] == [tiles[0].standing for tiles in first]
    assert "GPU 42 %" == second.tiles[0].words


def test_a_machine_that_boots_holds_nobody_up(klass, sandbox):
    """Waiting for one host key takes up to ten minutes, in which the page would stand still."""
    look = a_look(klass)
    begun, calls = sandbox.now(), len(sandbox.calls)

    last = list(look())[-1]

    assert [(Standing.STARTING, "booting")] * 3 == [(t.standing, t.words) for t in last.tiles]
    assert 3 == klass.operations(since=calls).count("GetConsoleOutput")
    assert (sandbox.now() - begun).total_seconds() < 10


def test_an_instance_that_serves_nobody_is_in_trouble_and_takes_no_ones_words(klass, ec2):
    """It costs, and in a course account its name may be any student's."""
    look = a_look(klass)
    pin(klass, look)
    name = look.seats[0].name
    running = klass.sandbox.instances("running")
    other = next(i for i in running if {"Key": "gpulab:name", "Value": name} not in i["Tags"])
    ec2.create_tags(Resources=[other["InstanceId"]], Tags=[{"Key": "gpulab:name", "Value": name}])

    tiles = list(look())[-1].tiles

    extra = next(t for t in tiles if t.words == "nobody in the roster has it")
    assert (Standing.TROUBLE, 4, 4) == (extra.standing, len(tiles), len({t.key for t in tiles}))


def test_an_account_that_is_lost_midway_is_a_line_and_comes_back(klass, sandbox):
    """A session that expires during the lab must not end the page."""
    look = a_look(klass)
    pin(klass, look)
    feed = Feed("c1 w1", now=sandbox.now, sleep=sandbox.advance)
    feed.look(look)
    sandbox.refuse("DescribeInstances", "AuthFailure")

    feed.look(look)
    lost = feed.state()
    sandbox.faults.clear()
    feed.look(look)
    back = feed.state()

    assert ["unknown"] * 3 == [tile["standing"] for tile in lost["tiles"]]
    assert 1 == len(lost["notes"])
    assert lost["notes"][0].startswith("profile-default could not be read, which concerns 3: ")
    assert (["up"] * 3, []) == ([tile["standing"] for tile in back["tiles"]], back["notes"])
    assert back["log"][0]["text"].startswith("No longer: profile-default could not be read")


def test_a_damaged_ledger_hides_what_it_knows_and_nothing_else(klass):
    """Dollars may be unknown; who is up is not."""
    look = a_look(klass)
    pin(klass, look)
    folder = look.accounts.account(look.seats[0].account).context.folder
    folder.ledger.write_bytes(b"no ledger" * 200)

    last = list(look())[-1]

    assert [Standing.UP] * 3 == [t.standing for t in last.tiles]
    assert last.notes[0].startswith("what profile-default has cost is not known: ")
