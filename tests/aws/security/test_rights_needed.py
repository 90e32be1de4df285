"""Every row of the rights table is needed: what some command asks for would be refused without it. A right too many is a door nobody watches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
from tests.aws.conftest import a_client
from tests.aws.fleets import instances_that_keep
from tests.aws.fleets.conftest import Klass, build
from tests.aws.launch.conftest import Student
from tests.aws.launch.test_launch_bake import baked, with_host
from tests.aws.security.test_rights_enforced import Silent

from gpulab.aws.denying import deny_document
from gpulab.errors import CreditTooLow, GpulabError, WrongUsage
from gpulab.fleet.enrolment import Guards
from gpulab.fleet.needs import needs_of
from gpulab.fleets import acting, bookkeeping, checking, closing
from gpulab.fleets.members import members
from gpulab.launch import bake
from gpulab.launch.account import images
from gpulab.launch.events import Running
from gpulab.launch.money import balance, rebuilding
from gpulab.launch.offers import prices
from gpulab.launch.running import booting, extend, instances, keep, overview, stop
from gpulab.launch.upkeep import doctor, guards, sweep
from gpulab.launch.upkeep.prepare import prepare
from gpulab.model.guard import Principals
from gpulab.rights.policy import Reach, policy
from gpulab.rights.table import RIGHTS, Part, Right
from gpulab.sandbox import Sandbox, witnesses
from gpulab.sandbox.calls import Call
from gpulab.sandbox.iam_policies import Asked, Decision, decide
from gpulab.store.home import Folder

REGION = "us-east-1"


@dataclass(frozen=True)
class Needed:
    """A row that allowed what nothing else in the policy of whoever asked would have; `""` where two of its resources fit."""

    row: str
    command: str
    action: str
    resource: str


class Record:
    """
    Who has asked for what.

    Attributes:
        asked: (command, who, what), each once; a person is `""`, a role its name.
    """

    def __init__(self) -> None:
        self._command = ""
        self.asked: dict[tuple[str, ...], tuple[str, str, Asked]] = {}

    def __call__(self, call: Call, asked: list[Asked]) -> None:
        for one in asked:
            found = re.search(r":(?:assumed-)?role/([^/]+)", one.context["aws:principalarn"][0])
            who = found[1] if found else ""
            # The bucket of a student's stack has a name of CloudFormation's making, which the template puts into the row.
            one = replace(one, resource=one.resource.replace(":::stack-", ":::gpulab-"))
            if "gpulab/" in call.headers.get("user-agent", "") or who.startswith(
                ("gpulab-work", "gpulab-end")
            ):
                key = (
                    self._command,
                    who,
                    one.action,
                    one.resource,
                    repr(sorted(one.context.items())),
                )
                self.asked[key] = (self._command, who, one)

    @contextmanager
    def of(self, command: str) -> Iterator[None]:
        """Listen while a command works."""
        self._command = command
        witnesses.EVERYWHERE.append(self)
        try:
            yield
        finally:
            witnesses.EVERYWHERE.remove(self)

    def needed(self) -> Iterator[Needed]:
        for command, who, asked in self.asked.values():
            fitting = [r for r in _rows_of(command, who) if _allows(r, who, asked)]
            if len(fitting) == 1:
                (row,) = fitting
                arns = [arn for arn in row.on if _allows(replace(row, on=(arn,)), who, asked)]
                yield Needed(row.name, command, asked.action, arns[0] if len(arns) == 1 else "")

    def lacking(self) -> set[tuple[str, str]]:
        """What people asked for that no row of the command allows, in whichever thread: (command, action)."""
        return {
            (command, asked.action)
            for command, who, asked in self.asked.values()
            if not who
            and not any(
                _allows(row, who, asked)
                for one in (command, *OF_ANOTHER.get(command, ()))
                for row in _rows_of(one, who)
            )
        }


def _rows_of(command: str, who: str) -> list[Right]:
    """The rows of the policy of whoever asks, for the command."""
    if not who:
        return [r for r in RIGHTS if command in r.commands and r.part is not Part.COURSE]
    if who.startswith("gpulab-course"):
        parts = (Part.STUDENT, Part.COURSE)
        return [r for r in RIGHTS if command in r.commands and r.part in parts]
    kept = (Part.INSTANCE, Part.CLASS)
    parts = (Part.SCHEDULER,) if who.startswith("gpulab-end") else kept
    return [r for r in RIGHTS if r.part in parts]


def _allows(right: Right, who: str, asked: Asked) -> bool:
    if asked.action not in right.actions:
        return False
    is_class = who.startswith("gpulab-work-course-") and right.part is Part.INSTANCE
    rule = _policy_of(right.name, right.on, "*/${aws:userid}" if is_class else "")
    return decide([rule], asked) is Decision.ALLOWED


@cache
def _policy_of(name: str, on: tuple[str, ...], owner: str) -> Mapping[str, Any]:
    (row,) = (r for r in RIGHTS if r.name == name)
    return policy([row.part], Reach(owner, bucket="*"), rights=[replace(row, on=on)])


# -- who does what ---------------------------------------------------------------------------------------------------------------


class Lab:
    """Whoever types commands, before an account in which nothing is; their instances keep their work by the agent's own code."""

    def __init__(self, sandbox, folder, record) -> None:
        self.sandbox, self.folder, self.record = sandbox, folder, record
        self.machines = instances_that_keep.Machines(sandbox, folder / "machines")
        self.student = Student(sandbox, folder / "home")
        self.laptops = 0
        sandbox.set_quota("L-3819A6DF", REGION, 64)

    @property
    def context(self):
        return self.student.context

    def prepared(self) -> None:
        self.student = Student.after_init(self.sandbox, self.folder / "home")
        self.student.context = replace(self.context, connect=self.machines.connect)
        self.sandbox.advance(seconds=60)

    def up(self):
        """Launch; an instance of the same name is there already or not."""
        run = self.student.up()
        assert run.error is None, run.error
        if run.instance.id not in self.machines.by_id:
            machine = self.machines.boot(run.instance.id)
            machine.write("week4.ipynb", b"{}")
        return run.instance

    def other_laptop(self) -> None:
        """The same student at another computer, in another network: nothing is known there but the profile."""
        self.laptops += 1
        folder = Folder(self.folder / f"laptop{self.laptops}")
        cidr = f"198.51.100.{self.laptops}/32"
        self.student.context = replace(self.context, cidr=cidr, folder=folder)
        instances_that_keep.pin(folder.known_hosts, *self.machines.by_id)

    def name_of_end(self) -> str:
        return f"gpulab-end-{self.context.owner}-{self.the_one().id}"

    def the_one(self):
        (one,) = instances.mine(self.context)
        return one


