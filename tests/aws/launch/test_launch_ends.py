"""Stopping with the work kept, extending, sweeping, checking: what comes after a launch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import boto3
import pytest
from tests.aws.launch.conftest import Student

from gpulab.aws import workspace
from gpulab.errors import (
    CommandFailed,
    CredentialsInvalid,
    Refused,
    StoreError,
    Unreachable,
    WrongUsage,
)
from gpulab.launch.events import Ended, Guarded, Saved, WaitingFor
from gpulab.launch.protocol import scheduled_end
from gpulab.launch.running import extend, instances, keep, lab_folder, lineage, stop
from gpulab.launch.upkeep import doctor, guards, sweep
from gpulab.launch.upkeep.prepare import prepare
from gpulab.model.fact import FactKind
from gpulab.model.guard import Principals
from gpulab.model.instance import State
from gpulab.model.leftover import Kind
from gpulab.model.market import Market
from gpulab.remote.process import Completed
from gpulab.view.leftovers import leftovers_text

FILES = {"week4.ipynb": b"cells", "data/numbers.csv": b"1,2,3\n"}


class FakeHost:
    """An instance over ssh that answers as its agent does."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def run(self, command, **_more):
        self.asked.append(list(command))
        said = self.answers.get(command[1], CommandFailed(f"no answer to {command[1]}"))
        if isinstance(said, Exception):
            raise said
        return Completed(0, said, "")


@pytest.fixture
def prepared(sandbox, tmp_path):
    """A computer after `gpulab init`, with one instance up."""
    student = Student.after_init(sandbox, tmp_path)
    student.instance = student.up().instance
    return student


def with_host(student, **answers):
    host = FakeHost(answers)
    return host, replace(student.context, connect=lambda target: host)


def entries(files):
    return [
        {
            "path": path,
            "size": len(body),
            "mtime_ns": 0,
            "mode": 0o600,
            "sha256": hashlib.sha256(body).hexdigest(),
            "link": None,
        }
        for path, body in sorted(files.items())
    ]


def a_status(**changes) -> bytes:
    return json.dumps({"version": 1, "at": "2026-11-16T09:00:00Z", **changes}).encode()


@pytest.mark.parametrize(
    ("since", "seconds", "idle", "expected"),
    [
        pytest.param(0, 3600, 1500, [("3600", "1500")], id="an hour, of which 25 min idle"),
        pytest.param(0, 3600, 4000, [], id="more idle than there was"),
        pytest.param(0, 10**9, 0, [], id="longer than it exists"),
        pytest.param(-86_400, 60, 0, [], id="before it was launched"),
    ],
)
def test_stop_writes_down_how_much_of_its_time_the_instance_worked(
    prepared, since, seconds, idle, expected
):
    """An instance that is ended from outside writes nothing any more; idle hours are what a course can save. Its user may be root there."""
    keep_in_bucket(prepared, FILES)
    prepared.sandbox.advance(seconds=3700)
    begun = prepared.instance.launched_at + timedelta(seconds=since + 30)
    used = {"since": begun.isoformat(), "seconds": seconds, "idle_seconds": idle}
    _, context = with_host(
        prepared,
        save=b'{"saved_at": "2026-11-16T09:00:00Z"}',
        manifest=lines(FILES),
        status=a_status(used=used),
    )

    list(stop.stop(context, prepared.instance))

    facts = context.ledger.facts(FactKind.USAGE)
    assert expected == [(f.details["seconds"], f.details["idle_seconds"]) for f in facts]
    assert [] == prepared.live()


def keep_in_bucket(student, files, *, launch="launch0001", spoil="", **more):
    """Put into the bucket what the agent puts there: the files, then the manifest that names them."""
    s3, profile = boto3.client("s3"), student.context.profile
    prefix = f"{profile.owner}/week4/"
    listed = []
    for entry in entries(files):
        key = f"{prefix}work/{entry['path']}"
        body = files[entry["path"]] if entry["path"] != spoil else b"other bytes"
        version = s3.put_object(Bucket=profile.keep_bucket, Key=key, Body=body)["VersionId"]
        listed.append({**entry, "key": key, "version": version})
    whole = {
        "version": 1,
        "at": "2026-11-16T09:00:00Z",
        "launch": launch,
        "entries": listed,
        **more,
    }
    s3.put_object(
        Bucket=profile.keep_bucket, Key=f"{prefix}manifest.json", Body=json.dumps(whole).encode()
    )


def lines(files):
    return b"".join(json.dumps(e).encode() + b"\n" for e in entries(files))


def test_stop_keeps_the_work_compares_it_and_then_ends_the_instance(prepared):
    """The student pays no more and has lost nothing."""
    keep_in_bucket(prepared, FILES)
    _, context = with_host(
        prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=lines(FILES)
    )

    events = list(stop.stop(context, prepared.instance))

    saved = next(e for e in events if isinstance(e, Saved))
    assert (2, 11) == (saved.files, saved.size_bytes)
    assert Ended is type(events[-1])
    assert [] == prepared.live()


