"""
Key pair, security group and subnets of a region, found or made. Hides that AWS calls "exists already" an error.

Port 22 is open to one address range, ours; 0.0.0.0/0 and ::/0 are refused. Nothing else is open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import AwsError, NotFound, SetupMissing, WrongUsage
from gpulab.model.setup import Subnet

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.literals import ResourceTypeType
    from mypy_boto3_ec2.type_defs import IpPermissionTypeDef, TagSpecificationTypeDef

SSH_PORT = 22


@explained("find the subnets")
def find_subnets(cloud: Cloud, region: str) -> tuple[Subnet, ...]:
    """
    Find one subnet per zone, all in one network: the default network's, or else the one with most zones.

    Returns:
        Sorted by zone, never empty.

    Raises:
        SetupMissing: The region has no subnet at all.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"read the subnets of {region}"):
        rows = ec2.describe_subnets(Filters=[{"Name": "state", "Values": ["available"]}])["Subnets"]
    default = [r for r in rows if r.get("DefaultForAz")]
    chosen = default or _largest_network([r for r in rows if r.get("MapPublicIpOnLaunch")] or rows)
    if not chosen:
        raise SetupMissing(
            f"{region} has no network",
            hint=f"Make one with `aws ec2 create-default-vpc --region {region}`, or choose another region",
            code="VPCIdNotSpecified",
        )
    by_zone = {r["AvailabilityZone"]: r for r in sorted(chosen, key=lambda r: r["SubnetId"])}
    return tuple(
        Subnet(r["SubnetId"], zone, r["VpcId"], bool(r.get("MapPublicIpOnLaunch")))
        for zone, r in sorted(by_zone.items())
    )


@explained("import the key pair")
def ensure_key_pair(cloud: Cloud, region: str, public_key: str, *, tags: Mapping[str, str]) -> str:
    """
    Make sure the region knows a public key; return its name there.

    The name holds a hash of the key, so another key gets another name and one that exists is the same key; this is checked.

    Args:
        public_key: One OpenSSH line.

    Raises:
        WrongUsage: The line is no public key.
        AwsError: AWS refuses, or another key sits under our name.
    """
    name = key_pair_name(public_key)
    ec2: EC2Client = cloud.client("ec2", region)
    try:
        with cloud.explained(f"import the key pair into {region}"):
            ec2.import_key_pair(
                KeyName=name,
                PublicKeyMaterial=public_key.encode("ascii"),
                TagSpecifications=_tagged("key-pair", tags),
            )
    except AwsError as error:
        if error.code != "InvalidKeyPair.Duplicate":
            raise
        _check_same_key(cloud, region, name, public_key)
    return name


def key_pair_name(public_key: str) -> str:
    """
    Name a key pair after its public key: `gpulab-` and 16 hex digits.

    Raises:
        WrongUsage: The line is no public key.
    """
    return f"gpulab-{hashlib.sha256(_key_blob(public_key)).hexdigest()[:16]}"


@explained("make the security group")
def ensure_security_group(
    cloud: Cloud, region: str, *, name: str, vpc_id: str, tags: Mapping[str, str]
) -> tuple[str, bool]:
    """
    Make sure our security group exists in a network. Its rules are left as they are, see `admit`.

    Returns:
        Its id, and whether it was made just now.

    Raises:
        AwsError: AWS refuses.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    try:
        with cloud.explained(f"make the security group in {region}"):
            reply = ec2.create_security_group(
                GroupName=name,
                Description="ssh from the owner's address only; made by gpulab",
                VpcId=vpc_id,
                TagSpecifications=_tagged("security-group", tags),
            )
        return reply["GroupId"], True
    except AwsError as error:
        if error.code != "InvalidGroup.Duplicate":
            raise
    return _existing_group(cloud, region, name, vpc_id), False


def group_of(cloud: Cloud, region: str, instance_id: str, *, name: str) -> str:
    """
    Return the id of an instance's security group of that name.

    Raises:
        NotFound: EC2 does not know the instance, or it has no such group.
        AwsError: AWS refuses.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"read the security groups of {instance_id}"):
        reply = ec2.describe_instances(InstanceIds=[instance_id])
        rows = [row for r in reply["Reservations"] for row in r["Instances"]]
        groups = [g for row in rows for g in row["SecurityGroups"] if g["GroupName"] == name]
    if not groups:
        raise NotFound(
            f"{instance_id} has no security group {name}, so port 22 cannot be opened to this computer",
            hint="Somebody has changed its groups: give that one back in the EC2 console",
            code="InvalidGroup.NotFound",
        )
    return groups[0]["GroupId"]


def admit(
    cloud: Cloud, region: str, group_id: str, cidr: str, *, tags: Mapping[str, str], is_new: bool
) -> tuple[str, ...]:
    """
    Open port 22 to one address range, then close it to every other one. Repeating it changes nothing.

    The new rule is made before the old one goes, so a connection from the new address never waits.

    Args:
        is_new: The group was made a moment ago: there is nothing to close, which saves a call.

    Returns:
        The ranges it was closed to, sorted.

    Raises:
        WrongUsage: The range is the whole internet, or no range.
        AwsError: AWS refuses.
    """
    cidr = checked_cidr(cidr)
    ec2: EC2Client = cloud.client("ec2", region)
    try:
        with cloud.explained(f"open port 22 to {cidr}"):
            ec2.authorize_security_group_ingress(
                GroupId=group_id,
                IpPermissions=[_rule(cidr)],
                TagSpecifications=_tagged("security-group-rule", tags),
            )
    except AwsError as error:
        if error.code != "InvalidPermission.Duplicate":
            raise
    return () if is_new else _close_to_others(cloud, region, group_id, cidr)


