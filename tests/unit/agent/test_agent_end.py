"""How an instance ends: deadline, budget, idle limit, notice; warned, saved, and by a clock that may be wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.agent import agent
from gpulab.agent.agent import (
    Watch,
    arm,
    change_limits,
    compose_status,
    main,
    read_json,
    read_limits,
    write_json,
)

DEADLINE = datetime(2026, 11, 23, 17, 0, tzinfo=UTC).timestamp()
NOW = DEADLINE - 4 * 3600


def a_watch(here, metadata, *, now: float = NOW) -> Watch:
    write_json(
        here.path("run/gpulab/armed.json"),
        {"end": read_limits(here).end[1], "monotonic": time.monotonic() + DEADLINE - now},
    )
    watch = Watch(here, metadata)
    watch.idle.since = watch.began = now
    watch._keep_armed = lambda now: None  # type: ignore[method-assign]
    return watch


def told(here) -> list[str]:
    wall = here.path("wall")
    return wall.read_text().splitlines() if wall.exists() else []


def is_off(here) -> bool:
    return here.path("off").exists()


def test_the_deadline_ends_it_after_two_warnings(a_here, metadata):
    """A student in the middle of a cell must hear of the end in time, and must not pay past it."""
    here = a_here(idle_minutes=0)
    watch = a_watch(here, metadata)

    for seconds in (-700, -599, -300, -119, -60):
        watch.step(DEADLINE + seconds)
    before = is_off(here)
    watch.step(DEADLINE + 1)

    assert [
        "gpulab: This instance ends at 17:00 UTC, within 10 minutes: its time is over. An open tunnel or `gpulab pull` keeps the work; "
        "`gpulab extend` gives it longer.",
        "gpulab: This instance ends at 17:00 UTC, within 2 minutes: its time is over. An open tunnel or `gpulab pull` keeps the work; "
        "`gpulab extend` gives it longer.",
    ] == told(here)
    assert (False, True) == (before, is_off(here))


def test_a_power_off_that_fails_is_tried_again(a_here, metadata):
    """One hanging service must not turn into a night of GPU hours."""
    here = a_here(idle_minutes=0)
    watch = a_watch(here, metadata)

    for seconds in (1, 6, 22, 44):
        watch.step(DEADLINE + seconds)

    assert 3 == len(here.path("off").read_text().splitlines())


def test_the_budget_ends_it_before_the_deadline(a_here, metadata):
    """Price times time is known without the network: 0.50 USD at 0.25 USD/h are two hours."""
    here = a_here(idle_minutes=0, budget_usd="0.50")
    change_limits(here, born=NOW)
    watch = a_watch(here, metadata)

    watch.step(NOW + 7200 - 60)
    status = read_json(here.path("run/gpulab/status.json"))
    watch.step(NOW + 7201)

    assert {"reason": "budget", "at": "2026-11-23T15:00:00Z"} == status["ending"]
    assert (Decimal("0.4958"), "0.50") == (Decimal(status["spent_usd"]), status["budget_usd"])
    assert is_off(here)


def test_an_idle_instance_is_warned_and_ends(here, metadata):
    """Nobody is there for an hour: ten minutes' warning, then no more cost."""
    watch = a_watch(here, metadata)

    watch.step(NOW + 3600 - 500)
    watch.step(NOW + 3600 + 1)

    assert "nobody uses it" in told(here)[0]
    assert "run a cell to keep it" in told(here)[0]
    assert is_off(here)


def test_a_sign_of_life_takes_the_warning_back(here, metadata):
    """Who runs a cell after the warning keeps the instance, and the notice goes away."""
    notice = here.path(
        "opt/gpulab/server/share/jupyter/labextensions/gpulab-notice/static/notice.json"
    )
    notice.parent.mkdir(parents=True)
    watch = a_watch(here, metadata)
    watch.step(NOW + 3600 - 500)
    warned = read_json(notice)["text"]
    watch.idle.since = NOW + 3600 - 490

    watch.step(NOW + 3600 - 480)

    assert "nobody uses it" in warned
    assert ("", None) == (read_json(notice)["text"], watch.live["ending"])


