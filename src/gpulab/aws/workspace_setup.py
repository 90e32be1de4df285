"""
Where the kept work goes, made once: one private, versioned bucket, and a role that lets instances write under their owner's prefix only.

Hides S3 and IAM; everything here may be repeated. A bucket that somebody else made under our name is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.aws.workspace import Bucket
from gpulab.errors import AwsError, NotAllowed
from gpulab.rights.roles import work_role

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

# How long replaced and deleted versions are kept: long enough to notice a mistake, short enough not to cost.
_OLD_VERSIONS_DAYS = 30


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
    iam: IAMClient = cloud.client("iam", "us-east-1")
    name = f"gpulab-work-{owner}"
    tags: Any = [{"Key": "gpulab:owner", "Value": owner}]
    _unless_exists(
        cloud,
        f"make the role {name}",
        lambda: iam.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps(_trusts_ec2()),
            Description="Lets gpulab's instances keep their owner's work",
            Tags=tags,
        ),
    )
    rights = json.dumps(work_role(bucket.name, owner))
    with cloud.explained(f"give the role {name} its rights"):
        iam.put_role_policy(RoleName=name, PolicyName="keep-work", PolicyDocument=rights)
    _unless_exists(
        cloud,
        f"make the instance profile {name}",
        lambda: iam.create_instance_profile(InstanceProfileName=name, Tags=tags),
    )
    _unless_exists(
        cloud,
        f"put the role into the instance profile {name}",
        lambda: iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name),
    )
    return name


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


def _trusts_ec2() -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
