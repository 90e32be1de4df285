"""A class's books while the term goes on: what AWS takes back, or ends by itself, is not charged on and on."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import boto3
import pytest
from tests.aws.launch.conftest import Student

from gpulab.errors import StateDamaged
from gpulab.fleets.bookkeeping import complete, recall
from gpulab.fleets.events import Unbooked
from gpulab.fleets.members import members
from gpulab.launch.money.rebuilding import refresh
from gpulab.model.fact import FactKind, Source
from gpulab.model.timeline import EndedBy
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of
from gpulab.view.fleet import sentence

_spec = importlib.util.spec_from_file_location(
    "instances_that_keep", Path(__file__).with_name("instances_that_keep.py")
)
keeping = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keeping)


@pytest.fixture
def klass(make_class, sandbox):
    """Two students with running instances, ten minutes into the lab."""
    klass = make_class(2)
    klass.up()
    sandbox.advance(seconds=600)
    return klass


def look(klass):
    """What `fleet ls`, `watch` and every command on the class begin with."""
    accounts, wish = klass.accounts(), klass.wish()
    return members(accounts, wish.lab, wish.seats, with_extras=True)


def facts(klass, *kinds):
    """What the ledgers of all accounts know, each once."""
    accounts = klass.accounts()
    refs = {seat.account.key: seat.account for seat in klass.wish().seats}
    return [f for ref in refs.values() for f in accounts.account(ref).context.ledger.facts(*kinds)]


def ends(klass):
    return {one.subject: one.details["by"] for one in facts(klass, FactKind.ENDED)}


def counted(klass):
    now = klass.sandbox.now()
    return Usd.of(cost_of(timeline_of(facts(klass)).timeline, as_of=now).charges).rounded()


def test_what_aws_took_back_is_closed_in_the_books(klass, sandbox):
    """It would be charged to the student until its planned end, and the report would count no interruption."""
    taken, other = (i["InstanceId"] for i in sandbox.instances("running"))
    sandbox.interrupt(taken, in_seconds=30)
    sandbox.advance(seconds=60)

    found = look(klass)

    assert [other] == [m.instance.id for m in found if m.instance]
    assert {taken: EndedBy.AWS} == ends(klass)


def test_the_books_agree_with_the_bill_hours_later(klass, sandbox):
    """One look during the lab is enough: what it writes down holds after EC2 has forgotten the instance."""
    taken = sandbox.instances("running")[0]["InstanceId"]
    sandbox.interrupt(taken, in_seconds=30)
    sandbox.advance(seconds=60)
    look(klass)
    sandbox.advance(seconds=2 * 3600)

    billed = sandbox.bill().total_usd

    assert abs(counted(klass) - billed) <= billed * Decimal("0.001")


def test_a_student_s_own_account_tells_it_by_the_course_s_role(make_class, sandbox):
    """The role that the student gave may read what its own instances came to."""
    klass = make_class(2, kind="own")
    klass.up()
    taken = sandbox.instances("running")[0]["InstanceId"]
    sandbox.interrupt(taken, in_seconds=30)
    sandbox.advance(seconds=60)

    look(klass)

    assert {taken: EndedBy.AWS} == ends(klass)


def test_nothing_more_is_asked_while_books_and_account_agree(klass):
    """A class is looked at every few seconds."""
    before = len(list(klass.sandbox.calls))

    look(klass)

    assert ["DescribeInstances"] == klass.operations(before)


def test_what_cannot_be_closed_is_not_asked_for_at_every_look(klass, sandbox):
    """`watch` looks every 15 s; AWS's bad minute is not made worse by it."""
    sandbox.interrupt(sandbox.instances("running")[0]["InstanceId"], in_seconds=30)
    sandbox.advance(seconds=60)
    sandbox.refuse("DescribeVolumes", "InternalError", status=500)
    look(klass)
    before = len(list(sandbox.calls))

    look(klass)

    assert ["DescribeInstances"] == klass.operations(before)
    assert {} == ends(klass)


