"""
Which instances have served a seat, newest first: by this computer's journal, and by what teachers have written down in the bucket.

Instances write their work under their own ids. Whose seat an id was, only a teacher's `fleet up` says: one small object for each run,
where no instance can write. What an instance says about itself is not asked, nor the ledger, which believes instances about their costs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gpulab.aws import workspace
from gpulab.bootstrap import Keep
from gpulab.fleets.accounts import Account
from gpulab.fleets.keeping import Keeping, patiently
from gpulab.launch.context import Context
from gpulab.model.instance import Instance
from gpulab.model.moment import read_moment

_AT_ONCE = 8
# Longer than a lab's instances are looked at again.
_RECORDED_FOR = timedelta(days=30)
_COLUMNS = ("name", "instance", "at", "prefix")
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Place:
    """
    Where one instance of a seat has kept work, if it has.

    Attributes:
        instance_id: `""` where all instances of the seat share the place.
        received_at: When it had got what those before it had kept; `None` where nobody wrote that down.
    """

    prefix: str
    instance_id: str = ""
    received_at: datetime | None = None


def places(
    account: Account, keeping: Keeping, lab: str, *, is_asked: bool = True
) -> Mapping[str, tuple[Place, ...]]:
    """
    Say where the instances of each seat of a lab have kept work, the newest instance first, by the seat's name.

    Only for accounts where work lies under the instances' ids; elsewhere it is `Keeping.place`.

    Args:
        is_asked: Whether the bucket is asked, too, what other computers have launched.

    Raises:
        GpulabError: The bucket cannot be read.
    """
    served: dict[tuple[str, str], tuple[datetime, Place]] = {}
    born = _born(account.context, keeping)
    for made in account.context.journal.read().made:
        prefix = born.get(made.instance_id, keeping.place(made.name, made.instance_id))
        if prefix:
            served[made.name, made.instance_id] = (made.at, Place(prefix, made.instance_id))
    for row in _by_bucket(account.context, keeping, lab) if is_asked else ():
        instance_id = str(row["instance"])
        at = read_moment(row["at"]) or _LONG_AGO
        known = served.get((str(row["name"]), instance_id))
        received_at = read_moment(row["received"]) or (known[1].received_at if known else None)
        prefix = born.get(instance_id) or str(row["prefix"])
        place = Place(prefix, instance_id, received_at)
        served[str(row["name"]), instance_id] = (at, place)
    found: dict[str, tuple[Place, ...]] = {}
    for (name, _), (_, place) in sorted(
        served.items(), key=lambda item: (item[1][0], item[1][1].instance_id), reverse=True
    ):
        found[name] = (*found.get(name, ()), place)
    return found


def write_down(account: Account, keeping: Keeping, lab: str, up: Iterable[Instance]) -> None:
    """
    Write down which instance serves which seat, where it is not written down by this computer yet.

    Raises:
        GpulabError: The bucket cannot be written.
    """
    context, key = account.context, f"course-seats/{keeping.course}/{lab}"
    known = frozenset(context.cache.get(key) or ())
    seated = sorted(up, key=lambda i: (i.name, i.id))
    if {i.id for i in seated} <= known:
        return
    born = _born(context, keeping)
    _put(account, keeping, lab, [_row(keeping, i, born) for i in seated])
    context.cache.put(key, sorted(known | {i.id for i in seated}), lasting=_RECORDED_FOR)


def write_received(account: Account, keeping: Keeping, lab: str, instance: Instance) -> None:
    """
    Write down that an instance has got what those before it had kept: their copies need not be looked at for its seat any more.

    Raises:
        GpulabError: The bucket cannot be written; other computers then look at all of them, and keep both versions.
    """
    context = account.context
    now, born = context.now().astimezone(UTC).isoformat(), _born(context, keeping)
    _put(account, keeping, lab, [{**_row(keeping, instance, born), "received": now}])


def _born(context: Context, keeping: Keeping) -> Mapping[str, str]:
    """
    Say where instances keep their work by what this computer wrote down at their launch, by their ids; `""` for nowhere.

    The role may have been made anew since, under another id. Left out is who was launched before that was written down.
    """
    found = {}
    for made in context.journal.read().made:
        prefix = (made.keep_prefix or "").replace(Keep.INSTANCE, made.instance_id)
        if made.keep_prefix is not None:
            found[made.instance_id] = prefix if prefix.startswith(f"{keeping.owner}/") else ""
    return found


def _row(keeping: Keeping, instance: Instance, born: Mapping[str, str]) -> Mapping[str, str]:
    return {
        "name": instance.name,
        "instance": instance.id,
        "at": instance.launched_at.isoformat(),
        "prefix": born.get(instance.id) or keeping.place(instance.name, instance.id),
    }


def _put(account: Account, keeping: Keeping, lab: str, rows: Sequence[Mapping[str, str]]) -> None:
    context = account.context
    body = json.dumps({"version": 1, "lab": lab, "seats": rows}).encode()
    at = context.now().astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    place, bucket = f"{_folder(keeping, lab)}{at}-{context.new_id()}.json", keeping.role.bucket
    patiently(context, lambda: workspace.put(context.cloud, bucket, place, body))


def _folder(keeping: Keeping, lab: str) -> str:
    return f"{keeping.owner}/.seats/{lab}/"


def _by_bucket(context: Context, keeping: Keeping, lab: str) -> list[Mapping[str, Any]]:
    bucket = keeping.role.bucket
    keys = workspace.keys(context.cloud, bucket, prefix=_folder(keeping, lab))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        bodies = pool.map(lambda key: workspace.read(context.cloud, bucket, key), keys)
        return [row for body in bodies for row in _rows(body, keeping)]


def _rows(body: bytes, keeping: Keeping) -> list[Mapping[str, Any]]:
    """Leave out what is damaged: the journal, or another object, may know the same."""
    try:
        rows = json.loads(body)["seats"]
        return [
            {**{key: r[key] for key in _COLUMNS}, "received": r.get("received")}
            for r in rows
            if str(r["prefix"]).startswith(f"{keeping.owner}/") and str(r["prefix"]).endswith("/")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
