"""Facts about money: what happened, when, and who says so. Values only; every figure is computed from them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from gpulab.model.statement import usd_of

if TYPE_CHECKING:
    from gpulab.model.credit import Credit
    from gpulab.model.market import Market
    from gpulab.model.statement import Statement
    from gpulab.model.timeline import EndedBy

LINUX = "Linux/UNIX"


class FactKind(StrEnum):
    """What a fact is about."""

    INTENT = "intent"
    LAUNCHED = "launched"
    STARTED = "started"
    EXTENDED = "extended"
    ENDED = "ended"
    PRICE = "price"
    VOLUME = "volume"
    VOLUME_DELETED = "volume-deleted"
    ADDRESS = "address"
    USAGE = "usage"
    STATEMENT = "statement"
    CREDIT = "credit"


class Source(StrEnum):
    """Who says so; where two differ about one end, AWS is believed first, then the instance, then the laptop."""

    AWS = "aws"
    AGENT = "agent"
    LAPTOP = "laptop"


@dataclass(frozen=True, slots=True)
class Fact:
    """
    One thing that happened. The same fact written twice is one fact: its digest is its identity.

    Attributes:
        subject: Id of what it is about; of a price `zone/instance type/product`.
        at: When it happened (not when it was written); aware UTC, cut to whole seconds.
        details: Plain texts; amounts as decimals, moments in ISO 8601. No key whose value is unknown.
    """

    kind: FactKind
    subject: str
    at: datetime
    details: Mapping[str, str] = field(default_factory=dict)
    source: Source = Source.LAPTOP

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("a fact's moment needs a time zone")
        if self.at.tzinfo is not UTC or self.at.microsecond:
            object.__setattr__(self, "at", self.at.astimezone(UTC).replace(microsecond=0))

    @property
    def digest(self) -> str:
        """SHA-256 of the fact's line."""
        return hashlib.sha256(self.line().encode()).hexdigest()

    def line(self) -> str:
        """Write the fact as one line of JSON, always the same for the same fact."""
        parts = {
            "kind": self.kind.value,
            "subject": self.subject,
            "at": written(self.at),
            "source": self.source.value,
            "details": dict(self.details),
        }
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def written(moment: datetime) -> str:
    """Write a moment as `2026-10-23T16:10:00Z`."""
    # Not by strftime, which writes a year before 1000 with fewer than the four digits that reading it asks for.
    plain = moment.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    return plain.isoformat() + "Z"


def intent(
    token: str,
    *,
    at: datetime,
    launch_id: str,
    zone: str,
    instance_type: str,
    market: Market,
    at_most_usd_per_hour: Decimal | None,
    name: str = "",
    owner: str = "",
    course: str = "",
    lab: str = "",
) -> Fact:
    """
    Say that an instance is about to be asked for at one place; it costs nothing unless AWS launches it.

    Args:
        token: The client token of the attempt: asked again with it, it is the same attempt.
        at_most_usd_per_hour: What the instance alone may cost: its maximum price, else the on-demand price. `None` if not known.
    """
    return Fact(
        FactKind.INTENT,
        token,
        at,
        texts(
            launch_id=launch_id,
            zone=zone,
            instance_type=instance_type,
            market=market,
            at_most_usd_per_hour=at_most_usd_per_hour,
            name=name,
            owner=owner,
            course=course,
            lab=lab,
        ),
    )


def launched(
    instance_id: str,
    *,
    at: datetime,
    zone: str,
    instance_type: str,
    market: Market,
    usd_per_hour: Decimal | None,
    on_demand_usd_per_hour: Decimal | None = None,
    launch_id: str = "",
    token: str = "",
    name: str = "",
    owner: str = "",
    course: str = "",
    lab: str = "",
    gpus: int | None = None,
    expires_at: datetime | None = None,
    source: Source = Source.LAPTOP,
) -> Fact:
    """
    Say that an instance was launched.

    Args:
        at: EC2's `LaunchTime`.
        usd_per_hour: The price seen at launch; used where the price history has nothing earlier. `None` if not seen.
    """
    return Fact(
        FactKind.LAUNCHED,
        instance_id,
        at,
        texts(
            zone=zone,
            instance_type=instance_type,
            market=market,
            usd_per_hour=usd_per_hour,
            on_demand_usd_per_hour=on_demand_usd_per_hour,
            launch_id=launch_id,
            token=token,
            name=name,
            owner=owner,
            course=course,
            lab=lab,
            gpus=gpus,
            expires_at=expires_at,
        ),
        source,
    )


def started(instance_id: str, *, at: datetime, source: Source = Source.LAPTOP) -> Fact:
    """Say that an instance is seen to run: after a stop, or for the first time, from which on AWS bills it."""
    return Fact(FactKind.STARTED, instance_id, at, {}, source)


