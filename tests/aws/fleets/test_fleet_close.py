"""The end of a term: everything of the course goes, nothing else does, and a kill in the middle loses nothing."""

from __future__ import annotations

import dataclasses
import json
import random

import boto3
import pytest

from gpulab.errors import Unreachable
from gpulab.fleet.enrolment import template
from gpulab.fleet.seats import account_of
from gpulab.fleets import books, closing
from gpulab.fleets.former import HINT, former
from gpulab.model.fact import FactKind
from gpulab.remote import hostkeys
from gpulab.sandbox.credentials import action_of
from gpulab.view.closing import standing_text


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def term(make_class):
    """Build a class whose instances run, with the way to look at its accounts and to close them."""

    class Term:
        def __init__(self, size, **more):
            self.klass = make_class(size, **more)
            self.run = self.klass.up()
            assert [None] * size == [o.trouble for o in self.run.outcomes]
            course, people = self.klass.course, self.klass.people
            refs = (account_of(course, s, secret=b"k" * 32) for s in people)
            self.refs = tuple({ref.key: ref for ref in refs}.values())
            self.seats = self.klass.wish().everyone

        def accounts(self, **outside):
            return self.klass.accounts(**outside)

        def look(self, accounts=None):
            return closing.look(accounts or self.accounts(), self.refs, self.seats)

        def close(self, accounts=None, *, save=False):
            accounts = accounts or self.accounts()
            outcomes = list(closing.end(accounts, self.look(accounts), save=save))
            return outcomes, list(closing.clear(accounts, self.look(accounts)))

    return Term


def setup_of(sandbox, account="123456789012"):
    """Groups, keys, schedules and roles of ours in an account, as the simulated AWS knows them."""
    key = sandbox.key_of(account)
    given = {"aws_access_key_id": key.access_key, "aws_secret_access_key": key.secret}
    ec2, ends, iam = (
        boto3.client(name, region_name="us-east-1", **given) for name in ("ec2", "scheduler", "iam")
    )
    groups = ec2.describe_security_groups()["SecurityGroups"]
    return sorted(
        [
            *(g["GroupName"] for g in groups if g["GroupName"].startswith("gpulab")),
            *(k["KeyName"] for k in ec2.describe_key_pairs()["KeyPairs"]),
            *(s["Name"] for s in ends.list_schedules()["Schedules"]),
            *(r["RoleName"] for r in iam.list_roles()["Roles"] if "gpulab" in r["RoleName"]),
            *(p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]),
        ]
    )


def test_closing_leaves_nothing_that_runs_and_nothing_of_ours(term, sandbox):
    """The teacher forgets the account for eight months."""
    over = term(3)
    before = setup_of(sandbox)

    outcomes, cleared = over.close()

    assert ["ended"] * 3 == [str(o.result) for o in outcomes]
    assert 8 == len(before)
    assert ([], [], [None]) == (over.klass.live(), setup_of(sandbox), [c.trouble for c in cleared])
    assert over.look()[0].is_clear


def test_closing_again_does_nothing(term, sandbox):
    """Typed twice, or by the second assistant."""
    over = term(2)
    over.close()
    calls = len(sandbox.calls)

    outcomes, cleared = over.close()

    assert ([], ()) == (outcomes, cleared[0].removed)
    assert [] == [o for o in over.klass.operations(calls) if o.startswith(("Delete", "Terminate"))]


def test_killed_at_any_call_and_closed_again_leaves_nothing(term, sandbox, monkeypatch):
    """The laptop dies in the middle of the last command of the term."""
    whole = term(1)
    calls = len(sandbox.calls)
    whole.close()
    wrong = []
    for at in random.Random(4).sample(range(2, len(sandbox.calls) - calls), 4):
        over = term(1)
        with monkeypatch.context() as patch:
            kill_at(at, sandbox, patch)
            with pytest.raises(Killed):
                over.close()
        over.close()
        if over.klass.live() or setup_of(sandbox):
            wrong.append((at, over.klass.live(), setup_of(sandbox)))

    assert [] == wrong


def test_a_close_that_ended_with_the_profile_half_taken_apart_goes_on(term, sandbox):
    """The role is out of its instance profile, the profile still there: AWS refuses to take it out once more, and that is no trouble."""
    klass = term(2)
    sandbox.refuse("DeleteInstanceProfile", "ServiceFailure", status=500, times=None)
    klass.close()
    half = [name for name in setup_of(sandbox) if "course" in name]
    sandbox.faults.clear()

    klass.close()

    assert half
    assert [] == setup_of(sandbox)


