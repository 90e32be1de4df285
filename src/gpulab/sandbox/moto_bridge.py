"""
Every name inside moto that the layer touches, and nothing else: one place to look when moto changes.

Each function is held by a contract test (`tests/aws/test_sandbox_moto_contract.py`).
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import moto.core.utils as moto_utils
from moto.core.models import botocore_stubber
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.models.instances import InstanceState, StateReason
from moto.moto_api._internal import mock_random

from gpulab.sandbox.calls import Refusal

_STATE_CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}

_real_utcnow = moto_utils.utcnow
_now: Callable[[], datetime] | None = None


# -- time and chance ----------------------------------------------------------------------------------------------------------


def follow_clock(now: Callable[[], datetime] | None) -> None:
    """Let moto's own time stamps follow a clock; `None` gives them back to the computer's."""
    global _now
    _now = now
    # moto's modules import the functions by name, some of them only when first used.
    for name, module in list(sys.modules.items()):
        if not name.startswith("moto."):
            continue
        if getattr(module, "utcnow", None) is _real_utcnow:
            module.utcnow = _utcnow  # type: ignore[attr-defined]


def seed_ids(seed: int) -> None:
    """Make moto's resource ids repeat."""
    mock_random.seed(seed)


def _utcnow() -> datetime:
    if _now is None:
        return _real_utcnow()  # type: ignore[no-any-return]
    return _now().astimezone(UTC).replace(tzinfo=None)


# -- calls --------------------------------------------------------------------------------------------------------------------

StubberClass = type(botocore_stubber)


def process(request: Any) -> tuple[int, Mapping[str, str], str | bytes] | None:
    """Let moto answer a prepared botocore request; `None` when it has no backend for the host."""
    return botocore_stubber.process_request(request)  # type: ignore[no-any-return]


# -- the account's EC2 in one region ------------------------------------------------------------------------------------------


def ec2(account: str, region: str) -> Any:
    """Moto's EC2 of an account in a region; made when first asked for."""
    return ec2_backends[account][region]


def ec2_regions(account: str) -> list[str]:
    """The regions in which an account has used EC2."""
    return sorted(ec2_backends[account]) if account in ec2_backends else []


def zones(region: str) -> list[tuple[str, str]]:
    """Name and id of each zone of a region, sorted; empty for an unknown region."""
    backend = ec2_backends["123456789012"]["us-east-1"]
    return sorted((zone.name, zone.zone_id) for zone in backend.zones.get(region, []))


def tags_of(backend: Any, resource_id: str) -> dict[str, str]:
    """The tags of any EC2 resource; a copy."""
    return dict(backend.tags.get(resource_id, {}))


def tag(backend: Any, resource_id: str, tags: Mapping[str, str]) -> None:
    """Tag a resource, also one moto does not know."""
    backend.tags[resource_id].update(tags)


def default_subnet(backend: Any, zone: str) -> str:
    """The default subnet of a zone; empty when it was deleted."""
    subnet = backend.get_default_subnets().get(zone)
    return subnet.id if subnet else ""


def zone_of_subnet(backend: Any, subnet_id: str) -> str:
    """The zone of a subnet; empty when unknown."""
    for by_id in backend.subnets.values():
        if subnet_id in by_id:
            return str(by_id[subnet_id].availability_zone)
    return ""


def default_group(backend: Any, subnet_id: str) -> str:
    """The default security group of a subnet's VPC; empty when there is none."""
    vpc_id = next(
        (by_id[subnet_id].vpc_id for by_id in backend.subnets.values() if subnet_id in by_id), None
    )
    group = backend.get_default_security_group(vpc_id) if vpc_id else None
    return group.id if group else ""


def groups(backend: Any) -> dict[str, Any]:
    """All security groups by id."""
    return {group.id: group for by_id in backend.groups.values() for group in by_id.values()}


