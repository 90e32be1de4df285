"""
Measure `gpulab fleet up` against the bounds it is held to, on the simulated AWS with its real throttling.

    python scripts/bench/fleet.py shared [--students 300] [--speed 4]   one account: against the token bucket's own bound
    python scripts/bench/fleet.py own [--students 300]                  an account each: against the same calls made barely, and memory
    python scripts/bench/fleet.py kills [--kills 20] [--students 8]     kill -9 at random moments, run again, count instances

`shared` runs the simulated clock at `--speed` times real time; figures are simulated seconds. In `own` and `kills` the simulated AWS is a
process of its own, so that memory and time are gpulab's. Exits 1 when a figure is not reached.
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
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gpulab.fleet.lab import as_if_now
from gpulab.fleet.seats import seats_of
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts, Outside
from gpulab.fleets.events import Finished, Requested
from gpulab.launch.account.images import forget
from gpulab.model.course import Course
from gpulab.store.config import Config, Profile
from gpulab.store.courses import read_classroom
from gpulab.store.home import Home

_TAGS = ("name", "owner", "course", "lab", "launch", "env")
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
    parser.add_argument("what", choices=["shared", "own", "kills", "fleet-up", "bare-calls"])
    parser.add_argument("--students", type=int, default=0)
    parser.add_argument("--speed", type=float, default=4.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=5)
    asked = parser.parse_args()
    if asked.what == "fleet-up":
        return fleet_up(Path(os.environ["GPULAB_COURSE"]))
    if asked.what == "bare-calls":
        return bare_calls(asked.students)
    with tempfile.TemporaryDirectory() as folder:
        if asked.what == "shared":
            return shared(Path(folder), asked.students or 300, asked.speed)
        if asked.what == "own":
            return own(Path(folder), asked.students or 300)
        return kills(Path(folder), asked.students or 8, asked.kills, asked.seed)


def shared(folder: Path, students: int, speed: float) -> int:
    """Launch a class in one account; the bound is RunInstances' bucket: 5 at once, then 2 a second."""
    from gpulab.sandbox import Sandbox
    from gpulab.sandbox.clock import RunningClock

    bound = max(0, students - 5) / 2
    with Sandbox(clock=RunningClock(speed=speed)) as world:
        world.set_quota("L-3819A6DF", "us-east-1", 10000)
        world.set_credit("50000")
        accounts, wish = _class(world, folder, students, "shared", speed)
        # A course's first launch makes its role, for which EC2 takes ten seconds or so; once a course, so a rehearsal has paid for it.
        accounts.make_keeping(wish.seats[0].account)
        time.sleep(20 / speed)
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
    """Launch a class in an account each, then make the same calls with bare clients, as many at once; each in a process of its own."""
    environment = {
        **os.environ,
        "GPULAB_HOME": str(folder / "home"),
        "GPULAB_COURSE": str(folder / "course"),
    }
    mine = [sys.executable, __file__]
    gpulab = [sys.executable, "-m", "gpulab", "--profile", "sandbox"]

    def run(*words: str) -> Any:
        done = subprocess.run(
            words, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.startswith("{") else None

    _write(folder / "course", students, "own", "sandbox")
    run(*gpulab, "sandbox", "start", "--machines", "none")
    try:
        run(*gpulab, "course", "enrol", str(folder / "templates"))
        templates = sorted((folder / "templates").glob("*.json"))
        run(*gpulab, "sandbox", "apply", *map(str, templates))
        run(*gpulab, "sandbox", "apply", *_all_rights(folder, students))
        first = run(*mine, "fleet-up")
        # A term's second Monday: networks, quotas and the publisher's image are remembered, as they are nearly always.
        _write(folder / "course", students, "own", "sandbox", lab="w2")
        second = run(*mine, "fleet-up")
        bare = run(*mine, "bare-calls", "--students", str(students))
    finally:
        run(*gpulab, "sandbox", "stop")
    each, ratio = second["calls"] / students, second["s"] / bare["s"]
    print(
        f"{students} in {students} accounts: {second['served']} served in {second['s']:.1f} s"
        f" (first time {first['s']:.1f} s), waiting for boots not counted"
    )
    print(f"  bare calls {bare['s']:.1f} s, ratio {ratio:.2f} (at most 1.3)")
    print(f"  {each:.1f} calls each (at most 7): {second['operations']}")
    print(
        f"  memory at most {second['mb']:.0f} MB (at most 400); of the bare calls {bare['mb']:.0f} MB"
    )
    is_reached = ratio <= 1.3 and each <= 7 and second["mb"] <= 400
    return int(second["served"] != students or not is_reached)


def fleet_up(folder: Path) -> int:
    """Run `fleet up` in this process and print what it took."""
    home = Home(Path(os.environ["GPULAB_HOME"]))
    room = read_classroom(home, folder)
    assert isinstance(room.course, Course), room.problems
    lab = as_if_now(room.course.labs[0], datetime.now(UTC))
    waited = 0.0

    def sleep(seconds: float) -> None:
        nonlocal waited
        # The main thread waits for boots, the others for their turn.
        waited += seconds * (threading.current_thread() is threading.main_thread())
        time.sleep(seconds)

    outside = Outside(
        home=home,
        config=home.config(),
        environment=os.environ,
        now=lambda: datetime.now(UTC),
        sleep=sleep,
        random=random.Random(7),
        cidr="203.0.113.0/24",
    )
    everyone = seats_of(room.course, lab, room.roster.students, secret=room.secret)
    wish = up.Wish(room.course, lab, everyone, everyone, timedelta(hours=12))
    accounts = Accounts(outside, room.course)
    for seat in everyone:
        # Whether there is an image with the environment is believed for an hour or a day, not from one Monday to the next.
        forget(accounts.account(seat.account).context, "us-east-1")
    before, began = _log(os.environ), time.perf_counter()
    outcomes = _carried_out(accounts, wish)
    took = time.perf_counter() - began - waited
    operations = Counter(call["operation"] for call in _log(os.environ)[len(before) :])
    served = sum(not o.is_failed for o in outcomes)
    for trouble in {o.trouble.message for o in outcomes if o.trouble}:
        print(trouble, file=sys.stderr)
    print(_figures(served=served, s=took, calls=operations.total(), operations=dict(operations)))
    return 0


def bare_calls(students: int) -> int:
    """Make by hand the seven calls a student's warm launch takes, 32 students at once, each with clients of its own."""
    import botocore.session

    profile = Home(Path(os.environ["GPULAB_HOME"])).config().profile("sandbox")
    session = botocore.session.Session(profile=profile.aws_profile)
    session.set_config_variable("config_file", str(profile.aws_config_file))
    session.set_config_variable("credentials_file", str(profile.aws_credentials_file))
    image = session.create_client("ssm", region_name="us-east-1").get_parameter(
        Name="/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    )["Parameter"]["Value"]
    sts = session.create_client("sts", region_name="us-east-1")

    began = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda n: _bare(session, sts, image, n), range(students)))
    print(_figures(s=time.perf_counter() - began))
    return 0


