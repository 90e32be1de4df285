"""Which facts about money each step leaves in the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.launch.context import Context
from gpulab.model import fact
from gpulab.model.instance import TAG_COURSE, TAG_LAB, TAG_OWNER, Instance, LaunchPlan
from gpulab.model.market import Market, Offer
from gpulab.model.status import Used
from gpulab.model.timeline import EndedBy
from gpulab.planning.catalogue import instance_types, on_demand_prices
from gpulab.planning.snapshot import gp3_usd_per_gib_month
from gpulab.spending.forecast import IPV4_USD
from gpulab.store.journal import Intent


def record_intent(context: Context, intent: Intent) -> None:
    """
    Write what is about to be asked of EC2. All of it comes from the journal's intent, so an attempt that is repeated is the same fact.

    Raises:
        StoreError: The ledger cannot be written.
    """
    call = intent.parameters
    kind, spot = call["InstanceType"], call.get("InstanceMarketOptions")
    cap = spot.get("SpotOptions", {}).get("MaxPrice") if spot else None
    listed = on_demand_prices().get((intent.region, kind))
    on_demand = listed.usd_per_hour if listed else None
    owner, course, lab = (intent.tag(key) for key in (TAG_OWNER, TAG_COURSE, TAG_LAB))
    asked = fact.intent(
        intent.token,
        at=intent.at,
        launch_id=intent.launch_id,
        zone=call["Placement"]["AvailabilityZone"],
        instance_type=kind,
        market=Market.SPOT if spot else Market.ON_DEMAND,
        at_most_usd_per_hour=Decimal(cap) if cap else on_demand,
        name=intent.name,
        owner=owner,
        course=course,
        lab=lab,
    )
    context.ledger.append([asked])


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
            launch_id=instance.launch_id,
            name=instance.name,
            owner=instance.owner,
            course=instance.course,
            lab=instance.lab,
            gpus=offer.type.gpus,
            expires_at=plan.ends_at,
            source=fact.Source.AWS,
        ),
        _address(instance, plan.address_usd_per_hour),
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


def told_at_birth(offer: Offer, plan: LaunchPlan) -> dict[str, dict[str, str]]:
    """Say what an instance cannot ask about its own costs, in the words of the facts that it writes beside the kept work."""
    return {
        "launched": fact.texts(
            usd_per_hour=offer.usd_per_hour,
            on_demand_usd_per_hour=offer.on_demand_usd_per_hour,
            gpus=offer.type.gpus,
        ),
        "volume": fact.texts(usd_per_gb_month=gp3_usd_per_gib_month(offer.place.region)),
        "address": fact.texts(usd_per_hour=plan.address_usd_per_hour),
    }


def record_found(context: Context, *instances: Instance) -> None:
    """
    Write what instances begin to cost that are found again: whoever launched them was killed before it could, or is another computer.

    Changes nothing where the ledger knows an instance. What it does not say here (spot price, disk) is read from the account
    as long as they run, by `rebuilding.complete`.

    Raises:
        StoreError: The ledger cannot be read or written.
    """
    if not instances:
        return
    known = {one.subject for one in context.ledger.facts(fact.FactKind.LAUNCHED)}
    context.ledger.append(
        one for instance in instances if instance.id not in known for one in _found(instance)
    )


def _found(instance: Instance) -> tuple[fact.Fact, fact.Fact]:
    place = instance.place
    listed = on_demand_prices().get((place.region, place.instance_type))
    on_demand = listed.usd_per_hour if listed else None
    kind = next((t for t in instance_types() if t.name == place.instance_type), None)
    found = fact.launched(
        instance.id,
        at=instance.launched_at,
        zone=place.zone,
        instance_type=place.instance_type,
        market=place.market,
        usd_per_hour=on_demand if place.market is Market.ON_DEMAND else None,
        on_demand_usd_per_hour=on_demand,
        launch_id=instance.launch_id,
        name=instance.name,
        owner=instance.owner,
        course=instance.course,
        lab=instance.lab,
        gpus=kind.gpus if kind else None,
        expires_at=instance.expires_at,
        source=fact.Source.AWS,
    )
    return found, _address(instance, IPV4_USD)


def _address(instance: Instance, usd_per_hour: Decimal) -> fact.Fact:
    """Say what its public address costs; the account remembers it in the same words, so that it is one fact."""
    return fact.address(
        instance.id, at=instance.launched_at, usd_per_hour=usd_per_hour, source=fact.Source.AWS
    )


def record_running(context: Context, instance: Instance, *, at: datetime, disk_gib: int) -> None:
    """
    Write that an instance runs, from when on AWS bills it, and its disk, which EC2 names only then.

    Args:
        at: When it was first seen to run, on AWS's clock: the one of `LaunchTime`.

    Raises:
        StoreError: The ledger cannot be written.
    """
    disks = _disks(instance, disk_gib)
    context.ledger.append([fact.started(instance.id, at=at), *disks])


def record_disks(context: Context, instance: Instance, *, disk_gib: int) -> None:
    """
    Write what the disks of an instance that was found again begin to cost; those that the ledger knows stay as they are.

    EC2 may say which disks an instance has before it shows the disks themselves, and until then nobody else can tell their size.

    Raises:
        StoreError: The ledger cannot be read or written.
    """
    known = {one.subject for one in context.ledger.facts(fact.FactKind.VOLUME)}
    context.ledger.append(d for d in _disks(instance, disk_gib) if d.subject not in known)


def _disks(instance: Instance, disk_gib: int) -> list[fact.Fact]:
    # An image may need more than was planned; the tag has what was asked for in the end.
    size_gb = max(disk_gib, instance.disk_gib or 0)
    return [
        fact.volume(
            volume_id,
            at=instance.launched_at,
            type="gp3",
            size_gb=size_gb,
            usd_per_gb_month=gp3_usd_per_gib_month(instance.place.region),
            instance_id=instance.id,
            ends_with_instance=True,
            owner=instance.owner,
        )
        for volume_id in instance.volume_ids
    ]


def record_usage(context: Context, instance: Instance, used: Used | None) -> None:
    """
    Write how much of its time an instance has worked; nothing where its agent, which its user may have changed, says what cannot be.

    Raises:
        StoreError: The ledger cannot be written.
    """
    if used is None or not instance.launched_at <= used.since <= context.now():
        return
    if 0 <= used.idle_seconds <= used.seconds <= (context.now() - used.since).total_seconds() + 60:
        said = fact.usage(
            instance.id, at=used.since, seconds=used.seconds, idle_seconds=used.idle_seconds
        )
        context.ledger.append([said])


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
