"""One student's trouble is one student's: full zones, broken accounts, used-up quotas, limits of the course."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from gpulab.errors import Refused
from gpulab.fleet.enrolment import template
from gpulab.fleets import acting
from gpulab.fleets.events import Lost
from gpulab.fleets.members import members
from gpulab.launch.offers.places import full_places
from gpulab.model.fleet import Result
from gpulab.model.market import Market, Place
from gpulab.sandbox.credentials import action_of
from gpulab.store.journal import Journal

ZONES = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d", "us-east-1f"]


def test_an_empty_zone_is_asked_once_for_the_whole_class(make_class, sandbox):
    """300 launches must not hammer a zone that the first one found full."""
    klass = make_class(6)
    for zone in ZONES[:3]:
        sandbox.set_capacity("g4dn.xlarge", zone, 0)

    run = klass.up()

    assert ["launched"] * 6 == run.results()
    refused = [c for c in sandbox.calls if c.operation == "RunInstances"]
    # At most one refusal a zone and thread that was under way when the first answer came.
    assert len(refused) <= 6 + 3 * 8
    assert klass.names() == klass.live()


def test_no_place_free_at_all_fails_each_with_the_places_tried(make_class, sandbox):
    """The honest answer, once for all, with what to try."""
    klass = make_class(3)
    for zone in "abcdef":
        sandbox.set_capacity("g4dn.xlarge", f"us-east-1{zone}", 0)

    run = klass.up()

    assert ["failed"] * 3 == run.results()
    assert run.outcomes[0].trouble.message.startswith(
        ("no place had an instance free", "every place")
    )
    assert [] == klass.live()


def test_more_run_than_the_quota_allows_serves_those_that_fit(make_class, sandbox):
    """The request for a larger quota is still with AWS; two of three can work."""
    klass = make_class(3)
    sandbox.set_quota("L-3819A6DF", "us-east-1", 8)

    run = klass.up()

    assert ["launched", "launched", "failed"] == run.results()
    assert "--desired-value 12 --region us-east-1" in run.outcomes[2].trouble.hint


def test_a_quota_that_ec2_refuses_at_the_launch_comes_with_the_request_for_the_class(
    make_class, sandbox
):
    """The plan saw room, and somebody else in the account took it: EC2 names no quota, the teacher needs the line to paste."""
    klass = make_class(3)
    sandbox.set_quota("L-3819A6DF", "us-east-1", 64)
    sandbox.refuse("RunInstances", "MaxSpotInstanceCountExceeded", times=None)

    run = klass.up()

    assert ["failed"] * 3 == run.results()
    assert all(
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF"
        " --desired-value 68 --region us-east-1" in o.trouble.hint
        for o in run.outcomes
    )


def test_an_instance_taken_back_while_it_starts_is_launched_again_elsewhere(make_class, sandbox):
    """Spot capacity that vanishes within the first minute."""
    klass = make_class(1)
    ended = []
    original = sandbox.handle

    def handle(call, forward):
        answer = original(call, forward)
        if call.operation == "RunInstances" and not ended:
            (instance,) = sandbox.instances("pending", "running")
            ended.append(instance["InstanceId"])
            sandbox.interrupt(instance["InstanceId"], in_seconds=1)
        return answer

    sandbox.handle = handle
    run = klass.up()

    assert [Result.LAUNCHED] == [o.result for o in run.outcomes]
    assert 1 == len([e for e in run.events if isinstance(e, Lost)])
    assert klass.names() == klass.live()


@pytest.mark.parametrize(
    "reason",
    ["Client.VolumeLimitExceeded", "Client.UserInitiatedShutdown"],
    ids=["a quota", "a person"],
)
def test_an_instance_that_ends_at_its_start_for_a_reason_of_every_place_is_not_launched_again(
    make_class, sandbox, reason
):
    """The quota of disk space is used up: three launches a seat mend nothing, and no place is full for anybody because of it."""
    klass = make_class(1)
    sandbox.fail_boot(reason, times=9)

    run = klass.up()

    context = klass.accounts().account(klass.wish().seats[0].account).context
    assert ["failed"] == run.results()
    assert reason in run.outcomes[0].trouble.message
    assert 1 == klass.operations().count("RunInstances")
    assert {} == full_places(context)


def test_credentials_that_end_stop_the_account_after_one_answer(make_class, sandbox):
    """The class portal's key has expired: three hundred refusals would tell nothing more than one."""
    klass = make_class(5)
    sandbox.refuse("RunInstances", "UnauthorizedOperation", status=403, times=None)

    run = klass.up()

    assert ["failed"] * 5 == run.results()
    assert 1 == len({o.trouble.message for o in run.outcomes})
    assert len([o for o in klass.operations() if o == "RunInstances"]) <= 5


