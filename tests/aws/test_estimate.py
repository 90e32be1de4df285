"""The ledger's estimate against the simulated AWS's own bill: two computations that share no code, over a random month and more."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gpulab.aws.history import history_of
from gpulab.aws.session import Cloud
from gpulab.cli.main import run
from gpulab.model import instance as tags
from gpulab.model.fact import Fact, FactKind, ended, launched, started, usage
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import spent_between
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger

REGION = "us-east-1"
BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


class Laptop:
    """What `gpulab` on a student's computer writes down while it works, and what it reads again afterwards."""

    def __init__(self, sandbox: Any, ec2: Any, a_launch: Callable[..., dict[str, Any]]) -> None:
        self._sandbox, self._ec2, self._a_launch = sandbox, ec2, a_launch
        self.cloud = Cloud()
        self.facts: list[Fact] = []
        self.unknown: list[str] = []

    def launch(self, owner: str, market: Market, *, more: dict[str, str] | None = None) -> str:
        pairs = {tags.TAG_OWNER: owner, tags.TAG_LAUNCH: f"l-{len(self.facts)}", **(more or {})}
        said = [{"Key": key, "Value": value} for key, value in pairs.items()]
        kinds = ["instance", "volume"]
        options = {"MarketType": "spot"} if market is Market.SPOT else None
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 60, "VolumeType": "gp3", "DeleteOnTermination": True}}  # fmt: skip
        reply = self._ec2.run_instances(
            **self._a_launch(
                InstanceMarketOptions=options,
                BlockDeviceMappings=[disk],
                TagSpecifications=[{"ResourceType": kind, "Tags": said} for kind in kinds],
            )
        )["Instances"][0]
        self.facts.append(
            launched(
                reply["InstanceId"],
                at=reply["LaunchTime"],
                zone=reply["Placement"]["AvailabilityZone"],
                instance_type=reply["InstanceType"],
                market=market,
                usd_per_hour=None,
                owner=owner,
            )
        )
        self._sandbox.advance(10)
        self.facts.append(
            started(reply["InstanceId"], at=self._sandbox.now() - timedelta(seconds=2))
        )
        self.look()
        return str(reply["InstanceId"])

    def look(self) -> None:
        """Complete the books from the account, as `gpulab ledger rebuild` does."""
        found = history_of(self.cloud, REGION, owner="", now=self._sandbox.now())
        self.facts += found.facts
        self.unknown += found.unknown


@pytest.fixture
def laptop(sandbox, ec2, a_launch) -> Laptop:
    for code in ("L-3819A6DF", "L-DB2E81BA"):
        sandbox.set_quota(code, REGION, 64)
    return Laptop(sandbox, ec2, a_launch)


def test_every_students_estimate_is_within_a_tenth_of_a_percent_of_the_bill(monkeypatch):
    """Interruptions, price moves, stops and starts, a month's end: what the report says is what AWS takes. The term's benchmark, made small."""
    monkeypatch.syspath_prepend(str(BENCH))
    estimate = importlib.import_module("estimate")

    found = estimate.play(students=5, weeks=3)

    assert 5 == len(found.theirs)
    assert {} == {owner: share for owner, share in found.apart.items() if share > estimate.LIMIT}
    rare = ("interruptions", "restarts", "lines over a month's end")
    assert [] == [what for what in rare if not found.happened[what]]


def test_an_interruption_in_the_first_hour_is_known_as_aws_doing(sandbox, laptop):
    """It is the difference between free and paid, and only AWS knows who it was."""
    instance = laptop.launch("s1", Market.SPOT)
    sandbox.advance(1200)
    sandbox.interrupt(instance)
    sandbox.advance(150)

    laptop.look()

    found = [f for f in laptop.facts if f.kind is FactKind.ENDED]
    assert ["aws"] == [f.details["by"] for f in found]
    assert ["Server.SpotInstanceTermination"] == [f.details["reason"] for f in found]


def test_what_the_account_cannot_tell_is_said(sandbox, ec2, laptop):
    """After a lost laptop the ledger is as good as AWS's memory, and the gaps have names."""
    instance = laptop.launch("s1", Market.SPOT)
    sandbox.advance(120)
    ec2.terminate_instances(InstanceIds=[instance])
    sandbox.advance(40)

    found = history_of(laptop.cloud, REGION, owner="", now=sandbox.now())

    assert (f"{instance}: its disk is gone, and with it what it cost",) == found.unknown


def test_a_new_computer_knows_what_the_disk_of_an_ended_instance_cost(sandbox, ec2, laptop):
    """EC2 forgets a disk with its instance; the instance's own tag tells its size, and a disk that was known by its id is not charged twice."""
    instance = laptop.launch("s1", Market.ON_DEMAND, more={tags.TAG_DISK: "60"})
    sandbox.advance(3 * 3600)
    ec2.terminate_instances(InstanceIds=[instance])
    sandbox.advance(40)
    now = sandbox.now()

    found = history_of(laptop.cloud, REGION, owner="", now=now)

    billed = sandbox.bill().total_usd
    for facts in (found.facts, [*laptop.facts, *found.facts]):
        timeline = timeline_of(facts).timeline
        assert 1 == len(timeline.volumes)
        assert abs(spent_between(timeline, None, now) - billed) < Decimal("0.001") * billed
    assert () == found.unknown


