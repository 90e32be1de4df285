"""
Measure `gpulab fleet up` against the bounds it is held to, on the simulated AWS with its real throttling.

    python scripts/bench/fleet.py shared [--students 300] [--speed 4]   one account: against the token bucket's own bound
    python scripts/bench/fleet.py own [--students 300]                  an account each: against the same calls made barely
    python scripts/bench/fleet.py kills [--kills 20] [--students 8]     kill -9 at random moments, run again, count instances

`shared` runs the simulated clock at `--speed` times real time; figures are simulated seconds. Exits 1 when a figure is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from gpulab.fleet.lab import as_if_now
from gpulab.fleet.seats import seats_of
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts, Outside
from gpulab.fleets.events import Finished, Requested
from gpulab.model.course import Course
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.store.config import Config, Profile
from gpulab.store.courses import read_classroom
from gpulab.store.home import Home

_PLAN = """\
[course]
id = "bench"
name = "Bench"
first_day = 2026-09-07
last_day = 2026-12-07
regions = ["us-east-1"]
[accounts]
kind = "{kind}"
profile = "{profile}"
role_name = "gpulab-course"
[limits]
max_instances = 5000
[[labs]]
id = "{lab}"
date = 2026-09-07
starts = "13:00"
ends = "17:00"
environment = "tf2-small"
instance_type = "g4dn.xlarge"
"""


def main() -> int:
    """Run one measurement; 1 when a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["shared", "own", "kills"])
    parser.add_argument("--students", type=int, default=0)
    parser.add_argument("--speed", type=float, default=4.0)
    parser.add_argument("--kills", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.what == "shared":
            return shared(Path(folder), asked.students or 300, asked.speed)
        if asked.what == "own":
            return own(Path(folder), asked.students or 300)
        return kills(Path(folder), asked.students or 8, asked.kills)


def shared(folder: Path, students: int, speed: float) -> int:
    """Launch a class in one account; the bound is RunInstances' bucket: 5 at once, then 2 a second."""
    bound = max(0, students - 5) / 2
    with Sandbox(clock=RunningClock(speed=speed)) as world:
        world.set_quota("L-3819A6DF", "us-east-1", 10000)
        world.set_credit("50000")
        accounts, wish = _class(world, folder, students, "shared", speed)
        decided = up.plan(accounts, wish, may_settle=True)
        before = len(world.calls)
        began, requested = world.now(), world.now()
        outcomes: Any = ()
        for event in up.up(accounts, decided):
            if isinstance(event, Requested):
                requested = event.at
            if isinstance(event, Finished):
                outcomes = event.outcomes
        calls = Counter(c.operation for c in list(world.calls)[before:])
        # Nothing else is refused here, so whatever is asked twice was throttled.
        throttled = calls["RunInstances"] - students
    took = (requested - began).total_seconds()
    served = sum(not o.is_failed for o in outcomes)
    print(f"{students} in one account: {served} served, all requested after {took:.1f} s")
    print(f"  bound {bound:.1f} s, ratio {took / bound:.3f} (at most 1.1)")
    print(
        f"  RequestLimitExceeded {throttled} (0), polls {calls['DescribeInstances']}, {dict(calls)}"
    )
    return int(took > 1.1 * bound or throttled > 0 or served != students)


def own(folder: Path, students: int) -> int:
    """Launch a class in an account each, then make the same calls with bare clients, as many at once."""
    with Sandbox() as world:
        accounts, wish = _class(world, folder, students, "own", 0)
        bare_s = _bare(world, students)
        # A term's second Monday: images, networks and quotas are remembered, as they are nearly always.
        before_s, _ = _timed(world, accounts, wish)
        accounts, wish = _class(world, folder, students, "own", 0, lab="w2")
        count = len(world.calls)
        took_s, outcomes = _timed(world, accounts, wish)
        calls = Counter(c.operation for c in list(world.calls)[count:])
    served = sum(not o.is_failed for o in outcomes)
    each = sum(calls.values()) / students
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{students} in {students} accounts: {served} served in {took_s:.1f} s (first time {before_s:.1f} s)"
    )
    print(f"  bare calls {bare_s:.1f} s, ratio {took_s / bare_s:.2f} (at most 1.3)")
    print(f"  {each:.1f} calls each (at most 7): {dict(calls)}")
    print(f"  memory at most {memory:.0f} MB, the simulated AWS included (400 without it)")
    return int(served != students or took_s > 1.3 * bare_s or each > 7)


