"""`gpulab course check --accounts`: each account looked at before the term, each cause named once."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from gpulab.aws import budgets
from gpulab.cli.main import run
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock

NUMBER = "11110000000{}".format


@pytest.fixture
def sandbox():
    """The simulated AWS at today's time, which is the command line's."""
    with Sandbox(clock=RunningClock()) as opened:
        yield opened


@pytest.fixture
def course(tmp_path, sandbox, capsys, monkeypatch):
    """A course of three, each with an account of their own, whose templates are written."""
    folder = tmp_path / "dl"
    run(["course", "new", str(folder)])
    plan = (
        (folder / "course.toml").read_text().replace('"eu-west-1", "eu-central-1"', '"us-east-1"')
    )
    (folder / "course.toml").write_text(plan)
    people = [f"s{n},N{n},s{n}@x.example,{NUMBER(n)}" for n in range(3)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,account", *people]))
    monkeypatch.setenv("GPULAB_COURSE", str(folder))
    assert 0 == run(["course", "enrol", str(folder / "templates")])
    capsys.readouterr()
    return folder


@pytest.fixture
def look(capsys):
    """Check and return exit code, accounts by number, and what was said beside."""

    def look():
        code = run(["course", "check", "--accounts", "--json"])
        captured = capsys.readouterr()
        found = {a["account"]: a for a in json.loads(captured.out)["accounts"]}
        return code, found, captured.err

    return look


def applied(course, sandbox, *numbers, change=lambda text: text):
    for n in numbers:
        file = course / "templates" / f"s{n}.template.json"
        sandbox.apply_template(change(file.read_text()))


def states(account):
    return {check["name"]: check["state"] for check in account["checks"]}


def test_accounts_whose_students_applied_the_template_are_ready(course, sandbox, look):
    """Weeks before the term: everybody has done it, and nobody has to be written to."""
    applied(course, sandbox, 0, 1, 2)
    for n in range(3):
        sandbox.set_credit("50", account=NUMBER(n))

    code, found, _ = look()

    assert 0 == code
    assert {
        "way in": "ok",
        "external id": "ok",
        "rights": "ok",
        "plan": "ok",
        "quota G": "ok",
        "credit": "ok",
        "guards": "ok",
        "kept work": "ok",
    } == states(found[NUMBER(1)])


def test_each_broken_account_says_how_and_the_command_exits_with_5(course, sandbox, look):
    """One has not applied it, one lets anybody in, one has no quota: three different mails to write."""
    applied(
        course,
        sandbox,
        1,
        change=lambda text: text.replace('"sts:ExternalId"', '"aws:PrincipalAccount"').replace(
            _id(text), "123456789012"
        ),
    )
    applied(course, sandbox, 2)
    sandbox.set_quota("L-3819A6DF", "us-east-1", 0, account=NUMBER(2))

    code, found, said = look()

    failed = {
        number: [c["name"] for c in a["checks"] if c["state"] == "failed"]
        for number, a in found.items()
    }
    assert 5 == code
    assert {NUMBER(0): ["way in"], NUMBER(1): ["external id"], NUMBER(2): ["quota G"]} == failed
    assert "3 of 3 accounts are not ready" in said


def test_a_free_plan_and_a_credit_that_is_too_small_are_told_apart(course, sandbox, look):
    """The first cannot start a GPU at all, the second ends in week four."""
    applied(course, sandbox, 0, 1, 2)
    sandbox.set_plan("FREE", account=NUMBER(0))
    sandbox.set_credit("7.50", account=NUMBER(1))

    code, found, _ = look()

    assert (5, "failed") == (code, states(found[NUMBER(0)])["plan"])
    poor = found[NUMBER(1)]
    assert ("warning", Decimal("7.5")) == (states(poor)["credit"], Decimal(poor["credit_left_usd"]))


def guards_of(account):
    return next(c for c in account["checks"] if c["name"] == "guards")


def test_a_stack_without_the_guards_is_told_with_what_to_do(course, sandbox, look):
    """A student applied the template of before: nothing but the instances' own timers holds the course to its budget."""

    def older(text):
        document = json.loads(text)
        kept = ("CourseRole", "EndRole", "WorkBucket", "WorkRole", "WorkProfile")
        document["Resources"] = {name: document["Resources"][name] for name in kept}
        return json.dumps(document)

    applied(course, sandbox, 0, change=older)
    applied(course, sandbox, 1, 2)

    code, found, _ = look()

    missing = guards_of(found[NUMBER(0)])
    assert (0, "warning") == (code, missing["state"])
    assert "not armed: AWS itself has no budget for the course" == missing["text"]
    assert "updates their stack with the template" in missing["hint"]
    armed = guards_of(found[NUMBER(1)])
    assert "$50.00 before credits, then no launches; e-mails before that" == armed["text"]


