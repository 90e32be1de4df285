"""The work of a class outlives its instances, whoever ends them, and the teacher's laptop: each seat gets its own back, nobody another's."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import boto3
import pytest

from gpulab.fleets import acting, books, closing
from gpulab.fleets import up as fleet_up
from gpulab.fleets.events import Requested, Unkept
from gpulab.fleets.keeping import heed
from gpulab.fleets.kept import bring_newest
from gpulab.fleets.members import members
from gpulab.fleets.returning import Returning
from gpulab.fleets.seating import places
from gpulab.launch.running.lineage import is_owed
from gpulab.model.status import read_status
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import spent_between
from gpulab.view.closing import leaves_lines, standing_text
from gpulab.view.fleet import sentence

_spec = importlib.util.spec_from_file_location(
    "instances_that_keep", Path(__file__).with_name("instances_that_keep.py")
)
keeping = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keeping)


@pytest.fixture
def machines(sandbox, tmp_path):
    return keeping.Machines(sandbox, tmp_path / "machines")


@pytest.fixture
def up(make_class, machines):
    """Launch a class and boot it: the class, and its machines in the order of the seats."""

    def launch(size, **more):
        klass = make_class(size, **more)
        run = klass.up()
        assert [None] * size == [o.trouble for o in run.outcomes]
        return klass, [machines.boot(o.instance.id) for o in run.outcomes]

    return launch


def collected(klass, accounts, folder):
    """What `fleet collect` brings: the outcomes' details by student, and the files by student."""
    wish = klass.wish()
    found = members(accounts, wish.lab, wish.everyone, with_extras=True)
    live = [m for m in found if m.instance]
    gone = [m for m in found if not m.instance]
    homes = acting.homes(accounts, wish.lab, gone)
    outcomes = [
        *acting.collect(accounts, live, folder, is_anonymous=False),
        *acting.collect_kept(accounts, gone, homes, folder, is_anonymous=False),
    ]
    said = {o.seat.label: o.detail or o.trouble.message for o in outcomes}
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return said, files


def other_laptop(klass, tmp_path, **outside):
    """Another teacher's computer: the same course, nothing of what this one has seen."""
    klass.home = tmp_path / "other"
    return klass.accounts(**outside)


def test_what_was_kept_at_the_deadline_is_collected_the_next_day_on_another_laptop(
    up, machines, sandbox, tmp_path
):
    """The laptop that launched the class lies in a train; the instances saved, ended, and are gone."""
    klass, (ann, bo) = up(2)
    for machine, text in ((ann, b"ann's"), (bo, b"bo's")):
        machine.write("week1.ipynb", text)
        machine.save()
        machines.end(machine.instance_id)
    sandbox.advance(86_400)

    said, files = collected(klass, other_laptop(klass, tmp_path), tmp_path / "handed-in")

    assert {
        "s000000/week1.ipynb": b"ann's",
        "s000001/week1.ipynb": b"bo's",
    } == files
    kept = "1 new, 0 unchanged, as the instance kept it in the bucket at 2026-11-16"
    assert [True] * 2 == [text.startswith(kept) for text in said.values()]
    assert [True] * 2 == [text.endswith("UTC, verified by hash") for text in said.values()]


def test_collected_again_nothing_is_fetched_again(up, machines, sandbox, tmp_path):
    """Three hundred students' checkpoints come once."""
    klass, (ann,) = up(1)
    ann.write("week1.ipynb", b"1")
    ann.save()
    machines.end(ann.instance_id)
    collected(klass, klass.accounts(), tmp_path / "in")
    calls = len(sandbox.calls)

    said, _ = collected(klass, klass.accounts(), tmp_path / "in")

    assert "0 new, 1 unchanged, as the instance" == said["s000000"][:35]
    # Who sat where, and the manifest; no file.
    assert 2 == klass.operations(calls).count("GetObject")


