"""The account's own guards: armed where allowed, read back, and what they do when the money is gone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.aws.accounts import Identity
from gpulab.errors import NotAllowed
from gpulab.launch.upkeep.guards import arm, caller, checks, disarm
from gpulab.launch.upkeep.prepare import prepare
from gpulab.model.guard import Principals

ACCOUNT = "123456789012"
NOBODY = Principals()
_HARMLESS = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Deny", "Action": "s3:DeleteBucket", "Resource": "*"}],
}


def armed(student, usd="1.50", targets=NOBODY):
    return arm(student.context, limit_usd=Decimal(usd), email="ann@example.org", targets=targets)


def states(found):
    return {check.name: check.is_armed for check in found}


def texts(found):
    return {check.name: check.text for check in found}


def test_a_virgin_account_has_no_guard_and_each_line_says_what_to_do(sandbox, student):
    """Somebody who believes to be guarded and is not is worse off than before."""
    found = checks(student.context)

    assert {"budget": False, "e-mail": False, "no launches": False, "scheduled ends": False} == (
        states(found)
    )
    assert all(check.hint for check in found)
    assert all(o.startswith(("Get", "Describe", "List")) for o in student.operations())


def test_everything_is_armed_and_read_back(sandbox, student, client):
    """The budget counts before credits, or it would not move until the card is charged."""
    found = armed(student)

    budget = client("budgets").describe_budget(AccountId=ACCOUNT, BudgetName="gpulab-me")["Budget"]
    assert {"budget": True, "e-mail": True, "no launches": True} == {
        k: v for k, v in states(found).items() if k != "scheduled ends"
    }
    assert "ann@example.org at 50, 80 and 100 %" == texts(found)["e-mail"]
    assert "at 100 % user/student may start nothing more" == texts(found)["no launches"]
    assert (False, False) == (
        budget["CostTypes"]["IncludeCredit"],
        budget["CostTypes"]["IncludeRefund"],
    )
    assert found == checks(student.context)


def test_arming_again_changes_what_is_named_and_doubles_nothing(sandbox, student, client):
    """Typed a second time with another amount and another address."""
    armed(student)

    found = arm(student.context, limit_usd=Decimal(80), email="bo@example.org", targets=NOBODY)

    actions = client("budgets").describe_budget_actions_for_budget(
        AccountId=ACCOUNT, BudgetName="gpulab-me"
    )["Actions"]
    assert (1, "bo@example.org at 50, 80 and 100 %") == (len(actions), texts(found)["e-mail"])
    assert texts(found)["budget"].startswith("$80.00 for the account's calendar year")


def test_a_spent_budget_forbids_the_next_launch_half_a_day_later(sandbox, student):
    """The whole chain: credit pays, the gross cost passes the limit, AWS attaches the policy, EC2 refuses."""
    armed(student, "0.50")
    run = student.up("long", duration=timedelta(hours=8))
    sandbox.advance(seconds=8 * 3600 + 600)
    student.context.cloud.client("ec2", "us-east-1").terminate_instances(
        InstanceIds=[run.instance.id]
    )
    before = texts(checks(student.context))["no launches"]
    sandbox.advance(seconds=2 * 86400)

    refused = student.up("next")

    assert "at 100 % user/student may start nothing more" == before
    assert isinstance(refused.error, NotAllowed)
    assert (
        "the budget is spent: user/student may start nothing"
        == (texts(checks(student.context))["no launches"])
    )


def test_disarming_allows_launches_again_and_leaves_nothing(sandbox, student, client):
    """A new term begins; what the old budget attached must come off."""
    test_a_spent_budget_forbids_the_next_launch_half_a_day_later(sandbox, student)

    said = disarm(student.context)

    iam = client("iam")
    assert ("launches are allowed", "policy and role are removed", "the budget is removed") == said
    assert student.up("again").error is None
    assert [] == iam.list_policies(Scope="Local")["Policies"]
    assert [] == [
        r["RoleName"]
        for r in iam.list_roles()["Roles"]
        if r["RoleName"].startswith("gpulab-budget")
    ]
    assert [] == client("budgets").describe_budgets(AccountId=ACCOUNT)["Budgets"]


def test_disarming_what_was_never_armed_is_done(sandbox, student):
    """Typed twice, or in the wrong account."""
    assert ("launches are allowed", "policy and role are removed", "the budget is removed") == (
        disarm(student.context)
    )


@pytest.mark.parametrize(
    ("denied", "expected"),
    [
        ("budgets:*", {"budget": False, "e-mail": False, "no launches": False}),
        ("iam:CreateRole", {"budget": True, "e-mail": True, "no launches": False}),
        ("budgets:CreateBudgetAction", {"budget": True, "e-mail": True, "no launches": False}),
    ],
)
def test_what_is_not_allowed_is_an_answer(sandbox, student, denied, expected):
    """Many student accounts allow none of it; the rest is armed all the same, and the line says whom to ask."""
    sandbox.deny(denied)

    found = armed(student)

    assert expected == {k: v for k, v in states(found).items() if k in expected}
    missing = [check for check in found if check.name in expected and not check.is_armed]
    assert all("docs/iam/guard.json" in check.hint for check in missing)


@pytest.mark.parametrize(
    ("arn", "bound"),
    [
        (f"arn:aws:iam::{ACCOUNT}:user/staff/ann", Principals(users=("ann",))),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/Lab/ann", Principals(roles=("Lab",))),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/AWSReservedSSO_Student_1f/ann", NOBODY),
        (f"arn:aws:sts::{ACCOUNT}:federated-user/ann", NOBODY),
        (f"arn:aws:iam::{ACCOUNT}:root", NOBODY),
    ],
)
def test_the_policy_goes_to_whom_it_binds(arn, bound):
    """Attached to the wrong one it would read as armed and forbid nothing."""
    assert bound == caller(Identity(ACCOUNT, arn))


def test_who_cannot_be_bound_is_told_so(sandbox, student, monkeypatch):
    """The root user's launches go on whatever is attached; a guard that would do nothing is not called armed."""
    root = sandbox.session_of().access_key
    sandbox.credentials.keys[root] = replace(
        sandbox.credentials.keys[root], arn=f"arn:aws:iam::{ACCOUNT}:root"
    )
    for name, value in sandbox.credentials.keys[root].environment().items():
        monkeypatch.setenv(name, value)

    found = {check.name: check for check in armed(student)}

    assert (True, False) == (found["budget"].is_armed, found["no launches"].is_armed)
    assert "no policy can be attached to root" == found["no launches"].text
    assert "`--user`" in found["no launches"].hint