def test_a_file_that_is_too_large_to_be_kept_holds_an_instance_up(prepared):
    """Thirty gigabytes of a week's training would end with the instance, and nobody would have said a word."""
    keep_in_bucket(prepared, FILES)
    left_out = b'{"path": "big.bin", "reason": "over 20 GiB", "skipped": true}\n'
    _, context = with_host(
        prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=lines(FILES) + left_out
    )

    with pytest.raises(CommandFailed, match=r"big\.bin is not kept: over 20 GiB") as failure:
        list(stop.stop(context, prepared.instance))

    assert (
        "`gpulab pull` copies it here; then move it out of `work`, or use `--no-save`"
        == failure.value.hint
    )
    assert [prepared.instance.id] == prepared.live()


def test_what_is_never_kept_does_not_hold_an_instance_up(prepared):
    """A folder of compiled modules appears beside every imported file; it is left out of the copy on purpose."""
    keep_in_bucket(prepared, FILES)
    left_out = b'{"path": "__pycache__", "reason": "excluded", "skipped": true}\n'
    _, context = with_host(
        prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=lines(FILES) + left_out
    )

    events = list(stop.stop(context, prepared.instance))

    assert Ended is type(events[-1])
    assert [] == prepared.live()


def test_a_file_that_is_being_written_holds_an_instance_up_and_is_named(prepared):
    """A checkpoint in the middle of its save is torn in the bucket, and the whole one ends with the instance."""
    keep_in_bucket(prepared, {**FILES, "model.keras": b"half"})
    torn = {**entries({"model.keras": b"half of it"})[0], "unsettled": True}
    listed = lines(FILES) + json.dumps(torn).encode() + b"\n"
    _, context = with_host(prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=listed)

    with pytest.raises(CommandFailed, match=r"model\.keras is being written to") as failure:
        list(stop.stop(context, prepared.instance))

    assert "Stop what writes to it and stop again, or use `--no-save`" == failure.value.hint
    assert [prepared.instance.id] == prepared.live()


def fill_the_folder(student, monkeypatch, *, for_s):
    """Have a tunnel copy into the folder of kept work for so long; the copying of `stop` itself is tested over ssh."""
    begun, story = student.sandbox.now(), []
    until = begun + timedelta(seconds=for_s)
    held = contextlib.ExitStack()
    held.enter_context(lineage.filling(student.context.folder.work / "week4"))

    def sleep(seconds):
        student.sandbox.advance(seconds=seconds)
        if student.sandbox.now() >= until:
            held.close()

    def fill(*_args):
        story.append(student.sandbox.now() - begun)
        yield from ()

    monkeypatch.setattr(stop, "_filled", fill)
    student.context = replace(student.context, sleep=sleep)
    return story


def test_stop_waits_for_the_copy_that_an_open_tunnel_is_making(student, monkeypatch):
    """It listed the notebook before; ending after the comparison it would put the older one over the newer."""
    instance = student.up().instance
    story = fill_the_folder(student, monkeypatch, for_s=20)
    _, context = with_host(student, save=b"{}")

    events = list(stop.stop(context, instance))

    assert [timedelta(seconds=20)] == story
    assert ["other copy"] * 4 == [e.what for e in events if isinstance(e, WaitingFor)][:4]
    assert [] == student.live()


def test_a_copy_that_does_not_end_is_named_and_the_instance_runs_on(student, monkeypatch):
    """Whoever waits learns what for, and how to end that."""
    instance = student.up().instance
    story = fill_the_folder(student, monkeypatch, for_s=3600)
    _, context = with_host(student, save=b"{}")

    with pytest.raises(StoreError, match="another command has been copying work") as failure:
        list(stop.stop(context, instance))

    assert "`gpulab open week4 --close` ends a tunnel that does" in failure.value.hint
    assert ([], [instance.id]) == (story, student.live())


@pytest.mark.parametrize("said", [b"[1]\n", b"not json\n", b'{"size": 1}\n'])
def test_an_instance_that_lists_its_work_in_strange_words_runs_on(prepared, said):
    """Its owner is root there: nonsense is an answer like another, and never a reason to destroy the work."""
    keep_in_bucket(prepared, FILES)
    _, context = with_host(prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=said)

    with pytest.raises(CommandFailed) as failure:
        list(stop.stop(context, prepared.instance))

    assert failure.value.message.endswith("the agent's list of the work cannot be read")
    assert [prepared.instance.id] == prepared.live()


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({"week4.ipynb": b"cells"}, "data/numbers.csv"),
        ({**FILES, "week4.ipynb": b"old cells"}, "week4.ipynb"),
    ],
    ids=["a file is missing", "a file differs"],
)
def test_an_instance_whose_work_is_not_kept_whole_runs_on(prepared, kept, why):
    """Ending it would destroy the only whole copy."""
    keep_in_bucket(prepared, kept)
    _, context = with_host(
        prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=lines(FILES)
    )

    with pytest.raises(StoreError) as failure:
        list(stop.stop(context, prepared.instance))

    assert why in failure.value.message
    assert failure.value.message.startswith("the work of week4 was not kept, so it runs on: ")
    assert [prepared.instance.id] == prepared.live()


