"""
The ledger's estimate against the simulated AWS's own bill over a simulated term, student by student.

    python scripts/bench/estimate.py [--students 300] [--weeks 13] [--runs 1]

Every student runs so many times a week: spot and on demand, ended by the student or by AWS, some stopped and started again, while prices
move and months end. The books are kept as gpulab keeps them: the launch as it is made, the rest read from the account.
Exits 1 when any student is more than 0.1 % apart.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import boto3

from gpulab.aws.history import history_of
from gpulab.aws.session import Cloud
from gpulab.model import instance as tags
from gpulab.model.fact import Fact, launched, started
from gpulab.model.market import Market
from gpulab.sandbox import Sandbox
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of

REGION = "us-east-1"
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
_LIMIT = Decimal("0.001")


class Term:
    """One simulated account, and the books of everybody in it."""

    def __init__(self, sandbox: Sandbox, seed: int) -> None:
        self.sandbox = sandbox
        self.facts: dict[str, Fact] = {}
        self._rng = random.Random(seed)
        self._cloud, self._ec2 = Cloud(), boto3.client("ec2")
        self._image = boto3.client("ssm").get_parameter(Name=_UBUNTU)["Parameter"]["Value"]
        for code in ("L-3819A6DF", "L-DB2E81BA"):
            sandbox.set_quota(code, REGION, 100_000)

    def week(self, students: int, runs: int) -> None:
        """Let everybody run; the runs of a week overlap in groups of twenty, as in a lab."""
        owners = [f"s{n:03}" for n in range(students) for _ in range(runs)]
        for begin in range(0, len(owners), 20):
            group = [(self._launch(owner), owner) for owner in owners[begin : begin + 20]]
            self._look()
            self.sandbox.advance(self._rng.randint(900, 9_000))
            for (name, market), _ in group:
                self._end(name, market)
                self.sandbox.advance(self._rng.randint(1, 200))
            self.sandbox.advance(150)
            self._look()
        self.sandbox.advance(self._rng.randint(100_000, 400_000))

    def _launch(self, owner: str) -> tuple[str, Market]:
        market = self._rng.choice([Market.SPOT, Market.SPOT, Market.SPOT, Market.ON_DEMAND])
        reply = self._ec2.run_instances(**self._call(owner, market))["Instances"][0]
        self._note(
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
        self._runs_after_booting(reply["InstanceId"])
        return reply["InstanceId"], market

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

    def _runs_after_booting(self, name: str) -> None:
        self.sandbox.advance(10)
        self._note(started(name, at=self.sandbox.now() - timedelta(seconds=2)))

    def _end(self, name: str, market: Market) -> None:
        if market is Market.ON_DEMAND and self._rng.random() < 0.5:
            self._ec2.stop_instances(InstanceIds=[name])
            self.sandbox.advance(60)
            self._look()
            self.sandbox.advance(self._rng.randint(60, 600))
            self._ec2.start_instances(InstanceIds=[name])
            self._runs_after_booting(name)
            self.sandbox.advance(self._rng.randint(60, 600))
        if market is Market.SPOT and self._rng.random() < 0.3:
            self.sandbox.interrupt(name, in_seconds=5)
        else:
            self._ec2.terminate_instances(InstanceIds=[name])

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

    def billed(self) -> dict[str, Decimal]:
        """Read what the simulated AWS takes from each."""
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for line in self.sandbox.bill().lines:
            sums[line.owner] += line.usd
        return sums


def main() -> int:
    """Play the term and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--weeks", type=int, default=13)
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    # Throttling is for clients that hurry; here it would only stop the simulated clock's one hand.
    with Sandbox(without=("throttling",)) as sandbox:
        term = Term(sandbox, seed=7)
        for _ in range(given.weeks):
            term.week(given.students, given.runs)
        billed, estimated = term.billed(), term.estimated()
    apart = {o: abs(estimated.get(o, Decimal(0)) - usd) / usd for o, usd in billed.items() if usd}
    worst = max(apart, key=lambda owner: apart[owner])
    print(
        f"{len(billed)} students, {len(term.facts)} facts: billed {sum(billed.values()):.2f} USD,"
        f" estimated {sum(estimated.values()):.2f} USD; most apart: {worst} by {apart[worst] * 100:.4f} %"
    )
    return 1 if apart[worst] > _LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
