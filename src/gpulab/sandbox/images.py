"""R18: the images a lab wants, in every Region under ids of their own, and the public SSM parameters that name them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import moto_bridge, paging
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

_CANONICAL, _DEEP_LEARNING = "099720109477", "898082745236"
_UBUNTU = "/aws/service/canonical/ubuntu/server"
_DLAMI = "/aws/service/deeplearning/ami"


@dataclass(frozen=True)
class Image:
    """
    One public image.

    Attributes:
        parameters: Public SSM names whose value is its id.
    """

    name: str
    description: str
    owner_id: str
    architecture: str
    root_gib: int
    created_at: datetime
    parameters: tuple[str, ...]

    def id_in(self, region: str) -> str:
        """Its id in a Region; no two Regions share one."""
        return "ami-" + hashlib.sha256(f"{region}/{self.name}".encode()).hexdigest()[:17]


def _ubuntu(release: str, word: str, arch: str, day: str) -> Image:
    architecture = "x86_64" if arch == "amd64" else "arm64"
    volume = "ebs-gp2" if release == "22.04" else "ebs-gp3"
    store = "hvm-ssd" if release == "22.04" else "hvm-ssd-gp3"
    serial = day.replace("-", "")
    return Image(
        name=f"ubuntu/images/{store}/ubuntu-{word}-{release}-{arch}-server-{serial}",
        description=f"Canonical, Ubuntu, {release} LTS, {arch} {word} image build on {day}",
        owner_id=_CANONICAL,
        architecture=architecture,
        root_gib=8,
        created_at=datetime.fromisoformat(day).replace(tzinfo=UTC),
        parameters=tuple(
            f"{_UBUNTU}/{name}/stable/{which}/{arch}/hvm/{volume}/ami-id"
            for name in (release, word)
            for which in ("current", serial)
        ),
    )


def _dlami(ubuntu: str, arch: str, day: str, driver: str) -> Image:
    serial = day.replace("-", "")
    prefix = "Deep Learning ARM64 Base" if arch == "arm64" else "Deep Learning Base"
    return Image(
        name=f"{prefix} OSS Nvidia Driver GPU AMI (Ubuntu {ubuntu}) {serial}",
        description=(
            "Supported EC2 instances: G4dn, G5, G6, Gr6, G6e, P4d, P4de, P5, P5e, P5en. "
            f"Release notes: https://docs.aws.amazon.com/dlami/latest/devguide/appendix-ami-release-notes.html NVIDIA driver {driver}"
        ),
        owner_id=_DEEP_LEARNING,
        architecture=arch,
        root_gib=65 if ubuntu == "24.04" else 45,
        created_at=datetime.fromisoformat(day).replace(tzinfo=UTC),
        parameters=(f"{_DLAMI}/{arch}/base-oss-nvidia-driver-gpu-ubuntu-{ubuntu}/latest/ami-id",),
    )


def _single_cuda(ubuntu: str, day: str, driver: str) -> Image:
    """The smaller of AWS's base images: one CUDA instead of five, hence half the disk."""
    return Image(
        name=f"Deep Learning Base AMI with Single CUDA (Ubuntu {ubuntu}) {day.replace('-', '')}",
        description=(
            "Supported EC2 instances: G4dn, G5, G6, Gr6, G6e, G7, P4d, P4de, P5, P5e, P5en, P6-B200, P6-B300. "
            f"Release notes: https://docs.aws.amazon.com/dlami/latest/devguide/appendix-ami-release-notes.html NVIDIA driver {driver}"
        ),
        owner_id=_DEEP_LEARNING,
        architecture="x86_64",
        root_gib=35,
        created_at=datetime.fromisoformat(day).replace(tzinfo=UTC),
        parameters=(f"{_DLAMI}/x86_64/base-with-single-cuda-ubuntu-{ubuntu}/latest/ami-id",),
    )


