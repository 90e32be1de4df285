"""A laptop is lost, and with it its ledger: what the instances wrote of their own costs restores it, to the bill, and doubles nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest

from gpulab.launch.events import WaitingFor
from gpulab.launch.money import asked_ends
from gpulab.launch.money.balance import read_balance
from gpulab.launch.money.rebuilding import Rebuilt, rebuild, refresh
from gpulab.launch.running import instances, keep, stop
from gpulab.launch.upkeep.prepare import prepare
from gpulab.model.fact import FactKind, Source
from gpulab.model.fact import launched as fact_launched
from gpulab.model.market import Market
from gpulab.reporting.report import Question, report_of
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import ManualClock
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import spent_between

from .conftest import Run, Student

SCRIPTS = Path(__file__).parents[3] / "scripts"
#: In the past: files are compared with this computer's clock, which must not be behind them.
MONDAY = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
REGION = "us-east-1"
PLACE: dict[str, Any] = {
    "zone": f"{REGION}a",
    "instance_type": "g4dn.xlarge",
    "market": Market.SPOT,
    "usd_per_hour": Decimal("0.2"),
    "on_demand_usd_per_hour": Decimal("0.526"),
}
SPOT_PRICES = ("0.19", "0.23", "0.21")


class School:
    """A student's account with a bucket, machines that run the agent's own code, and as many laptops as it takes."""

    def __init__(self, world: Sandbox, machines: Any, folder: Path) -> None:
        self.world, self.machines, self.folder = world, machines, folder
        self.clockwork = machines.clockwork
        made = prepare(Student(world, folder / "setup").context)
        self._profile = {
            "owner": made.owner,
            "keep_bucket": made.keep_bucket,
            "instance_role": made.instance_role,
        }

    def laptop(self, name: str) -> Student:
        """A computer with an empty folder."""
        student = Student(self.world, self.folder / name, name, **self._profile)
        student.context = replace(
            student.context, sleep=self.clockwork.sleep, connect=self.machines.host
        )
        return student

    def play(self, work: Callable[[], Any], *, minutes: float) -> Any:
        """Let somebody do something, and so much time pass."""
        done: list[Any] = []
        self.clockwork.begin(self.world.now(), lambda: done.append(work()))
        self.clockwork.run(self.world.now() + timedelta(minutes=minutes))
        assert [] == self.clockwork.tracebacks
        return done[0]

    def wait(self, *, hours: float) -> None:
        """Let time pass; the spot price moves."""
        for usd in SPOT_PRICES:
            for zone in "abcdf":
                self.world.set_price("g4dn.xlarge", f"{REGION}{zone}", usd)
            self.clockwork.run(self.world.now() + timedelta(hours=hours / len(SPOT_PRICES)))
        assert [] == self.clockwork.tracebacks

    def launch(self, laptop: Student, **wish: Any) -> Any:
        """Launch, and work on the instance for a while."""
        run: Run = self.play(lambda: laptop.up(**wish), minutes=10)
        assert run.error is None
        machine = self.machines.by_id[run.instance.id]
        self.play(lambda: machine.write("week4.ipynb", b"{}"), minutes=5)
        return machine

    def rebuilt(self, laptop: Student) -> Rebuilt:
        """Run `gpulab ledger rebuild`."""
        return rebuild(laptop.context, (REGION,))

    def estimate(self, laptop: Student) -> Decimal:
        """Return what the laptop's ledger comes to; its report and its balance must say the same."""
        reading, now = timeline_of(laptop.context.ledger.facts()), self.world.now()
        usd = spent_between(reading.timeline, None, now)
        balance = read_balance(laptop.context, is_ledger_enough=True)
        assert usd == spent_between(balance.ledger.timeline, None, now)
        assert abs(usd - report_of(reading, Question(now=now)).total.usd) < Decimal("1e-9")
        return usd

    def billed(self) -> Decimal:
        """Return what the simulated AWS has billed for it all."""
        return self.world.bill().total_usd


