"""What the dashboard shows: how each one is, what it costs, what happened; names only when asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.errors import CredentialsInvalid
from gpulab.fleet.seats import seats_of
from gpulab.fleets.members import Member
from gpulab.model.instance import State
from gpulab.model.status import AgentStatus, Gpu, Phase
from gpulab.spending.lab import CourseSpending
from gpulab.view.dashboard import UNANSWERED, Board, Standing, class_board, remembering
from gpulab.view.dashboard_log import happened
from gpulab.view.dashboard_page import board_json
from gpulab.view.fleet_members import MemberRow


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, boards = _load("fleet_builders"), _load("dashboard_builders")
NOW = build.NOW
COURSE = build.a_course(lab='budget_usd = "4.00"')
SEATS = seats_of(COURSE, COURSE.labs[0], build.students(3), secret=build.SECRET)


def a_status(**changes) -> AgentStatus:
    values = {
        "at": NOW,
        "phases": (Phase("environment", "done", 40.0, ""),),
        "deadline": NOW + timedelta(hours=2),
        "idle_minutes": 60,
        "idle_since": None,
        "spent_usd": Decimal("0.31"),
        "budget_usd": None,
        "gpus": (Gpu("T4", 93.0, 1000, 16000),),
        "jupyter_port": 8888,
        "is_jupyter_ready": True,
        "saved_at": None,
        "notice": None,
        "ending": "",
    }
    return AgentStatus(**{**values, **changes})


def a_row(status=None, silence="", seat=SEATS[0], error=None, **instance) -> MemberRow:
    found = None if error else build.an_instance(seat.name, **instance)
    return MemberRow(Member(seat.account, seat, found, error), status, silence)


def shown(*rows, has_names=False, notes=()) -> Board:
    return class_board(
        rows,
        lab=COURSE.labs[0],
        spending=CourseSpending(Decimal("1.50"), Decimal("7.25"), Decimal("0.4316")),
        term_budget_usd=Decimal(150),
        has_names=has_names,
        notes=notes,
        now=NOW,
    )


def as_json(board):
    return board_json(board, (), title="c1 w1", note="", now=NOW)


OLD = {"launched_at": NOW - timedelta(minutes=30)}
YOUNG = {"launched_at": NOW - timedelta(minutes=2)}
FAILED = Phase("environment", "failed", 9.0, "no space left\non device")
SETTING_UP = (Phase("jupyter", "done", 1.0, ""), Phase("environment", "running", 9.0, ""))


@pytest.mark.parametrize(
    ("row", "standing", "words"),
    [
        (a_row(a_status()), Standing.UP, "GPU 93 %"),
        (a_row(a_status(idle_since=NOW - timedelta(minutes=14))), Standing.IDLE, "idle 14 min"),
        (a_row(a_status(phases=SETTING_UP)), Standing.STARTING, "setting up: environment"),
        (a_row(a_status(phases=(FAILED,))), Standing.TROUBLE, "environment failed: no space left; on device"),
        (a_row(a_status(notice=("terminate", None))), Standing.TROUBLE, "AWS takes it back"),
        (a_row(a_status(ending="idle")), Standing.ENDING, "ending: idle"),
        (a_row(state=State.PENDING, **OLD), Standing.STARTING, "booting"),
        (a_row(silence="no route", **YOUNG), Standing.STARTING, "booting"),
        (a_row(silence="no route", **OLD), Standing.TROUBLE, "no answer: no route"),
        (a_row(**OLD), Standing.UP, "has not answered yet"),
        (a_row(state=State.STOPPING), Standing.ENDING, "stopping"),
        (a_row(state=State.STOPPED), Standing.TROUBLE, "stopped: its disk is paid for and may hold work; `gpulab fleet up` says how it is started or ended"),
        (a_row(error=CredentialsInvalid("expired")), Standing.UNKNOWN, "its account could not be read"),
        (MemberRow(Member(SEATS[0].account, SEATS[0], None)), Standing.NONE, "not up"),
        (MemberRow(Member(SEATS[0].account, None, build.an_instance("w1-x"))), Standing.TROUBLE, "nobody in the roster has it"),
    ],
)  # fmt: skip
def test_everybody_has_one_standing_and_its_reason(row, standing, words):
    """A teacher looks for who needs help; a machine that boots is not in trouble yet."""
    found = shown(row).tiles[0]

    assert (standing, words) == (found.standing, found.words)


def test_names_are_shown_only_when_they_are_asked_for():
    """The page is on the projector of an auditorium."""
    without, with_names = (as_json(shown(a_row(), has_names=n)) for n in (False, True))

    assert (False, True) == ("Student 0" in str(without), "Student 0" in str(with_names))
    assert "student.example" not in str(with_names)


def test_a_lost_account_is_one_line_however_many_it_concerns():
    """Three hundred lines of the same cause would hide the second cause."""
    lost = CredentialsInvalid("the credentials have expired")

    found = shown(*(a_row(seat=seat, error=lost) for seat in SEATS), notes=("a ledger is damaged",))

    assert (
        "profile-default could not be read, which concerns 3: the credentials have expired",
        "a ledger is damaged",
    ) == found.notes


def test_dollars_stand_against_the_budget_of_lab_and_term():
    """Whether the lab eats the term is what the head of department asks."""
    rows = [a_row(seat=seat) for seat in SEATS]

    gauges = as_json(shown(*rows))["gauges"]

    assert [
        ("This lab", "$1.50 of $12.00", "13 % spent, $0.4316/h now", 12),
        ("The term", "$7.25 of $150.00", "5 % spent", 4),
    ] == [(g["title"], g["text"], g["note"], g["percent"]) for g in gauges]


def test_whoever_needs_somebody_comes_first_and_nobody_else_jumps_about():
    """Among three hundred tiles the red one must be seen, and the others found where they were."""
    rows = [
        a_row(a_status(), seat=SEATS[0]),
        a_row(seat=SEATS[1], error=CredentialsInvalid("expired")),
        a_row(a_status(phases=(FAILED,)), seat=SEATS[2]),
    ]

    order = [t["who"] for t in as_json(shown(*rows))["tiles"]]

    assert ["s000002", "s000001", "s000000"] == order


def test_what_an_instance_claims_stays_within_its_bar_and_drives_nothing():
    """Root on an instance is a student; its words and numbers are read by the teacher's browser."""
    wild = a_status(
        phases=(Phase("gpu", "failed", 1.0, "\x1b]52;c;x\x07\u202egnp" + "x" * 5000),),
        gpus=(Gpu("T4", 9e11, 0, 0), Gpu("T4", -5, 0, 0)),
        spent_usd=Decimal("-1e9"),
    )

    found = as_json(shown(a_row(wild)))["tiles"][0]

    assert (100, 0) == (found["gpu_percent"], found["spent_percent"])
    assert 200 == len(found["words"])
    assert not {"\x1b", "\x07", "\u202e"} & set(found["words"])