def test_an_end_that_did_not_come_does_not_hide_the_one_that_does(here, metadata):
    """Who runs a cell in the last ten seconds goes on, and the ledger must hear of the end an hour later as well."""
    watch = a_watch(here, metadata)
    watch.step(NOW + 3600 - 10)
    watch.idle.since = NOW + 3600 - 5
    watch.step(NOW + 3600)

    watch.step(NOW + 7200 - 10)

    lines = (here.work / ".gpulab/ledger/unknown.jsonl").read_text().splitlines()
    ends = [one["at"] for one in map(json.loads, lines) if one["kind"] == "ended"]
    assert ["2026-11-23T14:00:00Z", "2026-11-23T14:59:55Z"] == ends


def test_an_extension_is_warned_of_again_at_the_new_end(a_here, metadata):
    """`extend` at the last minute must not leave the second end without a warning."""
    here = a_here(idle_minutes=0)
    watch = a_watch(here, metadata)
    watch.step(DEADLINE - 100)
    change_limits(here, deadline="2026-11-23T18:00:00Z")

    watch.step(DEADLINE - 50)
    watch.step(DEADLINE + 3600 - 100)

    assert ["17:00", "18:00"] == [line.split(" ends at ")[1][:5] for line in told(here)]
    assert not is_off(here)


def test_a_longer_idle_limit_counts_at_once(here, metadata):
    """`gpulab extend --idle` during a lecture must not need a restart of anything."""
    watch = a_watch(here, metadata)
    change_limits(here, idle_minutes=180)
    os.utime(here.path("var/lib/gpulab/limits.json"), (NOW, NOW))

    watch.step(NOW + 3601)

    assert not is_off(here)


def test_a_changed_tag_moves_the_deadline_and_an_old_one_does_not(here, metadata, metadata_service):
    """A TA extends a class by tags; a tag that was never changed must not undo an `extend` over ssh."""
    watch = a_watch(here, metadata)
    change_limits(here, deadline="2026-11-23T18:00:00Z")
    metadata_service.said["meta-data/tags/instance/gpulab:expires"] = "2026-11-23T17:00:00Z"
    watch._read_tags()
    unchanged = read_limits(here).deadline
    metadata_service.said["meta-data/tags/instance/gpulab:expires"] = "2026-11-23T20:00:00Z"
    watch._read_tags()

    changed = read_limits(here).deadline

    assert (DEADLINE + 3600, DEADLINE + 3 * 3600) == (unchanged, changed)


def test_a_changed_idle_tag_moves_the_idle_limit_and_an_old_one_does_not(
    here, metadata, metadata_service
):
    """`gpulab extend --idle` from a train reaches the agent so; what was said on the instance itself later must stand."""
    tag = "meta-data/tags/instance/gpulab:idle"
    watch = a_watch(here, metadata)
    limits = [read_limits(here).idle_minutes]
    metadata_service.said[tag] = "180"
    watch._read_tags()
    limits.append(read_limits(here).idle_minutes)
    change_limits(here, idle_minutes=30)
    watch._read_tags()
    limits.append(read_limits(here).idle_minutes)
    metadata_service.said[tag] = "0"
    watch._read_tags()
    limits.append(read_limits(here).idle_minutes)

    assert [60, 180, 30, 0] == limits


@pytest.mark.parametrize("tag", ["", "-5", "1h", "1.5", "9" * 200, "\u0663"])
def test_an_idle_tag_that_is_no_number_changes_nothing(here, metadata, metadata_service, tag):
    """Anyone with CreateTags can write a tag; nonsense must neither end nor free an instance."""
    metadata_service.said["meta-data/tags/instance/gpulab:idle"] = tag
    watch = a_watch(here, metadata)

    watch.step(NOW + 5)

    assert 60 == read_limits(here).idle_minutes