def test_an_instance_that_cannot_be_saved_keeps_its_key(term, sandbox):
    """Without the key nobody could ever fetch the work."""
    over = term(2)
    dead = over.run.outcomes[0].instance.id

    class Host:
        def __init__(self, target):
            self.target = target

        def run(self, command, **_):
            raise Unreachable("no answer")

    accounts = over.accounts(connect=Host)
    folder = accounts.account(over.refs[0]).context.folder
    hostkeys.pin(folder.known_hosts, dead, [hostkeys.HostKey(b"k" * 32)])

    outcomes, cleared = over.close(accounts, save=True)

    assert ["failed", "failed"] == [str(o.result) for o in outcomes]
    assert 2 == len(over.klass.live())
    assert () == cleared[0].removed
    assert cleared[0].trouble.message.startswith("2 instances run on (s00000")
    assert "--no-save" in cleared[0].trouble.hint


def test_what_the_teacher_runs_in_the_same_account_stays(term, sandbox):
    """The course account is also somebody's research account."""
    over = term(1)
    ec2 = boto3.client("ec2")
    tags = [{"Key": "gpulab:owner", "Value": "me"}]
    mine = [{"ResourceType": "security-group", "Tags": tags}]
    ec2.create_security_group(GroupName="gpulab-me", Description="-", TagSpecifications=mine)
    image = sandbox.instances("running")[0]["ImageId"]
    ec2.run_instances(ImageId=image, InstanceType="g4dn.xlarge", MinCount=1, MaxCount=1)

    over.close()

    assert [1, ["gpulab-me"]] == [len(sandbox.instances("pending", "running")), setup_of(sandbox)]


def test_students_accounts_are_cleared_with_the_rights_of_the_template(term, sandbox):
    """A right too few would leave something in 300 accounts; one too many is asked of 300 students."""
    over = term(1, kind="own")
    number = "111100000000"
    calls = len(sandbox.calls)

    _, cleared = over.close()

    made = template(
        over.klass.course,
        trusted="x",
        external_id="y",
        end_role="gpulab-end-course-c1",
        owners=["s1"],
    )
    rights = json.loads(made)["Resources"]["CourseRole"]["Properties"]["Policies"][0]
    allowed = {a for s in rights["PolicyDocument"]["Statement"] for a in s["Action"]}
    used = {action_of(c) for c in list(sandbox.calls)[calls:] if c.account == number}
    assert set() == used - allowed
    assert [None] == [c.trouble for c in cleared]
    # The stack's own roles, and the profile of the last one, are the student's to delete.
    stack = ["gpulab-course", "gpulab-end-course-c1", *["gpulab-work-course-c1"] * 2]
    assert stack == setup_of(sandbox, number)


def test_a_launch_of_which_nobody_knows_is_waited_for(term, sandbox):
    """A laptop that died in `fleet up` may have started something a minute ago; the key that reaches it stays."""
    over = term(1)
    sandbox.interrupt(over.run.outcomes[0].instance.id, in_seconds=1)
    sandbox.advance(200)
    sandbox.drop_request("RunInstances", times=None)
    over.klass.up()
    sandbox.faults.clear()

    _, first = over.close()
    sandbox.advance(700)
    _, second = over.close()

    assert "took effect" in first[0].trouble.message
    assert (None, []) == (second[0].trouble, setup_of(sandbox))


def test_an_account_that_cannot_be_looked_at_stops_no_other(term, sandbox):
    """One student has deleted the stack already."""
    over = term(2, kind="own")
    sandbox.refuse("AssumeRole", "AccessDenied", status=403, contains="111100000000", times=None)

    _, cleared = over.close()

    said = {c.account.key: c.trouble.message if c.trouble else "" for c in cleared}
    assert ["", True] == [said["111100000001"], "cannot be assumed" in said["111100000000"]]
    assert 1 == len(over.klass.live())


def test_the_books_of_the_course_hold_every_launch_of_it(term, sandbox):
    """The final report is made from them."""
    over = term(2)
    over.close()

    found = books.facts(over.accounts(), over.refs)

    # What the account itself remembers of a launch is a fact of its own beside the launch's.
    launched = {f.subject for f in found if f.kind is FactKind.LAUNCHED}
    ended = {f.subject for f in found if f.kind is FactKind.ENDED}
    assert {o.instance.id for o in over.run.outcomes} == launched == ended


def kill_at(number, sandbox, patch):
    """Let the process die at its n-th call, after the call took effect; the dead make no further call."""
    handle, count = sandbox.handle, [0]

    def dying(call, forward):
        if count[0] >= number:
            raise Killed
        count[0] += 1
        answer = handle(call, forward)
        if count[0] >= number:
            raise Killed
        return answer

    patch.setattr(sandbox, "handle", dying)


