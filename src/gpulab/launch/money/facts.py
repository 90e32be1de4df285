"""Which facts about money each step leaves in the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from gpulab.launch.context import Context
from gpulab.model import fact
from gpulab.model.instance import Instance, LaunchPlan
from gpulab.model.market import Market, Offer
from gpulab.model.timeline import EndedBy
from gpulab.planning.snapshot import gp3_usd_per_gib_month


def record_launch(context: Context, instance: Instance, offer: Offer, plan: LaunchPlan) -> None:
    """
    Write what a launch begins to cost: the instance, its address, its disk, and the spot price of the moment.

    Raises:
        StoreError: The ledger cannot be written.
    """
    facts = [
        fact.launched(
            instance.id,
            at=instance.launched_at,
            zone=offer.place.zone,
            instance_type=offer.type.name,
            market=offer.place.market,
            usd_per_hour=offer.usd_per_hour,
            on_demand_usd_per_hour=offer.on_demand_usd_per_hour,
            ipv4_usd_per_hour=plan.address_usd_per_hour,
            launch_id=instance.launch_id,
            name=instance.name,
            owner=instance.owner,
            course=instance.course,
            lab=instance.lab,
            gpus=offer.type.gpus,
            expires_at=plan.ends_at,
            source=fact.Source.AWS,
        )
    ]
    if offer.place.market is Market.SPOT:
        facts.append(
            fact.price(
                offer.place.zone,
                offer.type.name,
                at=offer.priced_at,
                usd_per_hour=offer.usd_per_hour,
            )
        )
    context.ledger.append(facts)


def record_running(context: Context, instance: Instance, *, at: datetime, disk_gib: int) -> None:
    """
    Write that an instance runs, from when on AWS bills it, and its disk, which EC2 names only then.

    Args:
        at: When it was first seen to run, on AWS's clock: the one of `LaunchTime`.

    Raises:
        StoreError: The ledger cannot be written.
    """
    disks = [
        fact.volume(
            volume_id,
            at=instance.launched_at,
            type="gp3",
            size_gb=disk_gib,
            usd_per_gb_month=gp3_usd_per_gib_month(instance.place.region),
            instance_id=instance.id,
            ends_with_instance=True,
            owner=instance.owner,
        )
        for volume_id in instance.volume_ids
    ]
    context.ledger.append([fact.started(instance.id, at=at), *disks])


def record_end(
    context: Context,
    instance: Instance,
    *,
    at: datetime,
    by: EndedBy,
    reason: str,
    disks_went_after: timedelta | None = None,
) -> None:
    """
    Write that an instance has ended.

    Args:
        at: When, by this computer's clock; it counts where AWS has not said.
        disks_went_after: How much later its disks were seen to be gone; `None` when nobody looked.

    Raises:
        StoreError: The ledger cannot be written.
    """
    source = fact.Source.LAPTOP if instance.ended_at is None else fact.Source.AWS
    ended_at = instance.ended_at or at
    facts = [fact.ended(instance.id, at=ended_at, by=by, reason=reason, source=source)]
    if disks_went_after is not None:
        gone_at = ended_at + disks_went_after
        facts += [fact.volume_deleted(disk, at=gone_at) for disk in instance.volume_ids]
    context.ledger.append(facts)


def record_ends(
    context: Context, instance_ids: Iterable[str], *, at: datetime, reason: str
) -> None:
    """
    Write that instances were ended by us, known by their ids alone.

    Raises:
        StoreError: The ledger cannot be written.
    """
    context.ledger.append(
        fact.ended(i, at=at, by=EndedBy.USER, reason=reason) for i in instance_ids
    )