def unanswered(context):
    """The same where no instance answers, so that only AWS is asked."""
    return replace(context, connect=lambda target: Silent())


def up(lab):
    """The name had an instance before; another one is found, at another computer."""
    lab.prepared()
    old = lab.up()
    lab.machines.by_id[old.id].save()
    lab.machines.end(old.id)
    lab.other_laptop()
    with lab.record.of("up"):
        keep.environment(lab.context, "week4")
        lab.student.up()
    a_client("scheduler").delete_schedule(Name=lab.name_of_end())
    lab.other_laptop()
    with lab.record.of("up"):
        found = lab.student.up().instance
        list(booting.pin(lab.context, found))


def denied(lab):
    """Where EC2 does not say in words what it refuses, STS can read it; a schedule that cannot be moved is looked at."""
    lab.prepared()
    encoded = "You are not authorized to perform this operation. Encoded authorization failure message: e30="
    lab.sandbox.refuse("RunInstances", "UnauthorizedOperation", message=encoded, times=None)
    with lab.record.of("up"):
        lab.student.up()
    with lab.record.of("doctor"):
        list(doctor.checks(lab.context))
    lab.sandbox.faults.clear()
    instance = lab.up()
    lab.sandbox.refuse("CreateSchedule", "ServiceQuotaExceededException", times=None)
    with lab.record.of("extend"), suppress(GpulabError):
        extend.extend(unanswered(lab.context), instance, lab.sandbox.now() + timedelta(hours=5))