def test_the_work_of_another_launch_does_not_count_as_kept(prepared):
    """Last week's manifest is in the bucket; today's work is not."""
    keep_in_bucket(prepared, FILES, launch="launch9999")
    _, context = with_host(
        prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=lines(FILES)
    )

    with pytest.raises(StoreError, match="does not hold the work of this launch"):
        list(stop.stop(context, prepared.instance))

    assert [prepared.instance.id] == prepared.live()


def test_an_instance_that_does_not_answer_runs_on_and_the_way_out_is_named(prepared):
    """The student decides whether the work may be lost."""
    _, context = with_host(prepared, save=Unreachable("no answer"))

    with pytest.raises(Unreachable) as failure:
        list(stop.stop(context, prepared.instance))

    assert "`gpulab stop week4 --no-save` ends it without its work" == failure.value.hint
    assert [prepared.instance.id] == prepared.live()


def raced(prepared, *, saves):
    """A `stop` whose instance another `stop` ends while the first one reads its work."""
    keep_in_bucket(prepared, FILES)
    _, winner = with_host(
        prepared, save=b'{"saved_at": "2026-11-16T09:00:00Z"}', manifest=lines(FILES)
    )

    class Racing(FakeHost):
        def run(self, command, **more):
            list(stop.stop(winner, prepared.instance, save=saves))
            return super().run(command, **more)

    return replace(prepared.context, connect=lambda _: Racing({"save": Unreachable("no answer")}))


def test_two_stops_at_once_both_say_that_the_work_is_kept(prepared):
    """One in the notebook's terminal, one in the shell: the loser must not say that it runs on, nor that anything failed."""
    context = raced(prepared, saves=True)

    events = list(stop.stop(context, prepared.instance))

    assert ("Warned", "Ended") == tuple(type(e).__name__ for e in events)
    assert events[0].text.startswith(
        "week4 was ended by another command meanwhile; its work is kept"
    )
    assert [] == prepared.live()


def test_an_end_meanwhile_that_kept_nothing_is_not_called_kept(prepared):
    """`stop --no-save` won: what the other one says must not let the student believe that the work is there."""
    context = raced(prepared, saves=False)

    with pytest.raises(Unreachable) as failure:
        list(stop.stop(context, prepared.instance))

    assert (
        "week4 was ended meanwhile, and whether its work was kept is not known here"
        == failure.value.message
    )


def test_stop_without_saving_asks_the_instance_nothing(prepared):
    """A hung instance must still be ended."""
    host, context = with_host(prepared)

    list(stop.stop(context, prepared.instance, save=False))

    assert ([], []) == (host.asked, prepared.live())


@pytest.fixture
def off(prepared, ec2):
    """The same computer, after AWS has stopped an on-demand instance of it."""
    bought = prepared.up("bought", markets=(Market.ON_DEMAND,)).instance
    prepared.sandbox.advance(seconds=600)
    ec2.stop_instances(InstanceIds=[bought.id])
    prepared.sandbox.advance(seconds=300)
    return prepared


def test_an_instance_that_was_stopped_is_not_ended_with_its_work(off, ec2):
    """AWS stops an instance for maintenance; its disk holds the day's work and goes with it."""
    instance = instances.find(off.context, "bought")
    _, context = with_host(off)

    with pytest.raises(Unreachable) as refused:
        list(stop.stop(context, instance))

    assert (
        "bought is stopped, so its work cannot be saved; it was not ended" == refused.value.message
    )
    start = f"aws ec2 start-instances --region us-east-1 --instance-ids {instance.id}"
    assert start in refused.value.hint
    assert "`gpulab stop bought --no-save` ends it without its work" in refused.value.hint
    assert State.STOPPED is instances.find(off.context, "bought").state


def test_an_instance_that_starts_again_is_not_ended_with_its_work(off, ec2):
    """It is as pending as one that never ran, and has everything to lose."""
    ec2.start_instances(InstanceIds=[instances.find(off.context, "bought").id])
    again = instances.find(off.context, "bought")
    _, context = with_host(off)

    with pytest.raises(Unreachable, match="bought is pending, so its work cannot be saved"):
        list(stop.stop(context, again))

    assert (State.PENDING, True) == (again.state, again.has_run_before)


def test_an_instance_that_starts_for_the_first_time_is_ended_at_once(prepared):
    """Started by mistake and stopped in the same breath: there is nothing to save."""
    pending = replace(prepared.instance, state=State.PENDING)
    host, context = with_host(prepared)

    events = list(stop.stop(context, pending))

    assert not pending.has_run_before
    assert (Ended, [], []) == (type(events[-1]), host.asked, prepared.live())


def test_an_instance_that_was_stopped_is_ended_without_its_work_when_told(off):
    """Whoever knows that nothing is on it must not have to start it first."""
    instance = instances.find(off.context, "bought")
    _, context = with_host(off)

    events = list(stop.stop(context, instance, save=False))

    assert Ended is type(events[-1])
    assert [off.instance.id] == off.live()