def test_a_plan_over_a_limit_of_the_course_starts_nothing(make_class):
    """A roster pasted twice."""
    klass = make_class(4, limits="max_instances = 3")

    with pytest.raises(Refused, match="4 instances are more than the 3"):
        klass.up()

    assert "RunInstances" not in klass.operations()


def test_own_accounts_are_launched_each_in_its_own(make_class, sandbox):
    """Each student's credit pays for that student, through the role they made."""
    klass = make_class(3, kind="own")
    for n in range(3):
        sandbox.set_quota("L-3819A6DF", "us-east-1", 64, account=f"{111100000000 + n}")

    run = klass.up()

    assert ["launched"] * 3 == run.results()
    launches = [c for c in sandbox.calls if c.operation == "RunInstances"]
    assert {"111100000000": 1, "111100000001": 1, "111100000002": 1} == Counter(
        c.account for c in launches
    )
    roles = [c.params for c in sandbox.calls if c.operation == "AssumeRole"]
    assert 3 == len({r["ExternalId"] for r in roles}) == len(roles)


def test_a_class_needs_no_more_rights_than_the_template_gives(make_class, sandbox):
    """A right too few costs a student the afternoon; one too many, trust."""
    klass = make_class(1, kind="own")

    klass.up()

    made = template(
        klass.course,
        trusted="x",
        external_id="y",
        end_role="gpulab-end-course-c1",
        owners=["s1"],
    )
    rights = json.loads(made)["Resources"]["CourseRole"]["Properties"]["Policies"][0]
    allowed = {a for s in rights["PolicyDocument"]["Statement"] for a in s["Action"]}
    used = {action_of(c) for c in sandbox.calls if c.account == "111100000000"}
    assert set() == used - allowed - {"sts:AssumeRole"}


def test_broken_accounts_are_listed_and_everybody_else_is_served(make_class, sandbox):
    """5 % of a class have something wrong with their account, each something else."""
    klass = make_class(8, kind="own")
    sandbox.refuse("AssumeRole", "AccessDenied", status=403, account="111100000000", times=None)
    number = "11110000000{}".format
    sandbox.refuse("RunInstances", "OptInRequired", account=number(1), times=None)
    sandbox.refuse(
        "RunInstances", "UnauthorizedOperation", status=403, account=number(2), times=None
    )
    sandbox.set_quota("L-3819A6DF", "us-east-1", 0, account=number(3))
    sandbox.refuse("DescribeInstances", "AuthFailure", status=401, account=number(4), times=None)
    sandbox.refuse("RunInstances", "PendingVerification", account=number(5), times=None)

    run = klass.up()

    failed = [o for o in run.outcomes if o.is_failed]
    assert ["launched", "launched"] == [str(o.result) for o in run.outcomes[6:]]
    assert len(failed) >= 5
    assert all(o.trouble.message and o.trouble.hint for o in failed)
    assert len({o.trouble.message for o in failed}) == len(failed)


