"""What a launch needs in a region, found or made: image, subnets, security group, key pair. Remembered, so that a warm launch asks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from gpulab.aws import images, network
from gpulab.errors import NotFound, SetupMissing
from gpulab.launch.context import Context
from gpulab.model.instance import TAG_OWNER, Instance
from gpulab.model.setup import Image, Network, Subnet
from gpulab.remote.keys import make_key_pair
from gpulab.store.files import write_atomically

Answer = TypeVar("Answer")

# Publishers renew their images every few weeks; a day-old id still works.
_IMAGE = timedelta(days=1)
_NETWORK = timedelta(days=7)
_UNKNOWN_S = 2.0
# How long EC2 may not know what it has just made.
FRESH = timedelta(minutes=2)


@dataclass(frozen=True)
class Setup:
    """
    Everything in a region that a launch call names.

    Attributes:
        made_at: When the youngest part was made or checked; EC2 may not know it everywhere for two minutes.
        closed_to: Address ranges from which ssh was let in until now, sorted.
    """

    image: Image
    network: Network
    made_at: datetime
    closed_to: tuple[str, ...] = ()

    def is_fresh(self, now: datetime) -> bool:
        """Whether EC2 may say "not found" of what exists."""
        return now - self.made_at < FRESH


def ensure(context: Context, region: str, *, has_gpu: bool) -> Setup:
    """
    Find or make what a launch in a region needs. Repeating it changes nothing.

    Raises:
        GpulabError: AWS refuses; nothing that costs was made.
    """
    image = base_image(context, region, has_gpu=has_gpu)
    known = context.cache.get(_key(context, region))
    cidr, key_name = context.own_cidr(), network.key_pair_name(public_key(context))
    if known and known["cidr"] == cidr and known["key_name"] == key_name:
        return Setup(image, _network(known), datetime.fromisoformat(known["made_at"]))
    made, closed_to = _make(context, region, cidr)
    row = {**asdict(made), "made_at": context.now().isoformat()}
    context.cache.put(_key(context, region), row, lasting=_NETWORK)
    return Setup(image, made, context.now(), closed_to)


def forget(context: Context, region: str) -> None:
    """Forget what is remembered of a region, so that `ensure` looks and makes anew."""
    context.cache.drop(_key(context, region))
    context.cache.drop(f"{context.account}/image/{region}/")


def forget_network(context: Context, region: str) -> None:
    """Forget the network that is remembered of a region: its group or key was changed or deleted."""
    context.cache.drop(_key(context, region))


def known_group(context: Context, region: str) -> str:
    """Return the id of our security group as it is remembered; `""` when it is not."""
    known = context.cache.get(_key(context, region))
    return str(known["security_group_id"]) if known else ""


def group_of(context: Context, instance: Instance) -> str:
    """
    Return the id of our security group that an instance is in: remembered, or read.

    Raises:
        GpulabError: AWS refuses, or it is in none of ours.
    """
    region = instance.place.region
    return known_group(context, region) or network.group_of(
        context.cloud, region, instance.id, name=group_name(context)
    )


def base_image(context: Context, region: str, *, has_gpu: bool) -> Image:
    """
    Return the publisher's current image, remembered for a day.

    Raises:
        GpulabError: The region has none, or AWS does not say.
    """
    key = f"{context.account}/image/{region}/{'gpu' if has_gpu else 'plain'}"
    known = context.cache.get(f"{key}/image")
    if known:
        return Image(**known)
    image = images.find_image(context.cloud, region, has_gpu=has_gpu)
    context.cache.put(f"{key}/image", asdict(image), lasting=_IMAGE)
    context.cache.put(f"{key}/root_gib", image.root_gib, lasting=_IMAGE)
    return image


def public_key(context: Context) -> str:
    """Return the public half of the profile's ssh key, made when there is none."""
    path = context.folder.key
    half = path.with_suffix(".pub")
    try:
        return half.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        line = make_key_pair(path, environ=context.environment)
    write_atomically(half, f"{line}\n".encode("ascii"))
    return line


def group_name(context: Context) -> str:
    """Name our security group: one per owner."""
    return f"gpulab-{context.owner}"


def _make(context: Context, region: str, cidr: str) -> tuple[Network, tuple[str, ...]]:
    tags = {TAG_OWNER: context.owner}
    subnets = network.find_subnets(context.cloud, region)
    vpc_id = subnets[0].vpc_id
    group_id, is_new = _patiently(context, lambda: _group(context, region, vpc_id))
    key_name = network.ensure_key_pair(context.cloud, region, public_key(context), tags=tags)
    if is_new:
        # EC2 does not know at once everywhere what it has just made; a pause costs less than a refused call.
        context.sleep(_UNKNOWN_S)
    closed_to = _patiently(
        context,
        lambda: network.admit(context.cloud, region, group_id, cidr, tags=tags, is_new=is_new),
    )
    return Network(region, vpc_id, subnets, group_id, key_name, cidr), closed_to


def _group(context: Context, region: str, vpc_id: str) -> tuple[str, bool]:
    """Find or make our security group in a network; say whether it was made just now."""
    return network.ensure_security_group(
        context.cloud,
        region,
        name=group_name(context),
        vpc_id=vpc_id,
        tags={TAG_OWNER: context.owner},
    )


def _patiently(context: Context, call: Callable[[], Answer]) -> Answer:
    """Repeat a call while EC2 does not know what was made a moment ago; it gets to know within seconds."""
    for _ in range(10):
        try:
            return call()
        except (NotFound, SetupMissing) as error:
            if not error.code.startswith("InvalidGroup"):
                raise
            context.sleep(_UNKNOWN_S)
    return call()


def _key(context: Context, region: str) -> str:
    return f"{context.account}/network/{region}"


def _network(row: dict[str, Any]) -> Network:
    return Network(
        region=row["region"],
        vpc_id=row["vpc_id"],
        subnets=tuple(Subnet(**s) for s in row["subnets"]),
        security_group_id=row["security_group_id"],
        key_name=row["key_name"],
        cidr=row["cidr"],
    )
