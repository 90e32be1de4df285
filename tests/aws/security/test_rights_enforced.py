"""
The published policies, held by the simulated IAM: a student's whole day passes, and nothing that would hurt somebody does.

Beside this, every other test under `aws` fails when gpulab makes a call that no policy allows (`Judge` in `tests/aws/conftest.py`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from tests.aws.conftest import UBUNTU, a_client
from tests.aws.launch.conftest import Student

from gpulab.cli.main import run
from gpulab.errors import NotAllowed, Unreachable
from gpulab.launch.money import balance, rebuilding
from gpulab.launch.offers import prices
from gpulab.launch.running import extend, instances, keep, overview, stop
from gpulab.launch.upkeep import doctor, sweep
from gpulab.launch.upkeep.prepare import prepare
from gpulab.launch.upkeep.rights import least

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
    made = prepare(Student(sandbox, tmp_path).context)
    sandbox.advance(seconds=60)
    student = Student(
        sandbox,
        tmp_path,
        owner=made.owner,
        keep_bucket=made.keep_bucket,
        instance_role=made.instance_role,
        scheduler_role=made.scheduler_role,
    )
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


def test_the_least_policy_of_a_command_is_enough_for_it(sandbox, mine):
    """`gpulab doctor --policy --for COMMAND` is what a student sends to a teacher."""
    instance = mine.up().instance
    acts = {
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

    missing = {}
    for command, act in acts.items():
        before = len(sandbox.calls)
        sandbox.restrict(ME, [least(mine.context.profile, commands=[command])])
        act(mine, instance)
        calls = list(sandbox.calls)[before:]
        missing[command] = sorted({c.operation for c in calls if c.outcome in DENIED})

    assert {command: [] for command in acts} == missing


def test_the_least_policy_of_stopping_launches_nothing(sandbox, mine):
    """Least means that the rest is refused, and said in words with the hint where the policy is."""
    sandbox.restrict(ME, [least(mine.context.profile, commands=["stop"])])

    error = mine.up().error

    assert isinstance(error, NotAllowed)
    assert [] == mine.live()


# -- what nobody may do -------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(sandbox, mine, client):
    """Two more users of the same account: `eve` has every right, `mallory` the policy of a course account."""
    sandbox.set_quota("L-3819A6DF", REGION, 5000)
    instance = mine.up().instance
    sandbox.advance(seconds=60)
    launch = dict(sandbox.calls.of("RunInstances")[-1].params)

    def person(user):
        key = sandbox.key_of(user=user)

        def call(service, region=REGION):
            return client(
                service,
                region_name=region,
                aws_access_key_id=key.access_key,
                aws_secret_access_key=key.secret,
            )

        return Attacker(sandbox, call, mine.context, instance, launch)

    sandbox.restrict(
        "arn:aws:iam::123456789012:user/mallory",
        published("course-account.json"),
        tags={"gpulab": Attacker.owner},
    )
    return {name: person(name) for name in ("eve", "mallory")}


class Attacker:
    """Somebody with calls of their own making, and what they know of the victim."""

    owner = "mallory0001"

    def __init__(self, sandbox, call, victim, instance, launch):
        self.sandbox, self.call, self.victim, self.instance = sandbox, call, victim, instance
        kinds = ("instance", "volume", "spot-instances-request")
        tags = [{"Key": "gpulab:owner", "Value": self.owner}]
        kept = {k: v for k, v in launch.items() if k not in _PERSONAL}
        specifications = [{"ResourceType": kind, "Tags": tags} for kind in kinds]
        self._launch = {**kept, "TagSpecifications": specifications}

    @property
    def launch(self):
        return dict(self._launch)

    def run(self, *, region=REGION, without=(), **changes):
        params = {k: v for k, v in {**self.launch, **changes}.items() if k not in without}
        return self.call("ec2", region).run_instances(**params)


_PERSONAL = ("ClientToken", "UserData", "IamInstanceProfile")


def end_anothers(m):
    m.call("ec2").terminate_instances(InstanceIds=[m.instance.id])


def take_over_by_tag(m):
    tags = [{"Key": "gpulab:owner", "Value": m.owner}]
    m.call("ec2").create_tags(Resources=[m.instance.id], Tags=tags)


def disown(m):
    m.call("ec2").delete_tags(Resources=[m.instance.id], Tags=[{"Key": "gpulab:owner"}])


def let_live_longer(m):
    tags = [{"Key": "gpulab:expires", "Value": "2027-01-01T00:00:00Z"}]
    m.call("ec2").create_tags(Resources=[m.instance.id], Tags=tags)


def change_user_data(m):
    text = base64.b64encode(b"#!/bin/sh")
    m.call("ec2").modify_instance_attribute(InstanceId=m.instance.id, UserData={"Value": text})


def read_user_data(m):
    m.call("ec2").describe_instance_attribute(InstanceId=m.instance.id, Attribute="userData")


def read_console(m):
    m.call("ec2").get_console_output(InstanceId=m.instance.id)


def open_port(m):
    group = m.launch["SecurityGroupIds"][0]
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    m.call("ec2").authorize_security_group_ingress(
        GroupId=group, IpPermissions=[{**rule, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
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
    tags = [{"Key": "gpulab:owner", "Value": m.victim.owner}]
    m.run(TagSpecifications=[{**s, "Tags": tags} for s in m.launch["TagSpecifications"]])


def launch_with_anothers_role(m):
    m.run(IamInstanceProfile={"Name": m.victim.profile.instance_role})


def launch_by_request(m):
    m.call("ec2").request_spot_instances(
        LaunchSpecification={
            "ImageId": m.launch["ImageId"],
            "InstanceType": "g4dn.xlarge",
            "SubnetId": m.launch["SubnetId"],
        }
    )


def remove_anothers_end(m):
    m.call("scheduler").delete_schedule(Name=f"gpulab-end-{m.victim.owner}-{m.instance.id}")


def read_anothers_work(m):
    bucket = m.victim.profile.keep_bucket
    a_client("s3").put_object(Bucket=bucket, Key=f"{m.victim.owner}/week4/a.ipynb", Body=b"{}")
    m.call("s3").get_object(Bucket=bucket, Key=f"{m.victim.owner}/week4/a.ipynb")


def list_anothers_work(m):
    m.call("s3").list_objects_v2(Bucket=m.victim.profile.keep_bucket, Prefix=f"{m.victim.owner}/")


def list_everybodys_work(m):
    m.call("s3").list_objects_v2(Bucket=m.victim.profile.keep_bucket)


def widen_the_work_role(m):
    m.call("iam").put_role_policy(
        RoleName=m.victim.profile.instance_role,
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


def test_what_works_with_every_right_is_denied_by_the_course_policy(people):
    """Students of one account share everything that their policy does not keep apart; each attack is shown to work as well."""
    names = [attack.__name__ for attack in ATTACKS]

    ours = {attack.__name__: outcome(attack, people["mallory"]) for attack in ATTACKS}
    weak = {attack.__name__: outcome(attack, people["eve"]) for attack in ATTACKS}

    assert dict.fromkeys(names, "denied") == ours
    assert dict.fromkeys(names, "it works") == weak


def test_the_launch_that_the_attacks_change_is_allowed_as_it_is(sandbox, people):
    """Otherwise the denials above would prove nothing; and without the tag on the user, the same policy is no master key."""
    mallory = people["mallory"]
    launched = mallory.run()["Instances"]
    sandbox.restrict("arn:aws:iam::123456789012:user/mallory", published("course-account.json"))

    refused = [outcome(attack, mallory) for attack in (Attacker.run, end_anothers, open_port)]

    assert (1, ["denied"] * 3) == (len(launched), refused)


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