def kills(folder: Path, students: int, count: int, seed: int) -> int:
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
    # AWS counts what has ended for a while, and the rounds follow each other quickly.
    run("sandbox", "quota", "L-3819A6DF", "2048")
    begin = ["fleet", "up", "w1", "--now", "--yes", "--cidr", "203.0.113.0/24"]
    chance, wrong = random.Random(seed), 0
    try:
        for number in range(count):
            seen = len(_log(environment))
            process = subprocess.Popen(
                [*gpulab, *begin],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            moment = chance.uniform(0.8, 8.0)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
            said = run(*begin, "--json")
            found = json.loads(run("fleet", "ls", "w1", "--quick", "--json"))["members"]
            launches = [c for c in _log(environment)[seen:] if c["operation"] == "RunInstances"]
            had = sum(call["time"][:19] <= killed_at for call in launches)
            names = Counter(m["name"] for m in found if m["instance"])
            is_right = len(names) == students and set(names.values()) == {1}
            wrong += not is_right
            print(
                f"  {number + 1:>3}: killed after {moment:.2f} s with {had} of {len(launches)} launches made,"
                f" then {sum(names.values())} instances",
                *([] if is_right else [said]),
                flush=True,
            )
            run("fleet", "stop", "w1", "--no-save", "--yes")
    finally:
        run("sandbox", "stop")
    print(f"{count} kills, {students} students: {wrong} times not exactly one each (0)")
    return int(wrong > 0)


def _carried_out(accounts: Accounts, wish: up.Wish) -> Any:
    decided = up.plan(accounts, wish, may_settle=True)
    last = [event for event in up.up(accounts, decided) if isinstance(event, Finished)][-1]
    return last.outcomes


def _bare(session: Any, sts: Any, image: str, number: int) -> None:
    account = 111100000000 + number
    given = sts.assume_role(
        RoleArn=f"arn:aws:iam::{account}:role/bare", RoleSessionName="bench", ExternalId="bench"
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
    ec2.describe_images(Owners=["self"], Filters=[{"Name": "tag-key", "Values": ["gpulab:bake"]}])
    ec2.describe_spot_price_history(
        InstanceTypes=["g4dn.xlarge"],
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.now(UTC),
    )
    tags = [{"Key": f"gpulab:{name}", "Value": "bare"} for name in _TAGS]
    made = ec2.run_instances(
        ImageId=image,
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        Placement={"AvailabilityZone": "us-east-1a"},
        InstanceMarketOptions={"MarketType": "spot"},
        ClientToken=f"bare-{number}",
        UserData=os.urandom(9000),
        MetadataOptions={"HttpTokens": "required"},
        BlockDeviceMappings=[
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 60, "Encrypted": True}}
        ],
        TagSpecifications=[
            {"ResourceType": kind, "Tags": tags}
            for kind in ("instance", "volume", "spot-instances-request")
        ],
    )["Instances"][0]["InstanceId"]
    session.create_client("scheduler", **key).create_schedule(
        Name=f"bare-{made}",
        ScheduleExpression="at(2099-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": f"arn:aws:iam::{account}:role/gpulab-end-course-bench",
            "Input": json.dumps({"InstanceIds": [made]}),
        },
    )
    ec2.describe_instances(Filters=alive, MaxResults=1000)


