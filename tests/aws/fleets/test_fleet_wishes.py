"""What a teacher adds to `fleet up`: only those who came, ending what serves nobody, another environment, the term's budget; and no bucket."""

from __future__ import annotations

import gzip
import json
import threading
from base64 import b64decode
from dataclasses import replace
from decimal import Decimal

import boto3
import pytest

from gpulab.errors import Unreachable
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.books import attendance
from gpulab.fleets.events import Pruned, Pruning, Requested
from gpulab.fleets.former import former
from gpulab.model.fleet import Action
from gpulab.remote import hostkeys
from gpulab.remote.process import Completed

EMPTY_FOLDER = b'{"exists": true, "rsync": false}\n{"end": 0}\n'
TWO_LABS = """\
environment = "tf2-small"
instance_type = "g4dn.xlarge"
[[labs]]
id = "w2"
date = 2026-09-14
starts = "13:00"
ends = "17:00"
environment = "tf2-small"
instance_type = "g4dn.xlarge"
"""


class Empty:
    """An instance over ssh on which nobody has done anything; a dead one does not answer."""

    dead = frozenset()

    def __init__(self, target):
        self.target = target

    def run(self, command, **_):
        if self.target.instance_id in Empty.dead:
            raise Unreachable("no answer")
        is_save = list(command) == ["gpulab-agent", "save"]
        return Completed(0, b"{}\n" if is_save else EMPTY_FOLDER, "")


@pytest.fixture
def reachable(monkeypatch):
    """Let a class reach its instances, whose host keys are pinned."""

    def reachable(klass, *, dead=()):
        monkeypatch.setattr(Empty, "dead", frozenset(dead))
        opened = klass.accounts

        def accounts(**outside) -> Accounts:
            return opened(connect=Empty, **outside)

        klass.accounts = accounts
        folder = klass.home / "profiles" / "default" / "known_hosts"
        for number, instance in enumerate(klass.sandbox.instances("running")):
            key = hostkeys.HostKey(bytes([number]) * 32)
            hostkeys.pin(folder, instance["InstanceId"], [key])

    return reachable


def spec_of(instance_id):
    """What an instance was told at its birth."""
    said = boto3.client("ec2").describe_instance_attribute(
        InstanceId=instance_id, Attribute="userData"
    )
    config = json.loads(
        gzip.decompress(b64decode(said["UserData"]["Value"])).removeprefix(b"#cloud-config\n")
    )
    file = next(f for f in config["write_files"] if f["path"].endswith("spec.json"))
    return json.loads(file["content"])


def test_only_those_who_came_last_time_are_served(make_class):
    """In week five half of them stay at home; their GPUs cost as much as the others'."""
    klass = make_class(3, lab=TWO_LABS)
    klass.up("s000001")
    klass.lab = replace(klass.course.labs[1], **_times(klass))
    wish = klass.wish()

    came = attendance(klass.accounts(), wish.everyone, klass.course.labs[0])
    run = klass.up(*came)

    assert {wish.everyone[1].owner} == came
    assert ["w2-" + wish.everyone[1].owner] == [o.name for o in run.outcomes]


def test_what_serves_nobody_is_kept_until_it_is_asked_for(make_class, reachable):
    """A student left the course; perhaps only the roster is wrong."""
    klass = make_class(2)
    klass.up()
    reachable(klass)
    klass.people = klass.people[:1]

    kept, ended = klass.up(), klass.up(prune=True)

    assert (["kept", "kept"], ["kept", "ended"]) == (kept.results(), ended.results())
    assert "`--prune` saves its work and ends it" in kept.outcomes[1].detail
    assert klass.names() == klass.live()


def test_nobody_waits_for_a_stray_to_be_saved(make_class, reachable, monkeypatch):
    """Saving takes minutes where there is much of it, and the lab begins at one."""
    klass = make_class(3)
    klass.up("s000000", "s000001")
    reachable(klass)
    klass.people = (klass.people[0], klass.people[2])
    is_requested, waited = threading.Event(), []
    run = Empty.run

    def slow(self, command, **more):
        waited.append(is_requested.wait(timeout=10))
        return run(self, command, **more)

    monkeypatch.setattr(Empty, "run", slow)
    accounts, wish, told = klass.accounts(), klass.wish(), []
    with up.locked(accounts, wish.lab):
        for event in up.up(accounts, up.plan(accounts, wish, may_settle=True), prune=True):
            told.append(event)
            if isinstance(event, Requested):
                is_requested.set()

    pruned = [str(e.outcome.result) for e in told if isinstance(e, Pruned)]
    assert [1] == [e.count for e in told if isinstance(e, Pruning)]
    assert {True} == set(waited)
    assert ["ended"] == pruned
    assert ["kept", "launched", "ended"] == [str(o.result) for o in told[-1].outcomes]
    assert klass.names() == klass.live()