def test_an_interrupted_students_next_instance_has_the_work(up, machines, sandbox):
    """AWS took it back at half past two; at twenty to three the student goes on where they were."""
    klass, (ann, _) = up(2)
    ann.write("deep/net.ipynb", b"trained")
    sandbox.interrupt(ann.instance_id, in_seconds=120)
    ann.save()
    sandbox.advance(200)

    accounts = klass.accounts(connect=machines.connect)
    run = klass.up(accounts=accounts)

    new = next(o for o in run.outcomes if str(o.result) == "launched")
    assert new.instance.id != ann.instance_id
    assert "its work is back: 1 file" == new.detail
    assert {"deep/net.ipynb": b"trained"} == machines.by_id[new.instance.id].read()
    told = [sentence(e, now=sandbox.now()) for e in run.events]
    assert "Bringing kept work to 1 new instance as soon as they can be reached" in told
    assert "  s000000: its work is back: 1 file" in told


@pytest.mark.parametrize("seconds", [2, 60])
def test_a_laptop_that_died_after_the_launch_brings_the_work_when_it_runs_again(
    up, machines, sandbox, seconds
):
    """The replacement runs, or is about to and has no address yet, and nobody would know that it lacks anything."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"1")
    ann.save()
    machines.end(ann.instance_id)
    accounts = klass.accounts(connect=machines.connect)
    wish = klass.wish()
    with fleet_up.locked(accounts, wish.lab):
        killed = fleet_up.up(accounts, fleet_up.plan(accounts, wish, may_settle=True))
        next(event for event in killed if isinstance(event, Requested))
    sandbox.advance(seconds)

    first = klass.up(accounts=klass.accounts(connect=machines.connect))
    again = klass.up(accounts=klass.accounts(connect=machines.connect))

    (new,) = first.outcomes
    assert ("kept", "its work is back: 1 file") == (str(new.result), new.detail)
    assert {"a.ipynb": b"1"} == machines.by_id[new.instance.id].read()
    assert [""] == [o.detail for o in again.outcomes]
    killed.close()


def test_what_comes_back_late_comes_with_the_handout(up, machines, sandbox):
    """The laptop was shut right after the launch; the ticket must not lead to an empty folder."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"1")
    ann.save()
    machines.end(ann.instance_id)
    run = klass.up(accounts=klass.accounts(connect=_silent))
    (outcome,) = run.outcomes

    accounts = klass.accounts(connect=machines.connect)
    returning = Returning(accounts, klass.lab.id)
    returning.look([outcome.account])
    context = accounts.account(outcome.account).context
    owed = is_owed(context, outcome.instance.id)
    said = returning.to(outcome.account, outcome.instance)()

    assert "its kept work is not on it: " in outcome.detail
    assert "`gpulab fleet handout` tries again" in outcome.detail
    assert (True, "its work is back: 1 file") == (owed, said)
    assert not is_owed(context, outcome.instance.id)
    assert {"a.ipynb": b"1"} == machines.by_id[outcome.instance.id].read()


def test_a_name_that_an_instance_gives_itself_is_not_believed(
    make_class, machines, sandbox, tmp_path
):
    """Its user is root there, and may say whatever they like: only the teacher says whose instance is whose."""
    klass = make_class(2)
    ann, bo = klass.up().outcomes
    forger = machines.boot(ann.instance.id, name=bo.seat.name)
    honest = machines.boot(bo.instance.id)
    forger.write("week1.ipynb", b"not bo's")
    forger.save()
    for machine in (forger, honest):
        machines.end(machine.instance_id)

    said, files = collected(klass, other_laptop(klass, tmp_path), tmp_path / "in")

    assert {"s000000/week1.ipynb": b"not bo's"} == files
    assert ["s000000"] == list(said)