def _all_rights(folder: Path, students: int) -> list[str]:
    """Write templates of a role for the bare calls, which may do anything."""
    trust = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
    }
    every = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    role = {
        "RoleName": "bare",
        "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
        "Policies": [
            {
                "PolicyName": "all",
                "PolicyDocument": {"Version": "2012-10-17", "Statement": [every]},
            }
        ],
    }
    files = []
    for number in range(students):
        made = {
            "Metadata": {"gpulab": {"account": f"{111100000000 + number}"}},
            "Resources": {"Bare": {"Type": "AWS::IAM::Role", "Properties": role}},
        }
        files.append(folder / f"bare-{number}.json")
        files[-1].write_text(json.dumps(made))
    return [str(file) for file in files]


def _log(environment: Mapping[str, str]) -> list[Any]:
    """Every call the simulated AWS has received."""
    from gpulab.sandbox.control import ask, find, folder_of

    daemon, calls = find(folder_of(environment)), []
    while True:
        found = ask(daemon, "log", since=len(calls))
        if not found["calls"]:
            return calls
        calls += found["calls"]


def _figures(**figures: Any) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return json.dumps({**figures, "mb": peak})


def _class(
    world: Any, folder: Path, students: int, kind: str, speed: float, *, lab: str = "w1"
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
