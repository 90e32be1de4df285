"""What a killed command could not write down is written by the next one: every dollar is known, and every computer finds its own."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal

import pytest

from gpulab.aws.accounts import Identity
from gpulab.errors import StoreError
from gpulab.launch import up
from gpulab.launch.events import Launched
from gpulab.launch.money.balance import read_balance
from gpulab.launch.money.rebuilding import refresh
from gpulab.launch.protocol import attempts, resuming
from gpulab.launch.running import instances, stop
from gpulab.launch.upkeep import sweep
from gpulab.launch.upkeep.prepare import own_id, owner_of, prepare
from gpulab.model.fact import FactKind
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import spent_between
from gpulab.store.journal import Journal

# EC2 tells when an instance was launched; that it ran some seconds later only who waited for it knows.
BOOT_S = 15


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


def _killed(*_args, **_more):
    raise Killed


@pytest.fixture
def killed_before_the_ledger(student, monkeypatch):
    """A student whose launch took effect and whose laptop died before a word was in the ledger."""
    monkeypatch.setattr(attempts, "record_launch", _killed)
    with pytest.raises(Killed):
        student.up()
    monkeypatch.undo()
    student.sandbox.advance(seconds=120)
    return student.again()


def seconds_apart(student):
    """By how many seconds of the instance the ledger counts more than the simulated AWS takes."""
    reading = timeline_of(student.context.ledger.facts())
    ours = spent_between(reading.timeline, None, student.sandbox.now())
    usd_per_second = Decimal("0.18") / 3600
    return (ours - student.sandbox.bill().total_usd) / usd_per_second


def test_a_launch_that_was_taken_up_again_is_in_the_ledger(killed_before_the_ledger):
    """Money that flows unseen is what a student fears most."""
    student = killed_before_the_ledger

    student.up()

    student.sandbox.advance(seconds=3600)
    assert 0 <= seconds_apart(student) < BOOT_S


def test_the_disk_of_a_launch_that_was_taken_up_again_costs_from_its_beginning(student):
    """`gpulab ls`, the report and the budget would be too low while EC2 does not list the disk yet."""
    steps = up.until_running(student.context, student.request(), confirm=lambda question: True)
    next(step for step in steps if isinstance(step, Launched))
    steps.close()
    student.sandbox.refuse("DescribeVolumes", "InternalError", times=None)
    again = student.again()

    runs = [again.up(), again.up()]

    disks = again.context.ledger.facts(FactKind.VOLUME)
    instance = runs[0].instance
    assert list(instance.volume_ids) == [one.subject for one in disks]
    assert (instance.id, "60") == (disks[0].details["instance_id"], disks[0].details["size_gb"])
    assert instance.launched_at == disks[0].at


def test_a_launch_that_only_the_journal_knows_is_read_from_the_account(killed_before_the_ledger):
    """Nobody types `up` again, and `gpulab credit` must not say that nothing flows."""
    student = killed_before_the_ledger

    student.sandbox.advance(seconds=1200)
    read_balance(student.context)

    assert 0 <= seconds_apart(student) < BOOT_S


def test_a_launch_that_a_listing_settles_is_in_the_ledger(student, monkeypatch):
    """The answer of AWS was lost with the laptop; `gpulab ls` finds what it made."""
    monkeypatch.setattr(Journal, "conclude", _killed)
    with pytest.raises(Killed):
        student.up()
    monkeypatch.undo()
    student.sandbox.advance(seconds=120)

    resuming.look_back(student.again().context)

    known = {f.subject for f in student.context.ledger.facts(FactKind.LAUNCHED)}
    assert set(student.live()) == known


def test_what_a_class_runs_is_not_taken_for_gone_because_its_owner_is_another(student):
    """`gpulab credit` in the middle of a lab closed the books of a whole class: its instances carry the students' ids."""
    student.up()
    profile = replace(student.context.profile, owner="teacher")
    student.context = replace(student.context, profile=profile)
    student.sandbox.advance(seconds=1800)

    refresh(student.context)

    student.sandbox.advance(seconds=1800)
    assert abs(seconds_apart(student)) < BOOT_S


