"""The rights of the roles that gpulab makes: what an instance may do with the kept work, and what the scheduler may end."""

from __future__ import annotations

from typing import Any

#: Tags of a course's role, which say where its instances keep the work: whoever may read the role need not guess.
TAG_BUCKET, TAG_BUCKET_REGION = "gpulab:bucket", "gpulab:bucket-region"


def class_role_name(course: str) -> str:
    """Name the role, and its instance profile, with which the instances of a course keep the work; at most 59 characters."""
    return f"gpulab-work-course-{course}"


def trusts_ec2() -> dict[str, Any]:
    """Say who takes a role for the work: EC2's instances, nobody else."""
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    )


def work_role(bucket: str, owner: str) -> dict[str, Any]:
    """
    Let instances read, write and remove the current version under their owner's prefix.

    Old versions stay, so a hijacked notebook cannot destroy them.
    """
    return _policy(
        {
            "Sid": "KeepWork",
            "Effect": "Allow",
            "Action": [
                "s3:AbortMultipartUpload",
                "s3:DeleteObject",
                "s3:GetObject",
                "s3:GetObjectVersion",
                "s3:PutObject",
            ],
            "Resource": f"arn:aws:s3:::{bucket}/{owner}/*",
        },
        {
            # Without it S3 answers 403 instead of 404 for what is not there yet.
            "Sid": "TellMissingFromForbidden",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": f"arn:aws:s3:::{bucket}",
            "Condition": {"StringLike": {"s3:prefix": f"{owner}/*"}},
        },
    )


def class_role(bucket: str, owner: str) -> dict[str, Any]:
    """
    Let each of many instances with one role read and write under a prefix of its own, and fetch what all of them need.

    Of the session of an instance's role IAM knows `aws:userid` as `ROLE_ID:INSTANCE_ID`; nobody on the instance can change it.

    Source:
        https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html (November 2026)
    """
    own = work_role(bucket, f"{owner}/${{aws:userid}}")
    shared = {
        "Sid": "FetchTheAgent",
        "Effect": "Allow",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/{owner}/.agent/*",
    }
    return _policy(*own["Statement"], shared)


def end_role(tag: str, value: str) -> dict[str, Any]:
    """Let the scheduler end the instances that carry a tag with this value."""
    return _policy(
        {
            "Sid": "EndInstances",
            "Effect": "Allow",
            "Action": "ec2:TerminateInstances",
            "Resource": "arn:aws:ec2:*:*:instance/*",
            "Condition": {"StringEquals": {f"aws:ResourceTag/{tag}": value}},
        }
    )


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}
