"""What a launch relies on in a region: image, subnets, security group, key pair. Values only."""

from __future__ import annotations

from dataclasses import dataclass


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