def test_an_instance_cannot_keep_its_work_in_anothers_place(up, machines, judge):
    """The agent itself, told to: IAM knows which instance asks."""
    _, (ann, bo) = up(2)
    ann.write("week1.ipynb", b"ann's")
    theirs = ann.spec["keep"]["prefix"].replace("{instance}", bo.instance_id)
    ann.here.spec["keep"]["prefix"] = theirs

    with pytest.raises(ann.problem, match="AccessDenied"):
        ann.save()

    tried = [word for word in judge.forbidden if f":{bo.instance_id}/manifest.json" in word]
    assert ["s3:GetObject"] == [word.partition(" ")[0] for word in tried]
    judge.forbidden.clear()


def test_who_does_not_answer_is_collected_from_the_bucket(up, machines, sandbox, tmp_path):
    """A machine that hangs at ten to five has saved a minute before."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"1")
    ann.save()
    ann.is_off = True
    accounts = klass.accounts(connect=machines.connect)
    keeping.pin(_known_hosts(klass, accounts), ann.instance_id)

    said, files = collected(klass, accounts, tmp_path / "in")

    assert {"s000000/a.ipynb": b"1"} == files
    assert said["s000000"].startswith("1 new, 0 unchanged, as the instance kept it in the bucket")
    assert said["s000000"].endswith("it does not answer itself (Connection timed out)")


def test_what_stop_saved_later_is_not_replaced_by_an_older_copy(up, machines, sandbox, tmp_path):
    """The bucket's copy is a minute old; what the teacher's `stop` brought home is not."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"old")
    ann.save()
    accounts = klass.accounts(connect=machines.connect)
    keeping.pin(_known_hosts(klass, accounts), ann.instance_id)
    sandbox.advance(30)
    ann.write("a.ipynb", b"new")
    wish = klass.wish()
    found = members(accounts, wish.lab, wish.everyone, with_extras=True)
    (stopped,) = acting.stop(accounts, found, save=True)

    _, files = collected(klass, accounts, tmp_path / "in")

    assert "its work is in " in stopped.detail
    assert {"s000000/a.ipynb": b"new"} == files


def test_an_account_that_allows_no_role_is_served_as_before_and_that_is_said(make_class, sandbox):
    """Many a course account is closed to IAM; the class has its lab all the same."""
    klass = make_class(2)
    sandbox.deny("iam:CreateRole")

    run = klass.up()

    (said,) = [e for e in run.events if isinstance(e, Unkept)]
    assert ["launched"] * 2 == run.results()
    assert ("profile default",) == said.accounts
    assert "make the role gpulab-work-course-c1" in said.why
    assert [False] * 2 == ["IamInstanceProfile" in i for i in sandbox.instances("running")]
    calls = len(sandbox.calls)
    klass.lab = klass.lab.__class__(**{**klass.lab.__dict__, "id": "w2"})
    klass.up()
    assert "CreateRole" not in klass.operations(calls)


def test_a_bucket_that_does_not_take_the_agent_keeps_nobody_waiting(make_class, sandbox):
    """The lab begins at one; a right that is missing is said, and the work comes home over ssh."""
    klass = make_class(2)
    sandbox.refuse("PutObject", "AccessDenied", status=403, times=None)

    run = klass.up()

    said = [sentence(e, now=sandbox.now()) for e in run.events if isinstance(e, Unkept)]
    assert ["launched"] * 2 == run.results()
    assert [False] * 2 == ["IamInstanceProfile" in i for i in sandbox.instances("running")]
    assert 1 == len(said)
    assert said[0].startswith("Nothing in profile default keeps the work when an instance ends")
    assert ["nothing keeps its work: "] * 2 == [o.detail[:24] for o in run.outcomes]


def test_in_a_students_own_account_the_next_instance_has_it_without_the_teacher(
    up, machines, sandbox, tmp_path
):
    """There the name is the student's own, so the agent finds by itself what was kept under it."""
    klass, (ann,) = up(1, kind="own")
    ann.write("a.ipynb", b"mine")
    ann.save()
    machines.end(ann.instance_id)

    said, files = collected(klass, other_laptop(klass, tmp_path), tmp_path / "in")
    again = machines.boot(klass.up().outcomes[0].instance.id)

    assert {"s000000/a.ipynb": b"mine"} == files
    assert "as the instance kept it in the bucket" in said["s000000"]
    assert {"a.ipynb": b"mine"} == again.read()