def test_what_others_launched_in_a_shared_account_stays_out_of_the_books(student, make_student):
    """Everybody's instances are read to judge a class's; only the class's are written down."""
    student.up()
    other = make_student(launches="other", owner="other")
    other.up(name="theirs")
    profile = replace(student.context.profile, owner="teacher")
    student.context = replace(student.context, profile=profile)
    student.sandbox.advance(seconds=1800)

    refresh(student.context)

    mine = {f.subject for f in student.context.ledger.facts(FactKind.LAUNCHED)}
    theirs = {f.subject for f in other.context.ledger.facts(FactKind.LAUNCHED)}
    assert (1, set()) == (len(mine), mine & theirs)


def test_stop_completes_what_the_ledger_lacks_before_the_end(killed_before_the_ledger):
    """EC2 forgets an ended instance within the hour, and its price with it."""
    student = killed_before_the_ledger
    instance = instances.find(student.context, "week4")

    list(stop.stop(student.context, instance, save=False))

    assert 0 <= seconds_apart(student) < BOOT_S


def test_sweep_completes_what_the_ledger_lacks_before_the_end(killed_before_the_ledger):
    """Sweeping is the last look at what a lost command has left."""
    student = killed_before_the_ledger
    student.sandbox.advance(seconds=6 * 3600)

    list(sweep.apply(student.context, sweep.look(student.context).found))

    known = {f.subject for f in student.context.ledger.facts(FactKind.LAUNCHED)}
    assert known == {
        line.resource_id for line in student.sandbox.bill().lines if line.kind == "instance"
    }


def test_sweep_settles_an_open_launch_and_writes_it_down(student, monkeypatch):
    """The answer of AWS was never written down, and nobody types `up` again: what it costs is known all the same."""
    monkeypatch.setattr(Journal, "conclude", _killed)
    with pytest.raises(Killed):
        student.up()
    monkeypatch.undo()
    student.sandbox.advance(seconds=900)

    sweep.look(student.again().context)

    assert () == student.context.journal.read().open_intents
    assert 0 <= seconds_apart(student) < BOOT_S


def test_sweep_notes_what_has_ended_while_ec2_remembers_it(student, monkeypatch):
    """A laptop that died in `gpulab stop` would charge the instance until its planned end."""
    student.up()
    monkeypatch.setattr(stop, "record_end", _killed)
    with pytest.raises(Killed):
        list(stop.stop(student.context, instances.find(student.context, "week4"), save=False))
    monkeypatch.undo()
    student.sandbox.advance(seconds=900)

    sweep.look(student.again().context)

    student.sandbox.advance(seconds=5 * 3600)
    assert abs(seconds_apart(student)) < BOOT_S


def test_a_ledger_that_cannot_be_written_does_not_keep_the_instance_from_its_user(
    killed_before_the_ledger, monkeypatch
):
    """It already costs; the user is told and goes on."""
    student = killed_before_the_ledger

    def refuse(*_args):
        raise StoreError("could not write the ledger")

    monkeypatch.setattr("gpulab.launch.up.record_found", refuse)

    run = student.up()

    assert [run.instance.id] == student.live()
    assert "Warned" in run.told()


def test_two_computers_of_one_owner_have_the_same_id(sandbox, make_student):
    """An instance launched on the laptop that was stolen is found, and ended, from the next one."""
    first, second = make_student(), make_student()

    made = prepare(first.context)

    assert made.owner == own_id(second.context)
    assert re.fullmatch("[0-9a-f]{10}", made.owner)


def test_another_user_of_the_account_has_another_id(sandbox, make_student):
    """In a shared account nobody's sweep may touch what is somebody else's."""
    ann = Identity("123456789012", "arn:aws:iam::123456789012:user/ann")
    bob = Identity("123456789012", "arn:aws:iam::123456789012:user/bob")

    assert owner_of(ann) != owner_of(bob)
    assert "ann" not in owner_of(ann)


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("botocore-session-1733050000", "botocore-session-1733059999", True),
        ("1733050000123456789", "1733059999123456789", True),
        ("ann@uni.example", "bob@uni.example", False),
    ],
)
def test_a_session_named_at_random_does_not_change_its_owner(first, second, is_same):
    """A profile with `role_arn` gets a new session name each hour; a name from single sign-on is a person."""
    role = "arn:aws:sts::123456789012:assumed-role/lab/"

    ids = {owner_of(Identity("123456789012", role + name)) for name in (first, second)}

    assert is_same == (len(ids) == 1)
