"""What the simulated EC2 asks of the machine behind an instance, and what a machine's end does to the instance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from botocore.exceptions import ClientError

from gpulab.sandbox import Sandbox
from gpulab.sandbox.machines import Birth, CannotBoot, Disk, Ingress, LiveMetadata


class Recorded:
    """A machine that writes down what it is told and goes off when it is asked to."""

    def __init__(self, birth: Birth, on_exit: Callable[[str], None]) -> None:
        self.birth, self.on_exit = birth, on_exit
        self.told: list[str] = []
        self.metadata = LiveMetadata()
        self.ingress = birth.ingress
        self.is_stubborn = False

    door = ("127.0.0.1", 2222)

    def console(self) -> str:
        return "booted\n"

    def publish(self, metadata: LiveMetadata) -> None:
        self.metadata = metadata

    def admit(self, ingress: tuple[Ingress, ...]) -> None:
        self.ingress = ingress

    def power_off(self) -> None:
        self.told.append("power_off")
        if not self.is_stubborn:
            self.on_exit(self.birth.instance_id)

    def cut(self) -> None:
        self.told.append("cut")
        self.on_exit(self.birth.instance_id)

    def power_on(self) -> None:
        self.told.append("power_on")

    def attach(self, disk: Disk) -> None:
        self.told.append(f"attach {disk.device} {disk.size_gib}")

    def detach(self, volume_id: str) -> None:
        self.told.append("detach")

    def discard(self) -> None:
        self.told.append("discard")


class Kind:
    """Makes recorded machines."""

    name = "recorded"

    def __init__(self) -> None:
        self.machines: list[Recorded] = []
        self.deleted: list[str] = []
        self.is_closed = False

    def boot(self, birth: Birth, *, on_exit: Callable[[str], None]) -> Recorded:
        self.machines.append(Recorded(birth, on_exit))
        return self.machines[-1]

    def addresses(self) -> tuple[str, str] | None:
        return ("127.0.0.5", "127.0.0.6")

    def endpoint_host(self) -> str:
        return "127.0.0.1"

    def delete_volume(self, volume_id: str) -> None:
        self.deleted.append(volume_id)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def kind() -> Kind:
    """The kind of machine in this world."""
    return Kind()


@pytest.fixture
def sandbox(kind: Kind) -> Iterator[Sandbox]:
    """A world with machines."""
    with Sandbox(machines=kind, endpoint_for_machines="http://127.0.0.1:1") as opened:
        yield opened


def test_a_machine_is_told_everything_it_needs(sandbox, kind, ec2, client, running):
    """Key, user data, address, disks, ways in: what cloud-init and the firewall work from."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJOD4C4b8KFmEbDIoHOBuKPKRrYmxWdnRBJLXXdzZ3Vi"
    ec2.import_key_pair(KeyName="lab", PublicKeyMaterial=key.encode())
    group = ec2.create_security_group(GroupName="lab", Description="lab")["GroupId"]
    sandbox.advance(2)
    ec2.authorize_security_group_ingress(
        GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="192.0.2.1/32"
    )

    running(
        KeyName="lab",
        SecurityGroupIds=[group],
        UserData="#cloud-config\n",
        MetadataOptions={"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}],
    )

    birth = kind.machines[0].birth
    assert (key, b"#cloud-config\n", "127.0.0.6", {"a": "b"}, "required", True) == (
        birth.public_key,
        birth.user_data,
        birth.public_address,
        dict(birth.tags),
        birth.http_tokens,
        birth.tags_in_metadata,
    )
    assert (Ingress("tcp", 22, 22, "192.0.2.1/32"),) == birth.ingress
    assert [("/dev/sda1", 8, True, True)] == [
        (d.device, d.size_gib, d.is_root, d.delete_on_termination) for d in birth.disks
    ]
    assert "127.0.0.6" == sandbox.instances()[0]["PublicIpAddress"]


def test_power_off_from_inside_ends_an_instance_as_it_was_launched_to(sandbox, kind, ec2, running):
    """The guard on the instance: `shutdown -h` must end the cost, also with the laptop shut."""
    running(InstanceInitiatedShutdownBehavior="terminate")

    kind.machines[0].on_exit(kind.machines[0].birth.instance_id)

    instance = sandbox.instances()[0]
    assert ("terminated", "Client.InstanceInitiatedShutdown", ["discard"]) == (
        instance["State"]["Name"],
        instance["StateReason"]["Code"],
        kind.machines[0].told,
    )


def test_power_off_from_inside_only_stops_an_on_demand_instance_by_default(sandbox, kind, running):
    """EC2's default is `stop`; who forgets the parameter goes on paying for the disk."""
    running(InstanceMarketOptions=None)

    kind.machines[0].on_exit(kind.machines[0].birth.instance_id)

    assert "stopped" == sandbox.instances()[0]["State"]["Name"]


def test_stop_and_start_keep_the_machine_and_its_address(sandbox, kind, ec2, running):
    """The same disk boots again."""
    id_ = running(InstanceMarketOptions=None)

    ec2.stop_instances(InstanceIds=[id_])
    stopped = sandbox.instances()[0]["State"]["Name"]
    ec2.start_instances(InstanceIds=[id_])
    sandbox.advance(10)

    assert ("stopped", ["power_off", "power_on"], "127.0.0.6") == (
        stopped,
        kind.machines[0].told,
        sandbox.instances()[0]["PublicIpAddress"],
    )


def test_a_machine_that_does_not_go_off_is_cut(sandbox, kind, ec2, running):
    """EC2 waits, then takes the power away; a hung system costs no more than that."""
    id_ = running()
    kind.machines[0].is_stubborn = True
    ec2.terminate_instances(InstanceIds=[id_])
    states = [sandbox.instances()[0]["State"]["Name"]]

    sandbox.advance(120)

    states.append(sandbox.instances()[0]["State"]["Name"])
    assert (["shutting-down", "terminated"], ["power_off", "cut", "discard"]) == (
        states,
        kind.machines[0].told,
    )


def test_the_notice_and_tags_reach_the_metadata(sandbox, kind, ec2, running):
    """The watcher on the instance sees what AWS would show it."""
    id_ = running()
    before = kind.machines[0].metadata.notice

    ec2.create_tags(Resources=[id_], Tags=[{"Key": "gpulab:expires", "Value": "later"}])
    sandbox.interrupt(id_, rebalance_first=True)
    recommended = (kind.machines[0].metadata.rebalance_at, kind.machines[0].metadata.notice)
    sandbox.advance(120)

    metadata = kind.machines[0].metadata
    assert (None, (sandbox.began_at.replace(second=10), None)) == (before, recommended)
    assert (
        {"action": "terminate", "time": "2026-11-16T09:04:10Z"},
        {"gpulab:expires": "later"},
    ) == (
        metadata.notice,
        dict(metadata.tags),
    )


def test_the_role_of_an_instance_may_write_to_s3(sandbox, kind, client, running):
    """The kept work is saved with these credentials, which a student never sees; they allow what the role does, no more."""
    client("s3").create_bucket(Bucket="kept-work")
    iam = client("iam")
    trust = {"Version": "2012-10-17", "Statement": []}
    iam.create_role(RoleName="keeper", AssumeRolePolicyDocument=json.dumps(trust))
    may_put = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::kept-work/*"}
    rights = {"Version": "2012-10-17", "Statement": [may_put]}
    iam.put_role_policy(RoleName="keeper", PolicyName="keep", PolicyDocument=json.dumps(rights))
    iam.create_instance_profile(InstanceProfileName="keeper")
    iam.add_role_to_instance_profile(InstanceProfileName="keeper", RoleName="keeper")
    sandbox.advance(5)
    running(IamInstanceProfile={"Name": "keeper"})
    given = kind.machines[0].metadata.credentials

    s3 = client(
        "s3",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["Token"],
    )
    s3.put_object(Bucket="kept-work", Key="a.ipynb", Body=b"{}")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket="kept-work", Key="a.ipynb")

    sts = client(
        "sts",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["Token"],
    )
    assert ("keeper", "2026-11-16T15:00:05Z") == (kind.machines[0].birth.role, given["Expiration"])
    assert ":assumed-role/keeper/i-" in sts.get_caller_identity()["Arn"]
    assert b"{}" == client("s3").get_object(Bucket="kept-work", Key="a.ipynb")["Body"].read()


def test_role_credentials_are_renewed_before_they_expire(sandbox, kind, client, running):
    """A day-long lab must still be able to save its work."""
    iam = client("iam")
    trust = {"Version": "2012-10-17", "Statement": []}
    iam.create_role(RoleName="keeper", AssumeRolePolicyDocument=json.dumps(trust))
    iam.create_instance_profile(InstanceProfileName="keeper")
    iam.add_role_to_instance_profile(InstanceProfileName="keeper", RoleName="keeper")
    sandbox.advance(5)
    running(IamInstanceProfile={"Name": "keeper"})
    first = kind.machines[0].metadata.credentials["AccessKeyId"]

    sandbox.advance(5.6 * 3600)

    renewed = kind.machines[0].metadata.credentials
    assert (False, "2026-11-16T20:30:05Z") == (
        renewed["AccessKeyId"] == first,
        renewed["Expiration"],
    )


def test_a_change_of_the_group_reaches_the_machine(sandbox, kind, ec2, running):
    """A student whose address changed opens the way again while the instance runs."""
    group = ec2.create_security_group(GroupName="lab", Description="lab")["GroupId"]
    sandbox.advance(2)
    running(SecurityGroupIds=[group])
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "198.51.100.7/32"}
    seen = [kind.machines[0].ingress]

    ec2.authorize_security_group_ingress(GroupId=group, **rule)
    seen.append(kind.machines[0].ingress)
    ec2.revoke_security_group_ingress(GroupId=group, **rule)
    seen.append(kind.machines[0].ingress)

    assert [(), (Ingress("tcp", 22, 22, "198.51.100.7/32"),), ()] == seen


def test_volumes_are_attached_and_forgotten(sandbox, kind, ec2, running):
    """A data volume that moves between instances."""
    id_ = running()
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=20)["VolumeId"]

    ec2.attach_volume(VolumeId=volume, InstanceId=id_, Device="/dev/sdf")
    ec2.detach_volume(VolumeId=volume)
    ec2.delete_volume(VolumeId=volume)

    assert (["attach /dev/sdf 20", "detach"], [volume]) == (kind.machines[0].told, kind.deleted)


def test_a_machine_that_cannot_boot_ends_its_instance(sandbox, kind, ec2, a_launch):
    """The host lacks something; the reason reaches the user through EC2's own field."""

    def cannot(birth, *, on_exit):
        raise CannotBoot("systemd-nspawn is missing: apt-get install systemd-container")

    kind.boot = cannot

    ec2.run_instances(**a_launch())
    sandbox.advance(31)

    instance = sandbox.instances()[0]
    assert (
        "terminated",
        "Server.InternalError: systemd-nspawn is missing: apt-get install systemd-container",
    ) == (instance["State"]["Name"], instance["StateReason"]["Message"])


def test_closing_the_world_ends_its_machines(kind):
    """No process outlives the sandbox."""
    with Sandbox(machines=kind):
        pass

    assert kind.is_closed


def test_an_interruption_cuts_the_machine_off_without_a_clean_end(sandbox, kind, running):
    """What was not saved by the end of the two minutes must be seen to be lost, not be rescued by a shutdown script."""
    id_ = running()
    sandbox.interrupt(id_)

    sandbox.advance(121)

    assert ["cut", "discard"] == kind.machines[0].told
