"""Boards with defaults, for the tests of the dashboard."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from gpulab.view.dashboard import Board, Gauge, Standing, Tile

NOW = datetime(2026, 9, 7, 11, 30, tzinfo=UTC)


def tile(who: str, standing: Standing = Standing.UP, **changes: Any) -> Tile:
    values = {
        "key": f"w1-{who}",
        "who": who,
        "standing": standing,
        "words": "GPU 93 %" if standing is Standing.UP else str(standing),
        "group": "g1",
        "gpu_percent": 93.0 if standing is Standing.UP else None,
        "spent_usd": Decimal("0.31"),
        "budget_usd": Decimal(4),
        "ends_at": NOW + timedelta(hours=1, minutes=12),
        "place": "g4dn.xlarge, spot, us-east-1a",
        "instance": f"i-{who}",
    }
    return Tile(**{**values, **changes})


def board(*tiles: Tile, **changes: Any) -> Board:
    gauges = (
        Gauge("This lab", Decimal("41.20"), Decimal(96), "$5.1000/h now"),
        Gauge("The term", Decimal("655.10"), Decimal(600)),
    )
    return Board(**{"looked_at": NOW, "tiles": tiles, "gauges": gauges, **changes})


def busy_lab() -> Board:
    """A lab in which everything happens at once."""
    tiles = [
        tile(f"s17{n:04d}", group=f"g{n % 6}", gpu_percent=float(use), words=f"GPU {use} %")
        for n, use in enumerate(range(4, 100, 6))
    ]
    tiles += [
        tile("s170016", Standing.IDLE, words="idle 14 min", gpu_percent=0.0),
        tile("s170017", Standing.IDLE, words="idle 41 min", gpu_percent=0.0),
        tile("s170018", Standing.STARTING, words="setting up: environment", spent_usd=None),
        tile("s170019", Standing.STARTING, words="booting", spent_usd=None),
        tile(
            "s170020",
            Standing.TROUBLE,
            words="environment failed: no space left on device",
            spent_usd=Decimal("4.10"),
        ),
        tile("s170021", Standing.TROUBLE, words="AWS takes it back"),
        tile("s170022", Standing.ENDING, words="ending: idle"),
        tile(
            "s170023",
            Standing.NONE,
            words="not up",
            spent_usd=None,
            ends_at=None,
            place="",
            instance="",
        ),
        tile(
            "s170024",
            Standing.UNKNOWN,
            words="its account could not be read",
            spent_usd=None,
            ends_at=None,
        ),
    ]
    lost = "111122223333 could not be read, which concerns 1: the credentials have expired"
    return board(*tiles, notes=(lost,))