def test_a_tag_that_is_no_moment_changes_nothing(here, metadata, metadata_service):
    """Anyone with CreateTags can write a tag; nonsense must neither end nor free an instance."""
    metadata_service.said["meta-data/tags/instance/gpulab:expires"] = "tomorrow; rm -rf /"
    watch = a_watch(here, metadata)

    watch.step(NOW + 5)

    assert DEADLINE == read_limits(here).deadline


def test_the_notice_is_told_written_down_and_seen_in_the_status(here, metadata, metadata_service):
    """Two minutes is all there is: the terminal, the browser and the ledger must know in the same step."""
    watch = a_watch(here, metadata)
    metadata_service.said["meta-data/spot/instance-action"] = (
        '{"action": "terminate", "time": "2026-11-23T14:30:00Z"}'
    )

    watch.step(NOW + 60)
    watch.step(NOW + 65)
    status = read_json(here.path("run/gpulab/status.json"))
    change = here.work / ".gpulab/ledger/unknown.jsonl"
    facts = [json.loads(line) for line in change.read_text().splitlines()]

    assert {"action": "terminate", "time": "2026-11-23T14:30:00Z"} == status["notice"]
    assert {"reason": "spot interruption", "at": "2026-11-23T14:30:00Z"} == status["ending"]
    assert 1 == len(told(here))
    assert "takes this spot instance back at 14:30 UTC" in told(here)[0]
    assert [("usage", "agent"), ("ended", "agent")] == [(f["kind"], f["source"]) for f in facts]
    assert {"by": "aws", "how": "terminated", "reason": "Server.SpotInstanceTermination"} == facts[
        1
    ]["details"]


NOTICE = '{"action": "terminate", "time": "2026-11-23T14:30:00Z"}'
TAKEN = "AWS takes this spot instance back at 14:30 UTC. "
BACK = "`gpulab up` brings it back on another instance."
PULL = "`gpulab pull` brings it to the laptop"


class Saving:
    """A save that is over when it is asked for."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode


@pytest.mark.parametrize(
    ("summary", "code", "said"),
    [
        ({"saved_at": "2026-11-23T13:01:02Z"}, 0, f"The work is saved. {TAKEN}{BACK}"),
        (
            {"saved_at": "2026-11-23T13:01:02Z", "failed": ["a.h5: Input/output error"]},
            1,
            f"Not all of the work is saved (a.h5: Input/output error); {PULL}. {TAKEN[:-1]}",
        ),
        (
            {"error": "S3 does not answer"},
            1,
            f"Not all of the work is saved (S3 does not answer); {PULL}. {TAKEN[:-1]}",
        ),
        ({"saved_at": "2026-11-23T13:00:59Z"}, 0, ""),  # begun before the notice
    ],
)
def test_after_a_notice_it_is_said_once_that_the_work_is_safe(
    a_here, metadata, metadata_service, summary, code, said
):
    """In the two minutes a student has, `is being saved` is no answer to whether the afternoon is lost."""
    here = a_here(keep={"bucket": "b", "prefix": "p/", "region": "r", "endpoint": "http://x"})
    watch = a_watch(here, metadata)
    watch._start_save = lambda: None  # type: ignore[method-assign]
    metadata_service.said["meta-data/spot/instance-action"] = NOTICE
    watch.step(NOW + 60)
    write_json(here.path("run/gpulab/saved.json"), summary)

    for seconds in (65, 70):
        watch.saving = Saving(code)  # type: ignore[assignment]
        watch.step(NOW + seconds)

    assert [
        f"gpulab: {TAKEN}The work is being saved now; {BACK}",
        *[f"gpulab: {said}"] * bool(said),
    ] == [line for line in told(here) if "disk" not in line]


def test_a_save_that_was_under_way_at_the_notice_is_followed_by_another(
    a_here, metadata, metadata_service, monkeypatch
):
    """What was written after it had begun would be lost, and nobody could say that all is safe."""
    here = a_here(keep={"bucket": "b", "prefix": "p/", "region": "r", "endpoint": "http://x"})
    write_json(here.path("run/gpulab/phases.json"), {"phases": [{"state": "done"}] * 9})
    watch = a_watch(here, metadata)
    metadata_service.said["meta-data/spot/instance-action"] = NOTICE
    began: list[float] = []
    watch.saving = Saving(None)  # type: ignore[assignment]
    seen = agent.Glance()
    agent.scan(here.work, seen)
    watch.saved_print = seen.print

    watch.step(NOW + 60)
    watch.saving = None
    watch._start_save = lambda: began.append(now)  # type: ignore[method-assign]
    for now in (NOW + 65, NOW + 70):
        watch.step(now)

    assert [NOW + 70] == began


def test_a_rebalance_recommendation_is_told_once(here, metadata, metadata_service):
    """It often comes minutes before the notice; said every five seconds it would only annoy."""
    metadata_service.said["meta-data/events/recommendations/rebalance"] = (
        '{"noticeTime": "2026-11-23T14:20:00Z"}'
    )
    watch = a_watch(here, metadata)

    for seconds in (5, 10, 15):
        watch.step(NOW + seconds)

    assert [
        "gpulab: AWS may take this spot instance back soon. An open tunnel or `gpulab pull` keeps the work."
    ] == told(here)


def test_a_clock_that_is_off_does_not_change_the_end(here, metadata, metadata_service):
    """A machine whose clock is 20 minutes late would cost 20 minutes more: the metadata service's clock is asked."""
    before = time.time()
    metadata_service.date = int(before) + 1200

    metadata.get("meta-data/instance-id")
    after = time.time()
    late = metadata.now() - time.time()
    metadata_service.date = time.time() + 3
    metadata.get("meta-data/instance-id")
    right = metadata.now() - time.time()

    # The difference was taken at some moment between the two.
    assert int(before) + 1199.9 - after <= late <= int(before) + 1200.1 - before
    assert round(right) == 0


