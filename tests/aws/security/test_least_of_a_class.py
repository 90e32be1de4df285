"""What `gpulab doctor --policy --for fleet` prints, held by the simulated IAM: enough for a whole class, of which nothing is the teacher's own."""

from __future__ import annotations

import pytest
from tests.aws.fleets.conftest import Klass

from gpulab.fleets import closing
from gpulab.launch.upkeep.rights import least
from gpulab.store.config import Profile

ME = "arn:aws:iam::123456789012:user/student"
TEACHER = Profile(name="teacher", owner="0teacher0000")
DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")


@pytest.fixture
def klass(sandbox, tmp_path):
    """Two students in one account, which the teacher reaches by a profile."""
    return Klass(sandbox, tmp_path, 2)


def denied(sandbox, since):
    return [c.operation for c in list(sandbox.calls)[since:] if c.outcome in DENIED]


@pytest.mark.parametrize("commands", [["fleet", "init"], ["fleet", "init", "up", "ls"]])
def test_a_class_is_launched_found_and_closed_with_the_least_policy(klass, sandbox, commands):
    """Its instances, group and ends carry its students' owner ids: a policy for the teacher's own would launch nobody."""
    sandbox.restrict(ME, [least(TEACHER, commands=commands)])
    before = len(sandbox.calls)

    first, again = klass.up(), klass.up()

    assert (["launched"] * 2, ["kept"] * 2) == (first.results(), again.results())
    assert [] == denied(sandbox, before)

    sandbox.restrict(ME, [least(TEACHER, commands=["close"])])
    before = len(sandbox.calls)
    accounts, seats = klass.accounts(), klass.wish().everyone
    refs = list(dict.fromkeys(seat.account for seat in seats))
    ended = list(closing.end(accounts, closing.look(accounts, refs, seats), save=False))
    cleared = list(closing.clear(accounts, closing.look(accounts, refs, seats)))

    assert (2, []) == (len(ended), klass.live())
    assert [None] == [one.trouble for one in cleared]
    assert [] == denied(sandbox, before)


def test_the_least_policy_of_a_class_sets_up_no_account_of_its_own(klass, sandbox):
    """Least means that the rest is refused: without `init` nothing is kept in a bucket, and everybody is served all the same."""
    sandbox.restrict(ME, [least(TEACHER, commands=["fleet"])])
    before = len(sandbox.calls)

    run = klass.up()

    assert ["launched"] * 2 == run.results()
    assert {"CreateBucket"} == set(denied(sandbox, before))