def test_an_instance_that_aws_has_forgotten_is_asked_itself(make_class, sandbox, tmp_path):
    """When its spot request is forgotten, too, what it wrote before its idle end is believed before the planned one, at the first look."""
    klass = make_class(1)
    run = klass.up()
    machine = keeping.Machines(sandbox, tmp_path / "machines").boot(run.outcomes[0].instance.id)
    sandbox.advance(1800)
    now = machine.agent.iso(sandbox.now().timestamp())
    machine.agent.fact(machine.here, "ended", now, by="user", how="terminated", reason="idle")
    machine.save()
    sandbox.machine_exited(machine.instance_id)
    billed = sandbox.bill().total_usd
    sandbox.advance(86_400)

    look(klass)

    told = [(f.source, f.details["reason"]) for f in facts(klass, FactKind.ENDED)]
    assert [(Source.AGENT, "idle")] == told
    assert abs(counted(klass) - billed) <= billed * Decimal("0.01")


def test_the_teacher_s_balance_adds_what_a_killed_launch_could_not_write(klass, sandbox):
    """`fleet up` died between AWS's answer and the ledger; nobody runs it again, and in an hour EC2 forgets what it launched."""
    account = klass.accounts().account(klass.wish().seats[0].account)
    made = {one.instance_id for one in account.context.journal.read().made}
    account.context.folder.ledger.unlink()

    refresh(account.of("teacher"), at_once=True)

    assert 2 == len(made)
    assert made == {one.subject for one in facts(klass, FactKind.LAUNCHED)}


@pytest.mark.parametrize("may_ask", [True, False])
def test_what_was_heard_hours_before_its_end_ends_no_instance_in_the_books(
    make_class, sandbox, tmp_path, may_ask
):
    """`course close` died after it heard an instance, which ran on: the teacher's balance must not end it at its last word of then."""
    klass, accounts, billed = _heard_hours_before_its_end(make_class, sandbox, tmp_path)
    ref = klass.wish().seats[0].account
    account = accounts.find_keeping(ref)

    refresh((account.launching if may_ask else account.of)("teacher"), at_once=True)

    assert billed * Decimal("0.99") <= counted(klass)
    assert counted(klass) <= (billed + Decimal("0.18") * 16 / 60 if may_ask else billed * 2)


def test_a_closing_course_that_cannot_hear_its_instances_charges_them_no_sooner_end(
    make_class, sandbox, tmp_path
):
    """S3 has a bad minute at the end of the term: an instance that ran on after it was heard last must not cost too little."""
    klass, accounts, billed = _heard_hours_before_its_end(make_class, sandbox, tmp_path)
    ref = klass.wish().seats[0].account
    sandbox.refuse("GetObject", "SlowDown", status=503)

    unheard = complete(accounts, ref, ["us-east-1"], klass.wish().seats)

    assert any("SlowDown" in text for text in unheard)
    assert billed * Decimal("0.99") <= counted(klass)
    sandbox.faults.clear()
    complete(accounts, ref, ["us-east-1"], klass.wish().seats)
    assert billed * Decimal("0.99") <= counted(klass) <= billed + Decimal("0.18") * 16 / 60


def _heard_hours_before_its_end(make_class, sandbox, tmp_path):
    """A class of one that was heard half an hour after its launch, worked two hours more, and was forgotten; and what it was billed."""
    klass = make_class(1)
    ref, run = klass.wish().seats[0].account, klass.up()
    machine = keeping.Machines(sandbox, tmp_path / "machines").boot(run.outcomes[0].instance.id)
    sandbox.advance(1800)
    _save_after(machine, 1700)
    accounts = klass.accounts()
    complete(accounts, ref, ["us-east-1"], klass.wish().seats)
    sandbox.advance(7200)
    _save_after(machine, 8900)
    sandbox.machine_exited(machine.instance_id)
    billed = sandbox.bill().total_usd
    sandbox.advance(86_400)
    return klass, accounts, billed


def _save_after(machine, seconds):
    """What the agent does by itself, with how long it has run by then."""
    began = machine.agent.iso(machine.now() - seconds)
    used = {"since": began, "seconds": seconds, "idle_seconds": 0}
    machine.agent.write_json(machine.here.path("run/gpulab/status.json"), {"used": used})
    machine.save()