def test_an_expired_metadata_token_is_renewed(metadata, metadata_service):
    """IMDSv2 tokens live six hours; an instance that cannot renew it would miss its notice in the evening."""
    metadata.get("meta-data/instance-id")
    metadata_service.tokens += 1

    answer = metadata.get("meta-data/instance-id")

    assert b"i-0abc" == answer


def test_without_a_metadata_service_everything_else_goes_on(a_here):
    """The metadata service may be blocked; the deadline must still come."""
    here = a_here(idle_minutes=0)
    watch = a_watch(here, agent.Metadata("http://127.0.0.1:9"))

    watch.step(DEADLINE + 1)

    assert is_off(here)


def test_a_full_disk_does_not_stop_the_end(a_here, metadata, monkeypatch):
    """Students fill disks; a log that cannot be written must not keep a machine running."""
    here = a_here(idle_minutes=0)
    watch = a_watch(here, metadata)
    here.path("var/log/gpulab").mkdir(parents=True)
    here.path("var/log/gpulab/agent.log").symlink_to("/dev/full")
    here.path("home/ubuntu/work/.gpulab").write_text("a file where a folder should be")

    watch.step(DEADLINE + 1)

    assert is_off(here)


def test_arming_leaves_exactly_one_watchdog(here, metadata):
    """Each `extend` arms again; an old timer left behind would end the instance at the old time."""
    change_limits(here, deadline="2036-11-23T18:00:00Z")
    arm(here, metadata)
    first = int(here.path("run/gpulab/end.pid").read_text())

    said = arm(here, metadata)
    second = int(here.path("run/gpulab/end.pid").read_text())
    os.waitpid(first, 0)

    assert "deadline 2036-11-23T18:00:00Z" == said
    assert first != second
    os.kill(second, 0)


