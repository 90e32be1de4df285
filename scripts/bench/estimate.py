"""
The ledger's estimate against the simulated AWS's own bill over a simulated term, student by student.

    python scripts/bench/estimate.py [--students 300] [--weeks 13] [--runs 1]

Every student runs so many times a week: spot and on demand, by day and overnight, ended by the student or by AWS, some stopped and started
again, while prices move and months end. The books are kept as gpulab keeps them, with its own pauses between two looks, seconds late like
any laptop; what AWS ends by itself is read from the account.
Exits 1 when any student is more than 0.1 % apart.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import boto3

from gpulab.aws.history import history_of
from gpulab.aws.session import Cloud
from gpulab.model import instance as tags
from gpulab.model.fact import Fact, ended, launched, started, volume_deleted
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.sandbox import Sandbox
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of

REGION = "us-east-1"
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
LIMIT = Decimal("0.001")
_GROUP = 20


@dataclass(frozen=True)
class Launched:
    """An instance as whoever launched it knows it."""

    id: str
    market: Market
    disk: str


class Term:
    """One simulated account, and the books of everybody in it."""

    def __init__(self, sandbox: Sandbox, seed: int) -> None:
        self.sandbox = sandbox
        self.facts: dict[str, Fact] = {}
        self.happened: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._cloud, self._ec2 = Cloud(), boto3.client("ec2")
        self._image = boto3.client("ssm").get_parameter(Name=_UBUNTU)["Parameter"]["Value"]
        self._monday = sandbox.now()
        self._groups = 0
        for code in ("L-3819A6DF", "L-DB2E81BA"):
            sandbox.set_quota(code, REGION, 100_000)

    def week(self, students: int, runs: int) -> None:
        """Let everybody run; the runs of a week overlap in groups of twenty, as in a lab, and every third group trains overnight."""
        owners = [f"s{n:03}" for n in range(students) for _ in range(runs)]
        for begin in range(0, len(owners), _GROUP):
            group = [self._launch(owner) for owner in owners[begin : begin + _GROUP]]
            self._look()
            self._groups += 1
            is_night = self._groups % 3 == 0
            self._wait(self._rng.randint(*((50_000, 80_000) if is_night else (900, 9_000))))
            for one in group:
                self._end(one)
                self._wait(self._rng.randint(1, 200))
            self._wait(150)
            self._look()
        self._monday += timedelta(weeks=1)
        self._wait((self._monday - self.sandbox.now()).total_seconds())

    def _launch(self, owner: str) -> Launched:
        market = self._rng.choice([Market.SPOT, Market.SPOT, Market.SPOT, Market.ON_DEMAND])
        reply = self._ec2.run_instances(**self._call(owner, market))["Instances"][0]
        name = reply["InstanceId"]
        self._note(
            launched(
                name,
                at=reply["LaunchTime"],
                zone=reply["Placement"]["AvailabilityZone"],
                instance_type=reply["InstanceType"],
                market=market,
                usd_per_hour=None,
                owner=owner,
            )
        )
        self._until_running(name, since=reply["LaunchTime"])
        self.happened[f"{market} launches"] += 1
        return Launched(name, market, self._disk_of(name))

    def _call(self, owner: str, market: Market) -> dict[str, Any]:
        pairs = {tags.TAG_OWNER: owner, tags.TAG_LAUNCH: f"l{len(self.facts)}"}
        said = [{"Key": key, "Value": value} for key, value in pairs.items()]
        disk = {"VolumeSize": 60, "VolumeType": "gp3", "DeleteOnTermination": True}
        spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if market is Market.SPOT else {}
        return {
            "ImageId": self._image,
            "InstanceType": "g4dn.xlarge",
            "MinCount": 1,
            "MaxCount": 1,
            "Placement": {"AvailabilityZone": self._rng.choice(["us-east-1a", "us-east-1b"])},
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
            "TagSpecifications": [
                {"ResourceType": k, "Tags": said} for k in ("instance", "volume")
            ],
            **spot,
        }

    def _until_running(self, name: str, since: datetime) -> None:
        """Look as `gpulab up` does: after nine seconds, then every four."""
        asked_at = self.sandbox.now()
        self._wait(9)
        while self._state(name) == "pending":
            self._wait(4)
        self._note(started(name, at=since + (self.sandbox.now() - asked_at)))

    def _end(self, one: Launched) -> None:
        if one.market is Market.ON_DEMAND and self._rng.random() < 0.5:
            self._ec2.stop_instances(InstanceIds=[one.id])
            self._wait(60)
            self._look()
            self._wait(self._rng.randint(60, 600))
            self._ec2.start_instances(InstanceIds=[one.id])
            self._until_running(one.id, since=self.sandbox.now())
            self._wait(self._rng.randint(60, 600))
            self.happened["restarts"] += 1
        if one.market is Market.SPOT and self._rng.random() < 0.3:
            self.sandbox.interrupt(one.id, in_seconds=5)
            self.happened["interruptions"] += 1
        else:
            self._stop(one)

    def _stop(self, one: Launched) -> None:
        """End it as `gpulab stop` does: ask, look every five seconds until it is gone, write down its end and about when the disk went."""
        asked_at = there_at = self.sandbox.now()
        self._ec2.terminate_instances(InstanceIds=[one.id])
        while self._state(one.id) != "terminated":
            there_at = self.sandbox.now()
            self._wait(5)
        gone_at = there_at + (self.sandbox.now() - there_at) / 2
        end = ended(one.id, at=asked_at, by=EndedBy.USER)
        self._note(end)
        self._note(volume_deleted(one.disk, at=end.at + (gone_at - asked_at)))

    def _wait(self, seconds: float) -> None:
        """Let time pass; no laptop looks on the second."""
        self.sandbox.advance(max(0, seconds) + self._rng.random())

    def _state(self, name: str) -> str:
        return self.sandbox.instances_by_id[name].state

    def _disk_of(self, name: str) -> str:
        ((_, disk),) = self.sandbox.instances_by_id[name].moto.get_block_device_mapping
        return str(disk.volume_id)

    def _look(self) -> None:
        for fact in history_of(self._cloud, REGION, owner="", now=self.sandbox.now()).facts:
            self._note(fact)

    def _note(self, fact: Fact) -> None:
        self.facts[fact.digest] = fact

    def estimated(self) -> dict[str, Decimal]:
        """Compute what each student spent, from the facts."""
        timeline = timeline_of(self.facts.values()).timeline
        sums: dict[str, Usd] = defaultdict(Usd)
        for charge in cost_of(timeline, as_of=self.sandbox.now()).charges:
            sums[charge.owner or ""] += Usd.of([charge])
        return {owner: usd.rounded() for owner, usd in sums.items()}


@dataclass(frozen=True)
class Comparison:
    """
    Estimate and bill of a term.

    Attributes:
        ours: What the facts say each student spent.
        theirs: What the simulated AWS takes from each.
        happened: How often what happened.
    """

    ours: Mapping[str, Decimal]
    theirs: Mapping[str, Decimal]
    happened: Mapping[str, int]

    @property
    def apart(self) -> dict[str, Decimal]:
        """By which share of the bill each student's estimate is off; without any absolute tolerance."""
        return {o: abs(self.ours.get(o, Decimal(0)) - usd) / usd for o, usd in self.theirs.items()}


