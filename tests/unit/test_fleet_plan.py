"""What a lab needs against what is there: decided without any cloud, for one student or for three hundred."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.errors import AwsError, CredentialsInvalid, Refused, WrongUsage
from gpulab.fleet.lab import as_if_now, check_time, extension_of, lab_of
from gpulab.fleet.plan import plan_fleet
from gpulab.fleet.seats import chosen, external_id, instance_name, seats_of, unreachable
from gpulab.model.fleet import Action
from gpulab.model.instance import State
from gpulab.view.fleet import plan_text

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

NOW, SECRET = build.NOW, build.SECRET
SHARED = "profile-default"


def plan_shared(count, view, *, course=None, now=NOW, **changes):
    course = course or build.a_course()
    wish = build.wanted(course, build.students(count), now=now, **changes)
    return plan_fleet(wish, {SHARED: view}, now=now)


def plan_seats(count):
    return build.wanted(build.a_course(), build.students(count), now=NOW).everyone


def actions(plan):
    return [str(step.action) for step in plan.steps]


def test_everybody_without_an_instance_gets_one():
    """The first Monday: nothing runs."""
    plan = plan_shared(3, build.a_view())

    assert ["launch"] * 3 == actions(plan)
    assert datetime(2026, 9, 7, 15, 10, tzinfo=UTC) == plan.ends_at


def test_an_instance_that_is_up_is_kept():
    """Running it again starts only what is missing."""
    seat = plan_shared(1, build.a_view()).steps[0].seat
    view = build.a_view(instances=[build.an_instance(seat.name)])

    plan = plan_shared(2, view)

    assert ["keep", "launch"] == actions(plan)
    assert Decimal(0) == plan.steps[0].at_most_usd


def test_the_wrong_environment_is_replaced_and_says_why():
    """An assistant tried the lab with another environment; the student needs the lab's."""
    seat = plan_shared(1, build.a_view()).steps[0].seat
    view = build.a_view(instances=[build.an_instance(seat.name, environment="tf1-legacy")])

    step = plan_shared(1, view).steps[0]

    assert Action.REPLACE is step.action
    assert "it has the environment tf1-legacy, the lab wants tf2" == step.reason


@pytest.mark.parametrize(
    ("is_rehearsal", "said"),
    [
        (False, "`gpulab fleet extend w1` moves it"),
        (True, "`gpulab fleet extend w1 --by 240m` moves it"),
    ],
)
def test_the_hint_to_extend_names_the_time_in_a_rehearsal(is_rehearsal, said):
    """With `--now` the lab's own end may be years ago: the command as it stood was refused when it was typed."""
    course = build.a_course()
    lab = as_if_now(course.labs[0], NOW) if is_rehearsal else course.labs[0]
    seat = plan_shared(1, build.a_view()).steps[0].seat
    early = build.an_instance(seat.name, expires_at=NOW + timedelta(hours=1))

    step = plan_shared(1, build.a_view(instances=[early]), course=course, lab=lab).steps[0]

    assert said == step.hint


@pytest.mark.parametrize(
    ("hours", "lasts", "until"),
    [(0, 12, 4.33), (3, 12, 4.33), (0, 2, 2), (4.3, 12, 4.33), (-11, 12, 1)],
)
def test_without_a_time_the_end_of_a_lab_that_is_on_is_meant(hours, lasts, until):
    """Its own end and its grace, or as long as an instance may live: project weeks last longer than that."""
    lab, now = build.a_course().labs[0], NOW + timedelta(hours=hours)

    found = extension_of(lab, now=now, longest=timedelta(hours=lasts))

    assert until == round((found - NOW) / timedelta(hours=1), 2)


@pytest.mark.parametrize("days", [-14, 1, 3000])
def test_the_end_of_a_lab_that_is_not_on_says_nothing_about_a_rehearsal(days):
    """Three hundred refusals that an end lies in the past, with the advice to stop, told nobody what to type."""
    lab = build.a_course().labs[0]

    with pytest.raises(WrongUsage, match="lab w1 is not on now") as refusal:
        extension_of(lab, now=NOW + timedelta(days=days), longest=timedelta(hours=12))

    assert refusal.value.hint.endswith("`gpulab fleet extend w1 --by 1h`")