def test_a_stack_without_a_bucket_is_told_and_seen_once_it_is_updated(course, sandbox, look):
    """What was remembered of the old stack must not outlive the student's update."""
    applied(
        course,
        sandbox,
        0,
        change=lambda text: text.replace('"gpulab:bucket"', '"gpulab:older"'),
    )
    applied(course, sandbox, 1, 2)

    found = [look()[1][NUMBER(0)]]
    applied(course, sandbox, 0)
    found.append(look()[1][NUMBER(0)])

    before, after = (next(c for c in one["checks"] if c["name"] == "kept work") for one in found)
    assert ("warning", "ok") == (before["state"], after["state"])
    assert before["text"].endswith("its stack is older than this: it has no bucket for the work")
    assert "updates their stack with the template" in before["hint"]
    assert after["text"].startswith("s3://") and after["text"].endswith("/course-dl/")


@pytest.mark.parametrize(
    "changed",
    [
        ("course.toml", 'gpu = "T4"', 'gpu = "L4"'),
        ("course.toml", '"us-east-1"', '"us-east-1", "eu-west-1"'),
        ("roster.csv", ",account\n", ",account,group\n"),
    ],
    ids=["another GPU", "one more region", "nothing that counts"],
)
def test_a_course_that_has_changed_says_whose_stack_is_of_before(course, sandbox, look, changed):
    """A lab that is added in week 9 would be refused in 300 accounts on its Monday; the role allows what the labs needed then."""
    applied(course, sandbox, 0, 1, 2)
    file, old, new = changed
    text = (course / file).read_text()
    assert old in text
    (course / file).write_text(text.replace(old, new))

    before = look()
    run(["course", "enrol", str(course / "templates")])
    applied(course, sandbox, 0)
    after = look()

    states_of = [
        [states(found[NUMBER(n)])["rights"] for n in (0, 1)] for _, found, _ in (before, after)
    ]
    rights = next(c for c in before[1][NUMBER(1)]["checks"] if c["name"] == "rights")
    if file == "roster.csv":
        assert [["ok", "ok"], ["ok", "ok"]] == states_of
    else:
        assert [["warning", "warning"], ["ok", "warning"]] == states_of
        assert "are not those of the course's labs, regions and students now" in rights["text"]
        assert "updates their stack with the template" in rights["hint"]


def test_a_role_that_may_not_read_the_budget_says_so(course, sandbox, look):
    """The rights of an older template."""
    applied(
        course, sandbox, 0, 1, 2, change=lambda text: text.replace("budgets:View", "budgets:Vi")
    )

    code, found, _ = look()

    unread = guards_of(found[NUMBER(2)])
    assert (0, "warning") == (code, unread["state"])
    assert "the budget may not be read" in unread["text"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"Threshold": 80', '"Threshold": 81'), "tells nobody at 80 %"),
        (('"AUTOMATIC"', '"MANUAL"'), "forbids no launch"),
        (('"IncludeCredit": false', '"IncludeCredit": true'), "it does not move while credit pays"),
    ],
)
def test_a_budget_that_was_changed_is_not_armed(course, sandbox, look, change, said):
    """Somebody has seen to it in the console."""
    applied(course, sandbox, 0, 1, 2, change=lambda text: text.replace(*change))

    code, found, _ = look()

    guards = guards_of(found[NUMBER(0)])
    assert (0, "warning") == (code, guards["state"])
    assert said in guards["text"]