def test_the_watcher_arms_again_when_the_end_moved(here, metadata):
    """A tag moves the deadline in a file; the timer that works without the agent must follow."""
    change_limits(here, deadline="2036-11-23T18:00:00Z")
    arm(here, metadata)
    change_limits(here, deadline="2036-11-23T19:00:00Z")
    watch = Watch(here, metadata)

    watch._keep_armed(time.time())

    assert read_limits(here).deadline == read_json(here.path("run/gpulab/armed.json"))["end"]


def test_extend_and_idle_survive_a_reboot(here, capsys, monkeypatch):
    """/run is empty after a reboot; a promise made to the user lies on the disk."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")

    code = main(["--root", here.root, "extend", "--until", "2036-01-01T10:00:00+02:00"])
    main(["--root", here.root, "idle", "--minutes", "0"])
    said = capsys.readouterr().out.splitlines()
    limits = read_limits(here)

    assert (0, ["deadline 2036-01-01T08:00:00Z", "no idle limit"]) == (code, said)
    assert ("2036-01-01T08:00:00Z", 0) == (agent.iso(limits.deadline), limits.idle_minutes)


@pytest.mark.parametrize(
    "words",
    [
        ["extend"],
        ["extend", "--until", "soon"],
        ["extend", "--until", "2036-01-01T10:00:00"],
        ["dance"],
        [],
    ],
)
def test_bad_words_change_nothing(here, words, capsys):
    """A deadline without a time zone would be guessed, and guessed wrong by hours."""
    code = main(["--root", here.root, *words])

    assert code in (1, 2)
    assert capsys.readouterr().err.startswith(("error: ", "usage: "))
    assert not here.path("var/lib/gpulab/limits.json").exists()


def test_the_status_has_the_promised_keys(here):
    """`gpulab ls`, `show` and `up` are written against these names."""
    status = compose_status(here, now=NOW)

    assert [
        "version",
        "at",
        "phases",
        "deadline",
        "idle_minutes",
        "idle_since",
        "used",
        "spent_usd",
        "budget_usd",
        "gpu",
        "jupyter",
        "saved_at",
        "keep",
        "notice",
        "ending",
    ] == list(status)
    assert {"port": 8888, "ready": False} == status["jupyter"]
    assert ["armed", "host-keys", "ssh", "work", "jupyter", "environment", "gpu"] == [
        p["name"] for p in status["phases"]
    ]


def test_gpus_are_read_from_nvidia_smi(here):
    """`ls` shows who really uses a GPU; virtual GPUs leave fields out."""
    smi = here.path("usr/bin/nvidia-smi")
    smi.write_text('#!/bin/sh\necho "Tesla T4, 37, 1024, 15360"\necho "GRID, [N/A], [N/A], 8192"\n')
    smi.chmod(0o755)

    gpus = agent.read_gpus(here)

    assert [
        {"name": "Tesla T4", "use_percent": 37, "memory_used_mib": 1024, "memory_total_mib": 15360},
        {"name": "GRID", "use_percent": 0, "memory_used_mib": 0, "memory_total_mib": 8192},
    ] == gpus


class StillSaving:
    """A save that does not end."""

    def poll(self) -> None:
        return None


def test_the_power_off_waits_for_the_last_save_but_not_for_ever(a_here, metadata):
    """Ten seconds more may hold the last edits; a hanging S3 must not hold a GPU."""
    here = a_here(idle_minutes=0)
    watch = a_watch(here, metadata)
    watch.saving = StillSaving()

    watch.step(DEADLINE + 5)
    waited = not is_off(here)
    watch.step(DEADLINE + 46)

    assert (True, True) == (waited, is_off(here))


class UntilThen(agent.InBucket):
    """Keeps the work in saves that are over at a given second; `begun` has when each began."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.now = -1000
        self.begun: list[int] = []

    returncode = 0

    def poll(self) -> int | None:
        return 0 if self.now >= self.until else None

    def begin(self, watch: Watch) -> None:
        if watch.saving is None:
            self.begun.append(self.now)
            self.until = self.now + 5
            watch.saving = self