def test_an_older_stack_is_served_without_and_asked_once(make_class, sandbox):
    """Students update their stacks when they get to it; a class does not wait for them."""
    klass = make_class(1, kind="own")
    number = klass.wish().everyone[0].account.number
    _remove_work_role(sandbox, number)

    run = klass.up()
    calls = len(sandbox.calls)
    klass.up()

    assert ["its stack is older than this: it has no bucket for the work"] == [
        e.why for e in run.events if isinstance(e, Unkept)
    ]
    assert ["launched"] == run.results()
    assert "GetRole" not in klass.operations(calls)


def test_the_second_monday_asks_for_nothing_of_it_again(make_class, sandbox):
    """Three hundred accounts, a call each, is a minute of the lab."""
    klass = make_class(1, kind="own")
    klass.up()
    klass.course, klass.lab = _next_week(klass)
    calls = len(sandbox.calls)

    run = klass.up()

    asked = klass.operations(calls)
    assert ["launched"] == run.results()
    assert [] == [o for o in asked if o in ("GetRole", "PutObject", "GetObject", "ListObjectsV2")]
    assert [True] * 2 == ["IamInstanceProfile" in i for i in sandbox.instances("running")]


def test_an_agent_that_went_from_the_bucket_is_put_there_again(make_class, sandbox):
    """Somebody tidied the bucket: what is remembered of it ends with the first instance that says it found nothing."""
    klass = make_class(1, kind="own")
    (outcome,) = klass.up().outcomes
    klass.course, klass.lab = _next_week(klass)
    said = "/kept-work/course-c1/.agent/agent-1.py in the bucket cannot be read (404)"
    phase = {"name": "jupyter", "state": "failed", "seconds": 90.0, "message": said}
    text = json.dumps({"version": 1, "at": "2026-11-16T09:10:00Z", "phases": [phase]})
    calls = len(sandbox.calls)

    heed(klass.accounts().account(outcome.account).context, "c1", read_status(text))
    klass.up()

    assert 1 == klass.operations(calls).count("PutObject")


def test_an_account_that_two_students_name_keeps_nothing(make_class, sandbox):
    """There the work lies under names only, and both would have the same role in their hands."""
    klass = make_class(2, kind="own")
    one, two = klass.people
    klass.people = (one, two.__class__(**{**two.__dict__, "account": one.account}))

    run = klass.up()

    (said,) = [e for e in run.events if isinstance(e, Unkept)]
    assert said.why.startswith("several students name it")
    assert {False} == {"IamInstanceProfile" in i for i in sandbox.instances("pending", "running")}


def test_the_seats_are_written_down_once_for_a_run(up, sandbox):
    """A small object for each run, not for each student; and none where nothing is new."""
    klass, _ = up(3)
    klass.up()

    written = _seats(sandbox)
    assert 1 == len(written)
    assert 3 == written[0].count(b'"instance"')