def test_a_teacher_names_whose_launches_end(sandbox, student):
    """The teaching assistant arms; the students are bound."""
    found = armed(student, targets=Principals(users=("ann", "bo"), roles=("lab",)))

    assert (
        "at 100 % user/ann, user/bo, role/lab may start nothing more"
        == (texts(found)["no launches"])
    )


def test_the_role_may_attach_that_policy_to_those_people_only(sandbox, student, client):
    """A role that may attach any policy to anybody is the account's back door."""
    armed(student)

    rights = client("iam").get_role_policy(
        RoleName="gpulab-budget-me", PolicyName="attach-no-launches"
    )["PolicyDocument"]
    assert [
        {
            "Effect": "Allow",
            "Action": ["iam:AttachUserPolicy", "iam:DetachUserPolicy"],
            "Resource": [
                f"arn:aws:iam::{ACCOUNT}:user/student",
                f"arn:aws:iam::{ACCOUNT}:user/*/student",
            ],
            "Condition": {
                "ArnEquals": {
                    "iam:PolicyARN": f"arn:aws:iam::{ACCOUNT}:policy/gpulab-no-launches-me"
                }
            },
        }
    ] == rights["Statement"]


@pytest.mark.parametrize(
    ("spoil", "name", "said"),
    [
        (
            lambda c: c("budgets").update_budget(
                AccountId=ACCOUNT,
                NewBudget={
                    "BudgetName": "gpulab-me",
                    "BudgetType": "COST",
                    "TimeUnit": "ANNUALLY",
                    "BudgetLimit": {"Amount": "60", "Unit": "USD"},
                },
            ),
            "budget",
            "gpulab-me counts credits and refunds, so it does not move while credit pays",
        ),
        (
            lambda c: c("iam").delete_role_policy(
                RoleName="gpulab-budget-me", PolicyName="attach-no-launches"
            ),
            "no launches",
            "the role gpulab-budget-me is gone",
        ),
        (
            lambda c: c("iam").create_policy_version(
                PolicyArn=f"arn:aws:iam::{ACCOUNT}:policy/gpulab-no-launches-me",
                PolicyDocument=json.dumps(_HARMLESS),
                SetAsDefault=True,
            ),
            "no launches",
            "the policy that forbids launches was changed",
        ),
        (
            lambda c: c("iam").put_role_policy(
                RoleName="gpulab-budget-me",
                PolicyName="attach-no-launches",
                PolicyDocument=json.dumps(_HARMLESS),
            ),
            "no launches",
            "the role gpulab-budget-me was changed",
        ),
    ],
)
def test_a_guard_that_was_spoilt_is_not_called_armed(sandbox, student, client, spoil, name, said):
    """Verified means read back, not remembered."""
    armed(student)

    spoil(client)

    found = checks(student.context)
    assert (False, said) == (states(found)[name], texts(found)[name])


