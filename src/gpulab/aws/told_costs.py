"""
What instances wrote of their own costs, in the account's bucket: listed and read. Believes nothing of it.

A student's instance writes `OWNER/.ledger/INSTANCE.jsonl`. An instance of a course that keeps its work under its own id may write there
only: `COURSE/ROLE:INSTANCE/.ledger/INSTANCE.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gpulab.aws import workspace
from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.aws.workspace import Bucket
from gpulab.model.moment import read_moment

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A year of an instance that is started every day has some two hundred kilobytes.
MOST_BYTES = 1 << 20
# A course's part of a bucket begins so; students' are named after their opaque ids.
COURSE = "course-"
_AT_ONCE = 8


@dataclass(frozen=True)
class ToldCosts:
    """
    What one instance wrote of its costs: lines of facts for a ledger.

    Attributes:
        folder: Whose part of the bucket it lies in, a student's, a course's; nobody else's instances can write there.
    """

    folder: str
    instance_id: str
    key: str

    @property
    def is_of_course(self) -> bool:
        """Whether the instances that write there belong to many: the names of their owners stand in what they wrote."""
        return self.folder.startswith(COURSE)


@dataclass(frozen=True)
class Seated:
    """
    Which seat an instance served.

    Attributes:
        name: Of the seat and of the instance.
        at: When it was launched.
    """

    instance_id: str
    name: str
    at: datetime


def by_id(folder: str, instance_id: str) -> ToldCosts:
    """Return where a student's instance writes, if it does."""
    return ToldCosts(folder, instance_id, f"{folder}/.ledger/{instance_id}.jsonl")


@explained("list who has something in the bucket")
def folders(cloud: Cloud, bucket: Bucket) -> tuple[str, ...]:
    """List everybody who has something in a shared account's bucket, students and courses, sorted."""
    return tuple(sorted(_folders_below(cloud, bucket, "")))


@explained("list what instances wrote of their costs")
def listing(cloud: Cloud, bucket: Bucket, folder: str) -> tuple[ToldCosts, ...]:
    """List what the instances of a student or course wrote, or may have written, sorted by where it lies."""
    pages = cloud.pages(
        "s3",
        bucket.region,
        "list_objects_v2",
        doing=f"list what instances wrote of their costs in {bucket.name}",
        Bucket=bucket.name,
        Prefix=f"{folder}/.ledger/",
        ExpectedBucketOwner=bucket.account_id,
    )
    keys = (row["Key"] for page in pages for row in page.get("Contents", []))
    names = (key.rpartition("/")[2] for key in keys)
    found = {name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")}
    mine = [by_id(folder, instance_id) for instance_id in found]
    others = _under_own_ids(cloud, bucket, folder) if folder.startswith(COURSE) else ()
    return tuple(sorted([*mine, *others], key=lambda one: one.key))


def read(cloud: Cloud, bucket: Bucket, told: ToldCosts) -> bytes:
    """
    Read what an instance wrote; a mebibyte at most.

    Raises:
        NotFound: It wrote nothing.
        AwsError: AWS refuses.
    """
    s3: S3Client = cloud.client("s3", bucket.region)
    with cloud.explained(f"read {told.key} in {bucket.name}"):
        reply = s3.get_object(
            Bucket=bucket.name,
            Key=told.key,
            ExpectedBucketOwner=bucket.account_id,
            Range=f"bytes=0-{MOST_BYTES - 1}",
        )
        return reply["Body"].read()


@explained("read whose instances were")
def seats(cloud: Cloud, bucket: Bucket, folder: str) -> tuple[Seated, ...]:
    """Read which instances of a course served whom, as teachers wrote it down; what is damaged is left out."""
    keys = workspace.keys(cloud, bucket, prefix=f"{folder}/.seats/")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        bodies = pool.map(lambda key: workspace.read(cloud, bucket, key), keys)
        return tuple(one for body in bodies for one in _seated(body))


def _seated(body: bytes) -> Iterator[Seated]:
    try:
        rows = json.loads(body)["seats"]
        found = [(str(r["instance"]), str(r["name"]), read_moment(str(r["at"]))) for r in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    yield from (Seated(instance, name, at) for instance, name, at in found if at is not None)


def _under_own_ids(cloud: Cloud, bucket: Bucket, folder: str) -> Iterator[ToldCosts]:
    for name in _folders_below(cloud, bucket, f"{folder}/"):
        role, _, instance_id = name.rpartition(":")
        if role and instance_id:
            key = f"{folder}/{name}/.ledger/{instance_id}.jsonl"
            yield ToldCosts(folder, instance_id, key)


def _folders_below(cloud: Cloud, bucket: Bucket, prefix: str) -> Iterator[str]:
    pages = cloud.pages(
        "s3",
        bucket.region,
        "list_objects_v2",
        doing=f"list what is in {bucket.name}",
        Bucket=bucket.name,
        Prefix=prefix,
        Delimiter="/",
        ExpectedBucketOwner=bucket.account_id,
    )
    rows = (row["Prefix"] for page in pages for row in page.get("CommonPrefixes", []))
    return (row.removeprefix(prefix).removesuffix("/") for row in rows)
