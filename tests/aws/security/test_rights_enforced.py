"""
The published policies, held by the simulated IAM: a student's whole day passes, and nothing that would hurt somebody does.

Beside this, every other test fails in which gpulab makes a call that no policy of whoever makes it allows (`tests/judge.py`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from tests.aws.conftest import UBUNTU, a_client
from tests.aws.fleets.conftest import build
from tests.aws.launch.conftest import Student

from gpulab.cli.main import run
from gpulab.errors import NotAllowed, Unreachable
from gpulab.fleet.enrolment import template
from gpulab.launch.money import balance, rebuilding
from gpulab.launch.offers import prices
from gpulab.launch.running import extend, instances, keep, overview, stop
from gpulab.launch.upkeep import doctor, sweep
from gpulab.launch.upkeep.prepare import prepare
from gpulab.launch.upkeep.rights import least
from gpulab.store.config import Profile

POLICIES = Path(__file__).parents[3] / "docs/iam"
ME, REGION = "arn:aws:iam::123456789012:user/student", "us-east-1"


def published(*names):
    return [json.loads((POLICIES / name).read_text(encoding="utf-8")) for name in names]


class Silent:
    """An instance that does not answer, so that only AWS is asked."""

    def run(self, *_words, **_more):
        raise Unreachable("no answer")


@pytest.fixture
def mine(sandbox, tmp_path):
    """A student after `gpulab init`, who has every right so far."""
    student = Student.after_init(sandbox, tmp_path)
    sandbox.advance(seconds=60)
    student.context = replace(student.context, connect=lambda target: Silent())
    return student


def hold(sandbox, student, *names):
    """From now on the student may do what these policies say; the teacher tagged the user with the owner id."""
    tags = {"gpulab": student.context.owner}
    sandbox.restrict(ME, published(*names), tags=tags)


def test_setting_up_needs_what_setup_json_allows(sandbox, tmp_path):
    """The teacher pastes the policy once; a missing line would be found by the first student."""
    sandbox.restrict(ME, published("setup.json", "own-account.json"))

    made = prepare(Student(sandbox, tmp_path).context)

    work, end = f"gpulab-work-{made.owner}", f"gpulab-end-{made.owner}"
    bucket, roles = "gpulab-123456789012-us-east-1", (work, f"arn:aws:iam::123456789012:role/{end}")
    assert (bucket, *roles) == (made.keep_bucket, made.instance_role, made.scheduler_role)
    assert made.has_spot_role


def test_setting_up_in_a_course_account_does_without_and_says_so(sandbox, tmp_path):
    """A student there may make no bucket and no role; the spot role was made by the teacher, and looking is enough."""
    a_client("ec2").describe_vpcs()  # the teacher has been here: a ready account has the spot role
    sandbox.restrict(ME, published("course-account.json"), tags={"gpulab": "x"})

    made = prepare(Student(sandbox, tmp_path).context)

    assert ("", "", "", True) == (
        made.keep_bucket,
        made.instance_role,
        made.scheduler_role,
        made.has_spot_role,
    )
    assert ["the work is kept on this computer", "only the timer on the instance ends it"] == [
        note.rpartition("; ")[2] for note in made.notes
    ]


@pytest.mark.parametrize("policy", ["own-account.json", "course-account.json"])
def test_a_students_whole_day_passes(sandbox, mine, policy):
    """Check, launch, move house, extend, stop, sweep, count, forget: nothing of it is refused."""
    hold(sandbox, mine, policy)
    context = mine.context

    checks = list(doctor.checks(context))
    prices.offers(context, gpu="T4", instance_type=None, regions=("eu-west-1",))
    instance = mine.up().instance
    mine.context = moved = replace(context, cidr="198.51.100.9/32")
    other = mine.up("other").instance
    extend.extend(moved, instance, sandbox.now() + timedelta(hours=6))
    for one in (instance, other):
        list(stop.stop(moved, one, save=False))
    sandbox.advance(seconds=900)
    swept = list(sweep.apply(moved, sweep.look(moved).found))
    rebuilding.rebuild(moved, (REGION,), of_everyone=False)
    keep.kept(moved)

    assert [] == [c for c in checks if c.name.endswith("permissions") and c.state != "ok"]
    assert [] == [o for o in swept if o.error]
    assert [] == [c.operation for c in sandbox.calls if c.outcome in DENIED]


def as_up(student, instance):
    return student.up("third").instance, student.up(instance.name).instance


def as_stop(student, instance):
    return list(stop.stop(student.context, instance, save=False))


def as_extend(student, instance):
    return extend.extend(student.context, instance, student.sandbox.now() + timedelta(hours=6))


def as_sweep(student, instance):
    return sweep.look(student.context)


def as_rm(student, instance):
    return keep.kept(student.context)


def as_open(student, instance):
    return instances.admit_here(student.context, instance)


def as_ls(student, instance):
    return overview.look(student.context, with_ended=True, ask_instances=False)


def as_credit(student, instance):
    return balance.read_balance(student.context)


def as_prices(student, instance):
    return prices.offers(student.context, gpu="T4", instance_type=None, regions=(REGION,))


def as_doctor(student, instance):
    return list(doctor.checks(student.context))


def as_ledger(student, instance):
    return rebuilding.rebuild(student.context, (REGION,), of_everyone=False)


#: What a student types in a day, and the work behind it.
DAY = {
    "up": as_up,
    "open": as_open,
    "ls": as_ls,
    "credit": as_credit,
    "prices": as_prices,
    "doctor": as_doctor,
    "extend": as_extend,
    "sweep": as_sweep,
    "rm": as_rm,
    "ledger": as_ledger,
    "stop": as_stop,
}


def test_the_least_policy_of_a_command_is_enough_for_it(sandbox, mine):
    """`gpulab doctor --policy --for COMMAND` is what a student sends to a teacher."""
    instance = mine.up().instance
    missing = {}
    for command, act in DAY.items():
        before = len(sandbox.calls)
        sandbox.restrict(ME, [least(mine.context.profile, commands=[command])])
        act(mine, instance)
        calls = list(sandbox.calls)[before:]
        missing[command] = sorted({c.operation for c in calls if c.outcome in DENIED})

    assert {command: [] for command in DAY} == missing


def test_the_least_policy_of_stopping_launches_nothing(sandbox, mine):
    """Least means that the rest is refused, and said in words with the hint where the policy is."""
    sandbox.restrict(ME, [least(mine.context.profile, commands=["stop"])])

    error = mine.up().error

    assert isinstance(error, NotAllowed)
    assert [] == mine.live()


# -- what nobody may do -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Victim:
    """Whose things an attacker wants, and where they are."""

    owner: str
    instance: str
    group: str
    bucket: str
    work_role: str
    end_role: str
    end: str


@pytest.fixture
def people(sandbox, mine, client):
    """Make somebody with a policy and `eve`, who has every right, before the victim that the policy is to keep safe."""
    sandbox.set_quota("L-3819A6DF", REGION, 5000)
    instance = mine.up().instance
    sandbox.advance(seconds=60)
    launch = dict(sandbox.calls.of("RunInstances")[-1].params)
    profile = mine.context.profile
    student = Victim(
        mine.context.owner,
        instance.id,
        launch["SecurityGroupIds"][0],
        profile.keep_bucket,
        profile.instance_role,
        profile.scheduler_role,
        f"gpulab-end-{mine.context.owner}-{instance.id}",
    )

    def person(key, victim, tags):
        def call(service, region=REGION):
            return client(
                service,
                region_name=region,
                aws_access_key_id=key["AccessKeyId"],
                aws_secret_access_key=key["SecretAccessKey"],
                aws_session_token=key.get("SessionToken"),
            )

        return Attacker(sandbox, call, victim, launch, tags)

    def user(name):
        key = sandbox.key_of(user=name)
        return {"AccessKeyId": key.access_key, "SecretAccessKey": key.secret}

    def make(who):
        victim = thesis(sandbox, client, launch) if who == OWN_ACCOUNT else student
        tags = {"gpulab:owner": Attacker.owner}
        if who == COURSE_ROLE:
            tags["gpulab:course"] = "c1"
            key = course_role(sandbox, client)
        else:
            policies = [_student_policy()] if who == LEAST else published(who)
            arn = "arn:aws:iam::123456789012:user/mallory"
            sandbox.restrict(arn, policies, tags={"gpulab": Attacker.owner})
            key = user("mallory")
        return person(key, victim, tags), person(user("eve"), victim, tags)

    return make


def thesis(sandbox, client, launch):
    """What else the owner of an account has in it, which gpulab did not make: another project, without gpulab's tags and names."""
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole"}
    services = {"Service": ["ec2.amazonaws.com", "scheduler.amazonaws.com"]}
    document = json.dumps(
        {"Version": "2012-10-17", "Statement": [{**trust, "Principal": services}]}
    )
    iam, ec2, target = (
        client("iam"),
        client("ec2"),
        "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
    )
    arn = iam.create_role(RoleName="thesis", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    iam.create_instance_profile(InstanceProfileName="thesis")
    iam.add_role_to_instance_profile(InstanceProfileName="thesis", RoleName="thesis")
    client("s3").create_bucket(Bucket="thesis-data")
    sandbox.advance(seconds=60)
    group = ec2.create_security_group(GroupName="thesis", Description="-")["GroupId"]
    kept = {k: v for k, v in launch.items() if k not in (*_PERSONAL, "TagSpecifications")}
    (made,) = ec2.run_instances(**kept)["Instances"]
    client("scheduler").create_schedule(
        Name="thesis-end",
        ScheduleExpression="at(2030-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": target, "RoleArn": arn},
    )
    sandbox.advance(seconds=60)
    return Victim("ann", made["InstanceId"], group, "thesis-data", "thesis", arn, "thesis-end")