def test_two_labs_do_not_make_each_other_ask_at_every_look(klass, sandbox):
    """Two teachers watch a lab each in one account; what cannot be closed is asked for once a minute, not by turns every few seconds."""
    first = klass.lab
    second = replace(first, id="w2")
    klass.course = replace(klass.course, labs=(first, second))
    klass.lab = second
    klass.up()
    sandbox.advance(seconds=600)
    for instance in sandbox.instances("running"):
        sandbox.interrupt(instance["InstanceId"], in_seconds=30)
    sandbox.advance(seconds=60)
    sandbox.refuse("DescribeVolumes", "InternalError", status=500)
    for klass.lab in (first, second):
        look(klass)
    before = len(list(sandbox.calls))

    for klass.lab in (first, second):
        look(klass)

    assert ["DescribeInstances"] * 2 == klass.operations(before)


def test_a_damaged_ledger_is_noted_and_hides_nobody(klass):
    """Nothing that ends by itself is written down any more, which no later look mends: the teacher must hear of it."""
    accounts, wish = klass.accounts(), klass.wish()
    ref = wish.seats[0].account
    path = accounts.account(ref).context.folder.ledger
    path.write_bytes(b"no ledger " * 1000)

    found = members(accounts, wish.lab, wish.seats, with_extras=True)

    assert [True, True] == [m.instance is not None for m in found]
    assert [StateDamaged] == [type(error) for error in accounts.damaged.values()]
    assert str(path) in accounts.damaged[ref.key].message


def test_a_damaged_ledger_costs_a_class_neither_launches_nor_outcomes(make_class):
    """Everything was launched and costs: who has an instance is told, and what the books lack is said."""
    klass = make_class(2)
    klass.up("s000000")
    ref = klass.wish().seats[0].account
    klass.accounts().account(ref).context.folder.ledger.write_bytes(b"not a ledger" * 100)

    run = klass.up()

    (event,) = [e for e in run.events if isinstance(e, Unbooked)]
    assert ["kept", "launched"] == run.results()
    assert ("profile default",) == event.accounts
    assert sentence(event, now=klass.sandbox.now()).startswith(
        "In profile default the ledger could not be completed ("
    )
    assert klass.names() == klass.live()


def test_what_ran_while_aws_did_not_answer_is_in_the_books(make_class, sandbox):
    """Counted from the first look that was answered, a class's first minute would be missing from its estimate."""
    blind = make_class(2)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", skip=1, times=12)

    run = blind.up()
    sandbox.advance(seconds=3600)

    per_second = 2 * Decimal("0.18") / 3600
    too_much_s = (counted(blind) - sandbox.bill().total_usd) / per_second
    assert ["launched"] * 2 == run.results()
    assert 0 <= too_much_s < 30


def test_a_lost_ledger_is_completed_with_the_class_only(klass, sandbox, tmp_path):
    """What somebody else runs in the shared account is not in the class's books."""
    stranger = Student(sandbox, tmp_path / "stranger").up().instance
    paid = klass.accounts().account(klass.wish().seats[0].account).context.folder
    for path in paid.ledger.parent.glob("ledger.sqlite*"):
        path.unlink()

    klass.up()

    launched = {one.subject for one in facts(klass, FactKind.LAUNCHED)}
    running = {one["InstanceId"] for one in sandbox.instances("running", "pending")}
    assert (running - {stranger.id}, 2) == (launched, len(launched))


