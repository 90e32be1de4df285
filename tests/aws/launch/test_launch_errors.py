"""What follows a refusal of AWS: another place, another region, on demand, a repair, or one sentence and one action."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from gpulab import errors
from gpulab.launch.events import Attempting, BuyOnDemand, PlaceRefused
from gpulab.model.market import Market
from gpulab.view.events import question_text


def test_a_full_zone_leads_to_the_next_and_leaves_nothing_behind(sandbox, student):
    """The commonest spot failure costs the student nothing but a second."""
    first = student.up(confirm=lambda question: False).events[-2].plan.attempts[0].place.zone
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", zone=first)

    run = student.up()

    assert run.instance.place.zone != first
    assert [run.instance.id] == student.live()


def test_a_full_zone_is_not_asked_first_again_for_three_minutes(sandbox, student):
    """A class that launches at ten o'clock must not hammer the one zone that is full."""
    first = student.up(confirm=lambda question: False).events[-2].plan.attempts[0].place.zone
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", zone=first)
    student.up()

    soon = student.up("other").of(Attempting)[0].offer.place.zone
    sandbox.faults.clear()
    sandbox.advance(seconds=200)
    later = student.up("third").of(Attempting)[0].offer.place.zone

    assert (first != soon, first) == (True, later)


def test_zones_that_aws_names_are_asked_next(sandbox, student):
    """AWS says which zones have one; the price order comes second."""
    order = [o.place.zone for o in student.up(confirm=lambda q: False).events[-2].plan.attempts]
    words = f"You can currently get g4dn.xlarge capacity by not specifying an Availability Zone in your request or choosing {order[-1]}."
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", zone=order[0], message=words)

    run = student.up()

    assert [order[0], order[-1]] == [e.offer.place.zone for e in run.of(Attempting)]


def test_everything_full_names_the_places_and_the_way_out(sandbox, student):
    """After six refusals the student reads one sentence and one flag."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity")

    run = student.up(confirm=lambda question: not isinstance(question, BuyOnDemand))

    assert run.error.message.startswith("no place had an instance free: g4dn.xlarge in us-east-1")
    assert "at a fixed price with `--on-demand`" in run.error.hint


def test_on_demand_is_bought_only_after_a_yes(sandbox, student):
    """It costs more than twice as much; the question names the difference."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", contains="MarketType")
    asked = []

    run = student.up(confirm=lambda question: asked.append(question) or True)

    assert Market.ON_DEMAND is run.instance.market
    assert (
        asked[1].extra_usd_per_hour
        == asked[1].offer.usd_per_hour - asked[0].plan.attempts[0].usd_per_hour
    )


def test_a_quota_in_one_region_leads_to_the_next_region_never_to_the_next_zone(
    sandbox, make_student
):
    """Quotas are per region: other zones of the region would refuse as well."""
    student = make_student(regions=("us-east-1", "us-west-2"))
    sandbox.refuse("RunInstances", "MaxSpotInstanceCountExceeded", region="us-east-1")

    run = student.up()

    assert ["us-east-1", "us-west-2"] == [e.offer.place.region for e in run.of(Attempting)]
    assert "us-west-2" == run.instance.place.region


def test_a_quota_of_zero_is_refused_before_any_launch(sandbox, student):
    """Nothing is asked of EC2 that it would refuse; the request to raise the quota is ready to paste."""
    sandbox.set_quota("L-3819A6DF", "us-east-1", 0)

    run = student.up()

    assert errors.QuotaTooLow is type(run.error)
    assert (
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF --desired-value 4 --region us-east-1"
        in run.error.hint
    )
    assert "RunInstances" not in student.operations()


def test_a_free_plan_account_is_told_to_upgrade(sandbox, student):
    """No GPU starts there, in no zone; the credits stay when it is upgraded."""
    sandbox.set_plan("FREE")

    run = student.up()

    assert errors.AccountNotReady is type(run.error)
    assert run.error.hint.startswith("Upgrade to the paid plan at https://")
    assert 1 == student.operations().count("RunInstances")


def test_a_price_over_the_cap_names_another_place_then_the_cap(sandbox, student):
    """The spot price moved between looking and asking."""
    sandbox.refuse("RunInstances", "SpotMaxPriceTooLow", times=1)

    run = student.up(max_usd_per_hour=Decimal("0.5"))

    assert ["SpotPriceAboveCap"] == [type(e.error).__name__ for e in run.of(PlaceRefused)]
    assert 1 == len(student.live())


def test_an_instance_that_ends_while_pending_is_a_failure_of_that_place(sandbox, student):
    """EC2 takes the launch and drops it seconds later; the student gets the next zone instead."""
    sandbox.fail_boot("Server.InsufficientInstanceCapacity")

    run = student.up()

    assert ["NoCapacity"] == [type(e.error).__name__ for e in run.of(PlaceRefused)]
    assert [run.instance.id] == student.live()


