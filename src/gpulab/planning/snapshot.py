"""All that was read before a decision, once. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.model.budget import TermBudget
from gpulab.model.instance import Instance
from gpulab.model.market import InstanceType, Offer, Place, Quota

# AWS Price List, 2026: 0.08 in most regions, 0.0912 in ap-south-2, 0.152 in sa-east-1.
_GP3_USD = {
    "us-east-1": Decimal("0.08"),
    "us-east-2": Decimal("0.08"),
    "us-west-2": Decimal("0.08"),
    "ap-south-2": Decimal("0.0912"),
    "sa-east-1": Decimal("0.152"),
}


def gp3_usd_per_gib_month(region: str) -> Decimal:
    """Return the price of gp3 storage; "at most" takes the dearest where it is not known."""
    return _GP3_USD.get(region, max(_GP3_USD.values()))


@dataclass(frozen=True)
class Limits:
    """
    What the user or the course allows for one launch.

    Attributes:
        duration: Longest life from now.
        address_usd_per_hour: Price of a public IPv4 address (AWS, from 2024-02-01).
    """

    duration: timedelta = timedelta(hours=12)
    address_usd_per_hour: Decimal = Decimal("0.005")


@dataclass(frozen=True)
class Snapshot:
    """
    What AWS and the user's folder said at one moment.

    Attributes:
        read_at: The "now" of every decision; aware UTC.
        types: Every instance type that is known, unique by name.
        offers: At most one per place, in any order, spot and on-demand; what a region does not sell is absent.
        quotas: At most one per code and region; absent where nobody asked.
        instances: Mine, in the regions asked about; ended ones may be among them.
        full_until: Places that had no capacity a moment ago, and until when that is believed.
        never: Places AWS said it does not offer.
        root_gib: Size of the image's root snapshot; 0 when not read.
        credit_left_usd: What all usable credits have left; `None` when no source knows.
        term_budget: What the user allows for the term and what is gone of it; `None` for no limit of our own.
        notes: Sentences about what could not be read, for the user.
    """

    read_at: datetime
    types: tuple[InstanceType, ...]
    offers: tuple[Offer, ...]
    quotas: tuple[Quota, ...] = ()
    instances: tuple[Instance, ...] = ()
    full_until: Mapping[Place, datetime] = field(default_factory=dict)
    never: frozenset[Place] = frozenset()
    root_gib: int = 0
    credit_left_usd: Decimal | None = None
    term_budget: TermBudget | None = None
    notes: tuple[str, ...] = ()

    def is_full(self, place: Place) -> bool:
        """Whether the place had no capacity a moment ago."""
        until = self.full_until.get(place)
        return until is not None and until > self.read_at