def test_a_launch_that_the_journal_cannot_take_down_is_told_of_its_seat(make_class, monkeypatch):
    """It runs and costs, and the next command has to settle it: a class's teacher reads that as whoever launches one does."""
    klass, real = make_class(1), Journal.conclude

    def conclude(self, intent, outcome, *, instance_id="", at):
        monkeypatch.setattr("gpulab.store.journal._write_synced", _full)
        real(self, intent, outcome, instance_id=instance_id, at=at)

    monkeypatch.setattr(Journal, "conclude", conclude)
    run = klass.up()

    (outcome,) = run.outcomes
    assert ["launched"] == run.results()
    assert klass.names() == klass.live()
    assert (
        f"{outcome.instance.id} was launched, and the journal could not take that down"
        in outcome.detail
    )


def test_what_the_ledger_lacks_of_an_attempt_is_told_once(make_class):
    """Two facts of one launch meet the same damage: the sentence that names the file is read once, with what it means."""
    klass = make_class(1)
    ref = klass.wish().seats[0].account
    ledger = klass.accounts().account(ref).context.folder.ledger
    ledger.parent.mkdir(parents=True, exist_ok=True)
    ledger.write_bytes(b"not a ledger" * 100)

    run = klass.up()

    (outcome,) = run.outcomes
    assert ["launched"] == run.results()
    assert "this attempt is not in the ledger" in outcome.detail
    assert 1 == outcome.detail.count(str(ledger))


def _full(_path, _line):
    raise OSError(28, "No space left on device")


def test_a_profile_nobody_has_is_one_students_trouble(make_class, sandbox):
    """The second assistant's laptop lacks one student's profile; the class is waiting."""
    klass = make_class(2, kind="own")
    lost = replace(klass.people[0], account="", profile="nobody")
    klass.people = (lost, *klass.people[1:])
    accounts = klass.accounts()

    plan = _plan(klass)
    found = members(accounts, klass.lab, klass.wish().everyone, with_extras=True)
    outcomes = list(acting.extend(accounts, found[:1], new_end=lambda _: sandbox.now()))

    assert ["there is no profile `nobody`"] == [b.trouble.message for b in plan.broken]
    assert 1 == sum(step.starts for step in plan.steps)
    assert ["there is no profile `nobody`"] == [m.error.message for m in found if m.error]
    assert ["there is no profile `nobody`"] == [o.trouble.message for o in outcomes]


def test_three_hundred_are_looked_at_in_one_paginated_call(make_class, sandbox):
    """One read for each student would throttle the account before the first launch."""
    klass = make_class(300)
    sandbox.set_credit("5000")

    calls = len(sandbox.calls)
    plan = _plan(klass)

    assert 300 == sum(step.starts for step in plan.steps)
    assert 1 == klass.operations(calls).count("DescribeInstances")
    assert len(klass.operations(calls)) <= 6


def test_a_refused_setup_says_nothing_of_a_classs_places(make_class, sandbox):
    """A zone that is left out for a month because a group could not be made is left out for three hundred."""
    klass = make_class(3)
    sandbox.refuse("CreateSecurityGroup", "Unsupported", times=None)
    run = klass.up()
    sandbox.faults.clear()

    again = klass.up()

    assert ["failed"] * 3 == run.results()
    assert {"Unsupported"} == {o.trouble.code for o in run.outcomes}
    assert ["launched"] * 3 == again.results()


def test_a_full_place_is_remembered_for_the_next_command(make_class, sandbox):
    """`gpulab up` of a student two minutes later starts with another zone."""
    klass = make_class(1)
    first = _plan(klass).launch_plans["profile-default"].attempts[0].place.zone
    sandbox.set_capacity("g4dn.xlarge", first, 0)
    klass.up()

    again = _plan(klass_of(klass))

    place = Place("us-east-1", first, "g4dn.xlarge", Market.SPOT)
    attempts = [o.place for o in again.launch_plans["profile-default"].attempts]
    assert place == attempts[-1]


def klass_of(klass):
    """The same computer, with one more student."""
    klass.people = (*klass.people, replace(klass.people[0], id="new", owner="snew0000000", line=99))
    return klass


def _plan(klass):
    from gpulab.fleets import up

    return up.plan(klass.accounts(), klass.wish()).plan