def test_the_scheduled_end_of_what_runs_is_shown_and_armed_again(sandbox, tmp_path, make_student):
    """Somebody deleted the schedule in the console."""
    made = prepare(make_student().context)
    student = make_student(owner=made.owner, scheduler_role=made.scheduler_role)
    run = student.up()
    sandbox.advance(seconds=10)
    scheduler = student.context.cloud.client("scheduler", "us-east-1")
    scheduler.delete_schedule(Name=f"gpulab-end-{made.owner}-{run.instance.id}")
    before = states(checks(student.context))["end of week4"]

    found = armed(student)

    assert (False, True) == (before, states(found)["end of week4"])
    assert texts(found)["end of week4"].startswith("the account ends it at 2026-")


def test_a_role_budgets_cannot_assume_yet_is_tried_again(sandbox, student):
    """IAM needs some seconds to spread a new role."""
    sandbox.refuse("CreateBudgetAction", "AccessDeniedException", times=2)

    assert states(armed(student))["no launches"]


def test_the_policy_for_arming_allows_what_arming_and_disarming_call(sandbox, student):
    """The teacher pastes docs/iam/guard.json once; a missing line would be found too late."""
    armed(student)
    disarm(student.context)

    rights = {
        "CreateBudget": "ModifyBudget",
        "UpdateBudget": "ModifyBudget",
        "DeleteBudget": "ModifyBudget",
        "CreateNotification": "ModifyBudget",
        "DeleteNotification": "ModifyBudget",
        "DescribeBudget": "ViewBudget",
        "DescribeNotificationsForBudget": "ViewBudget",
        "DescribeSubscribersForNotification": "ViewBudget",
    }
    called = {
        f"{c.service}:{rights.get(c.operation, c.operation)}"
        for c in sandbox.calls
        if c.service in ("budgets", "iam")
    }
    path = Path(__file__).parents[3] / "docs/iam/guard.json"
    policy = json.loads(path.read_text(encoding="utf-8"))
    allowed = {action for s in policy["Statement"] for action in s["Action"]}
    assert set() == called - allowed
    assert not any("*" in action for action in allowed)
