"""Courses, students and snapshots with defaults, for the tests of fleets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from gpulab.course.plan import read_course
from gpulab.fleet.lab import request_for
from gpulab.fleet.plan import View, Wanted
from gpulab.fleet.seats import seats_of
from gpulab.model.course import Course, Student
from gpulab.model.instance import Instance, State
from gpulab.model.market import Market, Offer, Place, Quota
from gpulab.planning.catalogue import instance_types
from gpulab.planning.quotas import CODES
from gpulab.planning.snapshot import Snapshot

SECRET = b"k" * 32
#: Monday of the first lab, 12:50 in Copenhagen.
NOW = datetime(2026, 9, 7, 10, 50, tzinfo=UTC)
LONGEST = timedelta(hours=12)
_TYPES = {t.name: t for t in instance_types()}


def a_course(kind: str = "shared", lab: str = "", limits: str = "", head: str = "") -> Course:
    text = f"""
[course]
id = "c1"
name = "Course"
timezone = "Europe/Copenhagen"
first_day = 2026-09-07
last_day = 2026-12-07
regions = ["us-east-1"]
{head}
[accounts]
kind = "{kind}"
role_name = "gpulab-course"
[limits]
{limits}
[[labs]]
id = "w1"
date = 2026-09-07
starts = "13:00"
ends = "17:00"
{lab}
"""
    course, problems = read_course(text.encode(), file="course.toml")
    assert () == problems
    assert course is not None
    return course


def students(count: int, *, groups: int = 0, own: bool = False) -> tuple[Student, ...]:
    return tuple(
        Student(
            id=f"s{n:06d}",
            owner=f"s{n:010x}",
            name=f"Student {n}",
            email=f"s{n}@student.example",
            group=f"g{n % groups}" if groups else "",
            account=f"{111100000000 + n}" if own else "",
            line=n + 2,
        )
        for n in range(count)
    )


def wanted(
    course: Course, people: tuple[Student, ...], *, now: datetime = NOW, **changes
) -> Wanted:
    lab = course.labs[0]
    seats = seats_of(course, lab, people, secret=SECRET)
    parts = {
        "course": course,
        "lab": lab,
        "request": request_for(course, lab, now=now, longest=LONGEST),
        "everyone": seats,
        "seats": seats,
        "longest": LONGEST,
    }
    return Wanted(**{**parts, **changes})


def offer(
    zone: str = "us-east-1a", usd: str = "0.20", kind: str = "g4dn.xlarge", market=Market.SPOT
):
    place = Place(zone[:-1], zone, kind, market)
    return Offer(place, _TYPES[kind], Decimal(usd), Decimal("0.526"), NOW)


def quota(limit: int | None, used: int = 0, region: str = "us-east-1") -> Quota:
    code = CODES[("G", Market.SPOT)]
    return Quota(code.code, code.name, region, "G", Market.SPOT, limit, used)


def a_view(*offers: Offer, quotas=(), instances=(), credit: str | None = None) -> View:
    found = offers or (offer(), offer("us-east-1b", "0.21"))
    snapshot = Snapshot(
        read_at=NOW,
        types=instance_types(),
        offers=found,
        quotas=tuple(quotas),
        instances=tuple(instances),
        credit_left_usd=None if credit is None else Decimal(credit),
    )
    return View(snapshot, tuple(dict.fromkeys(o.place.region for o in found)))


def an_instance(name: str, **changes) -> Instance:
    values = {
        "id": f"i-{abs(hash(name)) % 16**8:08x}",
        "name": name,
        "owner": name.rpartition("-")[2],
        "place": offer().place,
        "state": State.RUNNING,
        "state_reason": "",
        "address": "192.0.2.7",
        "private_address": "",
        "launched_at": NOW - timedelta(minutes=20),
        "expires_at": datetime(2026, 9, 7, 15, 10, tzinfo=UTC),
        "launch_id": "l1",
        "environment": "tf2",
        "course": "c1",
        "lab": "w1",
    }
    return Instance(**{**values, **changes})