def test_stop_leaves_no_schedule_and_writes_the_end_down(prepared):
    """The ledger stops counting, and nothing in the account waits for a dead instance."""
    _, context = with_host(prepared)

    list(stop.stop(context, prepared.instance, save=False))

    facts = [f for f in context.ledger.facts() if f.kind.value == "ended"]
    assert [(prepared.instance.id, "user")] == [(f.subject, f.details["by"]) for f in facts]
    assert [] == boto3.client("scheduler").list_schedules()["Schedules"]


def test_stopping_what_has_ended_already_is_done(prepared):
    """Its time was over a moment ago; the student wanted it to end."""
    prepared.sandbox.advance(seconds=5 * 3600)
    _, context = with_host(prepared)

    events = list(stop.stop(context, prepared.instance, save=False))

    assert Ended is type(events[-1])


def test_extend_moves_the_timer_the_schedule_and_the_tag(prepared):
    """An end that stays behind in one place would end the instance at the old time."""
    host, context = with_host(prepared, extend=b"")
    until = prepared.sandbox.now().replace(microsecond=0) + timedelta(hours=6)

    moved = extend.extend(context, prepared.instance, until)

    schedule = boto3.client("scheduler").list_schedules()["Schedules"][0]["Name"]
    found = boto3.client("scheduler").get_schedule(Name=schedule)["ScheduleExpression"]
    assert (True, True, True, ()) == (moved.agent, moved.schedule, moved.tag, moved.notes)
    assert [["gpulab-agent", "extend", "--until", f"{until:%Y-%m-%dT%H:%M:%SZ}"]] == host.asked
    assert f"at({until + timedelta(minutes=3):%Y-%m-%dT%H:%M:%S})" == found
    assert until == instances.find(context, "week4").expires_at


def test_an_instance_that_cannot_be_reached_is_extended_through_its_tag(prepared):
    """The student is on a train; the agent reads the tag within a minute."""
    _, context = with_host(prepared, extend=Unreachable("no answer"))
    until = prepared.sandbox.now() + timedelta(hours=6)

    moved = extend.extend(context, prepared.instance, until)

    assert (False, True, True) == (moved.agent, moved.schedule, moved.tag)
    assert "it reads the new end from its tag within a minute" in moved.notes[0]


def test_no_end_moves_past_one_that_the_account_keeps(prepared):
    """The account would end the instance at the old time while its own timer, which saves the work first, waits for the new one."""
    host, context = with_host(prepared, extend=b"")
    before = instances.find(context, "week4").expires_at
    prepared.sandbox.refuse("UpdateSchedule", "ExpiredTokenException")

    with pytest.raises(
        CredentialsInvalid, match="the end was not moved: could not move the scheduled"
    ):
        extend.extend(context, prepared.instance, prepared.sandbox.now() + timedelta(hours=6))

    assert [] == host.asked
    assert before == instances.find(context, "week4").expires_at


def test_a_schedule_that_was_moved_without_an_answer_counts_as_moved(prepared):
    """A lost answer is no reason to keep a student from working on: what the account has says it."""
    host, context = with_host(prepared, extend=b"")
    until = prepared.sandbox.now() + timedelta(hours=6)
    prepared.sandbox.fail_after_effect("UpdateSchedule", "InternalServerException")

    moved = extend.extend(context, prepared.instance, until)

    assert (True, True, ()) == (moved.agent, moved.schedule, moved.notes)
    assert 1 == len(host.asked)


def idle_tag(student):
    (instance,) = student.sandbox.instances("running", "pending")
    return {t["Key"]: t["Value"] for t in instance["Tags"]}.get("gpulab:idle")


@pytest.fixture
def beside_its_tag(prepared):
    """The same computer, after an extension by two hours that moved agent and schedule, but not the tag."""
    _, prepared.context = with_host(prepared, extend=b"")
    prepared.sandbox.deny("ec2:CreateTags")
    until = prepared.instance.expires_at + timedelta(hours=2)
    moved = extend.extend(prepared.context, prepared.instance, until)
    assert (True, True, False) == (moved.agent, moved.schedule, moved.tag)
    prepared.until = until
    return prepared


def scheduled(student):
    """When the account ends the student's instance."""
    return scheduled_end.read(student.context, student.instance).until


def test_up_believes_an_end_that_is_later_than_the_tag(beside_its_tag):
    """Whoever only opens the lab again would have the account end it at the old time, with its work unsaved."""
    again = beside_its_tag.again().up()

    assert again.instance.expires_at + timedelta(hours=2) == beside_its_tag.until
    assert [beside_its_tag.until + timedelta(minutes=3)] == [e.until for e in again.of(Guarded)]
    assert beside_its_tag.until + timedelta(minutes=3) == scheduled(beside_its_tag)


def test_arming_the_guards_believes_an_end_that_is_later_than_the_tag(beside_its_tag):
    """Making sure that everything ends must not end something sooner."""
    guards.arm(
        beside_its_tag.context,
        limit_usd=Decimal(40),
        email="ada@example.org",
        targets=Principals(),
    )

    assert beside_its_tag.until + timedelta(minutes=3) == scheduled(beside_its_tag)


@pytest.mark.parametrize("unread", ["schedule", "ledger"])
def test_sweep_believes_an_end_that_is_later_than_the_tag(beside_its_tag, unread):
    """It runs, by the agent's word; a clean-up after the old end would take it down with its work."""
    beside_its_tag.sandbox.advance(seconds=4 * 3600 + 900)
    if unread == "schedule":
        beside_its_tag.sandbox.deny("scheduler:GetSchedule")
    else:
        beside_its_tag.context.folder.ledger.unlink()

    left = sweep.look(beside_its_tag.context)

    found = {item.resource.id: item.why for item in left.untouchable}
    assert (
        "it is within its time; `gpulab stop` saves its work and ends it"
        == found[beside_its_tag.instance.id]
    )


def test_an_extension_that_fails_does_not_fall_back_on_the_tag(beside_its_tag):
    """What was agreed on before stands, and the tag never heard of it."""
    _, context = with_host(beside_its_tag, extend=Unreachable("no answer"))
    later = beside_its_tag.until + timedelta(hours=1)

    with pytest.raises(Unreachable, match="the end was not moved"):
        extend.extend(context, beside_its_tag.instance, later)

    assert beside_its_tag.until + timedelta(minutes=3) == scheduled(beside_its_tag)


def test_up_moves_an_end_that_comes_before_the_tags(prepared):
    """A schedule that stayed behind would end the instance under its user."""
    early = prepared.instance.expires_at - timedelta(hours=1)
    scheduled_end.arm_at(prepared.context, prepared.instance, early)

    prepared.again().up()

    assert prepared.instance.expires_at + timedelta(minutes=3) == scheduled(prepared)


def test_the_idle_limit_is_changed_on_the_instance_and_in_its_tag(prepared):
    """A lecture of three hours before the exercise: the instance that was started early must outlive it."""
    host, context = with_host(prepared, idle=b"")
    before = idle_tag(prepared)

    changed = extend.limit_idle(context, prepared.instance, 180)

    assert [["gpulab-agent", "idle", "--minutes", "180"]] == host.asked
    assert (None, "180") == (before, idle_tag(prepared))
    assert extend.IdleLimit(180, agent=True, tag=True) == changed


def test_the_idle_limit_of_an_instance_that_cannot_be_reached_is_changed_through_its_tag(prepared):
    """The student is on a train; the agent reads the tag within a minute."""
    _, context = with_host(prepared, idle=Unreachable("no answer"))

    changed = extend.limit_idle(context, prepared.instance, 180)

    assert ("180", False, True) == (idle_tag(prepared), changed.agent, changed.tag)
    assert "it reads the new limit from its tag within a minute" in changed.notes[0]


def test_an_idle_limit_that_nobody_took_is_an_error(prepared):
    """`now ends after 3 h` would be believed."""
    _, context = with_host(prepared, idle=Unreachable("no answer"))
    prepared.sandbox.deny("ec2:CreateTags")

    with pytest.raises(Unreachable, match="the idle limit was not changed: no answer; "):
        extend.limit_idle(context, prepared.instance, 180)


@pytest.mark.parametrize(
    ("hours", "message"),
    [(13, "that is more than 12 h from now"), (-1, "the new end lies in the past")],
)
def test_extend_refuses_ends_beyond_the_limit_and_in_the_past(prepared, hours, message):
    """The limit that a launch has must not be walked around."""
    _, context = with_host(prepared)

    with pytest.raises(Refused, match=message):
        extend.extend(context, prepared.instance, prepared.sandbox.now() + timedelta(hours=hours))


def test_kept_work_is_fetched_whole_when_the_instance_is_gone(prepared, tmp_path):
    """`gpulab pull` on the evening before the deadline, nothing running."""
    keep_in_bucket(prepared, FILES)

    work = keep.find(prepared.context, "week4")
    report = keep.fetch(prepared.context, work, tmp_path / "here")

    there = {
        str(p.relative_to(tmp_path / "here")): p.read_bytes()
        for p in (tmp_path / "here").rglob("*")
        if p.is_file()
    }
    assert (FILES, 2, 11) == (there, report.files, report.bytes)


def test_kept_work_of_a_save_that_was_cut_says_that_it_is_not_all(prepared, tmp_path):
    """Half of an evening's results would pass for all of them until the report is due."""
    keep_in_bucket(prepared, FILES, complete=False)

    report = keep.fetch(prepared.context, keep.find(prepared.context, "week4"), tmp_path / "here")

    assert [("newer files", "the last save was cut before its end")] == [
        (one.path, one.reason) for one in report.skipped
    ]
    assert len(FILES) == report.files


def test_of_the_kept_work_the_labs_folder_alone_is_fetched(prepared, tmp_path):
    """A hand-in is one folder; the data and the other weeks beside it are gigabytes."""
    about = json.dumps({"folder": "course/labs/one"}).encode()
    lab = {"course/labs/one/a.ipynb": b"{}", "course/labs/one/img/b.png": b"p"}
    others = {"course/labs/one.txt": b"1", "course/utils.py": b"u", ".gpulab/lab.json": about}
    keep_in_bucket(prepared, {**lab, **others})
    work = keep.find(prepared.context, "week4")

    folder = lab_folder.of_kept(prepared.context, work)
    report = keep.fetch(prepared.context, work, tmp_path / "here", below=folder)

    there = (p for p in (tmp_path / "here").rglob("*") if p.is_file())
    assert ("course/labs/one", 2) == (folder, report.files)
    assert ["a.ipynb", "img/b.png"] == sorted(str(p.relative_to(tmp_path / "here")) for p in there)


def test_kept_work_without_a_lab_says_how_to_get_one(prepared):
    """`--lab` typed for a name that never had notebooks must not copy everything instead."""
    keep_in_bucket(prepared, FILES)

    with pytest.raises(WrongUsage, match="week4 has no lab's notebooks"):
        lab_folder.of_kept(prepared.context, keep.find(prepared.context, "week4"))


def test_kept_work_that_this_computer_cannot_read_is_one_sentence(student, monkeypatch):
    """A failing disk is the outside, not a mistake of ours with a report to send."""
    file = student.context.folder.work / "week4" / lab_folder.FILE
    file.parent.mkdir(parents=True)
    file.write_text("{}")

    def fail(_path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(file), "read_bytes", fail)

    with pytest.raises(StoreError, match=r"lab\.json: Input/output error"):
        lab_folder.of_kept(student.context, keep.find(student.context, "week4"))


def test_a_spoilt_kept_file_is_refused(prepared, tmp_path):
    """A copy that is not what was kept must not pass for it."""
    keep_in_bucket(prepared, FILES, spoil="week4.ipynb")

    with pytest.raises(StoreError, match=r"'week4.ipynb' is not what its manifest says"):
        keep.fetch(prepared.context, keep.find(prepared.context, "week4"), tmp_path / "here")

    assert not (tmp_path / "here" / "week4.ipynb").exists()


def test_a_kept_file_larger_than_its_manifest_says_is_not_fetched_to_its_end(prepared, tmp_path):
    """Whoever is root on an instance writes both; the disk of the teacher's laptop must not be theirs to fill."""
    keep_in_bucket(prepared, FILES)
    profile = prepared.context.profile
    key = f"{profile.owner}/week4/manifest.json"
    s3 = boto3.client("s3")
    listed = json.loads(s3.get_object(Bucket=profile.keep_bucket, Key=key)["Body"].read())
    for entry in listed["entries"]:
        entry["size"] -= 1
    s3.put_object(Bucket=profile.keep_bucket, Key=key, Body=json.dumps(listed).encode())

    with pytest.raises(StoreError, match=r"'[a-z0-9/.]+' is not what its manifest says: it is la"):
        keep.fetch(prepared.context, keep.find(prepared.context, "week4"), tmp_path / "here")

    assert [] == [p for p in (tmp_path / "here").rglob("*") if p.is_file()]


def test_a_manifest_of_any_size_is_not_read(prepared, monkeypatch):
    """Sixteen are read at once: a few gigabytes each, from those who can, would end the command for the whole class."""
    keep_in_bucket(prepared, FILES)
    for name, most in (("_SEVERAL_AT_ONCE_BYTES", 10), ("_MOST_MANIFEST_BYTES", 300)):
        monkeypatch.setattr(workspace, name, most)

    with pytest.raises(StoreError, match=r"/week4/manifest\.json in .* is larger than"):
        keep.find(prepared.context, "week4")


def test_big_manifests_are_read_one_at_a_time(prepared, monkeypatch):
    """Each takes several times its size in memory; a class of those with 100,000 files must come home on an old laptop, too."""
    keep_in_bucket(prepared, FILES)
    monkeypatch.setattr(workspace, "_SEVERAL_AT_ONCE_BYTES", 10)
    inside, most, parsed = [], [], workspace._parsed

    def watched(*given):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return parsed(*given)

    monkeypatch.setattr(workspace, "_parsed", watched)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: keep.find(prepared.context, "week4"), range(4)))

    assert [1] * 4 == most
    assert [len(FILES)] * 4 == [work.files for work in found]


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", "CON"])
def test_a_hostile_name_in_the_kept_work_is_not_written(prepared, tmp_path, path):
    """The names come from an instance where any notebook was root."""
    keep_in_bucket(prepared, {"good.txt": b"fine", path: b"evil"})

    report = keep.fetch(prepared.context, keep.find(prepared.context, "week4"), tmp_path / "here")

    assert [path] == [s.path for s in report.skipped]
    assert ["good.txt"] == [p.name for p in (tmp_path / "here").iterdir()]