def extended(instance_id: str, *, at: datetime, until: datetime) -> Fact:
    """Say that an instance's planned end was moved, to later or to sooner."""
    return Fact(FactKind.EXTENDED, instance_id, at, texts(until=until))


def ended(
    instance_id: str,
    *,
    at: datetime,
    by: EndedBy | None,
    is_final: bool = True,
    reason: str = "",
    source: Source = Source.LAPTOP,
) -> Fact:
    """
    Say that a run ended.

    Args:
        by: `None` when the source cannot know.
        is_final: False for a stop, after which the instance may start again.
        reason: In AWS's or the agent's words: `Server.SpotInstanceTermination`, `idle`, `deadline`, `budget`.
    """
    how = "terminated" if is_final else "stopped"
    return Fact(FactKind.ENDED, instance_id, at, texts(by=by, how=how, reason=reason), source)


def price(
    zone: str,
    instance_type: str,
    *,
    at: datetime,
    usd_per_hour: Decimal,
    product: str = LINUX,
) -> Fact:
    """Say what spot cost from a moment on; AWS forgets it after 90 days."""
    subject = f"{zone}/{instance_type}/{product}"
    return Fact(FactKind.PRICE, subject, at, texts(usd_per_hour=usd_per_hour), Source.AWS)


def volume(
    volume_id: str,
    *,
    at: datetime,
    type: str,  # noqa: A002 - EC2's word
    size_gb: Decimal | int,
    usd_per_gb_month: Decimal | None,
    instance_id: str = "",
    ends_with_instance: bool = False,
    owner: str = "",
    source: Source = Source.LAPTOP,
) -> Fact:
    """
    Say that a volume was created.

    Args:
        ends_with_instance: EC2's `DeleteOnTermination`: no `volume_deleted` is needed then.
    """
    return Fact(
        FactKind.VOLUME,
        volume_id,
        at,
        texts(
            type=type,
            size_gb=size_gb,
            usd_per_gb_month=usd_per_gb_month,
            instance_id=instance_id,
            ends_with_instance="yes" if ends_with_instance else None,
            owner=owner,
        ),
        source,
    )


def root_disk_of(instance_id: str) -> str:
    """Name the root disk of an instance whose own id nobody can tell any more; a disk known by its id counts instead of it."""
    return f"{instance_id}/root"


def volume_deleted(volume_id: str, *, at: datetime, source: Source = Source.LAPTOP) -> Fact:
    """Say that a volume is gone."""
    return Fact(FactKind.VOLUME_DELETED, volume_id, at, {}, source)


def address(
    instance_id: str,
    *,
    at: datetime,
    usd_per_hour: Decimal | None,
    source: Source = Source.LAPTOP,
) -> Fact:
    """Say that AWS gave an instance a public IPv4 address, from its launch on; AWS takes it back by itself when a run ends."""
    return Fact(FactKind.ADDRESS, instance_id, at, texts(usd_per_hour=usd_per_hour), source)


def usage(
    instance_id: str,
    *,
    at: datetime,
    seconds: int,
    idle_seconds: int,
    source: Source = Source.AGENT,
) -> Fact:
    """
    Say how an instance was used over a span.

    Args:
        at: Begin of the span.
        idle_seconds: Of the span, those in which neither GPU nor CPU worked.
    """
    details = texts(seconds=seconds, idle_seconds=idle_seconds)
    return Fact(FactKind.USAGE, instance_id, at, details, source)


def statement_read(statement: Statement, *, at: datetime) -> Fact:
    """Say that one of AWS's statements was read, and what it said; its SHA-256 is its name."""
    sums = {f"{category}_usd": usd_of(units) for category, units in statement.units.items()}
    days = statement.days
    return Fact(
        FactKind.STATEMENT,
        statement.digest,
        at,
        texts(
            path=statement.path,
            format=statement.format,
            lines=statement.lines,
            first_day=days[0] if days else None,
            last_day=days[1] if days else None,
            **sums,
        ),
    )


def credit_reading(credit: Credit) -> Fact:
    """Say what a source told about one credit."""
    return Fact(
        FactKind.CREDIT,
        credit.id,
        credit.read_at,
        texts(
            left_usd=credit.left_usd,
            initial_usd=credit.initial_usd,
            expires_at=credit.expires_at,
            products="\n".join(credit.products),
            source=credit.source,
        ),
        Source.LAPTOP if credit.source == "typed" else Source.AWS,
    )


def texts(**details: object) -> dict[str, str]:
    """Give a fact's details: what is known, as texts."""
    return {key: _text(value) for key, value in details.items() if value not in (None, "")}


def _text(value: object) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    return written(value) if isinstance(value, datetime) else str(value)
