"""Keeping a link up: what is tried again and when, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpulab.errors import GpulabError, HostKeyMismatch, LoginRefused, Unreachable
from gpulab.remote.supervisor import Gone, Pace, Supervisor, TunnelEvent, pause_s, slept_s
from gpulab.remote.target import SshTarget

TARGET = SshTarget(
    "i-0123456789abcdef0", "198.51.100.7", "ubuntu", Path("/k/id"), Path("/k/known_hosts")
)
ELSEWHERE = replace(TARGET, instance_id="i-0123456789abcdef1", address="198.51.100.8")
QUICK = Pace(
    ping=0.01,
    silence=0.08,
    wake=1e9,
    wake_silence=0.03,
    connect=1.0,
    first_pause=0.001,
    longest_pause=0.01,
    steady=0.0,
    refresh=0.0,
    knock=0.005,
)


class FakeLink:
    """A link that does what the test says."""

    def __init__(self, world: World, failure: GpulabError | None) -> None:
        self.endpoints = {8888: 40000 + len(world.links)}
        self.heard_at = world.now()
        self.is_silent = False
        self.is_closed = False
        self.end: asyncio.Future = asyncio.get_running_loop().create_future()
        self._world = world
        self._failure = failure

    async def ready(self):
        if self._failure:
            raise self._failure

    async def ended(self):
        return await asyncio.shield(self.end)

    async def ping(self):
        if not self.is_silent:
            self.heard_at = self._world.now()

    async def close(self):
        self.is_closed = True

    def die(self):
        self.end.set_result(Unreachable("the connection ended"))


class World:
    """Everything around a supervisor; records what it does."""

    def __init__(self, *failures: GpulabError, knocks: tuple[bool, ...] = ()) -> None:
        self.links: list[FakeLink] = []
        self.targets: list[SshTarget] = []
        self.upstream: list[int | None] = []
        self.pages: list[bytes | None] = []
        self.events: list[TunnelEvent] = []
        self.heard_at = 0.0
        self.knocked = 0
        self.jump = 0.0
        self._failures = list(failures)
        self._knocks = list(knocks)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def open_link(self, target, remote_ports):
        self.targets.append(target)
        self.links.append(FakeLink(self, self._failures.pop(0) if self._failures else None))
        return self.links[-1]

    async def knock(self, target):
        self.knocked += 1
        return self._knocks.pop(0) if self._knocks else True

    def connect(self, upstream):
        self.upstream.append(upstream[8888])

    def disconnect(self):
        self.upstream.append(None)

    def show(self, page):
        self.pages.append(page)

    def supervisor(self, **changes) -> Supervisor:
        arguments = {
            "on_event": self.events.append,
            "page_for": lambda gone: gone.reason.encode(),
            "pace": QUICK,
            "open_link": self.open_link,
            "knock": self.knock,
            "monotonic": self.now,
            "wall": lambda: self.now() + self.jump,
            "random_": lambda: 0.5,
        }
        return Supervisor(TARGET, [8888], self, **{**arguments, **changes})

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]


def run(world: World, story, **changes):
    """Run a supervisor while a story goes on around it; returns its result if it ended by itself."""

    async def main():
        keeping = asyncio.create_task(world.supervisor(**changes).run())
        telling = asyncio.create_task(story()) if story else None
        async with asyncio.timeout(30):
            await asyncio.wait({t for t in (keeping, telling) if t}, return_when="FIRST_COMPLETED")
            if telling and telling.done():
                telling.result()
        if keeping.done():
            return keeping.result()
        keeping.cancel()
        await asyncio.wait({keeping})
        return None

    return asyncio.run(main())


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("attempt", "chance", "seconds"),
    [(1, 0.0, 0.1), (1, 1.0, 0.05), (2, 0.0, 0.2), (6, 0.0, 3.2), (7, 0.0, 5.0), (999, 1.0, 2.5)],
)
def test_pauses_double_from_a_tenth_of_a_second_to_five(attempt, chance, seconds):
    """A killed ssh costs a blink; an instance that is gone is not hammered."""
    assert seconds == pytest.approx(pause_s(attempt, Pace(), chance=chance))


@pytest.mark.parametrize(
    ("wall", "monotonic", "seconds"),
    [
        (2.0, 2.0, 0.0),
        (9.0, 9.0, 0.0),
        (3602.0, 2.0, 3600.0),
        (3602.0, 3602.0, 3600.0),
        (-3600.0, 2.0, 0.0),
    ],
)
def test_sleep_is_told_from_a_slow_computer(wall, monotonic, seconds):
    """On Linux and macOS one clock stands still in sleep; on Windows both go on. A set-back clock is no sleep."""
    assert seconds == slept_s(wall=wall, monotonic=monotonic, expected=2.0, pace=Pace())


def test_a_dead_ssh_is_replaced_and_clients_are_told_first():
    """The front must stop using the old socket before the new ssh listens."""
    world = World()

    async def story():
        await until(lambda: world.upstream == [40000])
        world.links[0].die()
        await until(lambda: world.upstream == [40000, None, 40001])

    run(world, story)

    assert ["connected", "lost", "connected"] == world.kinds()
    assert world.links[0].is_closed
    assert world.links[1].is_closed
    assert 0 == world.knocked


def test_a_silent_link_is_given_up():
    """A frozen server and a black hole never close a connection; only silence shows them."""
    world = World()

    async def story():
        await until(lambda: world.upstream == [40000])
        world.links[0].is_silent = True
        await until(lambda: world.upstream == [40000, None, 40001])

    run(world, story)

    assert "no answer for 0.08 s" == world.events[1].detail
    assert 1 == world.knocked


def test_a_busy_link_is_not_taken_for_a_dead_one():
    """On a slow line an echo waits behind a download; its bytes are a sign of life as well."""
    world = World()

    async def story():
        await until(lambda: world.upstream == [40000])
        world.links[0].is_silent = True
        for _ in range(30):
            world.heard_at = world.now()
            await asyncio.sleep(0.005)

    run(world, story)

    assert ["connected"] == world.kinds()


def test_while_the_network_is_away_only_the_bare_connection_is_tried():
    """Ssh's own attempt would sleep through the moment when the network is back."""
    world = World(Unreachable("timed out"), knocks=(False, False, False, True))

    async def story():
        await until(lambda: world.upstream == [40001])

    run(world, story)

    assert 4 == world.knocked
    assert 2 == len(world.links)


