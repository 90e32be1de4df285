"""The rights of the roles that gpulab makes, from the table: what an instance may do with the kept work, and what the scheduler may end."""

from __future__ import annotations

from typing import Any

from gpulab.model.instance import TAG_COURSE
from gpulab.rights.policy import Reach, policy
from gpulab.rights.table import Part

#: Tags of a course's role, which say where its instances keep the work: whoever may read the role need not guess.
TAG_BUCKET, TAG_BUCKET_REGION = "gpulab:bucket", "gpulab:bucket-region"
#: Tag of the same role in a student's own account: of which rights the stack was made, see `enrolment.rights_mark`.
TAG_RIGHTS = "gpulab:rights"


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
    """Let instances read, write and remove the current version under their owner's prefix; old versions stay."""
    return policy([Part.INSTANCE], Reach(owner, bucket=bucket))


def class_role(bucket: str, owner: str) -> dict[str, Any]:
    """
    Let each of many instances with one role read and write under a prefix of its own, and fetch what all of them need.

    Of the session of an instance's role IAM knows `aws:userid` as `ROLE_ID:INSTANCE_ID`; nobody on the instance can change it.

    Source:
        https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html (November 2026)
    """
    own = work_role(bucket, f"{owner}/${{aws:userid}}")
    shared = policy([Part.CLASS], Reach(owner, bucket=bucket))
    return _policy(*own["Statement"], *shared["Statement"])


def end_role(tag: str, value: str) -> dict[str, Any]:
    """Let the scheduler end the instances that carry a tag with this value: one owner's, or a course's, whoever owns them."""
    is_course = tag == TAG_COURSE
    return policy([Part.SCHEDULER], Reach(course=value) if is_course else Reach(value))


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}