def course_role(sandbox, client):
    """A student uploads the template of the course; the key with which the course's teacher acts in that account."""
    made = template(
        build.a_course("own", lab='gpu = "T4"'),
        trusted=ME,
        external_id="gpulab-1",
        end_role="gpulab-end-course-c1",
        owners=[Attacker.owner],
        account="123456789012",
    )
    (role, *_) = sandbox.apply_template(made)
    sandbox.advance(seconds=60)
    asked = {"RoleArn": role, "RoleSessionName": "ta", "ExternalId": "gpulab-1"}
    return client("sts").assume_role(**asked)["Credentials"]


def _student_policy():
    """What `gpulab doctor --policy` prints: the least policy of a student."""
    return least(Profile(name="mallory", owner=Attacker.owner, regions=(REGION,)))


class Attacker:
    """Somebody with calls of their own making, and what they know of the victim."""

    owner = "mallory0001"

    def __init__(self, sandbox, call, victim, launch, tags):
        self.sandbox, self.call, self.victim = sandbox, call, victim
        self.kinds = ("instance", "volume", "spot-instances-request")
        kept = {k: v for k, v in launch.items() if k not in _PERSONAL}
        self._launch = {**kept, "TagSpecifications": self.tagged(tags)}

    @property
    def launch(self):
        return dict(self._launch)

    def tagged(self, tags):
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        return [{"ResourceType": kind, "Tags": pairs} for kind in self.kinds]

    def run(self, *, region=REGION, without=(), **changes):
        params = {k: v for k, v in {**self.launch, **changes}.items() if k not in without}
        return self.call("ec2", region).run_instances(**params)