IMAGES = (
    _ubuntu("24.04", "noble", "amd64", "2026-10-22"),
    _ubuntu("24.04", "noble", "arm64", "2026-10-22"),
    _ubuntu("22.04", "jammy", "amd64", "2026-10-15"),
    _dlami("24.04", "x86_64", "2026-10-30", "580.95.05"),
    _dlami("22.04", "x86_64", "2026-10-30", "580.95.05"),
    _dlami("24.04", "arm64", "2026-10-30", "580.95.05"),
    _single_cuda("24.04", "2026-07-17", "595.71.05"),
    _single_cuda("22.04", "2026-07-17", "595.71.05"),
)


class Images:
    """The images of the world; put into moto's EC2 of an account and Region when that is first used."""

    def stock(self, account: str, region: str) -> None:
        """Add the images to one account's EC2 in one Region."""
        backend = moto_bridge.ec2(account, region)
        for image in IMAGES:
            moto_bridge.add_image(
                backend,
                image.id_in(region),
                root_gib=image.root_gib,
                created_at=image.created_at,
                name=image.name,
                description=image.description,
                owner_id=image.owner_id,
                architecture=image.architecture,
                root_device_name="/dev/sda1",
                image_location=f"amazon/{image.name}",
                region_name=f"{region}a",
            )

    def parameters(self, region: str) -> dict[str, tuple[str, datetime]]:
        """Every public parameter of a Region: its value and when it was set."""
        return {
            name: (image.id_in(region), image.created_at)
            for image in IMAGES
            for name in image.parameters
        }

    def resolve(self, account: str, region: str, image_id: str) -> str:
        """
        The id behind `resolve:ssm:NAME`; any other id as it is.

        Raises:
            Refusal: The parameter does not exist.
        """
        if not image_id.startswith("resolve:ssm:"):
            return image_id
        name = image_id.removeprefix("resolve:ssm:").split(":")[0]
        found = self.parameters(region).get(name)
        if found is None:
            raise Refusal(
                "InvalidParameterValue",
                f"The Systems Manager parameter '{name}' specified for ImageId does not exist.",
            )
        return found[0]


def get_parameter(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetParameter for the public names; moto answers the rest."""
    name = str(call.params.get("Name", ""))
    known = world.images.parameters(call.region)
    if name not in known:
        return forward(call)
    return write_result(call, {"Parameter": _describe(call.region, name, *known[name])})


def get_parameters(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetParameters when every name is a public one of ours; moto answers the rest."""
    names = list(call.params.get("Names", []))
    known = world.images.parameters(call.region)
    if not any(name in known or name.startswith((_UBUNTU, _DLAMI)) for name in names):
        return forward(call)
    found = [_describe(call.region, name, *known[name]) for name in names if name in known]
    return write_result(
        call,
        {"Parameters": found, "InvalidParameters": [name for name in names if name not in known]},
    )


def get_parameters_by_path(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetParametersByPath under the public paths; moto answers the rest."""
    path = str(call.params.get("Path", "")).rstrip("/") + "/"
    if not path.startswith(("/aws/service/canonical/", "/aws/service/deeplearning/")):
        return forward(call)
    is_deep = bool(call.params.get("Recursive"))
    found = [
        _describe(call.region, name, *value)
        for name, value in sorted(world.images.parameters(call.region).items())
        if name.startswith(path) and (is_deep or "/" not in name.removeprefix(path))
    ]
    page, token = paging.page(
        found, call.params, largest=10, default=10, error="ValidationException"
    )
    return write_result(call, {"Parameters": page, "NextToken": token})


def _describe(region: str, name: str, value: str, at: datetime) -> dict[str, Any]:
    return {
        "Name": name,
        "Type": "String",
        "Value": value,
        "Version": 1,
        "LastModifiedDate": at,
        "ARN": f"arn:aws:ssm:{region}::parameter{name}",
        "DataType": "aws:ec2:image" if name.startswith(_UBUNTU) else "text",
    }


OPERATIONS: Mapping[str, Any] = {
    "GetParameter": get_parameter,
    "GetParameters": get_parameters,
    "GetParametersByPath": get_parameters_by_path,
}
