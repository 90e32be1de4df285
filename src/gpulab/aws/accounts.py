"""What can be asked of an account at no cost: who we are, what it may do, what stands in the way of a first launch. Changes nothing but the spot role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from gpulab.aws.errors import code_of, explained
from gpulab.aws.session import Cloud
from gpulab.errors import AwsError, GpulabError, NotFound
from gpulab.model.setup import Image, Subnet

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_sts import STSClient

_SPOT_ROLE = "AWSServiceRoleForEC2Spot"


@dataclass(frozen=True)
class Identity:
    """Whose credentials these are."""

    account_id: str
    arn: str

    @property
    def name(self) -> str:
        """The last part of the ARN, which people recognise: `user/ann`."""
        return self.arn.rpartition(":")[2]

    @property
    def is_academy(self) -> bool:
        """Whether this is an AWS Academy Learner Lab, which has neither GPUs nor spot."""
        return "assumed-role/voclabs/" in self.arn


@explained("ask AWS who you are")
def identity(cloud: Cloud) -> Identity:
    """
    Ask whose credentials these are; needs no right.

    Raises:
        CredentialsInvalid, ClockSkewed: They are not accepted.
    """
    sts: STSClient = cloud.client("sts", "us-east-1")
    with cloud.explained("ask AWS who you are"):
        reply = sts.get_caller_identity()
    return Identity(reply["Account"], reply["Arn"])


def plan_type(cloud: Cloud) -> str:
    """
    Ask for the account's plan: `FREE`, `PAID`, or `""` where AWS does not say (older accounts, no billing access).

    Source:
        Free Tier `GetAccountPlanState`; an account on the free plan cannot start a GPU.
    """
    client = cloud.client("freetier", "us-east-1")
    try:
        with cloud.explained("read the account's plan"):
            return str(client.get_account_plan_state().get("accountPlanType", ""))
    except AwsError:
        return ""


def spot_role_exists(cloud: Cloud) -> bool | None:
    """Whether the role that spot needs exists; `None` where the account does not say."""
    iam: IAMClient = cloud.client("iam", "us-east-1")
    try:
        with cloud.explained("look for the spot role"):
            iam.get_role(RoleName=_SPOT_ROLE)
    except NotFound:
        return False
    except GpulabError:
        return None
    return True


def make_spot_role(cloud: Cloud) -> None:
    """
    Make the role that spot needs; one that exists is fine.

    Raises:
        NotAllowed: Somebody with more rights has to do it, once.
    """
    iam: IAMClient = cloud.client("iam", "us-east-1")
    try:
        with cloud.explained("make the spot role"):
            iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except AwsError as error:
        is_there = error.code == "EntityAlreadyExists" or "has been taken" in error.detail
        if not is_there:
            raise


def clock_ahead(cloud: Cloud) -> timedelta | None:
    """Return how far this computer's clock is ahead of AWS's; `None` when it cannot be told. Asks once."""
    from email.utils import parsedate_to_datetime

    sts: STSClient = cloud.client("sts", "us-east-1")
    with cloud.explained("compare the clocks"):
        reply = sts.get_caller_identity()
    date = reply["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    try:
        return cloud.now() - parsedate_to_datetime(str(date))
    except (TypeError, ValueError):
        return None


def dry_launch(
    image: Image, subnet: Subnet, instance_type: str, tags: Mapping[str, str]
) -> dict[str, Any]:
    """Build the parameters of a launch as policies see it: tagged, encrypted, with IMDSv2, for the spot market."""
    kinds = ("instance", "volume", "spot-instances-request")
    disk = {"DeviceName": image.root_device, "Ebs": {"Encrypted": True}}
    return {
        "ImageId": image.id,
        "InstanceType": instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "SubnetId": subnet.id,
        "BlockDeviceMappings": [disk],
        "MetadataOptions": {"HttpTokens": "required"},
        "InstanceMarketOptions": {"MarketType": "spot"},
        "TagSpecifications": [_tagged(kind, tags) for kind in kinds],
    }


def may_launch(cloud: Cloud, region: str, parameters: Mapping[str, Any]) -> GpulabError | None:
    """
    Ask by a dry run whether a launch would be permitted; it sees rights and syntax, not capacity, quota or plan.

    Returns:
        `None` when it is permitted, else why not.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    return _dry_run(
        cloud, "launch an instance", lambda: ec2.run_instances(**parameters, DryRun=True)
    )


def may_make_group(
    cloud: Cloud, region: str, *, vpc_id: str, tags: Mapping[str, str]
) -> GpulabError | None:
    """Ask by a dry run whether a security group may be made."""
    ec2: EC2Client = cloud.client("ec2", region)
    return _dry_run(
        cloud,
        "make a security group",
        lambda: ec2.create_security_group(
            GroupName="gpulab-dry-run",
            Description="dry run",
            VpcId=vpc_id,
            TagSpecifications=[_tagged("security-group", tags)],
            DryRun=True,
        ),
    )


def may_import_key(
    cloud: Cloud, region: str, public_key: str, *, tags: Mapping[str, str]
) -> GpulabError | None:
    """Ask by a dry run whether a key pair may be imported."""
    ec2: EC2Client = cloud.client("ec2", region)
    return _dry_run(
        cloud,
        "import a key pair",
        lambda: ec2.import_key_pair(
            KeyName="gpulab-dry-run",
            PublicKeyMaterial=public_key.encode(),
            TagSpecifications=[_tagged("key-pair", tags)],
            DryRun=True,
        ),
    )


def _tagged(kind: str, tags: Mapping[str, str]) -> Any:
    return {
        "ResourceType": kind,
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def _dry_run(cloud: Cloud, doing: str, call: Callable[[], Any]) -> GpulabError | None:
    try:
        with cloud.explained(doing):
            try:
                call()
            except ClientError as error:
                if code_of(error) == "DryRunOperation":
                    return None
                raise
    except GpulabError as error:
        return error
    return None