@explained("read the security group's rules")
def ingress(cloud: Cloud, region: str, group_id: str) -> tuple[tuple[str, str, int, int], ...]:
    """Read what may come in: (rule id, range or source group, first port, last port), sorted; -1 means every port."""
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"read the rules of {group_id}"):
        rules = ec2.describe_security_group_rules(
            Filters=[{"Name": "group-id", "Values": [group_id]}]
        )["SecurityGroupRules"]
    return tuple(
        sorted(
            (r["SecurityGroupRuleId"], _source(r), r.get("FromPort", -1), r.get("ToPort", -1))
            for r in rules
            if not r.get("IsEgress")
        )
    )


def checked_cidr(text: str) -> str:
    """
    Check an address range for port 22; a lone address becomes a range of one.

    Raises:
        WrongUsage: It is no range, or it is the whole internet.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise WrongUsage(
            f"`{text}` is not an address range", hint="Such as 203.0.113.7/32"
        ) from None
    if network.prefixlen == 0:
        raise WrongUsage(
            f"`{text}` would open ssh to the whole internet",
            hint="Name your own address, such as 203.0.113.7/32",
        )
    return str(network)


def _largest_network(rows: Sequence[Any]) -> list[Any]:
    networks: dict[str, list[Any]] = {}
    for row in rows:
        networks.setdefault(row["VpcId"], []).append(row)
    zones = {v: len({r["AvailabilityZone"] for r in rs}) for v, rs in networks.items()}
    return networks[min(zones, key=lambda v: (-zones[v], v))] if zones else []


def _key_blob(public_key: str) -> bytes:
    words = public_key.split()
    try:
        if len(words) < 2 or not words[0].startswith(("ssh-", "sk-", "ecdsa-")):
            raise ValueError
        return base64.b64decode(words[1], validate=True)
    except (ValueError, binascii.Error):
        raise WrongUsage(
            "the ssh key's public half is not an OpenSSH key",
            hint="Move `keys/` of the profile's folder away; gpulab makes a new key",
        ) from None


def _check_same_key(cloud: Cloud, region: str, name: str, public_key: str) -> None:
    """Compare key material, never fingerprints: AWS computes those in four ways."""
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"read key pair {name}"):
        found = ec2.describe_key_pairs(KeyNames=[name], IncludePublicKey=True)["KeyPairs"]
    there = found[0].get("PublicKey", "") if found else ""
    if _key_blob(there) != _key_blob(public_key):
        raise AwsError(
            f"another key sits under the name {name} in {region}",
            hint=f"Delete it with `aws ec2 delete-key-pair --key-name {name} --region {region}`, then repeat the command",
            code="InvalidKeyPair.Duplicate",
        )


def _existing_group(cloud: Cloud, region: str, name: str, vpc_id: str) -> str:
    ec2: EC2Client = cloud.client("ec2", region)
    wanted = [
        {"Name": "group-name", "Values": [name]},
        {"Name": "vpc-id", "Values": [vpc_id]},
    ]
    with cloud.explained(f"read security group {name}"):
        found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]  # type: ignore[arg-type] # plain dicts
    if not found:
        raise NotFound(
            f"security group {name} exists in {region} but AWS does not show it yet",
            hint="Repeat the command in a minute",
            code="InvalidGroup.NotFound",
        )
    return found[0]["GroupId"]


def _close_to_others(cloud: Cloud, region: str, group_id: str, cidr: str) -> tuple[str, ...]:
    others = {
        rule: source
        for rule, source, first, last in ingress(cloud, region, group_id)
        if (source, first, last) != (cidr, SSH_PORT, SSH_PORT)
    }
    if not others:
        return ()
    ec2: EC2Client = cloud.client("ec2", region)
    try:
        with cloud.explained("close port 22 to former addresses"):
            ec2.revoke_security_group_ingress(GroupId=group_id, SecurityGroupRuleIds=list(others))
    except AwsError as error:
        if not error.code.endswith(".NotFound"):
            raise
    return tuple(sorted(set(others.values())))


def _rule(cidr: str) -> IpPermissionTypeDef:
    rule: IpPermissionTypeDef = {"IpProtocol": "tcp", "FromPort": SSH_PORT, "ToPort": SSH_PORT}
    if ":" in cidr:
        rule["Ipv6Ranges"] = [{"CidrIpv6": cidr, "Description": "gpulab"}]
    else:
        rule["IpRanges"] = [{"CidrIp": cidr, "Description": "gpulab"}]
    return rule


def _source(rule: Any) -> str:
    group = rule.get("ReferencedGroupInfo", {}).get("GroupId", "")
    return str(rule.get("CidrIpv4") or rule.get("CidrIpv6") or rule.get("PrefixListId") or group)


def _tagged(kind: ResourceTypeType, tags: Mapping[str, str]) -> Sequence[TagSpecificationTypeDef]:
    pairs = [{"Key": k, "Value": v} for k, v in tags.items()]
    return [{"ResourceType": kind, "Tags": pairs}] if pairs else []  # type: ignore[typeddict-item] # plain dicts