def test_closing_the_course_names_what_is_kept_and_leaves_it(up, machines, sandbox):
    """The role goes, the students' work does not; somebody has to know where it lies and that it costs."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"1")
    ann.save()
    machines.end(ann.instance_id)
    accounts = klass.accounts()
    ref = klass.wish().everyone[0].account

    (cleared,) = closing.clear(accounts, closing.look(accounts, [ref], klass.wish().everyone))

    where = "s3://gpulab-123456789012-us-east-1/course-c1/"
    lines = leaves_lines(klass.course, [cleared], work="", works=0, is_purged=False)
    assert (where, 1) == cleared.kept
    assert "gpulab-work-course-c1" in cleared.roles
    assert (
        f"kept      the work of 1 instance in {where}, as kept by themselves: `aws s3 sync {where} kept-work` fetches it,"
        " with the account's own credentials"
    ) == lines[0]
    many = leaves_lines(klass.course, [cleared] * 6, work="", works=0, is_purged=False)
    assert (
        f"the buckets of 6 accounts: `aws s3 sync {where} kept-work` fetches it from the first"
        in many[0]
    )
    key = f"{ann.here.spec['keep']['prefix'].format(instance=ann.instance_id)}work/a.ipynb"
    found = boto3.client("s3").get_object(Bucket="gpulab-123456789012-us-east-1", Key=key)
    assert b"1" == found["Body"].read()


def _silent(target):
    return keeping.soaking().Host(keeping.Machines(None, Path()), target)


def _known_hosts(klass, accounts):
    return accounts.account(klass.wish().everyone[0].account).context.folder.known_hosts


def _seats(sandbox):
    s3 = boto3.client("s3")
    bucket = s3.list_buckets()["Buckets"][0]["Name"]
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="course-c1/.seats/").get("Contents", [])
    return [s3.get_object(Bucket=bucket, Key=o["Key"])["Body"].read() for o in listed]


def _remove_work_role(sandbox, number):
    key = sandbox.key_of(number)
    iam = boto3.client("iam", aws_access_key_id=key.access_key, aws_secret_access_key=key.secret)
    name = "gpulab-work-course-c1"
    iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
    iam.delete_role_policy(RoleName=name, PolicyName="keep-work")
    iam.delete_role(RoleName=name)


def _next_week(klass):
    lab = klass.lab.__class__(**{**klass.lab.__dict__, "id": "w2"})
    course = klass.course.__class__(**{**klass.course.__dict__, "labs": (lab,)})
    return course, lab


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_another_laptop_closes_the_course_with_the_same_books(
    up, machines, sandbox, tmp_path, kind
):
    """The laptop that launched the class is lost, EC2 has forgotten the instances: what they wrote of their costs is the course's bill."""
    klass, seats = up(2, kind=kind)
    sandbox.advance(3600)
    for machine in seats:
        end = machine.agent.iso(sandbox.now().timestamp())
        machine.agent.fact(machine.here, "ended", end, by="user", how="terminated", reason="idle")
        machine.save()
        machines.end(machine.instance_id)
    billed = sandbox.bill().total_usd
    sandbox.advance(86_400)
    accounts = other_laptop(klass, tmp_path)
    refs = tuple(dict.fromkeys(seat.account for seat in klass.wish().everyone))

    closing.look(accounts, refs, klass.wish().everyone)

    reading = timeline_of(books.facts(accounts, refs))
    estimated = spent_between(reading.timeline, None, sandbox.now())
    owners = {launch.owner for launch in reading.launches.values()}
    assert {seat.owner for seat in klass.wish().everyone} == owners
    assert abs(estimated - billed) < Decimal("0.01") * billed


def test_costs_that_cannot_be_read_at_the_end_are_named(up, machines, sandbox, tmp_path):
    """The roles go with the course: that the last report counts too little must be read before the question, not found out later."""
    klass, (ann,) = up(1)
    ann.save()
    accounts = other_laptop(klass, tmp_path)
    work = accounts.account(klass.wish().everyone[0].account).context.folder.work
    (work / "w1-x" / ".gpulab" / "ledger" / "a.jsonl").mkdir(parents=True)
    sandbox.deny("s3:GetObject")

    (standing,) = closing.look(accounts, [klass.wish().everyone[0].account], klass.wish().everyone)

    text = standing_text(klass.course, (standing,), now=sandbox.now())
    assert "The last report may count too little:" in text
    assert "    a.jsonl in the work of w1-x is no file; it is left out" in text
    denied = (f"{ann.instance_id}.jsonl: ", "whose instances were in course-c1: ")
    assert [True] * 2 == [
        "not" in line and line.startswith(denied) for line in standing.unheard[1:]
    ]