def test_an_instance_that_ends_before_the_lab_is_kept_and_said():
    """It holds a student's work; moving its end is for `fleet extend`."""
    seat = plan_shared(1, build.a_view()).steps[0].seat
    early = build.an_instance(seat.name, expires_at=datetime(2026, 9, 7, 14, 0, tzinfo=UTC))

    step = plan_shared(1, build.a_view(instances=[early])).steps[0]

    assert (Action.KEEP, "it ends 60 min before the lab") == (step.action, step.reason)


@pytest.mark.parametrize("state", [State.STOPPING, State.STOPPED])
def test_nothing_is_launched_beside_an_instance_that_is_stopped(state):
    """Stopped in the console with a day's work on its disk: a second one would begin empty, and the first would be forgotten."""
    seats = [step.seat for step in plan_shared(2, build.a_view()).steps]
    off = build.an_instance(seats[0].name, id="i-1", state=state)

    steps = {s.seat.name: s for s in plan_shared(2, build.a_view(instances=[off])).steps}

    blocked = steps[seats[0].name]
    assert (Action.BLOCKED, Action.LAUNCH) == (blocked.action, steps[seats[1].name].action)
    assert f"i-1 is {state}, and its disk may hold work" == blocked.reason
    assert (
        "`aws ec2 start-instances --region us-east-1 --instance-ids i-1` starts it" in blocked.hint
    )
    ending = f"`gpulab fleet stop w1 --only {seats[0].name} --no-save` ends it"
    assert ending in blocked.hint


def test_what_runs_serves_a_seat_whose_other_instance_is_stopped():
    """Somebody launched a second one already: the student goes on there."""
    seat = plan_shared(1, build.a_view()).steps[0].seat
    both = [
        build.an_instance(seat.name, id="i-1", state=State.STOPPED),
        build.an_instance(seat.name, id="i-2"),
    ]

    (step,) = plan_shared(1, build.a_view(instances=both)).steps

    assert (Action.KEEP, "i-2") == (step.action, step.instance.id)


def test_whoever_left_the_roster_and_a_second_instance_are_extra():
    """Both cost and serve nobody; only `--prune` ends them."""
    seat = plan_shared(1, build.a_view()).steps[0].seat
    first = build.an_instance(seat.name, id="i-1", launched_at=NOW - timedelta(hours=1))
    second = build.an_instance(seat.name, id="i-2")
    gone = build.an_instance("w1-s99999", id="i-3")

    plan = plan_shared(1, build.a_view(instances=[second, gone, first]))

    assert [
        ("i-1", "keep", ""),
        ("i-2", "extra", f"a second {seat.name}"),
        ("i-3", "extra", "nobody in the roster has it"),
    ] == [(s.instance.id, s.action.value, s.reason) for s in plan.steps]


def test_other_labs_and_other_peoples_instances_are_left_alone():
    """A course account holds more than this lab; touching it would end somebody's project."""
    others = [
        build.an_instance("w2-s1", lab="w2"),
        build.an_instance("w1-s2", course="c2"),
        build.an_instance("mine", course="", lab=""),
    ]

    plan = plan_shared(1, build.a_view(instances=others))

    assert ["launch"] == actions(plan)


def test_choosing_some_makes_the_others_neither_launched_nor_extra():
    """`--only` serves one table; the rest of the class keeps what it has."""
    course, people = build.a_course(), build.students(3)
    everyone = seats_of(course, course.labs[0], people, secret=SECRET)
    wish = build.wanted(course, people, seats=chosen(everyone, only=["s00000[01]"]))
    view = build.a_view(instances=[build.an_instance(everyone[2].name)])

    plan = plan_fleet(wish, {SHARED: view}, now=NOW)

    assert ["s000000", "s000001"] == [s.seat.label for s in plan.steps]


