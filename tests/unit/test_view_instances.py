"""Instances as their student reads them: when each ends, and what ends it first."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gpulab.aws.end_schedule import EndSchedule
from gpulab.launch.running.instances import Details
from gpulab.launch.running.overview import Row
from gpulab.model.instance import Instance, State
from gpulab.model.market import Market, Place
from gpulab.model.status import AgentStatus, read_status
from gpulab.view.instances import row_json, rows_text, status_lines
from gpulab.view.showing import show_text

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def a_status(**changes) -> AgentStatus:
    told = {"version": 1, "at": NOW.isoformat(), "spent_usd": "0.50", "budget_usd": "0.60"}
    return read_status(json.dumps({**told, **changes}))


def a_row(status: AgentStatus | None, usd_per_hour: str | None = "0.20") -> Row:
    instance = Instance(
        id="i-1",
        name="week4",
        owner="me",
        place=Place("us-east-1", "us-east-1d", "g4dn.xlarge", Market.SPOT),
        state=State.RUNNING,
        state_reason="",
        address="54.214.1.2",
        private_address="",
        launched_at=NOW - timedelta(hours=1),
        expires_at=NOW + timedelta(hours=2),
        launch_id="l-1",
    )
    usd = None if usd_per_hour is None else Decimal(usd_per_hour)
    return Row(instance, usd, Decimal("0.50"), status)


def ends_in(row: Row) -> str:
    heading, line = rows_text([row], now=NOW).splitlines()
    return line[heading.index("ENDS IN") : heading.index("OPEN AT")].strip()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (a_row(a_status()), "30 min (budget)"),
        (a_row(a_status(budget_usd="9.00")), "2 h"),
        (a_row(a_status(budget_usd=None)), "2 h"),
        (a_row(a_status(spent_usd=None)), "2 h"),
        (a_row(a_status(budget_usd="0.50")), "now (budget)"),
        (a_row(a_status(), usd_per_hour=None), "2 h"),
        (a_row(a_status(deadline=(NOW + timedelta(minutes=5)).isoformat())), "5 min"),
        (a_row(None), "2 h"),
    ],
)
def test_the_list_tells_the_end_that_comes_first(row, expected):
    """Who reads "2 h" and is switched off by the budget after half an hour loses the cell that was running."""
    assert expected == ends_in(row)


def test_programs_get_both_ends():
    """A script that waits for the end needs the earlier one, and people who move it need the other."""
    found = row_json(a_row(a_status()))

    assert (NOW + timedelta(hours=2), NOW + timedelta(minutes=30)) == (
        found["expires_at"],
        found["budget_ends_at"],
    )


def test_each_end_of_an_instance_says_why_it_is_there():
    """Two times three minutes apart look like a mistake where nobody says that one waits for the other."""
    row, armed = a_row(a_status()), EndSchedule(NOW + timedelta(hours=2, minutes=3))

    lines = show_text(row, Details(row.instance, armed, row.status), now=NOW).splitlines()
    ends = [line for line in lines if line.startswith("end, ")]

    assert ["in 2 h", "should the timer fail", "in 30 min"] == [
        line.rpartition(", ")[2] for line in ends
    ]
    assert "when it has cost $0.60, at this pace " in ends[2]


def test_a_failed_step_shows_its_own_last_words_and_what_to_do():
    """`failed with exit code 2` sends a student to the TA; the lines below it often do not."""
    said = "uv failed with exit code 2\n" + "\n".join(f"line {n}" for n in range(1, 9))
    phases = [
        {"name": "jupyter", "state": "done", "seconds": 9.0, "message": "96 packages"},
        {"name": "environment", "state": "failed", "seconds": 2.0, "message": said},
    ]

    lines = status_lines(a_status(phases=phases), now=NOW)

    assert [
        "phase     jupyter: done, 9.0 s: 96 packages",
        "phase     environment: failed, 2.0 s: uv failed with exit code 2",
        *(f"          | line {n}" for n in range(1, 9)),
        "          it tries again by itself, six times in an hour; `gpulab logs --follow` shows everything, `gpulab stop` ends it",
    ] == lines[:11]


def test_the_list_says_how_busy_the_gpu_is():
    """A student sees from the sofa whether the training still works, and a TA who only holds a GPU."""
    gpus = [
        {"name": "T4", "use_percent": 37, "memory_used_mib": 1024, "memory_total_mib": 15360},
        {"name": "T4", "use_percent": 2, "memory_used_mib": 0, "memory_total_mib": 15360},
    ]
    status = a_status(gpu=gpus)

    assert "GPU 37 %" in rows_text([a_row(status)], now=NOW)
    assert "GPU       T4: 37 % busy, 1,024 of 15,360 MiB" in status_lines(status, now=NOW)


def test_what_is_not_kept_is_shown():
    """A student who counts on the copy must read what is not in it; the caches that nobody misses would hide it."""
    skipped = [
        {"path": "__pycache__", "reason": "excluded"},
        {"path": "data.bin", "reason": "over 20 GiB"},
    ]
    failed = [f"bad{n}.bin: Input/output error" for n in range(7)]
    keep = {"files": 9, "skipped": skipped, "failed": failed}

    lines = status_lines(a_status(keep=keep), now=NOW)

    assert [
        "saved     not yet",
        "left out  data.bin: over 20 GiB",
        *(f"not saved bad{n}.bin: Input/output error" for n in range(5)),
        "          and 2 more",
    ] == lines[-8:]


@pytest.mark.parametrize(
    "keep", [None, 7, {"skipped": 7, "failed": {}}, {"skipped": [7], "failed": [7]}]
)
def test_a_status_that_says_nonsense_of_the_kept_work_is_read(keep):
    """The instance belongs to a student and may say anything."""
    status = a_status(keep=keep)

    assert ((), ()) == (status.left_out, status.unsaved)


@pytest.mark.parametrize(
    ("columns", "headings", "below"),
    [
        (
            None,
            ["NAME", "STATE", "DOING", "TYPE", "MARKET", "ZONE", "COSTS", "SPENT", "ENDS IN"],
            [],
        ),
        (
            110,
            ["NAME", "STATE", "DOING", "TYPE", "MARKET", "ZONE", "COSTS", "SPENT", "ENDS IN"],
            ["week4 is open at http://127.0.0.1:28840/lab"],
        ),
        (
            88,
            ["NAME", "STATE", "DOING", "TYPE", "ZONE", "COSTS", "SPENT", "ENDS IN"],
            ["week4 is open at http://127.0.0.1:28840/lab"],
        ),
        (
            40,
            ["NAME", "STATE", "DOING", "COSTS", "ENDS IN"],
            ["week4 is open at http://127.0.0.1:28840/lab"],
        ),
    ],
)
def test_a_list_fits_a_narrow_terminal(columns, headings, below):
    """Wrapped lines are no table; what an instance does, costs and when it ends stays to the last."""
    row = replace(a_row(a_status()), local_url="http://127.0.0.1:28840/lab")
    lines = rows_text([row, replace(row, local_url="")], now=NOW, columns=columns).splitlines()

    last = ["OPEN AT"] if columns is None else []
    assert headings + last == re.split(r" {2,}", lines[0])
    assert below == lines[3:]
    assert columns in (None, 40) or max(map(len, lines)) < columns


def test_an_instance_that_did_not_answer_is_told_from_one_that_was_not_asked():
    """`-` after `gpulab ls --quick` means nothing; after `gpulab ls` a student must know that nobody answered."""
    asked, not_asked = replace(a_row(None), is_silent=True), a_row(None)

    assert ("no answer", "-") == (row_json(asked)["doing"], row_json(not_asked)["doing"])
    assert "  no answer  " in rows_text([asked], now=NOW)


def test_a_list_says_whose_work_is_not_saved():
    """Nobody runs `show` for thirty students; one whose bucket has gone must stand out in the list."""
    kept = {"files": None, "skipped": None, "failed": ["S3 does not PUT b/k: NoSuchBucket"]}
    done = [{"name": "gpu", "state": "done", "seconds": 1.0, "message": ""}]

    said = [
        row_json(a_row(a_status(keep=keep, phases=done)))["doing"]
        for keep in (kept, {**kept, "failed": []})
    ]

    assert ["not all is saved", "ready"] == said