def _replaced(klass, machines, machine, **outside):
    """AWS takes an instance back, and the teacher launches for its seat again."""
    machines.end(machine.instance_id)
    accounts = klass.accounts(**{"connect": machines.connect, **outside})
    (outcome,) = klass.up(accounts=accounts).outcomes
    return accounts, outcome


def test_work_that_comes_late_replaces_nothing_of_the_student(up, machines):
    """They began without it, and went on where it was the same file: both versions stay, and that is said."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"before")
    ann.write("b.ipynb", b"untouched")
    ann.save()
    accounts, outcome = _replaced(klass, machines, ann, connect=_silent)
    new = machines.boot(outcome.instance.id)
    new.write("a.ipynb", b"live")

    accounts = klass.accounts(connect=machines.connect)
    (again,) = klass.up(accounts=accounts).outcomes

    aside = _work(accounts, outcome) / f"../{new.spec['name']}-before-{new.instance_id}"
    assert {"a.ipynb": b"live", "b.ipynb": b"untouched"} == new.read()
    assert {"a.ipynb": b"before"} == _files(aside)
    assert again.detail.startswith("its work is back: 1 file; what the instance has already stays")
    assert again.detail.endswith(aside.name)


def test_stopping_an_instance_that_never_got_the_work_keeps_both(up, machines):
    """Its push failed, its student worked on: neither their old notebook nor the new one may go."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"before")
    ann.write("b.ipynb", b"untouched")
    ann.save()
    _, outcome = _replaced(klass, machines, ann, connect=_silent)
    new = machines.boot(outcome.instance.id)
    new.write("a.ipynb", b"after")
    accounts, wish = klass.accounts(connect=machines.connect), klass.wish()
    found = members(accounts, wish.lab, wish.everyone, with_extras=True)

    (stopped,) = acting.stop(accounts, found, save=True)

    work = _work(accounts, outcome)
    aside = work / f"../{work.name}-before-{new.instance_id}"
    assert f"other versions of some files are in {aside.resolve()}" in stopped.detail
    assert {"a.ipynb": b"after", "b.ipynb": b"untouched"} == _files(work)
    assert {"a.ipynb": b"before"} == _files(aside)


def test_notes_that_cannot_be_written_stop_what_relies_on_them(up, machines):
    """The laptop's disk is full: the instance runs on with its work, and what was kept is as it was."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"new")
    accounts, wish = klass.accounts(connect=machines.connect), klass.wish()
    account = accounts.account(wish.everyone[0].account)
    keeping.pin(account.context.folder.known_hosts, ann.instance_id)
    work = account.context.folder.work / ann.spec["name"]
    work.mkdir()
    (work / "a.ipynb").write_bytes(b"kept")
    account.context.folder.notes.mkdir()
    found = members(accounts, wish.lab, wish.everyone, with_extras=True)

    (stopped,) = acting.stop(accounts, found, save=True)

    assert "could not read the notes" in stopped.trouble.message
    assert {"a.ipynb": b"kept"} == _files(work)
    assert not ann.is_off
    assert ["running"] == [
        m.instance.state.value for m in members(accounts, wish.lab, wish.everyone, with_extras=True)
    ]


def test_half_a_copy_does_not_pass_for_the_newest(up, machines, sandbox, tmp_path):
    """The disk was full, or somebody put a file there by hand: the next look brings the rest."""
    klass, (ann,) = up(1)
    for name in ("a", "b", "c"):
        ann.write(f"{name}.ipynb", name.encode())
    ann.save()
    machines.end(ann.instance_id)
    accounts = klass.accounts()
    account = accounts.account(klass.wish().everyone[0].account)
    work = account.context.folder.work / ann.spec["name"]
    work.mkdir(parents=True)
    (work / ".DS_Store").write_bytes(b"mine")
    sandbox.refuse("GetObject", "AccessDenied", status=403, times=1, skip=3)

    failed, _ = collected(klass, accounts, tmp_path / "first")
    said, files = collected(klass, klass.accounts(), tmp_path / "in")

    assert "whether the bucket has newer is not known" in failed["s000000"]
    assert "as the instance kept it in the bucket at" in said["s000000"]
    assert {"s000000/a.ipynb", "s000000/b.ipynb", "s000000/c.ipynb"} <= set(files)


def test_an_instance_that_only_booted_does_not_hide_the_work_of_the_one_before(
    up, machines, tmp_path
):
    """It wrote a copy of nothing before it was taken back; the next instance, and another laptop, have the real work."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"real")
    ann.save()
    _, outcome = _replaced(klass, machines, ann, connect=_silent)
    booted = machines.boot(outcome.instance.id)
    booted.write("new.ipynb", b"begun")
    booted.save()
    machines.end(booted.instance_id)

    accounts = klass.accounts(connect=machines.connect)
    (third,) = klass.up(accounts=accounts).outcomes
    mine = klass.home
    _, files = collected_kept_of(klass, other_laptop(klass, tmp_path), third, tmp_path / "in")

    klass.home = mine
    assert {"a.ipynb": b"real", "new.ipynb": b"begun"} == machines.by_id[third.instance.id].read()
    assert "its work is back: 2 files" == third.detail
    assert {"a.ipynb": b"real", "new.ipynb": b"begun"} == files


