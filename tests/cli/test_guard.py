"""`gpulab guard`: what a teaching assistant reads, and what a nightly script relies on."""

from __future__ import annotations

import json

import pytest

from gpulab.cli.main import run
from gpulab.sandbox import Sandbox

ARM = ("guard", "arm", "--budget", "60", "--email", "ann@example.org")


@pytest.fixture(autouse=True)
def sandbox():
    """A ready account."""
    with Sandbox() as opened:
        yield opened


def test_nothing_armed_is_said_line_by_line(capsys):
    """Each line names the one thing to do."""
    code = run(["guard"])

    said = capsys.readouterr()
    assert 0 == code
    assert (
        "not armed  budget: there is no budget gpulab-me\n"
        "           `gpulab guard arm` arms it\n"
        "not armed  e-mail: nobody is told at 50, 80, 100 %\n"
    ) in said.out
    assert "8 to 12 h late or more" in said.err


def test_check_exits_5_and_names_what_is_not_armed(capsys):
    """For a cron job that sends its errors by mail."""
    code = run(["guard", "show", "--check"])

    assert 5 == code
    assert (
        "error: 4 of 4 guards are not armed: budget, e-mail, no launches, scheduled ends\n"
        in capsys.readouterr().err
    )


def test_arm_says_what_is_armed_now(capsys):
    """The lines are read back from AWS, not repeated from the command line."""
    code = run([*ARM, "--yes"])

    out = capsys.readouterr().out
    assert 0 == code
    assert (
        "armed      budget: $60.00 for the account's calendar year before credits, $0.00 of it"
        " spent as far as AWS knows\n"
        "armed      e-mail: ann@example.org at 50, 80 and 100 %\n"
        "armed      no launches: at 100 % user/student may start nothing more\n"
        "not armed  scheduled ends: nothing runs, and a launch would get none: the account has"
        " no role for it\n"
        "           `gpulab init` makes it\n"
    ) == out


def test_without_permission_the_answer_is_no_and_not_a_failure(sandbox, capsys):
    """Many student accounts allow none of it."""
    sandbox.deny("budgets:*")

    code = run([*ARM, "--yes"])

    out = capsys.readouterr().out
    assert 0 == code
    assert "not armed  budget: could not make the budget gpulab-me" in out
    assert "Whoever administers the account allows `docs/iam/guard.json`" in out


def test_programs_read_the_same(capsys):
    """Keys are a contract."""
    run([*ARM, "--yes", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert {"guards", "notes"} == set(document)
    assert [{"name", "is_armed", "text", "hint"}] * 4 == [set(g) for g in document["guards"]]
    assert [True, True, True, False] == [g["is_armed"] for g in document["guards"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("guard", "arm", "--email", "ann@example.org", "--yes"), "is not known"),
        ((*ARM[:-1], "ann", "--yes"), "`ann` is not an e-mail address"),
        ((*ARM[:-1], "ann@example.org,bo@example.org", "--yes"), "is not an e-mail address"),
    ],
)
def test_what_cannot_be_armed_is_wrong_usage_before_any_call(sandbox, words, said, capsys):
    """Nothing is made by half."""
    code = run(words)

    assert 2 == code
    assert said in capsys.readouterr().err
    assert [] == list(sandbox.calls)


def test_disarm_says_what_it_did(capsys):
    """The new term begins with launches allowed."""
    run([*ARM, "--yes"])
    capsys.readouterr()

    codes = [run(["guard", "disarm", "--yes"]), run(["guard", "--check"])]

    assert [0, 5] == codes
    assert capsys.readouterr().out.startswith(
        "launches are allowed\npolicy and role are removed\nthe budget is removed\n"
    )
