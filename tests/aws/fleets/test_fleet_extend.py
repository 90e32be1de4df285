"""More time for a class: within what each student may spend over the term, one outcome each, and an end that means something."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.aws.fleets.test_fleet_acting import FakeHost

from gpulab.fleets import acting
from gpulab.fleets.members import members
from gpulab.remote import hostkeys


@pytest.fixture
def running(make_class):
    """A class whose instances run and are reached, and its members as they are now."""

    def running(size, **course):
        klass = make_class(size, **course)
        run = klass.up()
        accounts = klass.accounts(connect=lambda target: FakeHost(target, set()))
        folder = accounts.account(run.outcomes[0].account).context.folder
        for n, outcome in enumerate(run.outcomes):
            key = hostkeys.HostKey(bytes([n]) * 32)
            hostkeys.pin(folder.known_hosts, outcome.instance.id, [key])
        wish = klass.wish()
        return (
            klass,
            accounts,
            lambda: members(accounts, wish.lab, wish.everyone, with_extras=True),
        )

    return running


def ends(found):
    return [m.instance.expires_at for m in found]


def test_who_has_not_enough_left_is_refused_and_the_others_go_on(running, sandbox):
    """One student let last week's instance run all night; the lecture runs late for everybody."""
    _, accounts, look = running(3, head='budget_usd = "3.00"')
    found = look()
    before, until = ends(found), found[0].instance.expires_at + timedelta(minutes=30)
    # As if the second one had nothing left of the term.
    poor = replace(found[1], seat=replace(found[1].seat, students=()))

    outcomes = {
        o.name: o
        for o in acting.extend(accounts, [found[0], poor, found[2]], new_end=lambda _: until)
    }

    refused = outcomes[found[1].name]
    assert ["done", "failed", "done"] == [str(outcomes[m.name].result) for m in found]
    assert refused.trouble.message.startswith("it may cost up to $2.")
    assert "of the term's budget of $0.00 is left" in refused.trouble.message
    assert [until, before[1], until] == ends(look())


def test_what_the_added_time_may_cost_is_said_for_each(running, sandbox):
    """The teacher pays for three hundred of them."""
    _, accounts, look = running(2, head='budget_usd = "5.00"')
    found = look()

    outcomes = list(
        acting.extend(
            accounts, found, new_end=lambda _: found[0].instance.expires_at + timedelta(hours=1)
        )
    )

    assert [True, True] == [o.detail.startswith("at most $0.54 more until then") for o in outcomes]


def test_the_refusals_of_a_class_are_one_cause_with_a_time_that_fits(running, sandbox):
    """Three hundred lines that differ in a name tell less than one."""
    _, accounts, look = running(2, head='budget_usd = "3.00"')
    found = look()
    before = ends(found)

    outcomes = list(
        acting.extend(accounts, found, new_end=lambda _: before[0] + timedelta(hours=3))
    )

    assert 1 == len({(o.trouble.message, o.trouble.hint) for o in outcomes})
    hint = outcomes[0].trouble.hint
    assert hint.startswith("`gpulab fleet extend w1 --by ")
    minutes = int(hint.partition("--by ")[2].partition("m")[0])
    assert before == ends(look())
    again = acting.extend(
        accounts, found, new_end=lambda _: sandbox.now() + timedelta(minutes=minutes)
    )
    assert ["done", "done"] == [str(o.result) for o in again]


def test_without_a_budget_nothing_is_compared_and_the_ledger_is_not_needed(running, sandbox):
    """A course that sets no limit must not depend on its books."""
    klass, accounts, look = running(1)
    (klass.home / "profiles" / "default" / "ledger.sqlite").write_bytes(b"no ledger")
    found = look()

    (outcome,) = acting.extend(
        accounts, found, new_end=lambda _: found[0].instance.expires_at + timedelta(hours=1)
    )

    assert "done" == str(outcome.result)


def test_a_budget_that_cannot_be_checked_is_not_passed(running, sandbox):
    """A damaged ledger must not be the way around the limit."""
    klass, accounts, look = running(1, head='budget_usd = "50.00"')
    found = look()
    (klass.home / "profiles" / "default" / "ledger.sqlite").write_bytes(
        b"no ledger at all, but long enough to be read as one"
    )

    (outcome,) = acting.extend(
        accounts, found, new_end=lambda _: found[0].instance.expires_at + timedelta(hours=1)
    )

    assert "failed" == str(outcome.result)
    assert ends(found) == ends(look())


def test_hours_are_added_to_the_end_that_each_has(running, sandbox):
    """Who was given half an hour more already keeps it when the whole class gets an hour."""
    _, accounts, look = running(2)
    before = ends(look())
    longer = [before[0] + timedelta(minutes=30), before[1]]
    list(acting.extend(accounts, look()[:1], new_end=lambda _: longer[0]))

    outcomes = list(
        acting.extend(accounts, look(), new_end=lambda one: one.expires_at + timedelta(hours=1))
    )

    assert ["done", "done"] == [str(o.result) for o in outcomes]
    assert [end + timedelta(hours=1) for end in longer] == ends(look())


def test_the_idle_limit_of_a_class_is_moved_and_the_ends_stay(running, sandbox):
    """A lecture of two hours before the exercise: nobody types, and nobody's instance may end."""
    _, accounts, look = running(2)
    before = ends(look())

    outcomes = list(acting.limit_idle(accounts, look(), 180))

    tags = [{t["Key"]: t["Value"] for t in one["Tags"]} for one in sandbox.instances("running")]
    assert ["done", "done"] == [str(o.result) for o in outcomes]
    assert ["180", "180"] == [one["gpulab:idle"] for one in tags]
    assert before == ends(look())
