"""
The end of live tests: everything under their tag, whatever test or killed run made it, found in the account itself and deleted.

    python -m tests.live.sweeping    # 1 where something is left

Finds by tag (`gpulab:course` = `gpulab-live`), by the name of the roles, and schedules by the instance they end; it looks at nothing else, so an own image
or instance of the person who runs this is never touched. What fails stops nothing of the rest, and is told.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError
from tests.live.account import COURSE, Account

from gpulab.aws import end_schedule
from gpulab.aws import instances as ec2_instances
from gpulab.errors import GpulabError
from gpulab.launch.running import keep, stop
from gpulab.model.instance import TAG_COURSE

ROLE = "gpulab-live-fis"
_TRIES = 4
_PAUSE_S = 5
_ALIVE = ("pending", "running", "stopping", "stopped")
# Kind, the call that lists it, the list in the answer, its id, the call that deletes it; what uses something comes before it.
_KINDS = (
    ("spot request", "describe_spot_instance_requests", "SpotInstanceRequests", "SpotInstanceRequestId", "cancel_spot_instance_requests"),
    ("image", "describe_images", "Images", "ImageId", "deregister_image"),
    ("snapshot", "describe_snapshots", "Snapshots", "SnapshotId", "delete_snapshot"),
    ("volume", "describe_volumes", "Volumes", "VolumeId", "delete_volume"),
    ("security group", "describe_security_groups", "SecurityGroups", "GroupId", "delete_security_group"),
    ("key pair", "describe_key_pairs", "KeyPairs", "KeyName", "delete_key_pair"),
)  # fmt: skip
_OVER = ("closed", "cancelled", "failed", "completed", "deleting")


@dataclass(frozen=True)
class Left:
    """
    One thing that is there.

    Attributes:
        delete: Deletes it; raises what AWS says.
    """

    kind: str
    id: str
    delete: Callable[[], object]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


def sweep(account: Account) -> tuple[str, ...]:
    """Delete everything of ours, instances first; returns what is left, with what AWS says of it."""
    for _ in range(_TRIES):
        errors = {}
        found = list(left(account))
        if not found:
            return ()
        for thing in found:
            try:
                thing.delete()
            except (ClientError, GpulabError) as error:
                errors[str(thing)] = f": {error}"
        time.sleep(0 if not errors else _PAUSE_S)
    return tuple(f"{thing}{errors.get(str(thing), '')}" for thing in left(account))


def left(account: Account) -> Iterator[Left]:
    """Find what is there, in the order in which it can be deleted."""
    ours = [*_pages(account, "describe_instances", "Reservations")]
    rows = [row for reservation in ours for row in reservation["Instances"]]
    for row in rows:
        if row["State"]["Name"] in _ALIVE:
            yield Left("instance", row["InstanceId"], lambda r=row: _end(account, r))  # type: ignore[misc]
    yield from _schedules(account, {row["InstanceId"] for row in rows})
    for kind, listing, key, name, deleting in _KINDS:
        for row in _pages(account, listing, key):
            if row.get("State") not in _OVER and not (kind == "volume" and row["Attachments"]):
                yield Left(kind, row[name], _deletion(account, deleting, name, row[name]))
    yield from experiments(account)
    for work in keep.kept(account.context):
        if work.name.startswith("live-"):
            yield Left("kept work", work.name, lambda w=work: keep.forget(account.context, w))  # type: ignore[misc]


def _pages(account: Account, listing: str, key: str) -> Iterator[dict[str, Any]]:
    filters = [{"Name": f"tag:{TAG_COURSE}", "Values": [COURSE]}]
    more = {"Owners": ["self"]} if key == "Images" else {}
    if account.ec2.can_paginate(listing):
        for page in account.ec2.get_paginator(listing).paginate(Filters=filters, **more):
            yield from page[key]
    else:
        yield from getattr(account.ec2, listing)(Filters=filters, **more)[key]


def _deletion(account: Account, deleting: str, name: str, id_: str) -> Callable[[], object]:
    value: Any = {f"{name}s": [id_]} if name.startswith("Spot") else {name: id_}
    return lambda: getattr(account.ec2, deleting)(**value)


def _end(account: Account, row: dict[str, Any]) -> None:
    """End an instance as `gpulab stop --no-save` does: waited for, written down, its schedule and host key forgotten."""
    for _ in stop.end(account.context, ec2_instances.read_instance(row, account.region)):
        pass


def _schedules(account: Account, instances: set[str]) -> Iterator[Left]:
    """The scheduled ends of our instances. EC2 forgets an instance after an hour; its schedule then goes by itself at its time."""
    try:
        found = end_schedule.schedules(account.cloud, account.region, owner=account.context.owner)
    except GpulabError:
        return  # who may not list them did not make any
    for name, instance in found.items():
        if instance in instances:
            yield Left(
                "schedule",
                name,
                lambda n=name: end_schedule.remove(account.cloud, account.region, n),  # type: ignore[misc]
            )


def experiments(account: Account) -> Iterator[Left]:
    """The template and the role of the interruption."""
    if not account.machines:
        fis: Any = account.cloud.client("fis", account.region)
        for page in fis.get_paginator("list_experiment_templates").paginate():
            for row in page["experimentTemplates"]:
                if row.get("tags", {}).get(TAG_COURSE) == COURSE:
                    yield Left(
                        "experiment template",
                        row["id"],
                        lambda i=row["id"]: fis.delete_experiment_template(id=i),
                    )  # type: ignore[misc]
    iam = account.cloud.client("iam", "us-east-1")
    try:
        iam.get_role(RoleName=ROLE)
    except iam.exceptions.NoSuchEntityException:
        return
    yield Left("role", ROLE, lambda: _delete_role(iam))


def _delete_role(iam: Any) -> None:
    for policy in iam.list_role_policies(RoleName=ROLE)["PolicyNames"]:
        iam.delete_role_policy(RoleName=ROLE, PolicyName=policy)
    iam.delete_role(RoleName=ROLE)


def main() -> int:
    """Say what is there, delete it, say what is left."""
    account = Account.of(os.environ)
    found = [f"found {thing}\n" for thing in left(account)]
    sys.stdout.writelines(found or ["nothing of these tests is there\n"])
    stays = sweep(account)
    sys.stdout.writelines(f"left: {text}\n" for text in stays)
    return int(bool(stays))


if __name__ == "__main__":
    sys.exit(main())