@pytest.mark.parametrize("said", ["", "0", "-60", "6e1", "sixty", "9999999"])
def test_a_disks_tag_that_somebody_has_changed_is_no_size(sandbox, ec2, laptop, said):
    """Whoever may tag can write anything there; a size that cannot be is said to be unknown, not charged."""
    instance = laptop.launch("s1", Market.SPOT, more={tags.TAG_DISK: said})
    sandbox.advance(120)
    ec2.terminate_instances(InstanceIds=[instance])
    sandbox.advance(40)

    found = history_of(laptop.cloud, REGION, owner="", now=sandbox.now())

    assert (f"{instance}: its disk is gone, and with it what it cost",) == found.unknown
    assert [] == [one for one in found.facts if one.kind is FactKind.VOLUME]


def test_an_end_so_soon_that_nothing_may_have_run_is_said(sandbox, ec2, laptop):
    """AWS charges a minute for what ran and nothing for what did not, and afterwards shows both alike."""
    instance = laptop.launch("s1", Market.SPOT, more={tags.TAG_DISK: "60"})
    ec2.terminate_instances(InstanceIds=[instance])
    sandbox.advance(40)

    found = history_of(laptop.cloud, REGION, owner="", now=sandbox.now())

    said = "ended within a minute of its launch; it is charged for one, and cost nothing if it never ran"
    assert (f"{instance} {said}",) == found.unknown


def test_looking_twice_adds_nothing(sandbox, laptop):
    """The command is repeatable: the same account gives the same facts, to the digest."""
    laptop.launch("s1", Market.SPOT)
    now = sandbox.now()

    first, second = (
        {fact.digest for fact in history_of(laptop.cloud, REGION, owner="", now=now).facts}
        for _ in range(2)
    )

    assert first == second
    assert len(first) >= 3


def test_an_end_the_laptop_saw_first_is_corrected_by_aws(sandbox, ec2, laptop):
    """The laptop's clock and its slowness do not end up in the bill."""
    instance = laptop.launch("s1", Market.SPOT)
    sandbox.advance(5000)
    ec2.terminate_instances(InstanceIds=[instance])
    at = sandbox.now()
    late = at + timedelta(minutes=30)
    laptop.facts.append(ended(instance, at=late, by=EndedBy.USER))

    sandbox.advance(40)
    laptop.look()

    life = timeline_of(laptop.facts).timeline.instances[0]
    assert at.replace(microsecond=0).astimezone(UTC) == life.runs[0].ends_at
    assert isinstance(life.runs[0].ends_at, datetime)


def test_a_shared_account_gives_each_student_only_the_own_instances(sandbox, laptop):
    """Three hundred students in one account: nobody pays for the neighbour in the own books."""
    mine, theirs = laptop.launch("s1", Market.SPOT), laptop.launch("s2", Market.SPOT)

    subjects = [
        {
            f.subject
            for f in history_of(laptop.cloud, REGION, owner=owner, now=sandbox.now()).facts
            if f.kind is FactKind.LAUNCHED
        }
        for owner in ("s1", "")
    ]

    assert [{mine}, {mine, theirs}] == subjects


def test_a_lost_laptop_gets_its_ledger_back(sandbox, laptop, tmp_path, monkeypatch, capsys):
    """A new computer, the account's memory and what the instance left beside the kept work: the trail goes on."""
    instance = laptop.launch("me", Market.SPOT)
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "new"))
    folder = Home(tmp_path / "new").folder("default")
    left = folder.work / "week4" / ".gpulab" / "ledger" / f"{instance}.jsonl"
    left.parent.mkdir(parents=True)
    spent = usage(instance, at=sandbox.now(), seconds=600, idle_seconds=60)
    left.write_text(f"{spent.line()}\n")
    left.with_name("broken.jsonl").write_text("{half")

    codes = [run(["ledger", "rebuild", "--region", REGION]) for _ in range(2)]

    said = capsys.readouterr().err.splitlines()
    facts = Ledger(folder.ledger).facts()
    assert [0, 0] == codes
    assert said[0].endswith(f" facts found, {len(facts)} new")
    assert said[1].startswith("not known: broken.jsonl: line 1 is not a fact: ")
    assert said[2].endswith(" facts found, 0 new")
    assert spent in facts
    assert [instance] == [f.subject for f in facts if f.kind is FactKind.LAUNCHED]


def test_an_instance_that_ended_behind_our_back_is_not_charged_for_ever(sandbox, ec2, laptop, tmp_path, monkeypatch, capsys):  # fmt: skip
    """A lid closed over a lab: the next morning's balance must not count the whole night."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    folder = Home(tmp_path / "home").folder("default")
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=20)
    gone = launched(
        "i-0gone",
        at=begin,
        zone="us-east-1a",
        instance_type="g4dn.xlarge",
        market=Market.ON_DEMAND,
        usd_per_hour=Decimal("0.526"),
        expires_at=begin + timedelta(hours=4),
    )
    Ledger(folder.ledger).append([gone])

    run(["credit", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert ("2.1040000000", 0) == (document["ledger_total_usd"], document["running_instances"])
    assert ["gone; its end is not known, its planned end is taken"] == [
        f.details["reason"] for f in Ledger(folder.ledger).facts(FactKind.ENDED)
    ]
