"""Offers as a table, cheapest first."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from gpulab.model.market import Offer
from gpulab.view.console import table
from gpulab.view.plan import offer_json, savings
from gpulab.view.words import percent

COLUMNS = (
    "instance_type",
    "gpu",
    "gpus",
    "gpu_memory_gib",
    "vcpus",
    "memory_gib",
    "zone",
    "market",
    "usd_per_hour",
    "on_demand_usd_per_hour",
    "priced_at",
)


def price_row(offer: Offer) -> dict[str, Any]:
    """Return one row for programs."""
    return {column: offer_json(offer)[column] for column in COLUMNS}


def prices_text(offers: Sequence[Offer]) -> str:
    """Align the offers for people; USD per hour of the instance alone."""
    if not offers:
        return "no offers"
    rows = [
        [
            offer.type.name,
            f"{offer.type.gpus} x {offer.type.gpu_name}" if offer.type.gpus else "-",
            f"{offer.type.gpu_memory_gib.normalize():f}" if offer.type.gpus else "-",
            str(offer.type.vcpus),
            offer.place.zone,
            str(offer.place.market),
            f"{offer.usd_per_hour:.4f}",
            _saved(offer),
            f"{offer.priced_at.astimezone():%Y-%m-%d %H:%M}",
        ]
        for offer in offers
    ]
    headings = ["TYPE", "GPU", "GPU GiB", "vCPU", "ZONE", "MARKET", "USD/h", "SAVES", "PRICED"]
    return table(rows, headings, right=[2, 3, 6, 7])


def _saved(offer: Offer) -> str:
    saved = savings(offer)
    return percent(saved, Decimal(1)) if saved is not None and saved > 0 else "-"
