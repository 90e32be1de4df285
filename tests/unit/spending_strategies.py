"""Random but well-formed cost timelines around the moments where bills go wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

# Month ends, a leap day, the begin of the IPv4 charge, both changes of daylight saving, a year's end.
ANCHORS = [
    datetime.fromisoformat(text)
    for text in (
        "2024-01-31T23:00:00+00:00",
        "2024-02-29T22:30:00+00:00",
        "2025-02-28T23:10:00+00:00",
        "2026-03-29T00:20:00+00:00",
        "2026-10-25T00:10:00+00:00",
        "2026-12-31T23:00:00+00:00",
    )
]
ZONE = "Europe/Copenhagen"
PLACES = [
    ("us-east-1a", "g4dn.xlarge"),
    ("us-east-1b", "g4dn.xlarge"),
    ("us-east-1a", "p3.2xlarge"),
]

_prices = st.decimals("0", "4", places=6).map(lambda usd: format(usd, "f"))
# Lengths that lie on and beside the edges of the rules.
_lengths = st.one_of(
    st.integers(0, 7500), st.sampled_from([0, 1, 59, 60, 61, 3599, 3600, 3601, 7199, 7200])
)
_owners = st.sampled_from(["anna", "bo", None])


@st.composite
def documents(draw: st.DrawFn) -> dict:
    """Draw a whole document whose things live for at most some hours around one moment."""
    anchor = draw(st.sampled_from(ANCHORS)) + timedelta(seconds=draw(st.integers(-1800, 1800)))
    as_of = anchor + timedelta(seconds=draw(st.integers(-600, 9000)))
    zone = draw(st.sampled_from([None, ZONE]))

    def moment(after_s: int) -> str:
        return _written(anchor + timedelta(seconds=after_s), zone if draw(st.booleans()) else None)

    document = {
        "as_of": _written(as_of, None),
        "spot_prices": [_series(draw, moment, place) for place in PLACES],
        "on_demand": {kind: draw(_prices) for _, kind in PLACES},
        "rates": {"ebs_gb_month": {"gp3": "0.08", "gp2": "0.10"}, "ipv4_per_hour": "0.005"},
        "instances": [_instance(draw, moment, n) for n in range(draw(st.integers(0, 3)))],
        "volumes": [_volume(draw, moment, n) for n in range(draw(st.integers(0, 2)))],
        "elastic_ips": [_address(draw, moment) for _ in range(draw(st.integers(0, 1)))],
    }
    if zone:
        document["assume_timezone"] = zone
    if draw(st.booleans()):
        document["credit"] = {
            "amount": format(draw(st.decimals("0", "12", places=4)), "f"),
        }
    return document


def _written(moment: datetime, zone: str | None) -> str:
    """Write a moment without an offset where its local time is unmistakable, else in UTC."""
    if zone:
        local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        if _is_unmistakable(local, zone):
            return local.isoformat()
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _is_unmistakable(local: datetime, zone: str) -> bool:
    first, second = (local.replace(tzinfo=ZoneInfo(zone), fold=fold) for fold in (0, 1))
    return first.utcoffset() == second.utcoffset()


def _series(draw: st.DrawFn, moment, place: tuple[str, str]) -> dict:
    later = draw(st.lists(st.integers(-3000, 12000), unique=True, max_size=5))
    points = [[moment(after_s), draw(_prices)] for after_s in (-10000, *later)]
    return {
        "az": place[0],
        "instance_type": place[1],
        "product": "Linux/UNIX",
        "points": draw(st.permutations(points)),
    }


def _instance(draw: st.DrawFn, moment, n: int) -> dict:
    az, kind = draw(st.sampled_from(PLACES))
    return {
        "id": f"i-{n}",
        "owner": draw(_owners),
        "instance_type": kind,
        "az": az,
        "market": draw(st.sampled_from(["spot", "on-demand"])),
        "os": "Linux",
        "public_ipv4": draw(st.sampled_from(["auto", None])),
        "events": draw(st.permutations(_events(draw, moment))),
    }


def _events(draw: st.DrawFn, moment) -> list[dict]:
    at, events = draw(st.integers(-1000, 1000)), []
    runs = draw(st.integers(1, 2))
    for n in range(runs):
        events.append({"at": moment(at), "type": "start" if n else "launch"})
        at += draw(_lengths)
        ends = ["user_stop", "aws_stop", "aws_hibernate"]
        if n == runs - 1:
            ends = [*ends, "user_terminate", "aws_terminate", None]
        end = draw(st.sampled_from(ends))
        if end:
            events.append({"at": moment(at), "type": end})
        at += draw(st.integers(1, 90))
    return events


def _volume(draw: st.DrawFn, moment, n: int) -> dict:
    created, length = draw(st.integers(-1000, 1000)), draw(_lengths)
    return {
        "id": f"vol-{n}",
        "owner": draw(_owners),
        "type": draw(st.sampled_from(["gp3", "gp2"])),
        "size_gb": draw(st.integers(1, 2000)),
        "created": moment(created),
        "deleted": draw(st.sampled_from([moment(created + length), None])),
    }


def _address(draw: st.DrawFn, moment) -> dict:
    begin, length = draw(st.integers(-1000, 1000)), draw(_lengths)
    return {
        "owner": draw(_owners),
        "allocated": moment(begin),
        "released": draw(st.sampled_from([moment(begin + length), None])),
    }