@pytest.mark.parametrize(
    ("until", "begun", "off"), [(-25, [-20], 0), (-10, [-10], 0), (30, [30], 35), (50, [], 45)]
)
def test_the_last_save_begins_after_the_one_that_is_under_way(a_here, metadata, until, begun, off):
    """A checkpoint of some gigabytes travels at the end of a lab: a notebook saved meanwhile must come along, in the time there is."""
    here = a_here(idle_minutes=0, keep={"bucket": "b", "prefix": "p/"})
    watch, slow = a_watch(here, metadata), UntilThen(until)
    watch.keeper = watch.saving = slow  # type: ignore[assignment]

    while not is_off(here):
        slow.now = max(slow.now + 5, -40)
        watch.step(DEADLINE + slow.now)

    assert (begun, off) == (slow.begun, slow.now)


def test_a_kernel_that_the_system_ended_for_memory_is_told_once(here, metadata):
    """JupyterLab only says that the kernel died; a student then looks for the fault in the notebook."""
    counters = write(here, "proc/vmstat", "nr_free_pages 9\noom_kill 2\n")
    watch = a_watch(here, metadata)

    watch.step(NOW)
    counters.write_text("nr_free_pages 9\noom_kill 3\n")
    watch.step(NOW + 5)
    watch.step(NOW + 10)

    assert ["gpulab: The memory was full, so the system ended a program, likely a kernel."] == told(
        here
    )


def test_a_full_disk_is_told_once_and_again_when_it_is_full_again(here, metadata, monkeypatch):
    """A notebook that cannot be saved is lost; the student hears of it while there is time to delete something."""
    watch = a_watch(here, metadata)
    usage = shutil.disk_usage(here.work)
    for number, free in enumerate([0, 0, 2**30, 0]):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        watch.step(NOW + 5 * number)

    assert ["gpulab: The disk is full: delete files, or nothing can be saved."] * 2 == told(here)


def test_metadata_that_does_not_answer_are_told_once(here):
    """Without them no spot notice is seen, and the last save would come as a surprise to everyone."""
    watch = a_watch(here, agent.Metadata("http://127.0.0.1:9"))

    watch.step(NOW)
    watch.step(NOW + 60)

    assert ["gpulab: AWS's metadata does not answer: a spot notice would not be seen."] == told(
        here
    )


def test_a_clock_that_is_off_is_told(here, metadata, metadata_service):
    """Who compares the end with a clock in the terminal must know that the clock is wrong."""
    watch = a_watch(here, metadata)
    metadata_service.date = time.time() + 1200.5

    watch.step(NOW)

    (line,) = told(here)
    assert re.fullmatch(r"gpulab: The clock was off by 1(199|200) s; AWS's is used\.", line)


def test_the_console_has_the_reason_and_how_the_work_stands(a_here, metadata):
    """The disk is gone after the end; AWS shows the console for another hour."""
    here = a_here(idle_minutes=0)
    write(here, "dev/console", "")
    watch = a_watch(here, metadata)
    watch.live["saved_at"] = "2026-11-23T16:59:41Z"
    watch.live["keep"] = {"failed": ["S3 does not PUT kept-work/a: timed out"]}

    watch.step(DEADLINE + 1)

    assert (
        "gpulab: power off: deadline; saved 2026-11-23T16:59:41Z, then not: S3 does not PUT kept-work/a: timed out"
        == here.path("dev/console").read_text().strip()
    )


def write(here, name: str, text: str) -> Path:
    place = here.path(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def test_a_line_that_a_full_disk_takes_in_part_is_said_elsewhere(here, monkeypatch, capsys):
    """The rest of a last block takes some bytes without an error; the line that says why nothing is saved must not end there."""

    class Full(io.BytesIO):
        def write(self, text):
            return super().write(text[:20])

    monkeypatch.setattr(type(here), "open_log", lambda self: Full())

    here.log("told: The disk is full: delete files, or nothing can be saved.")

    assert "The disk is full: delete files, or nothing can be saved.\n" in capsys.readouterr().err