def elsewhere(lab):
    """Everything a day has, each at a computer that knows the profile only."""
    lab.prepared()
    instance = lab.up()
    lab.machines.by_id[instance.id].save()

    def extended(context, until):
        instances.admit_here(context, lab.the_one())
        extend.extend_within_budget(unanswered(context), lab.the_one(), until)

    commands = {
        "open": lambda c: (
            instances.admit_here(c, lab.the_one()),
            instances.details(c, instance),
            instances.console(c, instance),
        ),
        "ls": lambda c: (overview.look(c, with_ended=True), keep.kept(c)),
        "extend": lambda c: extended(c, c.now() + timedelta(hours=5)),
        "credit": balance.read_balance,
        "prices": lambda c: prices.offers(c, gpu="T4", instance_type=None, regions=(REGION,)),
        "doctor": lambda c: list(doctor.checks(c)),
        "ledger": lambda c: rebuilding.rebuild(c, (REGION,), of_everyone=True),
        "stop": lambda c: (
            instances.admit_here(c, lab.the_one()),
            list(stop.stop(c, lab.the_one())),
        ),
        "pull": lambda c: keep.fetch(c, keep.find(c, "week4"), lab.folder / "here"),
        "rm": lambda c: (instances.find_alive(c, "week4"), keep.forget(c, keep.find(c, "week4"))),
    }
    for command, act in commands.items():
        lab.other_laptop()
        with lab.record.of(command):
            act(lab.context)


def at_the_same_computer(lab):
    """What is remembered there is looked at."""
    lab.prepared()
    lab.up()
    with lab.record.of("doctor"):
        list(doctor.checks(lab.context))


def next_day(command, act):
    """AWS has forgotten the instance, which had its work kept, and the computer that launched it believes it to run."""

    def play(lab):
        lab.prepared()
        instance = lab.up()
        lab.machines.by_id[instance.id].save()
        lab.machines.end(instance.id)
        lab.sandbox.advance(seconds=86_400)
        with lab.record.of(command):
            act(lab.context)

    return play


def next_year(lab):
    """The prices that came with gpulab are old, and the credits are gone."""
    lab.prepared()
    lab.sandbox.advance(seconds=400 * 86_400)
    commands = {
        "prices": lambda c: prices.offers(c, gpu="T4", instance_type=None, regions=(REGION,)),
        "credit": balance.read_balance,
        "init": prepare,
        "doctor": lambda c: list(doctor.checks(c)),
        "up": lambda c: lab.student.up(),
        "image": lambda c: baked(with_host(lab.student)),
    }
    for command, act in commands.items():
        lab.other_laptop()
        with lab.record.of(command), suppress(CreditTooLow):
            act(lab.context)
    klass = Klass(lab.sandbox, lab.folder / "teacher", 1)
    with lab.record.of("fleet"):
        klass.up()


def without_credits(lab):
    lab.sandbox.set_credit()
    lab.prepared()
    for command, act in {
        "init": prepare,
        "credit": balance.read_balance,
        "up": lambda c: lab.student.up(),
        "image": lambda c: baked(with_host(lab.student)),
    }.items():
        lab.other_laptop()
        with lab.record.of(command), suppress(CreditTooLow):
            act(lab.context)