def test_a_spent_budget_is_an_account_that_is_not_ready(course, sandbox, look, monkeypatch):
    """On Monday at 13 every launch of this student would be refused."""
    applied(course, sandbox, 0, 1, 2)
    read = budgets.read_actions

    def acted(cloud, number, name):
        status = "EXECUTION_SUCCESS" if number == NUMBER(1) else "STANDBY"
        return tuple(replace(action, status=status) for action in read(cloud, number, name))

    monkeypatch.setattr(budgets, "read_actions", acted)

    code, found, _ = look()

    assert 5 == code
    spent = guards_of(found[NUMBER(1)])
    assert ("failed", "ok") == (spent["state"], guards_of(found[NUMBER(0)])["state"])
    assert "the budget of $50.00 is spent: the account forbids every launch" == spent["text"]
    assert "detaches the policy" in spent["hint"]


def test_the_guards_of_a_course_account_are_its_profiles(tmp_path, sandbox, capsys, monkeypatch):
    """In an account that the teacher reaches themselves `gpulab guard arm` makes them, not a stack."""
    monkeypatch.setenv("GPULAB_COURSE", str(tmp_path / "dl"))
    run(["course", "new", str(tmp_path / "dl"), "--shared"])
    (tmp_path / "dl" / "roster.csv").write_text("id,name,email\ns0,N0,s0@x.example")
    capsys.readouterr()
    said = []
    for words in ([], ["guard", "arm", "--budget", "60", "--email", "t@x.example", "--yes"]):
        if words:
            run(words)
            capsys.readouterr()
        run(["course", "check", "--accounts", "--json"])
        said.append(guards_of(json.loads(capsys.readouterr().out)["accounts"][0]))

    assert ["warning", "ok"] == [guards["state"] for guards in said]
    assert "gpulab guard arm --budget USD --email ADDRESS" in said[0]["hint"]


def test_it_changes_nothing_and_costs_few_calls(course, sandbox, look):
    """Typed as often as a mail comes in; 300 accounts at once must not be throttled."""
    applied(course, sandbox, 0, 1, 2)
    before = len(sandbox.calls)

    look()

    calls = list(sandbox.calls)[before:]
    assert set() == {c.operation for c in calls} - {
        "AssumeRole",
        "GetCallerIdentity",
        "GetServiceQuota",
        "GetAccountPlanState",
        "GetCredits",
        "DescribeBudget",
        "DescribeNotificationsForBudget",
        "DescribeSubscribersForNotification",
        "DescribeBudgetActionsForBudget",
        "GetRole",
    }
    assert 15 * 3 >= len(calls)


def test_the_table_names_each_cause_once_with_whom_it_concerns(course, sandbox, capsys):
    """Two students have the same to do: one mail."""
    applied(course, sandbox, 0)

    code = run(["course", "check", "--accounts"])

    captured = capsys.readouterr()
    assert 5 == code
    assert 1 == captured.out.count("FAILED way in")
    assert "    2: s1, s2\n" in captured.out
    assert "3 accounts: 1 ready" in captured.err


def test_problems_in_the_files_come_first(course, sandbox, capsys):
    """No account is asked for a student whose row cannot be read."""
    (course / "roster.csv").write_text("id,name\n")
    before = len(sandbox.calls)

    code = run(["course", "check", "--accounts"])

    assert (2, before) == (code, len(sandbox.calls))
    assert "roster.csv:1" in capsys.readouterr().out


def test_one_shared_account_needs_room_for_the_whole_class(tmp_path, sandbox, capsys, monkeypatch):
    """The quota of a course account is asked for weeks ahead."""
    run(["course", "new", str(tmp_path / "dl"), "--shared"])
    people = [f"s{n},N{n},s{n}@x.example" for n in range(20)]
    (tmp_path / "dl" / "roster.csv").write_text("\n".join(["id,name,email", *people]))
    capsys.readouterr()

    code = run(["course", "check", "--accounts", "--course", str(tmp_path / "dl")])

    out = capsys.readouterr().out
    assert 5 == code
    assert "64 in eu-west-1, 64 in eu-central-1; 80 vCPUs (spot) needed at once" in out
    assert "--desired-value 80 --region eu-west-1" in out


def _id(text):
    trust = json.loads(text)["Resources"]["CourseRole"]["Properties"]["AssumeRolePolicyDocument"]
    return trust["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"]