def test_a_target_behind_a_proxy_is_not_knocked_at():
    """Its address means nothing to this computer."""
    world = World(Unreachable("timed out"))
    world.target = replace(TARGET, proxy_command=("nc", "%h", "%p"))

    async def story():
        await until(lambda: world.upstream == [40001])

    async def main():
        keeping = asyncio.create_task(
            Supervisor(
                world.target,
                [8888],
                world,
                pace=QUICK,
                open_link=world.open_link,
                knock=world.knock,
            ).run()
        )
        await story()
        keeping.cancel()
        await asyncio.wait({keeping})

    asyncio.run(main())

    assert 0 == world.knocked


@pytest.mark.parametrize("error", [HostKeyMismatch("not it"), LoginRefused("no")])
def test_what_waiting_cannot_mend_ends_it(error):
    """Trying a refused login again gets the address banned; a wrong host key is an alarm."""
    with pytest.raises(type(error)):
        run(World(error), None)


def test_a_strangers_key_at_an_address_that_moved_on_is_no_alarm():
    """AWS gives an interrupted instance's address to another customer within minutes."""
    world = World(HostKeyMismatch("not it"))

    async def story():
        await until(lambda: world.upstream == [40001])

    run(world, story, refresh=lambda target: ELSEWHERE)

    assert [TARGET, ELSEWHERE] == world.targets


def test_a_strangers_key_at_the_right_address_is_an_alarm():
    """If AWS says that the instance is still there, somebody stands in between."""
    with pytest.raises(HostKeyMismatch):
        run(World(HostKeyMismatch("not it")), None, refresh=lambda target: target)


def test_a_replaced_instance_is_followed():
    """After an interruption the same tab shows the new instance."""
    world = World(Unreachable("timed out"))

    async def story():
        await until(lambda: world.upstream == [40001])

    run(world, story, refresh=lambda target: ELSEWHERE)

    assert ELSEWHERE == world.targets[-1]
    assert ["waiting", "replaced", "connected"] == world.kinds()


def test_while_the_instance_is_gone_the_page_is_shown_and_ssh_left_alone():
    """The address may belong to somebody else now; nobody should knock there."""
    world = World(*[Unreachable("timed out")] * 3)
    answers = [Gone("AWS needed the capacity back")] * 4 + [ELSEWHERE]

    async def story():
        await until(lambda: world.upstream == [40000 + len(world.links) - 1])

    run(world, story, refresh=lambda target: answers.pop(0) if answers else None)

    assert [b"AWS needed the capacity back", None] == world.pages
    assert ELSEWHERE == world.targets[-1]
    assert 1 == world.kinds().count("gone")


def test_an_instance_that_nobody_will_replace_ends_the_tunnel():
    """After `gpulab stop` in another terminal the tunnel must not wait for ever."""
    world = World(*[Unreachable("timed out")] * 50)

    ended = run(world, None, refresh=lambda target: Gone("you stopped it", is_final=True))

    assert Gone("you stopped it", is_final=True) == ended


def test_not_knowing_where_the_instance_is_changes_nothing():
    """Without network AWS cannot be asked either; that is the usual case."""
    world = World(Unreachable("timed out"), Unreachable("timed out"))

    def refresh(target):
        raise GpulabError("could not reach AWS")

    async def story():
        await until(lambda: world.upstream == [40002])

    run(world, story, refresh=refresh)

    assert {TARGET} == set(world.targets)
    assert "could not reach AWS" in {event.detail for event in world.events}


def test_after_sleep_a_dead_link_is_replaced_without_the_full_wait():
    """The student opens the laptop and clicks; ten seconds of nothing is long."""
    world = World()
    pace = replace(QUICK, silence=1e9, wake=10.0)
    asked: list[SshTarget] = []

    async def story():
        await until(lambda: world.upstream == [40000])
        world.links[0].is_silent = True
        world.jump = 3600.0
        await until(lambda: world.upstream == [40000, None, 40001])

    run(world, story, pace=pace, refresh=lambda target: asked.append(target))

    assert "woke" in world.kinds()
    assert "no answer after the computer woke" in {event.detail for event in world.events}
    assert asked


def test_after_sleep_a_living_link_is_kept():
    """A nap of a minute keeps the kernels' connections; cutting them would lose output."""
    world = World()

    async def story():
        await until(lambda: world.upstream == [40000])
        world.jump = 3600.0
        await until(lambda: "woke" in world.kinds())
        await asyncio.sleep(0.1)

    run(world, story, pace=replace(QUICK, wake=10.0))

    assert ["connected", "woke"] == world.kinds()


def test_nothing_is_left_open_when_it_is_told_to_stop():
    """An ssh that outlives gpulab keeps a port and a login."""
    world = World()

    async def story():
        await until(lambda: world.upstream == [40000])

    run(world, story)

    assert world.links[0].is_closed
    assert world.upstream[-1] is None