def leftovers(lab):
    """An instance nobody ended, a schedule of one that has ended, and what others have made of a disk, in the same name."""
    lab.prepared()
    instance = lab.up()
    ec2, ends = a_client("ec2"), a_client("scheduler")
    tags = [
        {"Key": "gpulab:owner", "Value": lab.context.owner},
        {"Key": "gpulab:name", "Value": "week4"},
    ]

    def tagged(kind):
        return [{"ResourceType": kind, "Tags": tags}]

    volume = ec2.create_volume(
        AvailabilityZone=f"{REGION}a", Size=1, TagSpecifications=tagged("volume")
    )["VolumeId"]
    ec2.create_snapshot(VolumeId=volume, TagSpecifications=tagged("snapshot"))
    ec2.create_image(
        InstanceId=instance.id, Name="left", NoReboot=True, TagSpecifications=tagged("image")
    )
    ec2.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
    lab.sandbox.set_capacity("g5.xlarge", f"{REGION}a", 0)
    ec2.request_spot_instances(
        LaunchSpecification={
            "ImageId": lab.sandbox.instances("running")[0]["ImageId"],
            "InstanceType": "g5.xlarge",
            "Placement": {"AvailabilityZone": f"{REGION}a"},
        },
        TagSpecifications=tagged("spot-instances-request"),
    )
    lab.sandbox.advance(seconds=3600)
    lab.machines.by_id[instance.id].save()
    ends.delete_schedule(Name=lab.name_of_end())
    lab.sandbox.advance(seconds=8 * 3600)
    lab.other_laptop()
    with lab.record.of("sweep"):
        list(sweep.apply(lab.context, sweep.look(lab.context).found))
    ec2.terminate_instances(InstanceIds=[lab.student.up("second").instance.id])
    lab.sandbox.advance(seconds=900)
    with lab.record.of("sweep"):
        for _ in range(2):
            list(sweep.apply(lab.context, sweep.look(lab.context).found))


def init(lab):
    with lab.record.of("init"):
        prepare(lab.context)


def guard(lab):
    lab.prepared()
    lab.up()
    a_client("scheduler").delete_schedule(Name=lab.name_of_end())
    with lab.record.of("guard"):
        targets = Principals(users=("student",), roles=("lab",))
        guards.arm(lab.context, limit_usd=Decimal(5), email="ann@example.org", targets=targets)
        guards.checks(lab.context)
        guards.disarm(lab.context)


def image(lab):
    lab.prepared()
    lab.up()
    lab.other_laptop()
    baker = with_host(lab.student)
    with lab.record.of("image"):
        interrupted = bake.bake(baker.context, baker.request(), confirm=lambda question: True)
        next(event for event in interrupted if isinstance(event, Running))
        interrupted.close()
        baked(baker)
        regions = (REGION, "us-west-2")
        ((made, *_), _) = images.listing(baker.context, regions)
        list(images.copy(baker.context, made.baked, "us-west-2"))
        for row in images.listing(baker.context, regions)[0]:
            images.delete(baker.context, row.baked)


def of_class(kind):
    def play(lab):
        head = "budget_usd = 50"
        klass = Klass(lab.sandbox, lab.folder / "teacher", 2, kind=kind, head=head)
        wish = klass.wish()
        refs = list(dict.fromkeys(seat.account for seat in wish.everyone))
        for seat in wish.everyone if kind == "own" else ():
            klass.enrol(seat, guards=Guards(deny_document(), "ann@example.org"))
        if kind == "shared":
            guards.arm(
                lab.context,
                limit_usd=Decimal(50),
                email="ta@example.org",
                targets=Principals(),
            )
        with lab.record.of("fleet"):
            run = klass.up()
            for outcome in run.outcomes:
                machine = lab.machines.boot(outcome.instance.id)
                machine.agent._fetch_whole(machine.spec["keep"], machine)
                machine.write("week1.ipynb", b"1")
                machine.save()
                lab.machines.end(outcome.instance.id)
            accounts = klass.accounts(connect=lambda target: Silent())
            list(
                checking.check(accounts, needs_of(klass.course, klass.people, secret=build.SECRET))
            )
            klass.up(accounts=accounts)
            found = members(accounts, wish.lab, wish.everyone, with_extras=True)
            until = lab.sandbox.now() + timedelta(hours=2)
            list(acting.extend(accounts, found, new_end=lambda _: until))
            bookkeeping.recall(accounts, refs, wish.everyone, regions=klass.course.regions)
            homes = acting.homes(accounts, wish.lab, found)
            list(acting.collect_kept(accounts, found, homes, lab.folder / "in", is_anonymous=False))
            list(acting.stop(accounts, found[:1], save=False))
        klass.home = lab.folder / "assistant"
        accounts = klass.accounts(connect=lab.machines.connect)
        with lab.record.of("close"):
            found = closing.look(accounts, refs, wish.everyone)
            list(closing.end(accounts, found, save=True))
            found = closing.look(accounts, refs, wish.everyone)
            list(closing.end(accounts, found, save=False))
            list(closing.clear(accounts, closing.look(accounts, refs, wish.everyone)))

    return play