def ingress_of(group: Any) -> Iterator[tuple[str, int, int, str]]:
    """Protocol, first port, last port and range of each way in; groups as sources are left out."""
    for rule in group.ingress_rules:
        cidr = rule.ip_range.get("CidrIp") or rule.ip_range.get("CidrIpv6")
        if cidr:
            first = -1 if rule.from_port is None else int(rule.from_port)
            last = -1 if rule.to_port is None else int(rule.to_port)
            yield str(rule.ip_protocol), first, last, str(cidr)


def sources_of(group: Any) -> set[str]:
    """The ids of the groups that a group's rules let in."""
    rules = [*group.ingress_rules, *group.egress_rules]
    return {str(rule.source_group["GroupId"]) for rule in rules if rule.source_group.get("GroupId")}


def add_gateway(backend: Any) -> None:
    """Give the default VPC its internet gateway and the route to it."""
    vpc = backend.get_default_vpc()
    if vpc is None or any(g.vpc is vpc for g in backend.internet_gateways.values()):
        return
    gateway = backend.create_internet_gateway()
    backend.attach_internet_gateway(gateway.id, vpc.id)
    for table in backend.route_tables.values():
        if table.vpc_id == vpc.id:
            backend.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)


def public_key(backend: Any, key_name: str) -> str:
    """The OpenSSH line of a key pair; empty when unknown."""
    pair = backend.key_pairs.get(key_name)
    return pair.material_public.decode().strip() if pair else ""


def key_pair(backend: Any, key_name: str) -> Any:
    """A key pair by its name; `None` when unknown."""
    return backend.key_pairs.get(key_name)


def has_key_pair(backend: Any, key_name: str) -> bool:
    """Whether a key pair of that name exists."""
    return key_name in backend.key_pairs


def template_data(backend: Any, template: Mapping[str, Any]) -> dict[str, Any]:
    """
    The data of a launch template version.

    Raises:
        Refusal: There is no such template or version.
    """
    try:
        data = backend._get_template_from_args(dict(template)).data
    except EC2ClientError as error:
        raise Refusal(str(error.code), str(error.message)) from error
    return {name: value for name, value in data.items() if value is not None}


# -- instances ----------------------------------------------------------------------------------------------------------------


def instance(backend: Any, instance_id: str) -> Any:
    """Moto's object of an instance; `None` when unknown."""
    return backend.get_instance_by_id(instance_id)


def set_state(moto_instance: Any, state: str) -> None:
    """Set the state alone; addresses, volumes and interfaces stay."""
    moto_instance._state = InstanceState(state, _STATE_CODES[state])


def state_code(state: str) -> int:
    """EC2's number of a state."""
    return _STATE_CODES[state]


def set_reasons(moto_instance: Any, transition: str, code: str, message: str) -> None:
    """Set StateTransitionReason and StateReason."""
    moto_instance._reason = transition
    moto_instance.state_reason = StateReason(message, code)


def carry_out(moto_instance: Any, change: str) -> None:
    """Let moto `start`, `stop` or `terminate` an instance: addresses, interfaces and volumes follow."""
    getattr(moto_instance, change)()


def set_addresses(moto_instance: Any, private: str, public: str) -> None:
    """Give the instance's first interface other addresses."""
    interface = moto_instance.nics[0]
    interface.private_ip_address = private
    interface.public_ip = public


def make_public(moto_instance: Any, *, wanted: bool) -> None:
    """Give an instance an automatic public address, or none."""
    interface = moto_instance.nics[0]
    interface.public_ip_auto_assign = wanted
    interface.public_ip = None
    interface.start()


def forget(backend: Any, reservation_id: str, instance_id: str) -> None:
    """Remove an ended instance, and the tags of it and of volumes that are gone; moto keeps them, and searches them all at every call."""
    reservation = backend.reservations.get(reservation_id)
    if reservation is not None:
        reservation.instances = [one for one in reservation.instances if one.id != instance_id]
        if not reservation.instances:
            del backend.reservations[reservation_id]
    gone = [id_ for id_ in backend.tags if id_.startswith("vol-") and id_ not in backend.volumes]
    for id_ in (instance_id, *gone):
        backend.tags.pop(id_, None)