def test_what_has_got_the_work_speaks_for_those_before_it(up, machines, sandbox, tmp_path):
    """A file that a student deleted does not come back from an instance of last week."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"1")
    ann.write("gone.ipynb", b"1")
    ann.save()
    _, outcome = _replaced(klass, machines, ann)
    new = machines.by_id[outcome.instance.id]
    sandbox.advance(3600)
    (new.here.work / "gone.ipynb").unlink()
    new.write("a.ipynb", b"2")
    new.save()
    machines.end(new.instance_id)

    _, files = collected(klass, other_laptop(klass, tmp_path), tmp_path / "in")

    assert {"s000000/a.ipynb": b"2"} == files


def test_an_instance_without_a_bucket_gets_the_work_from_this_computer(up, machines, sandbox):
    """The agent could not be put into the bucket: nothing there brings the work back, whatever an old copy says."""
    klass, (ann,) = up(1, kind="own")
    ann.write("a.ipynb", b"mine")
    ann.save()
    machines.end(ann.instance_id)
    heed(klass.accounts().account(klass.wish().everyone[0].account).context, "c1", _no_agent())
    sandbox.refuse("PutObject", "AccessDenied", status=403, times=None)

    (outcome,) = klass.up(accounts=klass.accounts(connect=machines.connect)).outcomes

    new = machines.by_id[outcome.instance.id]
    assert new.spec["keep"] is None
    assert outcome.detail.endswith("its work is back: 1 file")
    assert {"a.ipynb": b"mine"} == new.read()


def test_work_that_no_bucket_has_comes_back_beside_an_older_copy(up, machines, sandbox):
    """One instance could keep nothing, and was stopped: the next one's agent knows only what is older."""
    klass, (ann,) = up(1, kind="own")
    ann.write("a.ipynb", b"mine")
    ann.save()
    machines.end(ann.instance_id)
    heed(klass.accounts().account(klass.wish().everyone[0].account).context, "c1", _no_agent())
    sandbox.refuse("PutObject", "AccessDenied", status=403, times=1)
    accounts = klass.accounts(connect=machines.connect)
    (second,) = klass.up(accounts=accounts).outcomes
    sandbox.advance(60)
    machines.by_id[second.instance.id].write("later.ipynb", b"2")
    wish = klass.wish()
    found = members(accounts, wish.lab, wish.everyone, with_extras=True)
    assert [None] == [o.trouble for o in acting.stop(accounts, found, save=True)]

    (third,) = klass.up(accounts=klass.accounts(connect=machines.connect)).outcomes

    new = machines.by_id[third.instance.id]
    assert new.spec["keep"] is not None
    assert {"a.ipynb": b"mine", "later.ipynb": b"2"} == new.read()