_PERSONAL = ("ClientToken", "UserData", "IamInstanceProfile")


def end_anothers(m):
    m.call("ec2").terminate_instances(InstanceIds=[m.victim.instance])


def take_over_by_tag(m):
    tags = [{"Key": "gpulab:owner", "Value": m.owner}]
    m.call("ec2").create_tags(Resources=[m.victim.instance], Tags=tags)


def disown(m):
    m.call("ec2").delete_tags(Resources=[m.victim.instance], Tags=[{"Key": "gpulab:owner"}])


def let_live_longer(m):
    tags = [{"Key": "gpulab:expires", "Value": "2027-01-01T00:00:00Z"}]
    m.call("ec2").create_tags(Resources=[m.victim.instance], Tags=tags)


def change_user_data(m):
    text = base64.b64encode(b"#!/bin/sh")
    m.call("ec2").modify_instance_attribute(InstanceId=m.victim.instance, UserData={"Value": text})


def read_user_data(m):
    m.call("ec2").describe_instance_attribute(InstanceId=m.victim.instance, Attribute="userData")


def read_console(m):
    m.call("ec2").get_console_output(InstanceId=m.victim.instance)


def open_port(m):
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    m.call("ec2").authorize_security_group_ingress(
        GroupId=m.victim.group, IpPermissions=[{**rule, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )


def launch_bigger(m):
    m.run(InstanceType="g4dn.12xlarge")


def launch_elsewhere(m):
    image = m.call("ssm", "eu-west-1").get_parameter(Name=UBUNTU)["Parameter"]["Value"]
    zone = {"AvailabilityZone": "eu-west-1a"}
    here = ("SecurityGroupIds", "SubnetId", "KeyName")
    m.run(region="eu-west-1", without=here, ImageId=image, Placement=zone)


def launch_with_imdsv1(m):
    m.run(MetadataOptions={"HttpTokens": "optional"})


def launch_saying_nothing_of_metadata(m):
    m.run(without=("MetadataOptions",))


def launch_with_a_plain_disk(m):
    block = m.launch["BlockDeviceMappings"][0]
    m.run(BlockDeviceMappings=[{**block, "Ebs": {**block["Ebs"], "Encrypted": False}}])


def launch_untagged(m):
    m.run(TagSpecifications=[])


def launch_in_anothers_name(m):
    m.run(TagSpecifications=m.tagged({"gpulab:owner": m.victim.owner}))


def launch_with_anothers_role(m):
    m.run(IamInstanceProfile={"Name": m.victim.work_role})


def launch_by_request(m):
    m.call("ec2").request_spot_instances(
        LaunchSpecification={
            "ImageId": m.launch["ImageId"],
            "InstanceType": "g4dn.xlarge",
            "SubnetId": m.launch["SubnetId"],
        }
    )


def remove_anothers_end(m):
    m.call("scheduler").delete_schedule(Name=m.victim.end)


def schedule_with_anothers_role(m):
    target = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
    ends = {"InstanceIds": [m.victim.instance]}
    m.call("scheduler").create_schedule(
        Name=f"gpulab-end-{m.owner}-i-0123456789abcdef0",
        ScheduleExpression="at(2030-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": target, "RoleArn": m.victim.end_role, "Input": json.dumps(ends)},
    )


def read_anothers_work(m):
    bucket = m.victim.bucket
    a_client("s3").put_object(Bucket=bucket, Key=f"{m.victim.owner}/week4/a.ipynb", Body=b"{}")
    m.call("s3").get_object(Bucket=bucket, Key=f"{m.victim.owner}/week4/a.ipynb")


def list_anothers_work(m):
    m.call("s3").list_objects_v2(Bucket=m.victim.bucket, Prefix=f"{m.victim.owner}/")


def list_everybodys_work(m):
    m.call("s3").list_objects_v2(Bucket=m.victim.bucket)


def widen_the_work_role(m):
    m.call("iam").put_role_policy(
        RoleName=m.victim.work_role,
        PolicyName="keep-work",
        PolicyDocument=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
            }
        ),
    )