def booked(klass, ref=None):
    """Complete the books of every account of the class, as `gpulab ledger rebuild --course` does."""
    seats = klass.wish().everyone
    refs = list({seat.account.key: seat.account for seat in seats}.values())
    return list(recall(klass.accounts(), refs, seats, regions=klass.course.regions))


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_another_computer_gets_the_books_of_a_whole_class(make_class, sandbox, tmp_path, kind):
    """A teacher whose laptop is lost has the class's costs from its accounts: of what runs, and of what has ended within the hour."""
    klass = make_class(2, kind=kind)
    klass.up()
    sandbox.advance(600)
    sandbox.interrupt(sandbox.instances("running")[0]["InstanceId"], in_seconds=30)
    sandbox.advance(1200)
    klass.home = tmp_path / "another"

    found = booked(klass)

    assert [] == [one.trouble for one in found if one.trouble]
    assert sum(one.new for one in found) == len(facts(klass)) > 0
    billed = sandbox.bill().total_usd
    assert abs(counted(klass) - billed) <= billed * Decimal("0.01")
    assert [0] == list({one.new for one in booked(klass)})


def test_books_leave_out_what_a_student_runs_for_themselves(make_class, sandbox, tmp_path):
    """A student's own account is not the course's: the report must charge the course's instances only."""
    klass = make_class(1, kind="own")
    klass.up()
    number = klass.wish().everyone[0].account.number
    theirs = sandbox.instances("running")[0]
    tags = [{"Key": "gpulab:launch", "Value": "1" * 32}, {"Key": "gpulab:owner", "Value": "ann"}]
    own = sandbox.key_of(number).environment()
    ec2 = boto3.client(
        "ec2",
        region_name="us-east-1",
        aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
    )
    ec2.run_instances(
        ImageId=theirs["ImageId"],
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    sandbox.advance(600)
    klass.home = tmp_path / "another"

    booked(klass)

    launched = [f.subject for f in facts(klass, FactKind.LAUNCHED)]
    assert [theirs["InstanceId"]] == launched
    assert 2 == len(sandbox.instances("running"))


def test_an_account_that_lets_nobody_in_keeps_no_other_back(make_class, sandbox, tmp_path):
    """One student of three hundred has deleted the stack; the others' costs are known all the same."""
    klass = make_class(2, kind="own")
    klass.up()
    sandbox.advance(600)
    gone = klass.wish().everyone[0].account
    sandbox.refuse("AssumeRole", "AccessDenied", contains=gone.role_arn)
    klass.home = tmp_path / "another"

    found = booked(klass)

    assert [gone.key] == [one.account.key for one in found if one.trouble]
    assert "course enrol" in next(one.trouble.hint for one in found if one.trouble)
    assert 1 == len(facts(klass, FactKind.LAUNCHED))


def test_a_class_s_disks_are_in_the_books_after_a_killed_launch(klass, tmp_path):
    """Killed before EC2 named the disks, the launch is in the ledger without them; the next `fleet up` reads them."""
    whole = klass.home
    klass.home = tmp_path / "killed"
    shutil.copytree(whole, klass.home)
    ledger = klass.accounts().account(klass.wish().seats[0].account).context.ledger
    facts = [f for f in ledger.facts() if f.kind is not FactKind.VOLUME]
    ledger.path.unlink()
    ledger.append(facts)

    klass.up()

    assert 2 == len(ledger.facts(FactKind.VOLUME))
    billed = klass.sandbox.bill().total_usd
    assert abs(counted(klass) - billed) <= billed * Decimal("0.005")


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_a_look_hours_later_finds_what_a_killed_launch_has_cost(
    make_class, sandbox, tmp_path, kind
):
    """AWS took the launch, the laptop died, the instance worked until its end and EC2 has forgotten it: it told what it cost."""
    klass = make_class(1, kind=kind)
    ref = klass.wish().everyone[0].account
    run = klass.up()
    klass.accounts().account(ref).context.folder.ledger.unlink()
    machine = keeping.Machines(sandbox, tmp_path / "machines").boot(run.outcomes[0].instance.id)
    sandbox.advance(1800)
    now = machine.agent.iso(sandbox.now().timestamp())
    machine.agent.fact(machine.here, "ended", now, by="user", how="terminated", reason="idle")
    machine.save()
    sandbox.machine_exited(machine.instance_id)
    billed = sandbox.bill().total_usd
    sandbox.advance(36_000)

    look(klass)

    assert [machine.instance_id] == [f.subject for f in facts(klass, FactKind.LAUNCHED)]
    assert abs(counted(klass) - billed) <= billed * Decimal("0.01")