def test_an_extra_with_another_students_name_has_a_tile_of_its_own():
    """In a course account a name is a tag, and somebody may write another's into theirs."""
    extra = Member(
        SEATS[0].account, None, build.an_instance(SEATS[0].name, id="i-00000000000000bad")
    )

    tiles = shown(a_row(), MemberRow(extra)).tiles

    assert [SEATS[0].name, "i-00000000000000bad"] == [t.key for t in tiles]


def test_the_keys_of_the_json_are_a_contract_with_the_page():
    """The script reads them by name; a renamed one would be an empty page."""
    found = as_json(shown(a_row(a_status())))

    assert ["counts", "gauges", "log", "looked_at", "notes", "tiles", "title"] == sorted(found)
    assert [
        *("css", "ends", "gpu_percent", "group", "instance", "key", "names", "place"),
        *("spent", "spent_percent", "standing", "who", "words"),
    ] == sorted(found["tiles"][0])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (Standing.NONE, Standing.STARTING, "starting, booting"),
        (Standing.STARTING, Standing.UP, "up, booting"),
        (Standing.UP, Standing.NONE, "has ended"),
        (Standing.UP, Standing.TROUBLE, "in trouble, booting"),
        (Standing.UP, Standing.UP, None),
        (Standing.UP, Standing.UNKNOWN, None),
        (Standing.UNKNOWN, Standing.UP, None),
        (Standing.UNKNOWN, Standing.TROUBLE, "booting"),
    ],
)
def test_the_log_says_what_changed_between_two_looks(before, after, said):
    """What happened while the teacher talked is read afterwards; what did not change is not news."""
    first = boards.board(boards.tile("s1", before, words="booting", instance="i-1"))
    second = boards.board(boards.tile("s1", after, words="booting", instance="i-1"))

    entries = happened(first, second)

    assert ([f"s1: {said}"] if said else []) == [entry.text for entry in entries]


def test_the_log_says_who_was_replaced_what_else_is_wrong_and_what_is_gone():
    """A spot interruption in one look, a second failure in the same standing, and an extra that was pruned."""
    first = boards.board(
        boards.tile("s1", instance="i-1"),
        boards.tile("s2", Standing.TROUBLE, words="gpu failed"),
        boards.tile("s3"),
        notes=("x could not be read",),
    )
    second = boards.board(
        boards.tile("s1", instance="i-2"),
        boards.tile("s2", Standing.TROUBLE, words="no answer"),
        notes=("y could not be read",),
    )

    said = [(entry.text, entry.is_alarm) for entry in happened(first, second)]

    assert [
        ("y could not be read", True),
        ("s1: was replaced by i-2", False),
        ("s2: no answer", True),
        ("s3: has ended", False),
        ("No longer: x could not be read", False),
    ] == said


def test_who_cannot_be_read_is_shown_as_seen_last():
    """A lost Wi-Fi takes every account at once; a board of nothing but `unknown` would help nobody."""
    first = boards.board(boards.tile("s1"), boards.tile("s2", Standing.NONE, words="not up"))
    lost = boards.board(
        *(boards.tile(who, Standing.UNKNOWN, words="?") for who in ("s1", "s2", "s3"))
    )

    once = remembering(lost, first)
    twice = remembering(lost, once)

    assert [
        (Standing.UNKNOWN, "was up: GPU 93 %", None),
        (Standing.UNKNOWN, "was not up", None),
        (Standing.UNKNOWN, "?", None),
    ] == [(t.standing, t.words, t.gpu_percent) for t in once.tiles]
    assert once == twice


def test_the_first_answers_of_a_class_at_work_are_no_news():
    """The dashboard is begun in the middle of a lab: the log would begin with three hundred lines, and hide the one that matters."""
    unasked = boards.tile("s1", words=UNANSWERED)
    answered = boards.tile("s1", Standing.IDLE, words="idle 14 min")
    broken = boards.tile("s1", Standing.TROUBLE, words="environment failed")

    said = [happened(boards.board(unasked), boards.board(now)) for now in (answered, broken)]

    assert [[], ["s1: in trouble, environment failed"]] == [[e.text for e in log] for log in said]


def test_the_first_look_is_one_line():
    """Three hundred lines of who is up would be no news."""
    said = happened(None, replace(boards.busy_lab(), notes=()))

    expected = "First look: 2 in trouble, 1 unknown, 2 starting, 16 up, 2 idle, 1 ending, 1 not up"
    assert [expected] == [entry.text for entry in said]