def play(*, students: int, weeks: int, runs: int = 1) -> Comparison:
    """Let a term happen and compare."""
    # Throttling is for clients that hurry; here it would only stop the simulated clock's one hand.
    with Sandbox(without=("throttling",)) as sandbox:
        term = Term(sandbox, seed=7)
        for _ in range(weeks):
            term.week(students, runs)
        bill, ours = sandbox.bill(), term.estimated()
    theirs: dict[str, Decimal] = defaultdict(Decimal)
    for line in bill.lines:
        theirs[line.owner] += line.usd
    over = sum(line.begins_at.month != line.ends_at.month for line in bill.lines)
    happened = {**term.happened, "lines over a month's end": over, "facts": len(term.facts)}
    return Comparison(ours, theirs, happened)


def main() -> int:
    """Play the term and print how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--weeks", type=int, default=13)
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    found = play(students=given.students, weeks=given.weeks, runs=given.runs)
    off, theirs = found.apart, found.theirs
    worst = max(off, key=lambda owner: off[owner])
    print(
        f"{len(theirs)} students:"
        f" {', '.join(f'{count} {what}' for what, count in sorted(found.happened.items()))}\n"
        f"billed {sum(theirs.values()):.4f} USD, estimated {sum(found.ours.values()):.4f} USD\n"
        f"most apart: {worst} by {off[worst] * 100:.4f} % of {theirs[worst]:.6f} USD;"
        f" the smallest bill: {min(theirs.values()):.6f} USD"
    )
    return 1 if off[worst] > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