def kills(folder: Path, students: int, count: int) -> int:
    """Kill `fleet up` at random moments, run it again, and count what EC2 has."""
    home, course = folder / "home", folder / "course"
    environment = {**os.environ, "GPULAB_HOME": str(home), "GPULAB_COURSE": str(course)}
    gpulab = [sys.executable, "-m", "gpulab"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*gpulab, *words], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout

    _write(course, students, "shared", "sandbox")
    run("sandbox", "start", "--machines", "none")
    begin = ["fleet", "up", "w1", "--now", "--yes", "--cidr", "203.0.113.0/24"]
    chance, wrong = random.Random(5), 0
    try:
        for number in range(count):
            process = subprocess.Popen(
                [*gpulab, *begin],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            moment = chance.uniform(0.8, 5.0)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            run(*begin)
            found = json.loads(run("fleet", "ls", "w1", "--quick", "--json"))["members"]
            names = Counter(m["name"] for m in found if m["instance"])
            is_right = len(names) == students and set(names.values()) == {1}
            wrong += not is_right
            print(
                f"  {number + 1:>3}: killed after {moment:.2f} s: {sum(names.values())} instances",
                flush=True,
            )
            run("fleet", "stop", "w1", "--no-save", "--yes")
    finally:
        run("sandbox", "stop")
    print(f"{count} kills, {students} students: {wrong} times not exactly one each (0)")
    return int(wrong > 0)


def _timed(world: Sandbox, accounts: Accounts, wish: up.Wish) -> tuple[float, Any]:
    began = time.perf_counter()
    decided = up.plan(accounts, wish, may_settle=True)
    last = [event for event in up.up(accounts, decided) if isinstance(event, Finished)][-1]
    return time.perf_counter() - began, last.outcomes


def _bare(world: Sandbox, students: int) -> float:
    """Make by hand the seven calls a student's warm launch takes, 32 students at once, each with clients of its own."""
    import botocore.session

    session = botocore.session.get_session()
    image = session.create_client("ssm", region_name="us-east-1").get_parameter(
        Name="/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    )["Parameter"]["Value"]
    sts = session.create_client("sts", region_name="us-east-1")

    def one(number: int) -> None:
        account = f"{222200000000 + number}"
        given = sts.assume_role(
            RoleArn=f"arn:aws:iam::{account}:role/r", RoleSessionName="bench", ExternalId="bench"
        )["Credentials"]
        key = {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
            "region_name": "us-east-1",
        }
        ec2 = session.create_client("ec2", **key)
        alive = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        ec2.describe_instances(Filters=alive, MaxResults=1000)
        ec2.describe_spot_price_history(
            InstanceTypes=["g4dn.xlarge"], ProductDescriptions=["Linux/UNIX"], StartTime=world.now()
        )
        session.create_client("service-quotas", **key).get_service_quota(
            ServiceCode="ec2", QuotaCode="L-3819A6DF"
        )
        ec2.run_instances(
            ImageId=image,
            InstanceType="g4dn.xlarge",
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": "us-east-1a"},
            InstanceMarketOptions={"MarketType": "spot"},
            ClientToken=f"bare-{number}",
            UserData=os.urandom(9000),
        )
        session.create_client("scheduler", **key).list_schedules()
        ec2.describe_instances(Filters=alive, MaxResults=1000)

    began = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(one, range(students)))
    return time.perf_counter() - began


def _class(
    world: Sandbox, folder: Path, students: int, kind: str, speed: float, *, lab: str = "w1"
) -> tuple[Accounts, up.Wish]:
    home = Home(folder / "home")
    _write(folder / "course", students, kind, "default", lab=lab)
    room = read_classroom(home, folder / "course")
    assert isinstance(room.course, Course), room.problems
    begins_now = as_if_now(room.course.labs[0], world.now())
    sleep = (lambda s: time.sleep(s / speed)) if speed else (lambda s: world.advance(seconds=s))
    outside = Outside(
        home=home,
        config=Config("default", {"default": Profile(name="default")}),
        environment={},
        now=world.now,
        sleep=sleep,
        random=random.Random(7),
        cidr="203.0.113.0/24",
    )
    everyone = seats_of(room.course, begins_now, room.roster.students, secret=room.secret)
    wish = up.Wish(room.course, begins_now, everyone, everyone, timedelta(hours=12))
    return Accounts(outside, room.course), wish


def _write(folder: Path, students: int, kind: str, profile: str, *, lab: str = "w1") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "course.toml").write_text(_PLAN.format(kind=kind, profile=profile, lab=lab))
    rows = [f"s{n},N{n},s{n}@student.example,,{111100000000 + n}" for n in range(students)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,group,account", *rows]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