def test_a_denied_action_is_named(sandbox, student):
    """The student knows what to ask the teacher for."""
    sandbox.deny("ec2:RunInstances")

    run = student.up()

    assert errors.NotAllowed is type(run.error)
    assert (
        "these credentials may not call ec2:RunInstances (UnauthorizedOperation)"
        in run.error.message
    )
    assert 'Ask whoever runs the account to allow "ec2:RunInstances"' in run.error.hint


def test_a_wrong_clock_is_told_apart_from_wrong_credentials(sandbox, student):
    """Both look the same to AWS; refreshing credentials would not help."""
    sandbox.refuse("RunInstances", "RequestExpired")
    late = sandbox.now() + timedelta(minutes=20)
    cloud = student.context.cloud
    cloud.now = lambda: late

    run = student.up()

    assert errors.ClockSkewed is type(run.error)
    assert "this computer's clock is 20 min ahead of AWS's (RequestExpired)" in run.error.message


def test_a_group_deleted_behind_our_back_is_made_anew_once(sandbox, student, ec2):
    """Somebody cleaned up in the console; the second launch repairs it and says nothing more."""
    gone = student.up("first").instance
    ec2.terminate_instances(InstanceIds=[gone.id])
    sandbox.advance(seconds=300)
    group = ec2.describe_security_groups(GroupNames=["gpulab-me"])["SecurityGroups"][0]["GroupId"]
    ec2.delete_security_group(GroupId=group)

    run = student.up("second")

    assert ["make the missing thing anew, once"] == [e.then.value for e in run.of(PlaceRefused)]
    assert [run.instance.id] == student.live()


def test_a_quota_that_shrank_since_it_was_read_is_told_with_its_request(sandbox, student):
    """EC2's own refusal names neither the quota nor the way to raise it."""
    student.up("first")
    sandbox.set_quota("L-3819A6DF", "us-east-1", 4)

    run = student.up("second", confirm=lambda question: not isinstance(question, BuyOnDemand))

    assert "MaxSpotInstanceCountExceeded" == run.error.code
    assert (
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF"
        in run.error.hint
    )


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("InsufficientInstanceCapacity", "No spot instance is free"),
        ("MaxSpotInstanceCountExceeded", "The spot quota is too low"),
        (
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The account cannot buy spot",
        ),
    ],
)
def test_the_offer_to_buy_on_demand_says_why_spot_does_not_do(sandbox, student, code, why):
    """Who reads that nothing is free waits for an hour; a quota is waited for in vain."""
    sandbox.refuse("RunInstances", code)
    asked: list[str] = []

    def confirm(question):
        asked.append(question_text(question, now=sandbox.now()))
        return not isinstance(question, BuyOnDemand)

    student.up(confirm=confirm)

    assert asked[-1].startswith(f"{why}. Buy a g4dn.xlarge on demand in us-east-1")


def test_a_quota_that_was_refused_once_is_read_anew(sandbox, student):
    """What was remembered was wrong: the next plan must refuse before AWS does, with the numbers of today."""
    student.up("first")
    sandbox.set_quota("L-3819A6DF", "us-east-1", 4)
    student.up("second", confirm=lambda question: not isinstance(question, BuyOnDemand))
    before = len(sandbox.calls)

    again = student.up("second")

    assert "RunInstances" not in student.operations(before)
    assert again.error.message.startswith("the spot quota in us-east-1 is 4 vCPUs (4 in use)")


def test_where_nobody_can_be_asked_the_cause_is_told_not_the_missing_person(sandbox, student):
    """A script without `--yes` must learn that everything is full."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity")

    def alone(question):
        if isinstance(question, BuyOnDemand):
            raise errors.WrongUsage("nobody is there to confirm this")
        return True

    run = student.up(confirm=alone)

    assert errors.NoCapacity is type(run.error)


def test_credit_is_asked_again_before_a_launch_is_refused_for_it(sandbox, make_student):
    """An instance that ended by itself while the laptop was off must not be counted until now."""
    student = make_student(credit_usd=Decimal("3.00"))
    sandbox.refuse("GetCredits", "AccessDeniedException")
    sandbox.refuse("GetAccountPlanState", "AccessDeniedException")
    first = student.up("friday", duration=timedelta(hours=2))
    sandbox.advance(seconds=600)
    sandbox.interrupt(first.instance.id)
    sandbox.advance(seconds=20 * 3600)

    run = student.up("monday")

    assert [run.instance.id] == student.live()


def test_a_launch_that_the_credit_does_not_cover_is_refused(sandbox, make_student):
    """Past the credit, the card is charged."""
    student = make_student(credit_usd=Decimal("1.00"))
    sandbox.refuse("GetCredits", "AccessDeniedException")
    sandbox.refuse("GetAccountPlanState", "AccessDeniedException")

    run = student.up()

    assert errors.CreditTooLow is type(run.error)
    assert "this may cost up to $2.15, and $1.00 of your credit is left" == run.error.message