@pytest.fixture
def school(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[School]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from soaking.clockwork import Clockwork
    from soaking.machines import Machines

    machines = Machines(tmp_path / "machines", "a lost laptop")
    with Sandbox(clock=ManualClock(MONDAY), machines=machines) as world:
        machines.clockwork = Clockwork(world)
        for code in ("L-3819A6DF", "L-DB2E81BA"):
            world.set_quota(code, REGION, 64)
        with machines.clockwork.botocore_waits_here():
            yield School(world, machines, tmp_path)
    sys.modules.pop("soaking_agent", None)


@pytest.mark.parametrize(
    ("market", "most_apart"), [(Market.SPOT, "0.001"), (Market.ON_DEMAND, "0.005")]
)
def test_a_new_laptop_counts_what_the_lost_one_spent(school, market, most_apart):
    """EC2 forgot the instance an hour after its end; only the instance itself still tells what it was and how long it ran."""
    lost = school.laptop("lost")
    machine = school.launch(lost, markets=(market,), idle_minutes=0)
    school.wait(hours=6)
    assert machine.is_off

    found = school.laptop("found")
    school.rebuilt(found)

    billed = school.billed()
    assert billed > Decimal("0.80")
    assert abs(school.estimate(found) - billed) < Decimal(most_apart) * billed


def test_both_laptops_together_count_once(school):
    """The old laptop is found again, or two are used in turn: what both know is one life, one disk, one address."""
    lost = school.laptop("lost")
    school.launch(lost)
    school.wait(hours=5)
    found = school.laptop("found")
    school.rebuilt(found)
    school.rebuilt(lost)
    alone = school.estimate(lost)

    found.context.ledger.append(lost.context.ledger.facts())
    again = school.rebuilt(found)

    timeline = timeline_of(found.context.ledger.facts()).timeline
    assert (1, 1, 0) == (len(timeline.instances), len(timeline.volumes), again.new)
    assert alone == school.estimate(found)
    assert abs(alone - school.billed()) < Decimal("0.001") * school.billed()


def test_the_instance_tells_what_the_laptop_wrote(school):
    """Type, place, prices, disk and planned end in the same words; only who says so differs."""
    laptop = school.laptop("one")
    machine = school.launch(laptop)
    written = {f.kind: f for f in laptop.context.ledger.facts()}

    school.rebuilt(laptop)

    told = {f.kind: f for f in laptop.context.ledger.facts() if f.source is Source.AGENT}
    for kind in (FactKind.LAUNCHED, FactKind.ADDRESS, FactKind.VOLUME):
        assert (written[kind].at, written[kind].details) == (told[kind].at, told[kind].details)
    assert f"{machine.birth.instance_id}/root" == told[FactKind.VOLUME].subject


@pytest.mark.parametrize("minutes", [3, 42])
def test_a_cut_without_a_word_is_charged_to_its_last_one(school, minutes):
    """Its plan was ten hours, the power went: the last word of its agent says more than the plan, and the rest is said to be unknown."""
    laptop = school.laptop("lost")
    machine = school.launch(laptop, markets=(Market.ON_DEMAND,), duration=timedelta(hours=10))
    school.clockwork.run(school.world.now() + timedelta(minutes=minutes))
    machine.cut()
    school.wait(hours=12)

    found = school.laptop("found")
    rebuilt = school.rebuilt(found)

    over = school.estimate(found) - school.billed()
    assert Decimal(0) <= over < Decimal("0.55") * 16 / 60
    assert [True] == ["its agent was heard last at 20" in text for text in rebuilt.unknown]


def test_a_cut_while_the_bucket_refused_is_not_charged_too_little(school):
    """Two words were lost in an outage, and then the power went: it cannot have ended when the first of them was due."""
    laptop = school.laptop("lost")
    machine = school.launch(laptop, markets=(Market.ON_DEMAND,), duration=timedelta(hours=10))
    _run_until(school, "ok")
    school.world.refuse("PutObject", "SlowDown")
    _run_until(school, "SlowDown")
    school.clockwork.run(school.world.now() + timedelta(minutes=9, seconds=30))
    machine.cut()
    school.world.faults.clear()
    school.wait(hours=12)

    found = school.laptop("found")
    school.rebuilt(found)

    assert Decimal(0) <= school.estimate(found) - school.billed() < Decimal("0.55") * 16 / 60


def _run_until(school: School, outcome: str) -> None:
    """Let time pass until an instance has told its costs, or has tried."""
    begun = len(school.world.calls)
    while not any(
        (call.operation, call.outcome) == ("PutObject", outcome)
        for call in list(school.world.calls)[begun:]
    ):
        school.clockwork.run(school.world.now() + timedelta(seconds=10))


def test_after_a_term_the_prices_are_forgotten_too_and_it_is_said(school):
    """AWS keeps spot prices for 90 days; then the price of the launch is the best there is, and a student must know that it is that."""
    lost = school.laptop("lost")
    machine = school.launch(lost)
    school.wait(hours=24 * 100)

    found = school.laptop("found")
    rebuilt = school.rebuilt(found)

    said = "AWS has forgotten the spot prices of its time; the one of its launch is taken"
    assert (f"{machine.birth.instance_id}: {said}",) == rebuilt.unknown
    assert abs(school.estimate(found) - school.billed()) < Decimal("0.2") * school.billed()
    assert () == school.rebuilt(lost).unknown


def test_a_region_that_was_not_asked_is_named(school):
    """A student who worked in another region for a week must hear why the sum is too low."""
    laptop = school.laptop("one")
    machine = school.launch(laptop)
    school.wait(hours=5)

    rebuilt = rebuild(school.laptop("found").context, ("eu-west-1",))

    zone = machine.birth.zone
    assert f"{machine.birth.instance_id} ran in {zone}, whose region was not asked" in (
        rebuilt.unknown
    )


def test_a_guess_gives_way_when_the_agent_is_heard(school):
    """`gpulab credit` closed it at its planned end, since it could not read the bucket; the rebuild finds the better word."""
    laptop = school.laptop("one")
    machine = school.launch(laptop, markets=(Market.ON_DEMAND,), duration=timedelta(hours=10))
    machine.cut()
    school.wait(hours=12)
    school.world.refuse("GetObject", "AccessDenied", status=403)
    refresh(laptop.context, at_once=True)
    guessed = school.estimate(laptop)
    school.world.faults.clear()

    school.rebuilt(laptop)

    assert guessed > 10 * school.estimate(laptop)
    assert school.estimate(laptop) < school.billed() + Decimal("0.55") * 16 / 60


@pytest.mark.parametrize(
    ("market", "most_apart"), [(Market.SPOT, "0.004"), (Market.ON_DEMAND, "0.005")]
)
def test_the_balance_asks_an_instance_that_aws_has_forgotten(school, market, most_apart):
    """Nobody runs `ledger rebuild` because of a lid that was closed; `gpulab ls` and `gpulab credit` find the end by themselves."""
    laptop = school.laptop("one")
    school.launch(laptop, markets=(market,), duration=timedelta(hours=10))
    school.wait(hours=12)
    before = len(school.world.calls)

    refresh(laptop.context, at_once=True)

    ends = laptop.context.ledger.facts(FactKind.ENDED)
    asked = [call.operation for call in list(school.world.calls)[before:]]
    assert [("agent", "idle")] == [(f.source, f.details["reason"]) for f in ends]
    assert 1 == asked.count("GetObject")
    billed = school.billed()
    assert abs(school.estimate(laptop) - billed) < Decimal(most_apart) * billed


def test_a_teacher_rebuilds_what_everybody_spent(school):
    """One account, many students and a course: each dollar with the name it was spent under, and nobody in another's name."""
    laptop = school.laptop("one")
    machine = school.launch(laptop)
    school.wait(hours=5)
    owner, bucket = laptop.context.owner, laptop.context.profile.keep_bucket
    s3, id_ = boto3.client("s3"), machine.birth.instance_id
    told = s3.get_object(Bucket=bucket, Key=f"{owner}/.ledger/{id_}.jsonl")["Body"].read().decode()
    row = {"name": f"w1-{owner}", "instance": "i-0seat", "at": MONDAY.isoformat(), "prefix": ""}
    seats = json.dumps({"version": 1, "lab": "w1", "seats": [row]}).encode()
    s3.put_object(Bucket=bucket, Key="course-c1/.seats/w1/1.json", Body=seats)
    told_places = (
        ("course-c1/AROA1:i-0seat", "i-0seat"),
        ("course-c1/AROA1:i-0made", "i-0made"),
        ("0ther", "i-0thief"),
    )
    for place, instance in told_places:
        body = told.replace(id_, instance).encode()
        s3.put_object(Bucket=bucket, Key=f"{place}/.ledger/{instance}.jsonl", Body=body)

    teacher = school.laptop("teacher")
    teacher.context = replace(
        teacher.context, profile=replace(teacher.context.profile, owner="0teacher00")
    )
    rebuilt = rebuild(teacher.context, (REGION,), of_everyone=True)

    reading = timeline_of(teacher.context.ledger.facts())
    assert {(id_, owner), ("i-0seat", owner)} == {
        (one.instance_id, one.owner) for one in reading.launches.values()
    }
    assert {
        "i-0made.jsonl: nobody has written down whose instance it was; it is left out",
        "i-0thief.jsonl: 2 facts are not of this instance, or cannot be; they are left out",
    } == set(rebuilt.unknown)


def test_a_stop_that_was_killed_is_charged_to_its_moment(school):
    """AWS ended it and has forgotten it since; the laptop was killed before it wrote the end down, but it knows when it asked."""
    laptop = school.laptop("one")
    machine = school.launch(laptop, markets=(Market.ON_DEMAND,), duration=timedelta(hours=10))
    there = instances.find(laptop.context, "week4")
    assert there is not None

    def killed_once_aws_has_taken_it() -> None:
        events = stop.stop(laptop.context, there)
        while not isinstance(next(events), WaitingFor):
            pass
        events.close()

    school.play(killed_once_aws_has_taken_it, minutes=10)
    school.wait(hours=12)
    assert machine.is_off

    rebuilt = school.rebuilt(laptop)

    assert [True] == ["was heard no more" in text for text in rebuilt.unknown]
    assert abs(school.estimate(laptop) - school.billed()) < Decimal("0.01") * school.billed()


def test_a_stop_that_never_reached_aws_makes_no_estimate_too_low(school):
    """The note was written and the laptop killed before the call: the instance went on for an hour, and told so, until the power went."""
    laptop = school.laptop("one")
    machine = school.launch(laptop, markets=(Market.ON_DEMAND,), duration=timedelta(hours=10))
    asked_ends.note(laptop.context, machine.birth.instance_id)
    school.clockwork.run(school.world.now() + timedelta(hours=1))
    machine.cut()
    school.wait(hours=12)

    school.rebuilt(laptop)

    assert Decimal(0) <= school.estimate(laptop) - school.billed() < Decimal("0.55") * 16 / 60


def test_a_stop_leaves_its_usage_to_every_laptop(school):
    """What `gpulab stop` knows of idle hours is in the report of any computer, not only in that of the one that stopped it."""
    lost = school.laptop("lost")
    school.launch(lost)
    instance = next(iter(lost.context.journal.read().made)).instance_id
    there = instances.find(lost.context, "week4")
    assert there is not None
    school.play(lambda: list(stop.stop(lost.context, there)), minutes=10)
    school.wait(hours=6)

    found = school.laptop("found")
    school.rebuilt(found)

    spans = timeline_of(found.context.ledger.facts()).usage
    assert [instance] == [span.instance_id for span in spans]
    assert spans[0].seconds > 8 * 60


def test_the_money_trail_outlives_the_work(school):
    """Whoever deletes last term's work has still spent last term's money."""
    lost = school.laptop("lost")
    school.launch(lost)
    school.wait(hours=5)
    work = keep.find(lost.context, "week4")
    keep.forget(lost.context, work)

    found = school.laptop("found")
    school.rebuilt(found)

    assert abs(school.estimate(found) - school.billed()) < Decimal("0.001") * school.billed()


def test_what_an_instance_says_of_others_is_left_out(school):
    """Whoever works on an instance can write into its part of the bucket: it may lie about itself only, and not about time to come."""
    laptop = school.laptop("one")
    machine = school.launch(laptop)
    id_, owner = machine.birth.instance_id, laptop.context.owner
    s3, bucket = boto3.client("s3"), laptop.context.profile.keep_bucket
    lines = [
        '{"kind":"ended","subject":"i-0other","at":"2026-05-04T12:05:00Z","source":"agent","details":{}}',
        f'{{"kind":"ended","subject":"{id_}","at":"2026-05-04T12:05:00Z","source":"aws","details":{{}}}}',
        f'{{"kind":"credit","subject":"{id_}","at":"2026-05-04T12:05:00Z","source":"agent","details":{{}}}}',
        f'{{"kind":"usage","subject":"{id_}","at":"2026-05-04T12:05:00Z","source":"agent","details":{{"seconds":"999999","idle_seconds":"0"}}}}',
        '{"half',
    ]
    body = "\n".join(lines).encode()
    s3.put_object(Bucket=bucket, Key=f"{owner}/.ledger/{id_}.jsonl", Body=body)
    s3.put_object(Bucket=bucket, Key=f"{owner}/.ledger/i-0large.jsonl", Body=b"x\n" * 2**20)
    s3.put_object(Bucket=bucket, Key=f"{owner}/.ledger/i-0none.jsonl", Body=b"")

    rebuilt = school.rebuilt(laptop)

    facts = laptop.context.ledger.facts()
    kinds = (FactKind.ENDED, FactKind.USAGE, FactKind.CREDIT)
    assert [] == [f for f in facts if f.kind in kinds and f.subject in (id_, "i-0other")]
    assert {
        f"{id_}.jsonl: line 5 is not a fact: Unterminated string starting at: line 1 column 2 (char 1)",
        f"{id_}.jsonl: 4 facts are not of this instance, or cannot be; they are left out",
        "i-0large.jsonl: line 1 is not a fact: Expecting value: line 1 column 1 (char 0); the rest is not read",
        f"i-0none.jsonl: could not read {owner}/.ledger/i-0none.jsonl in {bucket}: AWS does not accept a value (InvalidRange)",
    } == set(rebuilt.unknown)


def test_another_s_instance_in_fetched_work_is_not_believed(school):
    """A teacher's computer has everybody's work: a file that is named after a neighbour's instance would end it in the books."""
    laptop = school.laptop("one")
    machine = school.launch(laptop)
    id_ = machine.birth.instance_id
    line = f'{{"kind":"ended","subject":"{id_}","at":"2026-05-04T12:05:00Z","source":"agent","details":{{}}}}'
    forged = laptop.context.folder.work / "neighbour" / ".gpulab" / "ledger" / f"{id_}.jsonl"
    forged.parent.mkdir(parents=True)
    forged.write_text(line + "\n")

    rebuilt = school.rebuilt(laptop)

    assert [] == [f for f in laptop.context.ledger.facts(FactKind.ENDED) if f.subject == id_]
    assert f"{id_}.jsonl in the work of neighbour is not its own; it is left out" in rebuilt.unknown


def test_a_folder_where_a_file_is_expected_hides_nobody_else(school):
    """Whoever has a folder made in their work must not silence what everybody's instances wrote into the bucket."""
    lost = school.laptop("lost")
    machine = school.launch(lost)
    school.wait(hours=5)
    found = school.laptop("found")
    ledger = found.context.folder.work / "a" / ".gpulab" / "ledger"
    (ledger / "a.jsonl").mkdir(parents=True)
    (ledger / "b.jsonl").symlink_to("/dev/zero")

    rebuilt = school.rebuilt(found)

    launched = found.context.ledger.facts(FactKind.LAUNCHED)
    assert [machine.birth.instance_id] == [one.subject for one in launched]
    assert {
        f"{name} in the work of a is no file; it is left out" for name in ("a.jsonl", "b.jsonl")
    } == set(rebuilt.unknown)


def test_an_invented_instance_in_a_class_s_fetched_work_is_not_believed(school):
    """A student's work that came home to the teacher holds a file of an id that nobody knows: it would be a charge from nowhere."""
    laptop = school.laptop("one")
    launched = laptop.context.ledger
    launched.append(
        [fact_launched("i-0hers", at=MONDAY, name="w1-neighbour", owner="neighbour", **PLACE)]
    )
    line = fact_launched("i-0made", at=MONDAY, owner="", source=Source.AGENT, **PLACE).line()
    forged = laptop.context.folder.work / "w1-neighbour" / ".gpulab" / "ledger" / "i-0made.jsonl"
    forged.parent.mkdir(parents=True)
    forged.write_text(line + "\n")

    rebuilt = school.rebuilt(laptop)

    assert {"i-0hers"} == {one.subject for one in launched.facts(FactKind.LAUNCHED)}
    said = "i-0made.jsonl in the work of w1-neighbour is not its own; it is left out"
    assert said in rebuilt.unknown


def test_a_thousand_places_told_by_one_instance_are_not_asked_for(school):
    """A mebibyte of lines is thousands of zones and types, and a call for each would take the teacher's evening."""
    lost = school.laptop("lost")
    owner, bucket = lost.context.owner, lost.context.profile.keep_bucket
    kinds = {"i-0many": [f"g{n}.large" for n in range(20)], "i-0real": ["g4dn.xlarge", "g5.xlarge"]}
    for instance, types in kinds.items():
        told = [
            fact_launched(
                instance,
                at=MONDAY - timedelta(hours=number),
                owner=owner,
                source=Source.AGENT,
                **(PLACE | {"instance_type": kind}),
            ).line()
            for number, kind in enumerate(types)
        ]
        key, body = f"{owner}/.ledger/{instance}.jsonl", "\n".join(told).encode()
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body)
    found = school.laptop("found")
    before = len(school.world.calls)

    rebuilt = school.rebuilt(found)

    operations = [call.operation for call in list(school.world.calls)[before:]]
    # Once for what it told, once because it is gone.
    assert 2 == operations.count("DescribeSpotPriceHistory")
    said = "i-0many: its spot prices are not asked for, it is of no known type"
    assert [said] == [text for text in rebuilt.unknown if "type" in text]