def test_who_left_the_roster_while_the_instance_ran_is_ended_and_counted(term, sandbox):
    """A student drops the course in the middle of a lab; the instance bills on in the student's own account."""
    over = term(2, kind="own")
    gone, refs = over.refs[1], over.refs[:1]
    accounts = over.accounts()

    left = former(accounts, refs, secret=b"k" * 32)
    found = closing.look(accounts, refs, over.seats[:1], former=left)
    ended = list(closing.end(accounts, found, save=False))

    assert (gone,) == left
    assert ["ended"] * 2 == [str(o.result) for o in ended]
    assert [] == over.klass.live()
    facts = books.facts(accounts, (*refs, *left))
    assert 2 == len({fact.subject for fact in facts if fact.kind is FactKind.LAUNCHED})


def test_an_account_that_left_and_cannot_be_reached_is_named(term, sandbox):
    """The student has deleted the stack: nobody may say that nothing is left there."""
    over = term(2, kind="own")
    accounts = over.accounts()
    number = over.refs[1].number
    sandbox.refuse("AssumeRole", "AccessDenied", status=403, contains=number, times=None)

    left = former(accounts, over.refs[:1], secret=b"k" * 32)
    found = closing.look(accounts, over.refs[:1], over.seats[:1], former=left)
    cleared = {c.account.number: c.trouble for c in closing.clear(accounts, found)}

    assert [over.refs[1].number] == [ref.number for ref in left]
    assert HINT == cleared[over.refs[1].number].hint


def test_a_way_that_cannot_be_read_is_guessed(term, sandbox):
    """A disk that was full half wrote the file; the role that the course names is the likeliest."""
    over = term(2, kind="own")
    accounts, gone = over.accounts(), over.refs[1]
    file = accounts.account(gone).context.folder.root / f"way-{accounts.course.id}.json"
    written = json.loads(file.read_bytes())
    file.write_text('{"role": "arn:aws')

    left = former(accounts, over.refs[:1], secret=b"k" * 32)

    assert {"role": gone.role_arn, "external_id": gone.external_id} == written
    assert (gone,) == left


def test_another_courses_accounts_are_not_this_courses(term):
    """Two courses are held through one profile."""
    over = term(2, kind="own")
    accounts = over.accounts()
    accounts.course = dataclasses.replace(accounts.course, id="other")

    assert () == former(accounts, over.refs[:1], secret=b"k" * 32)


def stopped_by_aws(sandbox, ec2, over):
    """The one instance of the class, bought on demand and stopped with its disk: AWS retires hardware so."""
    over.close()
    sandbox.set_quota("L-3819A6DF", "us-east-1", 0)
    sandbox.set_quota("L-DB2E81BA", "us-east-1", 64)
    over.run = over.klass.up(on_demand=True)
    instance_id = over.run.outcomes[0].instance.id
    ec2.stop_instances(InstanceIds=[instance_id])
    sandbox.advance(120)
    return instance_id


def test_a_stopped_instance_is_left_with_its_disk_and_is_said(term, sandbox, ec2):
    """Nothing runs, so nothing seems left; its disk is paid for until somebody sees the bill, and holds the only copy of the work."""
    over = term(1)
    instance_id = stopped_by_aws(sandbox, ec2, over)

    (found,) = over.look()
    outcomes, cleared = over.close(save=True)

    text = standing_text(over.klass.course, [found], now=sandbox.now())
    assert [instance_id] == [m.instance.id for m in found.members]
    assert "running   nothing\n  stopped   1 instance: the disk of each may hold work" in text
    assert ["failed"] == [str(o.result) for o in outcomes]
    assert "start-instances" in outcomes[0].trouble.hint
    assert cleared[0].trouble.message.startswith("1 instance is stopped (s000000), so the key")


def test_a_stopped_instance_is_ended_by_who_gives_its_work_up(term, sandbox, ec2):
    """`--no-save`: the term is over, and nothing of it may cost anything."""
    over = term(1)
    stopped_by_aws(sandbox, ec2, over)

    outcomes, cleared = over.close(save=False)

    assert (["ended"], [None]) == ([str(o.result) for o in outcomes], [c.trouble for c in cleared])
    assert [] == setup_of(sandbox)


def test_roles_of_which_aws_says_nothing_keep_the_course_open(term, sandbox):
    """A bad minute of IAM at the end of the term: a course that is called closed is looked at by nobody any more."""
    over = term(1)
    over.close()
    sandbox.refuse("GetRole", "ServiceFailure", status=500, times=None)

    (unknown,) = over.look()
    sandbox.faults.clear()
    sandbox.deny("iam:GetRole")
    (denied,) = over.look()

    assert (False, True) == (unknown.is_clear, denied.is_clear)
    assert "look for the course's roles" in unknown.trouble.message