# The victim's things are lost last, so that every attack finds them.
ATTACKS = [
    read_user_data,
    read_console,
    open_port,
    launch_bigger,
    launch_elsewhere,
    launch_with_imdsv1,
    launch_saying_nothing_of_metadata,
    launch_with_a_plain_disk,
    launch_untagged,
    launch_in_anothers_name,
    launch_with_anothers_role,
    launch_by_request,
    schedule_with_anothers_role,
    read_anothers_work,
    list_anothers_work,
    list_everybodys_work,
    widen_the_work_role,
    let_live_longer,
    remove_anothers_end,
    take_over_by_tag,
    disown,
    change_user_data,
    end_anothers,
]
DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")


def outcome(attack, attacker):
    attacker.sandbox.advance(seconds=5)  # EC2's buckets of calls fill up again
    try:
        attack(attacker)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        return "denied" if code in DENIED else code
    return "it works"


OWN_ACCOUNT, COURSE_ACCOUNT = "own-account.json", "course-account.json"
LEAST, COURSE_ROLE = "the least policy of a student", "the role of a course"
#: In an account of one's own nobody else has a name in which to launch.
CANNOT_APPLY = {OWN_ACCOUNT: {launch_in_anothers_name}}


@pytest.mark.parametrize("who", [OWN_ACCOUNT, COURSE_ACCOUNT, LEAST, COURSE_ROLE])
def test_what_works_with_every_right_is_denied_by_the_policy(people, who):
    """
    People of one account share everything that their policies do not keep apart; each attack is shown to work as well.

    In an account of one's own the victim is what gpulab did not make there; of a course's role, what the student does with gpulab by themselves.
    """
    attacks = [attack for attack in ATTACKS if attack not in CANNOT_APPLY.get(who, ())]
    names = [attack.__name__ for attack in attacks]
    mallory, eve = people(who)

    ours = {attack.__name__: outcome(attack, mallory) for attack in attacks}
    weak = {attack.__name__: outcome(attack, eve) for attack in attacks}

    assert dict.fromkeys(names, "denied") == ours
    assert dict.fromkeys(names, "it works") == weak