def test_work_under_a_role_that_is_made_anew_is_found(up, machines, sandbox, tmp_path):
    """A course was closed and opened again; the bucket cannot say who sat where, but this computer knows where they kept it."""
    klass, (ann,) = up(1)
    ann.write("a.ipynb", b"1")
    ann.save()
    machines.end(ann.instance_id)
    account = klass.accounts().account(klass.wish().everyone[0].account)
    anew = replace(account.keeping, role=replace(account.keeping.role, id="AROANEW"))

    (place,) = places(account, anew, klass.lab.id, is_asked=False)[ann.spec["name"]]

    assert account.keeping.place(ann.spec["name"], ann.instance_id) == place.prefix


def _no_agent():
    said = "/kept-work/course-c1/.agent/agent-1.py in the bucket cannot be read (404)"
    phase = {"name": "jupyter", "state": "failed", "seconds": 90.0, "message": said}
    return read_status(json.dumps({"version": 1, "at": "2026-11-16T09:10:00Z", "phases": [phase]}))


def collected_kept_of(klass, accounts, outcome, folder):
    """What another computer has of a seat whose instance is up: what those before it have kept."""
    account = accounts.find_keeping(outcome.account)
    where = places(account, account.keeping, klass.lab.id)[outcome.instance.name]
    found = bring_newest(account, outcome.instance.name, where)
    return found, _files(account.context.folder.work / outcome.instance.name)


def _work(accounts, outcome):
    return accounts.account(outcome.account).context.folder.work / outcome.instance.name


def _files(folder):
    folder = folder.resolve()
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_instance_is_not_believed_about_whose_it_was_and_since_when(
    up, machines, sandbox, tmp_path
):
    """Its student writes what it tells: in another's name, from the last century on, and of instances that never were."""
    klass, (ann, bo) = up(2)
    seats = klass.wish().everyone
    s3, bucket = boto3.client("s3"), "gpulab-123456789012-us-east-1"
    for machine in (ann, bo):
        machine.save()
    (key,) = [
        one["Key"]
        for one in s3.list_objects_v2(Bucket=bucket)["Contents"]
        if one["Key"].endswith(f".ledger/{ann.instance_id}.jsonl")
    ]
    told = s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    owner, other = ann.here.spec["name"][3:], bo.here.spec["name"][3:]
    forged = told.replace(owner, other) + "\n" + told.replace(f"{sandbox.now().year}-", "1999-")
    s3.put_object(Bucket=bucket, Key=key, Body=forged.encode())
    s3.put_object(Bucket=bucket, Key=key.replace(ann.instance_id, "i-0made"), Body=told.encode())
    sandbox.advance(86_400)
    accounts = other_laptop(klass, tmp_path)
    work = accounts.account(seats[0].account).context.folder.work
    fetched = work / ann.here.spec["name"] / ".gpulab" / "ledger" / f"{bo.instance_id}.jsonl"
    fetched.parent.mkdir(parents=True)
    fetched.write_text(told.replace(ann.instance_id, bo.instance_id))

    (standing,) = closing.look(accounts, [seats[0].account], seats)

    launches = timeline_of(books.facts(accounts, [seats[0].account])).launches
    assert {bo.instance_id: other} == {one.instance_id: one.owner for one in launches.values()}
    assert [True] * 3 == [
        "i-0made.jsonl: nobody" in " ".join(standing.unheard),
        f"{ann.instance_id}.jsonl: " in " ".join(standing.unheard),
        f"{bo.instance_id}.jsonl in the work of" in " ".join(standing.unheard),
    ]