def user_data(moto_instance: Any) -> bytes:
    """The user data as the instance reads it."""
    kept = moto_instance.user_data
    return base64.b64decode(kept.as_bytes()) if kept else b""


def volumes(backend: Any) -> dict[str, Any]:
    """All volumes by id."""
    return dict(backend.volumes)


def addresses(backend: Any) -> dict[str, Any]:
    """All Elastic IPs by allocation id."""
    return {a.allocation_id: a for a in backend.addresses}


# -- catalogue ----------------------------------------------------------------------------------------------------------------


def instance_type(name: str) -> dict[str, Any] | None:
    """DescribeInstanceTypes' entry of a type; `None` when EC2 does not have it."""
    found: dict[str, Any] | None = INSTANCE_TYPES.get(name)
    return found


def types_in(region: str) -> list[dict[str, Any]]:
    """DescribeInstanceTypes' entries of every type a region has, by name."""
    return [INSTANCE_TYPES[name] for name in sorted(_offerings(region)) if name in INSTANCE_TYPES]


def offered_in(name: str, region: str) -> frozenset[str]:
    """The zones of a region that have a type."""
    return _offerings(region).get(name, frozenset())


_offered: dict[str, dict[str, frozenset[str]]] = {}


def _offerings(region: str) -> dict[str, frozenset[str]]:
    if region not in _offered:
        found: dict[str, set[str]] = {}
        for entry in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, []):
            found.setdefault(entry["InstanceType"], set()).add(entry["Location"])
        _offered[region] = {name: frozenset(places) for name, places in found.items()}
    return _offered[region]


# -- images -------------------------------------------------------------------------------------------------------------------


class SimulatedAmi(Ami):  # type: ignore[misc]
    """An image whose root snapshot has a size of its own; moto's are all 15 GB."""

    root_gib = 8
    is_encrypted = False

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        """The root device, as DescribeImages shows it."""
        ebs = {
            "SnapshotId": self.ebs_snapshot.id,
            "VolumeSize": self.root_gib,
            "DeleteOnTermination": True,
            "VolumeType": "gp3",
            "Encrypted": self.is_encrypted,
        }
        return [{"DeviceName": self.root_device_name, "Ebs": ebs}]


def add_image(
    backend: Any, image_id: str, *, root_gib: int, created_at: datetime, **fields: Any
) -> None:
    """Add a public image with its root snapshot."""
    made = SimulatedAmi(
        backend,
        image_id,
        public=True,
        owner_alias="amazon",
        state="available",
        virtualization_type="hvm",
        root_device_type="ebs",
        hypervisor="xen",
        creation_date=created_at.astimezone(UTC).replace(tzinfo=None),
        **fields,
    )
    made.root_gib = root_gib
    made.ebs_snapshot.volume.size = root_gib
    made.ebs_snapshot.owner_id = fields["owner_id"]
    backend.amis[image_id] = made


def own_image(backend: Any, image_id: str, *, root_gib: int, is_encrypted: bool) -> Any:
    """Give an image that moto has just made its true size; returns it."""
    made = backend.amis[image_id]
    made.__class__ = SimulatedAmi
    made.root_gib, made.is_encrypted = root_gib, is_encrypted
    made.ebs_snapshot.volume.size = root_gib
    made.ebs_snapshot.encrypted = is_encrypted
    made.root_device_name, made.root_device_type = "/dev/sda1", "ebs"
    return made


def images(backend: Any) -> list[Any]:
    """Every image of an account in a region, public ones too."""
    return list(backend.amis.values())


def root_volume(instance: Any) -> Any:
    """The root volume of moto's instance."""
    device = instance.block_device_mapping[instance.root_device_name or "/dev/sda1"]
    return instance.ec2_backend.get_volume(device.volume_id)


def image(backend: Any, image_id: str) -> Any:
    """Moto's object of an image; `None` when unknown."""
    return backend.amis.get(image_id)
