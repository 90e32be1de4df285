"""Between the simulated EC2 and the machines: what a machine is told at birth and while it runs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import moto_bridge
from gpulab.sandbox.credentials import RENEW_BEFORE
from gpulab.sandbox.machines import Birth, Disk, Ingress, LiveMetadata

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World


def boot(world: World, instance: SimInstance) -> None:
    """Start the machine behind a new instance, where the world has machines."""
    if world.machines is None:
        return
    instance.fixed_addresses = world.machines.addresses()
    _set_addresses(instance)
    instance.machine = world.machines.boot(birth_of(world, instance), on_exit=world.machine_exited)
    publish(world, instance)


def reboot(instance: SimInstance) -> None:
    """Start the machine of a stopped instance again, under the address it had."""
    _set_addresses(instance)
    if instance.machine is not None:
        instance.machine.power_on()


def birth_of(world: World, instance: SimInstance) -> Birth:
    """Everything RunInstances decided about an instance."""
    options = instance.moto.metadata_options
    groups = instance_groups(instance)
    return Birth(
        instance_id=instance.id,
        account=instance.account,
        region=instance.region,
        zone=instance.zone,
        instance_type=instance.instance_type,
        image_id=instance.image_id,
        market=instance.market,
        private_address=instance.moto.private_ip or "",
        public_address=instance.moto.public_ip or "",
        public_key=moto_bridge.public_key(instance.backend, instance.moto.key_name or ""),
        user_data=moto_bridge.user_data(instance.moto),
        tags=instance.tags,
        launched_at=instance.launched_at,
        tags_in_metadata=options.instance_metadata_tags == "enabled",
        http_tokens=options.http_tokens,
        hop_limit=options.http_put_response_hop_limit,
        http_endpoint=options.http_endpoint == "enabled",
        role=instance.profile[2] if instance.profile else "",
        disks=tuple(disk_of(instance, device, block) for device, block in _blocks(instance)),
        ingress=ingress_of(instance),
        security_groups=tuple(group.name for group in groups),
        endpoint=world.endpoint_for_machines,
        speed=world.speed,
    )


def publish(world: World, instance: SimInstance) -> None:
    """Tell the machine what has changed in its metadata: tags, notice, credentials of its role."""
    _renew_credentials(world, instance)
    if instance.machine is None:
        return
    instance.machine.publish(
        LiveMetadata(
            tags=instance.tags,
            notice=instance.notice,
            rebalance_at=instance.rebalance_at,
            credentials=instance.credentials,
        )
    )


def _renew_credentials(world: World, instance: SimInstance) -> None:
    if not (instance.profile and instance.profile[2]) or instance.state not in (
        "pending",
        "running",
    ):
        return
    had = instance.credentials
    given = world.credentials.for_role(
        instance.account, instance.profile[2], instance.id, world.now(), renewed=had
    )
    instance.credentials = given
    if given != had:
        expires_at = datetime.fromisoformat(given["Expiration"])
        world.at(expires_at - RENEW_BEFORE, lambda: publish(world, instance))


def admit_again(world: World, account: str, region: str) -> None:
    """Security groups have changed: tell every machine what may come in now."""
    for instance in list(world.instances_by_id.values()):
        if (instance.account, instance.region) == (account, region) and instance.machine:
            instance.machine.admit(ingress_of(instance))


def ingress_of(instance: SimInstance) -> tuple[Ingress, ...]:
    """What the instance's groups let in."""
    return tuple(
        Ingress(*rule)
        for group in instance_groups(instance)
        for rule in moto_bridge.ingress_of(group)
    )


def instance_groups(instance: SimInstance) -> list[Any]:
    """The security groups of an instance, by name."""
    interface = instance.moto.nics.get(0)
    found = {group.id: group for group in interface.group_set} if interface else {}
    found |= {group.id: group for group in instance.moto.security_groups}
    return sorted(found.values(), key=lambda group: str(group.name))


def disk_of(instance: SimInstance, device: str, block: Any) -> Disk:
    """One volume as the machine sees it."""
    volume = moto_bridge.volumes(instance.backend)[block.volume_id]
    return Disk(
        volume_id=block.volume_id,
        device=device,
        size_gib=int(volume.size),
        is_root=device == instance.moto.root_device_name,
        delete_on_termination=bool(block.delete_on_termination),
    )


def _blocks(instance: SimInstance) -> list[tuple[str, Any]]:
    return list(instance.moto.get_block_device_mapping)


def _set_addresses(instance: SimInstance) -> None:
    if instance.fixed_addresses is not None:
        private, public = instance.fixed_addresses
        moto_bridge.set_addresses(instance.moto, private, public if instance.moto.public_ip else "")
