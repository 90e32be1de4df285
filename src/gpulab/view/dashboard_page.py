"""
The dashboard as a browser gets it: pages made with autoescape, and JSON whose every text the page shows as a text.

Numbers are in it for bars only; all words are made here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from importlib import resources
from typing import Any

from gpulab.view.dashboard import Board, Gauge, Standing, Tile, counts
from gpulab.view.dashboard_log import Entry
from gpulab.view.words import clean, local_time, money, percent, span

_NEAR_PERCENT = 50
_SUBMIT = "document.forms[0].submit()"


def board_json(
    board: Board | None, log: Iterable[Entry], *, title: str, note: str, now: datetime
) -> dict[str, Any]:
    """
    Return what the page shows: words, and numbers only for bars.

    Args:
        board: `None` before the first look.
        log: Newest first.
        note: Why the last look failed; empty when it did not.
    """
    tiles = sorted(board.tiles, key=_rank) if board else []
    notes = [*([note] if note else []), *(board.notes if board else ())]
    return {
        "title": clean(title),
        "looked_at": f"{board.looked_at.astimezone():%H:%M:%S}" if board else "",
        "counts": _counts_json(board) if board else [],
        "gauges": [_gauge_json(gauge) for gauge in board.gauges] if board else [],
        "notes": [clean(text) for text in notes],
        "tiles": [_tile_json(tile, now) for tile in tiles],
        "log": [
            {
                "at": f"{entry.at.astimezone():%H:%M:%S}",
                "text": clean(entry.text),
                "is_alarm": entry.is_alarm,
            }
            for entry in log
        ],
    }


def page(title: str, *, static: str) -> str:
    """Write the page itself, which asks for the rest; `static` is where its style and script lie."""
    return _rendered("dashboard.html.jinja", title=clean(title), static=static)


def sign_in_page(*, static: str, is_wrong: bool) -> str:
    """Write the page for a browser that has not shown the secret; says nothing about anybody."""
    return _rendered("dashboard_sign_in.html.jinja", static=static, is_wrong=is_wrong)


def leading_page(address: str) -> str:
    """Write the page that leads on to the dashboard once the secret was right."""
    return _rendered("dashboard_lead.html.jinja", address=address)


def redirect_file(address: str, secret: str) -> str:
    """Write the private file that shows the secret to the dashboard, in a form: never in an address, which browsers remember."""
    digest = base64.b64encode(hashlib.sha256(_SUBMIT.encode()).digest()).decode()
    return _rendered(
        "dashboard_open.html.jinja",
        address=address,
        secret=secret,
        script=_SUBMIT,
        script_hash=f"sha256-{digest}",
    )


def asset(name: str) -> str:
    """Read the page's style or script."""
    return resources.files("gpulab.view").joinpath(name).read_text(encoding="utf-8")


def _rendered(name: str, **values: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("gpulab", "view")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name).render(**values)


def _counts_json(board: Board) -> list[dict[str, Any]]:
    return [
        {"standing": str(standing), "css": _css(standing), "count": count}
        for standing, count in counts(board).items()
    ]


def _rank(tile: Tile) -> int:
    """Put who needs somebody first; everybody else stays where the roster has them, so that nobody jumps about."""
    return {Standing.TROUBLE: 0, Standing.UNKNOWN: 1}.get(tile.standing, 2)


def _gauge_json(gauge: Gauge) -> dict[str, Any]:
    of = f" of {money(gauge.budget_usd)}" if gauge.budget_usd is not None else ""
    share = percent(gauge.spent_usd, gauge.budget_usd) if gauge.budget_usd else ""
    return {
        "title": gauge.title,
        "text": f"{money(gauge.spent_usd)}{of}",
        "note": ", ".join(part for part in (f"{share} spent" if share else "", gauge.note) if part),
        "percent": _share(gauge.spent_usd, gauge.budget_usd),
    }


def _tile_json(tile: Tile, now: datetime) -> Mapping[str, Any]:
    share = None if tile.spent_usd is None else _share(tile.spent_usd, tile.budget_usd)
    return {
        "key": tile.key,
        "who": clean(tile.who),
        "names": clean(tile.names),
        "group": clean(tile.group),
        "standing": str(tile.standing),
        "css": _css(tile.standing),
        "words": clean(tile.words),
        "gpu_percent": None if tile.gpu_percent is None else round(tile.gpu_percent),
        "spent": _spent_words(tile, share),
        "spent_percent": share,
        "ends": _ends_words(tile.ends_at, now),
        "place": clean(tile.place),
        "instance": clean(tile.instance),
    }


def _spent_words(tile: Tile, share: int | None) -> str:
    """Write what one has cost; its limit beside it once half of it is gone, for a tile is narrow."""
    if tile.spent_usd is None:
        return ""
    words = money(tile.spent_usd)
    if tile.budget_usd is None or share is None or share < _NEAR_PERCENT:
        return words
    return f"{words} of {money(tile.budget_usd)}"


def _css(standing: Standing) -> str:
    return str(standing).replace(" ", "-")


def _share(part: Decimal, whole: Decimal | None) -> int | None:
    """Return a share for a bar, 0 to 100; `None` of nothing."""
    if whole is None or whole <= 0:
        return None
    return int(min(Decimal(100), max(Decimal(0), part / whole * 100)))


def _ends_words(end: datetime | None, now: datetime) -> str:
    if end is None:
        return ""
    return f"ends in {span(end - now)}" if end > now else f"end was {local_time(end, now=now)}"