def test_the_quota_of_a_shared_account_is_counted_before_anybody_waits():
    """300 students need 1,200 vCPUs; the request that raises 512 takes days, so it is named weeks before."""
    plan = plan_shared(300, build.a_view(quotas=[build.quota(512)]))

    need = plan.quotas[0]
    assert (1200, 512, False) == (need.needed_vcpus, need.limit_vcpus, need.fits)
    assert "--quota-code L-3819A6DF --desired-value 1200 --region us-east-1" in need.hint
    assert 128 == len(plan.of(Action.LAUNCH))
    assert 172 == len(plan.of(Action.BLOCKED))
    assert (
        "the spot quota in us-east-1 is 512 vCPUs (0 in use), and the lab needs 1,200"
        == plan.of(Action.BLOCKED)[0].reason
    )


def test_what_runs_already_counts_against_the_quota():
    """Somebody's project runs in the same account."""
    plan = plan_shared(3, build.a_view(quotas=[build.quota(16, used=8)]))

    assert ["launch", "launch", "blocked"] == actions(plan)


def test_a_second_region_takes_what_the_first_has_no_room_for():
    """Quotas are per region; the plan fills one after the other."""
    course = build.a_course(head="")
    view = build.a_view(
        build.offer(),
        build.offer("us-east-2a"),
        quotas=[build.quota(8), build.quota(100, region="us-east-2")],
    )

    plan = plan_shared(5, view, course=course)

    assert ["launch"] * 5 == actions(plan)
    assert [("us-east-1", 20, 8), ("us-east-2", 12, 100)] == [
        (q.region, q.needed_vcpus, q.free_vcpus) for q in plan.quotas
    ]


def test_a_quota_nobody_may_read_blocks_nobody():
    """Many students may not ask Service Quotas; EC2 itself will say."""
    plan = plan_shared(3, build.a_view(quotas=[build.quota(None)]))

    assert ["launch"] * 3 == actions(plan)


def test_the_worst_case_counts_the_dearest_place_disk_and_address():
    """4 h 20 min at the on-demand price, which a spot price never passes, with 60 GiB and an address."""
    plan = plan_shared(2, build.a_view())

    hours = Decimal(13) / 3
    disk = Decimal("0.08") * 60 / (30 * 24)
    each = hours * (Decimal("0.526") + disk + Decimal("0.005"))
    assert each.quantize(Decimal("0.0001")) == plan.steps[0].at_most_usd.quantize(Decimal("0.0001"))
    assert 2 * plan.steps[0].at_most_usd == plan.at_most_usd


def test_a_budget_caps_the_worst_case():
    """The instance ends itself when its budget is used up; a rise of the spot price is counted on top."""
    course = build.a_course(lab='budget_usd = "0.50"')

    free, capped = plan_shared(1, build.a_view()), plan_shared(1, build.a_view(), course=course)

    disk = Decimal("0.08") * 60 / (30 * 24)
    beside = disk + Decimal("0.005")
    worst = Decimal("0.50") * (Decimal("0.526") + beside) / (Decimal("0.20") + beside)
    assert worst.quantize(Decimal("0.0001")) == capped.at_most_usd.quantize(Decimal("0.0001"))
    assert capped.at_most_usd < free.at_most_usd


def test_what_does_not_fit_into_the_credit_is_blocked_by_name():
    """Two fit into $5; the third would be the one that is cut off in the middle of the lab."""
    plan = plan_shared(3, build.a_view(credit="5.00"))

    assert ["launch", "launch", "blocked"] == actions(plan)
    assert plan.steps[2].reason.startswith("it may cost $2.3")
    assert plan.steps[2].reason.endswith("of the credit of default is left")


def test_own_accounts_pay_for_their_own_student_only():
    """One empty credit stops one student."""
    course = build.a_course("own")
    wish = build.wanted(course, build.students(2, own=True))
    views = {
        "111100000000": build.a_view(credit="0.10"),
        "111100000001": build.a_view(credit="50"),
    }

    plan = plan_fleet(wish, views, now=NOW)

    assert ["blocked", "launch"] == actions(plan)


def test_a_broken_account_is_listed_and_the_others_are_planned():
    """One student's expired role must not cost the class its afternoon."""
    course = build.a_course("own")
    wish = build.wanted(course, build.students(2, own=True))
    broken = CredentialsInvalid("the role is gone", hint="Enrol again")
    views = {"111100000000": broken, "111100000001": build.a_view()}

    plan = plan_fleet(wish, views, now=NOW)

    assert ["blocked", "launch"] == actions(plan)
    assert ("the role is gone", "Enrol again") == (plan.steps[0].reason, plan.steps[0].hint)
    assert [("111100000000", ("s000000",))] == [
        (b.account.key, tuple(s.label for s in b.seats)) for b in plan.broken
    ]


def test_nobody_sells_the_gpu_blocks_with_the_planners_own_words():
    """The region has no A100; every student is told the same, once each."""
    course = build.a_course(lab='gpu = "L4"')

    plan = plan_shared(2, build.a_view(), course=course)

    assert ["blocked", "blocked"] == actions(plan)
    assert "no zone of us-east-1 sells a L4 on spot" == plan.steps[0].reason


def test_more_instances_than_the_course_allows_refuse_the_plan():
    """A roster pasted twice must not start 600 instances."""
    plan = plan_shared(5, build.a_view(), course=build.a_course(limits="max_instances = 4"))

    assert ("5 instances are more than the 4 that `limits.max_instances` allows",) == plan.refusals


def test_a_class_that_another_key_started_is_not_started_a_second_time():
    """The teacher's other laptop has no key of the course, so it would take everybody's running instance for a stranger's."""
    strangers = (build.an_instance("w1-sother00001"), build.an_instance("w1-sother00002"))

    plan = plan_shared(2, build.a_view(instances=strangers))
    some = plan_shared(2, build.a_view(instances=strangers), seats=plan_seats(2)[:1])

    assert 1 == len(plan.refusals)
    assert "2 instances of w1 run and belong to nobody here" in plan.refusals[0]
    assert "courses/" in plan.refusals[0]
    assert () == some.refusals


def test_one_who_left_the_roster_does_not_hold_the_others_up():
    """Somebody of the class is up, so the key is the right one."""
    seat = plan_seats(2)[0]
    there = (build.an_instance(seat.name), build.an_instance("w1-sleft000001"))

    plan = plan_shared(2, build.a_view(instances=there))

    assert () == plan.refusals


def test_more_dollars_than_the_course_allows_refuse_the_plan():
    """The limit is on the worst case, before anything is launched."""
    plan = plan_shared(5, build.a_view(), course=build.a_course(limits='max_usd = "10.00"'))

    assert 1 == len(plan.refusals)
    assert plan.refusals[0].endswith("is over the $10.00 that `limits.max_usd` allows")


def test_an_afternoon_of_three_hundred_is_one_plan():
    """The real size; its names are unique and opaque."""
    plan = plan_shared(300, build.a_view())

    names = {step.name for step in plan.steps}
    assert 300 == len(names)
    assert {"w1-s"} == {name[:4] for name in names}


def test_a_group_shares_one_instance_and_a_lone_student_has_their_own():
    """Project weeks: groups of three or four, and whoever has none yet."""
    course = build.a_course(lab="by_group = true")
    people = (*build.students(4, groups=2), *build.students(6)[4:])

    seats = seats_of(course, course.labs[0], people, secret=SECRET)

    assert [("g0", 2), ("g1", 2), ("s000004", 1), ("s000005", 1)] == [
        (s.label, len(s.students)) for s in seats
    ]
    assert ["g", "g", "s", "s"] == [s.owner[0] for s in seats]


def test_names_fit_forty_characters_and_never_collide():
    """A name is a tag, a folder and a prefix; two long labs must not share one."""
    long = "project-presentation-and-peer-grading-"
    one, two = instance_name(f"{long}a", "s0123456789"), instance_name(f"{long}b", "s0123456789")

    assert (40, 40) == (len(one), len(two))
    assert one != two