def test_who_left_the_roster_is_pruned_in_an_account_of_their_own(make_class, reachable):
    """`--prune` promises to end what serves nobody in the roster; nobody else's seat leads into that account."""
    klass = make_class(2, kind="own")
    klass.up()
    reachable(klass)
    klass.people = klass.people[:1]
    refs = [seat.account for seat in klass.wish().everyone]
    left = former(klass.accounts(), refs, secret=b"k" * 32, lab=klass.lab.id)

    run = klass.up(prune=True, former=left)

    assert ["keep", "extra"] == [str(step.action) for step in run.plan.steps]
    assert [None, None] == [outcome.trouble for outcome in run.outcomes]
    assert klass.names() == klass.live()
    assert () == former(klass.accounts(), refs, secret=b"k" * 32, lab="another")


def test_the_wrong_environment_is_saved_ended_and_launched_anew(make_class, reachable):
    """An assistant changed the lab's environment on Monday morning."""
    klass = make_class(2)
    first = klass.up("s000000")
    reachable(klass)
    klass.course = replace(klass.course, labs=(replace(klass.course.labs[0], environment="tf2"),))
    klass.lab = replace(klass.lab, environment="tf2")

    run = klass.up()

    assert ["replaced", "launched"] == run.results()
    assert klass.names() == klass.live()
    assert first.outcomes[0].instance.id != run.outcomes[0].instance.id
    assert "tf2" == run.outcomes[0].instance.environment


def test_one_whose_work_cannot_be_saved_is_not_replaced(make_class, reachable):
    """A new environment is worth less than an afternoon's work."""
    klass = make_class(1)
    first = klass.up()
    reachable(klass, dead=[first.outcomes[0].instance.id])
    klass.lab = replace(klass.lab, environment="tf2")

    run = klass.up()

    assert ["failed"] == run.results()
    assert "so it runs on" in run.outcomes[0].trouble.message
    assert klass.names() == klass.live()


def test_no_bucket_is_needed_and_none_is_shared(make_class, reachable):
    """Every student's instance would carry the same role, and could read the others' work."""
    klass = make_class(1)
    opened = klass.accounts

    def accounts(**outside) -> Accounts:
        given = opened(**outside)
        kept = replace(
            given.outside.config.profile("default"), keep_bucket="gpulab-x", instance_role="r"
        )
        config = replace(given.outside.config, profiles={"default": kept})
        return Accounts(replace(given.outside, config=config), given.course)

    klass.accounts = accounts
    run = klass.up()
    reachable(klass)

    (launch,) = (c for c in klass.sandbox.calls if c.operation == "RunInstances")
    assert "IamInstanceProfile" not in launch.params
    assert spec_of(run.outcomes[0].instance.id)["keep"] is None
    assert {"S3"} & {c.service for c in klass.sandbox.calls} == set()


def test_an_instance_spends_no_more_than_is_left_of_the_term(make_class):
    """It ends itself when that is used up, with the teacher's laptop shut."""
    klass = make_class(2, head='budget_usd = "0.30"')

    run = klass.up()

    assert ["0.30", "0.30"] == [spec_of(o.instance.id)["budget_usd"] for o in run.outcomes]
    assert Decimal("0.60") == run.plan.expected_usd
    assert "2 have less left of the term's budget" in " ".join(run.plan.notes)


def test_whoever_has_used_up_the_term_is_not_served_and_the_others_are(make_class, sandbox):
    """One student let it run every night; that is no reason to stop the class."""
    klass = make_class(2, head='budget_usd = "0.30"')
    first = klass.up("s000000")
    sandbox.advance(3 * 3600)
    sandbox.interrupt(first.outcomes[0].instance.id, in_seconds=1)
    sandbox.advance(200)
    klass.up("s000000")
    sandbox.advance(60)

    steps = up.plan(klass.accounts(), klass.wish()).plan.steps

    assert [Action.BLOCKED, Action.LAUNCH] == [step.action for step in steps]
    assert steps[0].reason.startswith("the term's budget of $0.30 is used up ($0.")
    assert "`budget_usd`" in steps[0].hint


def test_a_group_has_the_budget_of_its_members(make_class):
    """Three students' allowances, one instance."""
    klass = make_class(
        3,
        lab='environment = "tf2-small"\ninstance_type = "g4dn.xlarge"\nby_group = true',
        head='budget_usd = "0.30"',
    )
    klass.people = tuple(replace(p, group="g1") for p in klass.people)

    run = klass.up()

    assert ["0.90"] == [spec_of(o.instance.id)["budget_usd"] for o in run.outcomes]


def _times(klass):
    return {"starts_at": klass.lab.starts_at, "ends_at": klass.lab.ends_at}