def kept(lab):
    """Large files are sent in parts, one that fails is taken back; what has gone is deleted, and the next instance has the rest."""
    lab.prepared()
    old = lab.machines.by_id[lab.up().id]
    with lab.record.of("agent"):
        old.agent.WHOLE_BYTES = 0
        old.save()
        old.write("large.bin", b"0" * 100)
        lab.sandbox.refuse("CompleteMultipartUpload", "InternalError", times=None)
        with pytest.raises(old.problem):
            old.save()
        lab.sandbox.faults.clear()
        (old.here.work / "week4.ipynb").unlink()
        old.save()
        lab.machines.end(old.instance_id)
        lab.up()
        lab.sandbox.advance(seconds=6 * 3600)


def where_is_it(context):
    """The instance has ended: whoever asks for it is told where its work is."""
    with suppress(WrongUsage):
        instances.find(context, "week4")


PLAYS = [
    init,
    up,
    denied,
    elsewhere,
    at_the_same_computer,
    next_day("ls", lambda c: overview.look(c, with_ended=True)),
    next_day("credit", balance.read_balance),
    next_day("sweep", sweep.look),
    next_day("open", where_is_it),
    next_day("extend", where_is_it),
    next_year,
    without_credits,
    leftovers,
    guard,
    image,
    of_class("shared"),
    of_class("own"),
    kept,
]


#: A class's first launch sets up the account as `gpulab init` does; while an agent works, a student launches.
OF_ANOTHER = {"fleet": ("init",), "agent": ("up",)}
#: Rows that allow nothing which the simulated AWS asks for, and why AWS needs them.
NOT_ASKED_FOR = {
    # Whoever may not list a bucket is told 403 of an object that is not there, and 404 otherwise; that is no permission of the call.
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html, "Permissions" (November 2026)
    "TellMissingFromForbidden",
}


def test_each_command_has_its_rights_and_every_part_of_a_row_is_needed(tmp_path):
    """A right that is left over from a call of last year is a door nobody watches, and students send these policies to their teachers."""
    record = Record()
    for n, play in enumerate(PLAYS):
        with Sandbox() as sandbox:
            play(Lab(sandbox, tmp_path / str(n), record))
    needed = list(record.needed())

    # AWS forbids nobody to ask who they are.
    assert set() == record.lacking() - {("pull", "sts:GetCallerIdentity")}
    rows = [r for r in RIGHTS if r.name not in NOT_ASKED_FOR]
    unneeded = {
        "actions": {(r.name, a) for r in rows for a in r.actions}
        - {(n.row, n.action) for n in needed},
        "resources": {(r.name, a) for r in rows for a in r.on}
        - {(n.row, n.resource) for n in needed},
        "commands": {(r.name, c) for r in rows for c in r.commands}
        - {(n.row, n.command) for n in needed},
    }
    assert {"actions": set(), "resources": set(), "commands": set()} == unneeded
    assert set() == NOT_ASKED_FOR & {n.row for n in needed}
    assert NOT_ASKED_FOR <= {r.name for r in RIGHTS}