@pytest.mark.parametrize(
    ("glob", "labels"),
    [
        ("s00000*", ["s000000", "s000001"]),
        ("s1@student.example", ["s000001"]),
        ("w1-s0000000000", ["s000000"]),
        ("nobody*", []),
    ],
)
def test_globs_find_ids_addresses_and_names(glob, labels):
    """A teacher knows the id, the log shows the name."""
    course = build.a_course()
    seats = seats_of(course, course.labs[0], build.students(2), secret=SECRET)

    assert labels == [s.label for s in chosen(seats, only=[glob])]


def test_a_student_without_a_way_into_an_account_is_a_problem_with_its_line():
    """The spreadsheet cell is empty; the line says where to type."""
    course = build.a_course("own")

    problems = unreachable(course, build.students(1), secret=SECRET, roster_file="roster.csv")

    assert [(2, "s000000 has neither `account`, `role` nor `profile`")] == [
        (p.line, p.text) for p in problems
    ]


def test_each_student_has_an_external_id_of_their_own():
    """It stops one student's role from being used for another's account."""
    first, second = build.students(2)

    ids = {external_id(s, secret=SECRET) for s in (first, second, first)}

    assert 2 == len(ids)
    assert {"gpulab-"} == {i[:7] for i in ids}


def test_a_lab_that_is_over_is_refused():
    """Launching for last Monday is a typing mistake."""
    lab = build.a_course().labs[0]

    with pytest.raises(Refused, match="lab w1 was over at 2026-09-07 15:00 UTC"):
        check_time(lab, now=lab.ends_at, prewarm=None)


def test_a_lab_of_next_week_is_refused_unless_asked_to_wait():
    """Instances launched on Friday would cost all weekend."""
    lab = build.a_course().labs[0]
    early = lab.starts_at - timedelta(hours=2)

    wait = check_time(lab, now=early, prewarm=timedelta(minutes=30))

    with pytest.raises(Refused, match="instances launched now would cost until then"):
        check_time(lab, now=early, prewarm=None)
    assert timedelta(minutes=90) == wait
    assert timedelta(0) == check_time(lab, now=lab.starts_at, prewarm=None)


def test_a_rehearsal_moves_the_lab_to_now():
    """The example course is of 2017; trying it today needs no editing."""
    lab = as_if_now(build.a_course().labs[0], datetime(2030, 1, 1, 9, 0, 0, 5, tzinfo=UTC))

    assert datetime(2030, 1, 1, 9, tzinfo=UTC) == lab.starts_at
    assert timedelta(hours=4) == lab.ends_at - lab.starts_at


def test_weeks_of_projects_live_no_longer_than_an_instance_may():
    """Eight weeks of one GPU would be $700; the plan says so and running it again goes on."""
    course = build.a_course(lab='until = 2026-11-02\nbudget_usd = "60.00"')

    plan = plan_shared(1, build.a_view(), course=course)

    assert NOW + timedelta(hours=12) == plan.ends_at
    assert (
        "the lab goes on until 2026-11-02 16:00 UTC; an instance lives 12 h at most,"
        " then `gpulab fleet up w1` goes on" in plan.notes
    )


def test_an_unknown_lab_names_the_nearest():
    """`wek1` on a Monday."""
    with pytest.raises(WrongUsage) as caught:
        lab_of(build.a_course(), "w11")

    assert "Did you mean `w1`?" == caught.value.hint


def test_one_cause_in_many_accounts_is_read_once():
    """AWS names the role and the account in what it refuses: forty paragraphs of one sentence hide the forty-first."""
    wish = build.wanted(build.a_course("own"), build.students(3, own=True))
    views = {
        seat.account.key: AwsError(
            f"not authorized to perform sts:AssumeRole on {seat.account.role_arn}",
            hint=f"In account {seat.account.number} the stack is missing",
        )
        for seat in wish.seats
    }

    said = plan_text(plan_fleet(wish, views, now=NOW), now=NOW)

    assert (
        "\nblocked: not authorized to perform sts:AssumeRole on the role\n"
        "    3: s000000, s000001, s000002\n"
        "    In the account the stack is missing" in said
    )
