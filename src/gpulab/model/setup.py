"""What a launch relies on in a region: image, subnets, security group, key pair. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

# Public parameters, kept current by the publishers.
# https://docs.aws.amazon.com/dlami/latest/devguide/aws-deep-learning-x86-base-with-single-cuda-ami-ubuntu-24-04.html
# https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/
GPU_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-with-single-cuda-ubuntu-24.04/latest/ami-id"
PLAIN_IMAGE = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


@dataclass(frozen=True)
class Image:
    """
    A machine image.

    Attributes:
        root_device: Device name of the root volume, `/dev/sda1`.
        root_gib: Size of its snapshot; a root volume may not be smaller.
    """

    id: str
    name: str
    region: str
    root_device: str
    root_gib: int


@dataclass(frozen=True)
class Subnet:
    """
    One subnet in one zone.

    Attributes:
        gives_public_address: Whether instances in it get a public IPv4 address unasked.
    """

    id: str
    zone: str
    vpc_id: str
    gives_public_address: bool


@dataclass(frozen=True)
class Network:
    """
    How instances in a region are reached.

    Attributes:
        subnets: One per zone, by zone; a zone without one cannot be launched in.
        cidr: From where port 22 is open.
    """

    region: str
    vpc_id: str
    subnets: tuple[Subnet, ...]
    security_group_id: str
    key_name: str
    cidr: str

    def subnet(self, zone: str) -> Subnet | None:
        """Return the zone's subnet."""
        return next((s for s in self.subnets if s.zone == zone), None)


@dataclass(frozen=True)
class BakedImage:
    """
    An image with a lab environment in it.

    Attributes:
        environment: Its name, `tf2`.
        lock: What is installed in it, see `Environment.image_key`.
        base_id: The image it was made from.
        base_name: That one's name, which tells its date.
        bake_id: Launch id of the bake that made it.
        made_at: Aware UTC; `None` where AWS does not say.
        state: In EC2's words: `pending`, `available`, `failed`.
        is_usable: Whether an instance of it was tested; nothing else is launched.
        snapshot_ids: What it consists of, and what it costs.
    """

    image: Image
    environment: str
    lock: str
    base_id: str
    base_name: str
    bake_id: str
    made_at: datetime | None
    state: str
    is_usable: bool
    snapshot_ids: tuple[str, ...]


@dataclass(frozen=True)
class ImageChoice:
    """
    What the launches of one environment boot from in one region of an account.

    Attributes:
        baked: A tested image with the environment; `None` for the publisher's, onto which each instance installs it.
        why: A sentence.
        is_news: Whether the account has images of the environment at all, so that whoever launches one instance wants to hear of it.
        rate_mib_s: At which rate the disk is filled from its snapshot; `None` for EBS's own.
        once_usd: What that rate costs each instance, once.
    """

    region: str
    baked: Image | None
    why: str
    is_news: bool = True
    rate_mib_s: int | None = None
    once_usd: Decimal = Decimal(0)
