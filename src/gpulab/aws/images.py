"""The image an instance boots from. Hides where AWS publishes its id; refuses images of unknown publishers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import NotAllowed, NotFound, SetupMissing
from gpulab.model.setup import GPU_IMAGE, PLAIN_IMAGE, Image

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ssm import SSMClient

# Amazon itself, and Canonical (its account id is on the page that names PLAIN_IMAGE).
_PUBLISHERS = frozenset({"amazon", "898082745236", "099720109477"})


@explained("find the image")
def find_image(cloud: Cloud, region: str, *, has_gpu: bool) -> Image:
    """
    Find the current image for instances with or without a GPU.

    Raises:
        SetupMissing: The region has none, or its publisher is not the one expected.
        NotAllowed: `ssm:GetParameter` or `ec2:DescribeImages` is denied.
    """
    parameter = GPU_IMAGE if has_gpu else PLAIN_IMAGE
    return _checked(cloud, region, _published_id(cloud, region, parameter))


def _published_id(cloud: Cloud, region: str, parameter: str) -> str:
    ssm: SSMClient = cloud.client("ssm", region)
    try:
        with cloud.explained(f"find the image in {region}"):
            return ssm.get_parameter(Name=parameter)["Parameter"]["Value"]
    except NotFound as error:
        raise SetupMissing(
            f"{region} has no image `{parameter}`", hint="Choose another region", code=error.code
        ) from error


def _checked(cloud: Cloud, region: str, image_id: str) -> Image:
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"read image {image_id} in {region}"):
        found = ec2.describe_images(ImageIds=[image_id])["Images"]
    if not found:
        raise SetupMissing(f"image {image_id} is not in {region}", hint="Repeat the command")
    image: Mapping[str, Any] = found[0]
    if not {image.get("ImageOwnerAlias"), image.get("OwnerId")} & _PUBLISHERS:
        raise NotAllowed(
            f"image {image_id} is published by {image.get('OwnerId')}, not by AWS or Canonical",
            hint="Do not use this network; tell whoever runs the account",
        )
    return Image(
        id=image_id,
        name=str(image.get("Name", "")),
        region=region,
        root_device=image.get("RootDeviceName", "/dev/sda1"),
        root_gib=root_gib(image),
    )


def root_gib(image: Mapping[str, Any]) -> int:
    """Return the size of an image's root snapshot, GiB; 0 where EC2 does not say."""
    for mapping in image.get("BlockDeviceMappings", []):
        if mapping.get("DeviceName") == image.get("RootDeviceName"):
            return int(mapping.get("Ebs", {}).get("VolumeSize", 0))
    return 0