@pytest.mark.parametrize("who", [OWN_ACCOUNT, COURSE_ACCOUNT, LEAST, COURSE_ROLE])
def test_the_launch_that_the_attacks_change_is_allowed_as_it_is(people, who):
    """Otherwise the denials above would prove nothing."""
    mallory, _ = people(who)

    assert 1 == len(mallory.run()["Instances"])


def test_without_the_tag_on_the_user_the_policy_is_no_master_key(sandbox, people):
    """A teacher who forgets it has students who can launch nothing, not students who own everything."""
    mallory, _ = people(COURSE_ACCOUNT)
    sandbox.restrict("arn:aws:iam::123456789012:user/mallory", published(COURSE_ACCOUNT))

    refused = [outcome(attack, mallory) for attack in (Attacker.run, end_anothers, open_port)]

    assert ["denied"] * 3 == refused


def test_the_policy_to_ask_for_is_printed_without_asking_anybody(sandbox, capsys):
    """It is needed exactly where nothing is allowed yet."""
    codes = [
        run(["doctor", "--policy", "--for", "stop", "--for", "ssh"]),
        run(["doctor", "--for", "stop"]),
        run(["doctor", "--policy", "--for", "launch"]),
    ]

    said = capsys.readouterr()
    actions = {a for s in json.loads(said.out)["Statement"] for a in as_list(s["Action"])}
    assert [0, 2, 2] == codes
    assert {"ec2:TerminateInstances", "s3:GetObject"} <= actions
    assert actions.isdisjoint({"ec2:RunInstances", "iam:PassRole"})
    assert "error: `--for` and `--type` belong to `--policy`" in said.err
    assert "error: no rights are listed for `launch`" in said.err
    assert 0 == len(sandbox.calls)


def as_list(value):
    return value if isinstance(value, list) else [value]