def test_forgotten_work_is_gone_with_its_old_versions(prepared):
    """`gpulab rm` says it cannot be undone, so nothing may stay and cost."""
    keep_in_bucket(prepared, FILES)
    keep_in_bucket(prepared, FILES)

    keep.forget(prepared.context, keep.find(prepared.context, "week4"))

    bucket = prepared.context.profile.keep_bucket
    left = boto3.client("s3").list_object_versions(Bucket=bucket)
    assert ([], []) == (left.get("Versions", []), left.get("DeleteMarkers", []))
    with pytest.raises(WrongUsage, match="no work of `week4` is kept"):
        keep.find(prepared.context, "week4")


def test_the_bucket_is_private_versioned_and_encrypted(prepared):
    """Student work is personal; a mistake must be undone for 30 days."""
    s3, named = boto3.client("s3"), {"Bucket": prepared.context.profile.keep_bucket}

    blocked = s3.get_public_access_block(**named)["PublicAccessBlockConfiguration"]

    assert all(blocked.values())
    assert "Enabled" == s3.get_bucket_versioning(**named)["Status"]
    assert "AES256" in str(s3.get_bucket_encryption(**named))


def test_preparing_twice_changes_nothing(prepared):
    """`gpulab init` is typed again whenever something seems wrong."""
    profile = prepared.context.profile

    again = prepare(prepared.context)

    assert (
        profile.owner,
        profile.keep_bucket,
        profile.instance_role,
        profile.scheduler_role,
        (),
    ) == (
        again.owner,
        again.keep_bucket,
        again.instance_role,
        again.scheduler_role,
        again.notes,
    )


def test_what_the_account_does_not_allow_is_an_answer(sandbox, tmp_path):
    """Many student accounts may make neither buckets nor roles; gpulab works without."""
    sandbox.deny("s3:CreateBucket")
    sandbox.deny("iam:CreateRole")

    made = prepare(Student(sandbox, tmp_path).context)

    assert ("", "", "") == (made.keep_bucket, made.instance_role, made.scheduler_role)
    assert any("the work is kept on this computer" in note for note in made.notes)
    assert any("only the timer on the instance ends it" in note for note in made.notes)


def test_sweep_leaves_alone_what_is_within_its_time(prepared):
    """A student who cleans up must not end the training that runs."""
    prepared.sandbox.advance(seconds=900)

    left = sweep.look(prepared.context)

    assert () == left.found
    assert {Kind.INSTANCE, Kind.VOLUME, Kind.SPOT_REQUEST, Kind.SCHEDULE} <= {
        item.resource.kind for item in left.untouchable
    }


@pytest.mark.parametrize(
    ("is_told", "expected"),
    [(True, ("$146.00", "spot")), (False, ("$383.98", "on-demand"))],
)
def test_sweep_says_whether_a_price_is_the_spot_price(prepared, is_told, expected):
    """A spot instance shown at three times its cost frightens; shown without a word, the sum fits no bill."""
    prepared.sandbox.advance(seconds=900)
    place = prepared.instance.place
    prepared.sandbox.set_price(place.instance_type, place.zone, Decimal("0.20"))
    if not is_told:
        prepared.sandbox.deny("ec2:DescribeSpotPriceHistory")

    lines = leftovers_text(sweep.look(prepared.context)).splitlines()
    (shown,) = (line.split() for line in lines if line.startswith("instance "))

    assert expected == (shown[4], shown[5])


def test_sweep_finds_in_every_region_what_nobody_knows_any_more(prepared, tmp_path):
    """The other computer is lost; what it started still costs, and may hold work."""
    elsewhere = Student(
        prepared.sandbox,
        tmp_path / "other",
        launches="elsewhere",
        regions=("eu-west-1",),
        owner=prepared.context.profile.owner,
    )
    forgotten = elsewhere.up("forgotten").instance
    prepared.sandbox.advance(seconds=900)

    left = sweep.look(prepared.context)

    shown = {item.resource.id: item.why for item in left.untouchable}
    assert (
        "another computer launched it, and it is within its time; `gpulab stop` saves its work and ends it"
        == shown[forgotten.id]
    )


def test_sweep_takes_what_another_computer_launched_once_its_time_is_over(prepared, tmp_path):
    """The other computer is lost and the instance did not end itself; nobody else will end it."""
    elsewhere = Student(
        prepared.sandbox,
        tmp_path / "other",
        launches="elsewhere",
        owner=prepared.context.profile.owner,
    )
    forgotten = elsewhere.up("forgotten").instance
    prepared.sandbox.advance(seconds=4 * 3600 + 900)

    left = sweep.look(prepared.context)

    found = {item.resource.id: item.why for item in left.found}
    assert "its time is over" == found[forgotten.id]


def test_sweep_deletes_what_is_left_and_nothing_untagged(prepared, ec2):
    """After `--apply` nothing of ours costs, and nothing of others is gone."""
    foreign = ec2.create_security_group(GroupName="theirs", Description="not ours")["GroupId"]
    list(stop.stop(prepared.context, prepared.instance, save=False))
    prepared.sandbox.advance(seconds=900)

    outcomes = list(sweep.apply(prepared.context, sweep.look(prepared.context).found))

    assert outcomes
    assert all(o.is_done for o in outcomes)
    assert () == sweep.look(prepared.context).found
    assert foreign in [g["GroupId"] for g in ec2.describe_security_groups()["SecurityGroups"]]


