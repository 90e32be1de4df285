"""How amounts, times and texts from outside are written. Refuses control characters: nothing printed can drive a terminal."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal

# As long as exact sums get (`spending.exact`): a document may name amounts of forty digits.
_LONG = Context(prec=400)
_BIDI = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)}


def money(usd: Decimal) -> str:
    """Write an amount as `$0.16`; amounts under a cent keep four decimals, so that they do not read as free."""
    places = Decimal("0.0001") if Decimal(0) < abs(usd) < Decimal("0.01") else Decimal("0.01")
    rounded = usd.quantize(places, rounding=ROUND_HALF_UP, context=_LONG)
    return f"-${-rounded:,}" if rounded < 0 else f"${rounded:,}"


def per_hour(usd: Decimal) -> str:
    """Write a rate as `$0.2158/h`; four decimals, as AWS prices move in the fourth."""
    return f"${usd.quantize(Decimal('0.0001'), rounding=ROUND_HALF_UP, context=_LONG)}/h"


def span(length: timedelta) -> str:
    """Write a span as `2 h 10 min`, `45 s`, `3 d 4 h`: its two largest units, rounded to the smaller."""
    seconds = max(0, round(length.total_seconds()))
    # The smaller unit is rounded before the larger is chosen: two hours that began a second ago are not "1 h 59 min".
    for least, unit in ((86400, 3600), (3600, 60)):
        rounded = (seconds + unit // 2) // unit * unit
        if rounded >= least:
            seconds = rounded
            break
    parts = [
        (seconds // 86400, "d"),
        (seconds % 86400 // 3600, "h"),
        (seconds % 3600 // 60, "min"),
        (seconds % 60, "s"),
    ]
    first = next((n for n, (value, _) in enumerate(parts) if value), 3)
    shown = [f"{value} {unit}" for value, unit in parts[first : first + 2] if value]
    return " ".join(shown) or "0 s"


def seconds(value: float) -> str:
    """Write measured seconds as `12.3 s`."""
    return f"{value:.1f} s"


def local_time(moment: datetime, *, now: datetime) -> str:
    """Write a moment in local time with its zone: `17:10 CET`, with the date when it is another day."""
    local = moment.astimezone()
    zone = local.tzname() or local.strftime("%z")
    if local.date() == now.astimezone().date():
        return f"{local:%H:%M} {zone}"
    return f"{local:%a %d %b %H:%M} {zone}"


def percent(part: Decimal, whole: Decimal) -> str:
    """Write a share as `2 %`; `?` of nothing."""
    if whole <= 0:
        return "? %"
    share = part / whole * 100
    return (
        f"{share.quantize(Decimal('0.1') if share < 1 else Decimal(1), rounding=ROUND_HALF_UP)} %"
    )


def counted(count: int, noun: str) -> str:
    """Write how many there are of a thing whose plural ends with s: `1 run`, `1,200 runs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def clean(text: str) -> str:
    """
    Replace what could drive a terminal: C0 but newline and tab, DEL, C1, bidi controls, lone surrogates.

    Source:
        CWE-150, https://cwe.mitre.org/data/definitions/150.html
    """
    return "".join(c if c in "\n\t" or not _drives(c) else "�" for c in text)


def in_line(text: str) -> str:
    """Clean a text that stands within a line of ours: one more line would read as ours, a row or a hint that nobody wrote."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def one_line(text: str, *, longest: int = 200) -> str:
    """Put several lines into one, cut where it would fill the screen."""
    joined = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return joined if len(joined) <= longest else joined[: longest - 3] + "..."


def _drives(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI
