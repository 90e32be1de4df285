"""Images of our own: made of an instance, tagged, copied, deleted with their snapshots. Hides EC2's words; touches nothing that is not tagged ours."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.images import root_gib
from gpulab.aws.session import Cloud
from gpulab.errors import NotFound
from gpulab.model import instance as tags_of
from gpulab.model.moment import read_moment
from gpulab.model.setup import BakedImage, Image

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client


@explained("read the images")
def baked(cloud: Cloud, region: str, *, owner: str = "") -> tuple[BakedImage, ...]:
    """
    Find the images with a lab environment, newest first, unfinished ones too.

    Args:
        owner: Only those this owner made; `""` for every one the account has.

    Raises:
        GpulabError: AWS refuses.
    """
    filters = [{"Name": "tag-key", "Values": [tags_of.TAG_BAKE]}]
    if owner:
        filters.append({"Name": f"tag:{tags_of.TAG_OWNER}", "Values": [owner]})
    pages = cloud.pages(
        "ec2",
        region,
        "describe_images",
        doing=f"look for images in {region}",
        Owners=["self"],
        Filters=filters,
    )
    found = (_baked(row, region) for page in pages for row in page["Images"])
    oldest = datetime.min.replace(tzinfo=UTC)
    return tuple(sorted(found, key=lambda i: (i.made_at or oldest, i.image.id), reverse=True))


@explained("make an image")
def create(
    cloud: Cloud, region: str, instance_id: str, *, name: str, tags: Mapping[str, str]
) -> str:
    """
    Make an image of a running instance, and tag it and its snapshots in the same call.

    The instance is not rebooted: a reboot would make it a new instance to cloud-init, keys and all, before the picture is taken. Its services
    are stopped and its disk is synced before; ext4's journal does the rest.

    Returns:
        The image's id; it is `pending`.

    Raises:
        GpulabError: AWS refuses. The name is unique, so a call whose answer was lost can be looked up by it.
    """
    ec2: EC2Client = cloud.client("ec2", region, is_patient=False)
    with cloud.explained(f"make an image of {instance_id}"):
        made = ec2.create_image(
            InstanceId=instance_id,
            Name=name,
            NoReboot=True,
            TagSpecifications=_specifications(tags),
        )
    return made["ImageId"]


@explained("copy an image")
def copy(
    cloud: Cloud, image: BakedImage, region: str, *, token: str, tags: Mapping[str, str]
) -> str:
    """
    Copy an image to another region, encrypted with the account's own EBS key there.

    Args:
        token: The same one is the same copy.

    Raises:
        GpulabError: AWS refuses.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"copy {image.image.id} to {region}"):
        made = ec2.copy_image(
            SourceImageId=image.image.id,
            SourceRegion=image.image.region,
            Name=image.image.name,
            Encrypted=True,
            ClientToken=token,
            TagSpecifications=_specifications(tags),
        )
    return made["ImageId"]


def mark_usable(cloud: Cloud, image: BakedImage) -> None:
    """Say on an image and its snapshots that an instance of it was tested."""
    ec2: EC2Client = cloud.client("ec2", image.image.region)
    with cloud.explained(f"tag {image.image.id}"):
        ec2.create_tags(
            Resources=[image.image.id, *image.snapshot_ids],
            Tags=[{"Key": tags_of.TAG_USABLE, "Value": "true"}],
        )


def delete(cloud: Cloud, image: BakedImage) -> None:
    """
    Delete an image and its snapshots; what is gone is fine.

    Raises:
        GpulabError: AWS refuses; what is left carries our tags, and `gpulab sweep` finds it.
    """
    ec2: EC2Client = cloud.client("ec2", image.image.region)
    with suppress(NotFound), cloud.explained(f"delete image {image.image.id}"):
        ec2.deregister_image(ImageId=image.image.id)
    for snapshot_id in image.snapshot_ids:
        with suppress(NotFound), cloud.explained(f"delete snapshot {snapshot_id}"):
            ec2.delete_snapshot(SnapshotId=snapshot_id)


def _specifications(tags: Mapping[str, str]) -> Any:
    pairs = [{"Key": key, "Value": value} for key, value in sorted(tags.items()) if value]
    return [{"ResourceType": kind, "Tags": pairs} for kind in ("image", "snapshot")]


def _baked(row: Mapping[str, Any], region: str) -> BakedImage:
    tags = {t["Key"]: t["Value"] for t in row.get("Tags", [])}
    disks = (m.get("Ebs", {}).get("SnapshotId", "") for m in row.get("BlockDeviceMappings", []))
    image = Image(
        id=row["ImageId"],
        name=str(row.get("Name", "")),
        region=region,
        root_device=row.get("RootDeviceName", "/dev/sda1"),
        root_gib=root_gib(row),
    )
    return BakedImage(
        image=image,
        environment=tags.get(tags_of.TAG_ENVIRONMENT, ""),
        lock=tags.get(tags_of.TAG_LOCK, ""),
        base_id=tags.get(tags_of.TAG_BASE, ""),
        base_name=tags.get(tags_of.TAG_BASE_NAME, ""),
        bake_id=tags.get(tags_of.TAG_BAKE, ""),
        made_at=read_moment(row.get("CreationDate", "")),
        state=str(row.get("State", "")),
        is_usable=tags.get(tags_of.TAG_USABLE) == "true",
        snapshot_ids=tuple(d for d in disks if d),
    )