def test_a_launch_after_a_sweep_works(prepared):
    """The group and the key are gone; the next launch makes them again."""
    list(stop.stop(prepared.context, prepared.instance, save=False))
    prepared.sandbox.advance(seconds=900)
    list(sweep.apply(prepared.context, sweep.look(prepared.context).found))

    run = prepared.again().up("week5")

    assert [run.instance.id] == prepared.live()


def test_doctor_finds_a_virgin_account_wanting(tmp_path):
    """Quotas take days to raise: the student learns of it weeks before the lab."""
    from gpulab.sandbox import Sandbox

    with Sandbox(ready=False) as sandbox:
        found = list(doctor.checks(Student(sandbox, tmp_path).context))

    quota = next(c for c in found if c.name == "us-east-1 quota G spot")
    assert ("failed", "0 of 0 vCPUs in use (L-3819A6DF)") == (quota.state, quota.text)
    assert "aws service-quotas request-service-quota-increase" in quota.hint


def test_doctor_says_in_one_line_what_other_gpus_quotas_are(sandbox, student):
    """A student who wants a T4 must not read six warnings about A100s before the one line that matters."""
    found = [c for c in doctor.checks(student.context) if "quota" in c.name]

    assert [
        ("us-east-1 quota G spot", "ok"),
        ("us-east-1 quota G on-demand", "ok"),
        ("us-east-1 quota P", "ok"),
    ] == [(c.name, c.state) for c in found]
    assert (
        "spot 0 of 0 vCPUs (L-7212CCBC), on-demand 0 of 0 vCPUs (L-417A185B);"
        " only A100, H100 and the like count against it"
    ) == found[-1].text


def test_doctor_asks_for_a_quota_once_not_once_for_each_region(tmp_path):
    """Six long requests for three regions hide that one of them is enough."""
    from gpulab.sandbox import Sandbox

    regions = ("us-east-1", "us-east-2", "us-west-2")
    with Sandbox(ready=False) as sandbox:
        context = Student(sandbox, tmp_path, regions=regions).context
        found = [c for c in doctor.checks(context) if c.name.endswith("quota G spot")]

    assert ["failed"] * 3 == [c.state for c in found]
    assert [True, False, False] == ["request-service-quota-increase" in c.hint for c in found]
    assert "One region is enough; or the same request in us-west-2" == found[2].hint


def test_doctor_fails_the_quota_of_the_gpu_the_profile_asks_for(sandbox, tmp_path):
    """Who wants an H100 is stopped by the P5 quota, not by that of a T4."""
    context = Student(sandbox, tmp_path, gpu="H100").context

    found = {c.name: c for c in doctor.checks(context)}

    assert "failed" == found["us-east-1 quota P5 spot"].state
    assert "L-C4BD4855" in found["us-east-1 quota P5 spot"].hint
    assert "ok" == found["us-east-1 quota G"].state


def test_doctor_of_a_ready_account_fails_nothing_and_changes_nothing(sandbox, student):
    """It may be run at any time, at no cost."""
    found = list(doctor.checks(student.context))

    assert [] == [c.name for c in found if c.state == "failed"]
    changing = [c for c in sandbox.calls if c.operation.startswith(("Create", "Put", "Delete"))]
    assert all(c.params.get("DryRun") for c in changing)


def test_doctor_names_a_free_plan_and_a_missing_permission(sandbox, student):
    """Both stop every launch, and neither is cured by trying again."""
    sandbox.set_plan("FREE")
    sandbox.deny("ec2:RunInstances")

    found = {c.name: c for c in doctor.checks(student.context)}

    assert "an account on the Free plan cannot start a GPU" == found["account plan"].text
    assert "failed" == found["us-east-1 permissions"].state
    assert "ec2:RunInstances" in found["us-east-1 permissions"].text


def test_doctor_without_credentials_stops_at_the_credentials(sandbox, student):
    """Every further check would say the same in other words."""
    sandbox.expire_credentials()

    found = list(doctor.checks(student.context))

    assert ("credentials", "failed") == (found[-1].name, found[-1].state)
    assert "`gpulab init --paste`" in found[-1].hint


def test_finding_an_instance_names_what_there_is(prepared):
    """A typing slip in a name costs one line."""
    prepared.sandbox.advance(seconds=60)

    with pytest.raises(WrongUsage) as refusal:
        instances.find(prepared.context, "wek4")

    assert ("no instance is called `wek4`", "There is week4") == (
        refusal.value.message,
        refusal.value.hint,
    )
    assert prepared.instance.id == instances.find(prepared.context, None).id


def test_a_bucket_of_somebody_else_is_refused(sandbox, tmp_path):
    """Bucket names are one namespace for all of AWS: anybody can take ours first."""
    sandbox.refuse("CreateBucket", "BucketAlreadyExists", status=409)

    made = prepare(Student(sandbox, tmp_path).context)

    assert "" == made.keep_bucket
    assert "somebody else owns a bucket called gpulab-123456789012-us-east-1" in made.notes[0]
