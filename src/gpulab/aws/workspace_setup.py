"""
Where the kept work goes, made once: one private, versioned bucket, and a role that lets instances write under their owner's prefix only.

Hides S3 and IAM; everything here may be repeated. A bucket that somebody else made under our name is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.aws.workspace import Bucket
from gpulab.errors import AwsError, NotAllowed, NotFound
from gpulab.model.instance import TAG_OWNER
from gpulab.rights.roles import (
    TAG_BUCKET,
    TAG_BUCKET_REGION,
    TAG_RIGHTS,
    class_role,
    class_role_name,
    trusts_ec2,
    work_role,
)

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

# How long replaced and deleted versions are kept: long enough to notice a mistake, short enough not to cost.
_OLD_VERSIONS_DAYS = 30
_POLICY = "keep-work"


@dataclass(frozen=True)
class WorkRole:
    """
    The role with which the instances of a course keep the work.

    Attributes:
        name: Of the role, and of the instance profile it is in.
        id: `AROA...`; another role of the same name has another one.
    """

    name: str
    id: str
    bucket: Bucket


def bucket_name(account_id: str, region: str) -> str:
    """Name the bucket: bucket names are one namespace for all of AWS, so the account is part of it."""
    return f"gpulab-{account_id}-{region}"


@explained("make the bucket")
def ensure_bucket(cloud: Cloud, account_id: str, region: str) -> Bucket:
    """
    Make sure the bucket exists, is private, encrypted, versioned, and forgets old versions after 30 days. Repeatable.

    Raises:
        NotAllowed: The credentials may not make buckets; the work is then kept on this computer.
        AwsError: AWS refuses, or somebody else owns a bucket of that name.
    """
    bucket = Bucket(bucket_name(account_id, region), region, account_id)
    _create(cloud, bucket)
    s3: S3Client = cloud.client("s3", region)
    named: dict[str, Any] = {"Bucket": bucket.name, "ExpectedBucketOwner": account_id}
    with cloud.explained(f"close the bucket {bucket.name} to the public"):
        s3.put_public_access_block(
            **named,
            PublicAccessBlockConfiguration={
                "BlockPublicAcls": True,
                "IgnorePublicAcls": True,
                "BlockPublicPolicy": True,
                "RestrictPublicBuckets": True,
            },
        )
    with cloud.explained(f"switch on versions in {bucket.name}"):
        s3.put_bucket_versioning(**named, VersioningConfiguration={"Status": "Enabled"})
    with cloud.explained(f"switch on encryption in {bucket.name}"):
        s3.put_bucket_encryption(
            **named,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        )
    with cloud.explained(f"limit old versions in {bucket.name}"):
        s3.put_bucket_lifecycle_configuration(
            **named, LifecycleConfiguration={"Rules": [_lifecycle()]}
        )
    return bucket


@explained("make the instances' role")
def ensure_instance_role(cloud: Cloud, bucket: Bucket, *, owner: str) -> str:
    """
    Make sure the role exists with which instances reach their owner's prefix, and nothing else; return its profile's name.

    Raises:
        NotAllowed: The credentials may not make roles; the work is then kept on this computer.
        AwsError: AWS refuses otherwise.
    """
    name = f"gpulab-work-{owner}"
    _ensure_role(cloud, name, work_role(bucket.name, owner), {TAG_OWNER: owner})
    return name


@explained("make the instances' role")
def ensure_class_role(cloud: Cloud, bucket: Bucket, *, course: str) -> WorkRole:
    """
    Make sure the role exists with which each instance of a course reaches its own work, and nobody else's.

    Raises:
        NotAllowed, AwsError: As `ensure_instance_role`.
    """
    name, owner = class_role_name(course), f"course-{course}"
    tags = {TAG_OWNER: owner, TAG_BUCKET: bucket.name, TAG_BUCKET_REGION: bucket.region}
    _ensure_role(cloud, name, class_role(bucket.name, owner), tags)
    made = read_class_role(cloud, course=course, account_id=bucket.account_id)
    if made is None:
        raise AwsError(f"the role {name} does not say where the work is kept")
    return made


@explained("look for the instances' role")
def read_class_role(cloud: Cloud, *, course: str, account_id: str) -> WorkRole | None:
    """
    Read the role with which the instances of a course keep the work, and where; `None` where the account has none.

    Raises:
        GpulabError: AWS does not say.
    """
    iam: IAMClient = cloud.client("iam", "us-east-1")
    name = class_role_name(course)
    try:
        with cloud.explained(f"look for the role {name}"):
            role = iam.get_role(RoleName=name)["Role"]
    except NotFound:
        return None
    tags = {tag["Key"]: tag["Value"] for tag in role.get("Tags", [])}
    if not (tags.get(TAG_BUCKET) and tags.get(TAG_BUCKET_REGION)):
        return None
    bucket = Bucket(tags[TAG_BUCKET], tags[TAG_BUCKET_REGION], account_id)
    return WorkRole(name, role["RoleId"], bucket)


@explained("look for the instances' role")
def read_rights_mark(cloud: Cloud, *, course: str) -> str:
    """
    Read of which rights a student's stack was made; `""` where it does not say, or there is none.

    Raises:
        GpulabError: AWS does not say.
    """
    iam: IAMClient = cloud.client("iam", "us-east-1")
    name = class_role_name(course)
    try:
        with cloud.explained(f"look for the role {name}"):
            role = iam.get_role(RoleName=name)["Role"]
    except NotFound:
        return ""
    return next((tag["Value"] for tag in role.get("Tags", []) if tag["Key"] == TAG_RIGHTS), "")


@explained("remove the instances' role")
def remove_class_role(cloud: Cloud, *, course: str) -> None:
    """
    Remove that role, its rights and its instance profile; what is gone is fine. The bucket stays.

    Raises:
        GpulabError: AWS refuses.
    """
    iam: IAMClient = cloud.client("iam", "us-east-1")
    name = class_role_name(course)
    steps: dict[str, Callable[[], Any]] = {
        f"take the role out of the instance profile {name}": (
            lambda: iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
        ),
        f"remove the instance profile {name}": (
            lambda: iam.delete_instance_profile(InstanceProfileName=name)
        ),
        f"take the role {name} its rights": (
            lambda: iam.delete_role_policy(RoleName=name, PolicyName=_POLICY)
        ),
        f"remove the role {name}": lambda: iam.delete_role(RoleName=name),
    }
    for doing, step in steps.items():
        with contextlib.suppress(NotFound), cloud.explained(doing):
            step()


def _ensure_role(
    cloud: Cloud, name: str, rights: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    """Make sure of a role that EC2's instances take, its rights, and the instance profile of the same name."""
    iam: IAMClient = cloud.client("iam", "us-east-1")
    listed: Any = [{"Key": key, "Value": value} for key, value in tags.items()]
    _unless_exists(
        cloud,
        f"make the role {name}",
        lambda: iam.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps(trusts_ec2()),
            Description="Lets gpulab's instances keep their owner's work",
            Tags=listed,
        ),
    )
    with cloud.explained(f"give the role {name} its rights"):
        iam.put_role_policy(RoleName=name, PolicyName=_POLICY, PolicyDocument=json.dumps(rights))
    owned: Any = [{"Key": TAG_OWNER, "Value": tags[TAG_OWNER]}]
    _unless_exists(
        cloud,
        f"make the instance profile {name}",
        lambda: iam.create_instance_profile(InstanceProfileName=name, Tags=owned),
    )
    _unless_exists(
        cloud,
        f"put the role into the instance profile {name}",
        lambda: iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name),
    )


def _create(cloud: Cloud, bucket: Bucket) -> None:
    s3: S3Client = cloud.client("s3", bucket.region)
    # us-east-1 is the one region that must not be named. https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html
    where: Any = (
        {}
        if bucket.region == "us-east-1"
        else {"CreateBucketConfiguration": {"LocationConstraint": bucket.region}}
    )
    try:
        with cloud.explained(f"make the bucket {bucket.name}"):
            s3.create_bucket(Bucket=bucket.name, **where)
    except AwsError as error:
        if error.code == "BucketAlreadyOwnedByYou":
            return
        if error.code == "BucketAlreadyExists":
            raise NotAllowed(
                f"somebody else owns a bucket called {bucket.name}",
                hint="The work is kept on this computer instead",
                code=error.code,
            ) from error
        raise


def _unless_exists(cloud: Cloud, doing: str, call: Callable[[], Any]) -> None:
    try:
        with cloud.explained(doing):
            call()
    except AwsError as error:
        # The profile holds one role at most: "limit exceeded" says that ours is in it.
        if error.code not in ("EntityAlreadyExists", "LimitExceeded"):
            raise


def _lifecycle() -> Any:
    return {
        "ID": "gpulab-old-versions",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": _OLD_VERSIONS_DAYS},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    }
