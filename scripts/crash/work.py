"""
Whose work is where: on machines, in buckets, on every computer; and what must hold of it: never lost, no version gone, never another's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from crash.stage import Stage
from gpulab.remote.instance_side import STAGE_PREFIX

#: What stands on every machine that somebody has worked on.
FILES = ("week4.ipynb", "data/numbers.csv")
_WHOSE = re.compile(rb"\(of ([^)]+)\)")
_BESIDE = re.compile(r"-(?:before|from)-.*$")


def body_of(path: str, name: str) -> bytes:
    """What a student of a class writes into a file: it says whose it is."""
    return f"{path} (of {name})\n".encode()


def lost(stage: Stage, *, is_elsewhere: bool) -> Iterator[str]:
    """
    Say what stood on a machine that has ended, and is kept nowhere under its name.

    Args:
        is_elsewhere: Whether the computer whose folder has the work was left behind.
    """
    kept = _kept(stage)
    for guest in stage.guests.by_id.values():
        # Without a bucket nobody but its user can keep the work of an instance, and its time is over all the same.
        if guest.is_on or (guest.bucket is None and (guest.is_over_time or is_elsewhere)):
            continue
        for path, body in guest.files().items():
            if path in FILES and body not in kept[guest.name, path]:
                yield f"{path} of {guest.name}, {guest.birth.instance_id}, is kept nowhere"


def versions_gone(stage: Stage) -> Iterator[str]:
    """Say which objects that machines wrote are not in the bucket any more, not even as an older version."""
    there = {(row["Key"], row["VersionId"]) for row in stage.versions()}
    for guest in stage.guests.by_id.values():
        for key, version, _ in guest.bucket.written if guest.bucket is not None else ():
            if (key, version) not in there:
                yield f"a version of {key}"


def mixed(stage: Stage) -> Iterator[str]:
    """Say where a student's work lies in another's place, and whose tags are another's."""
    for place, name in places(stage):
        for file in place.rglob("*") if place.is_dir() else ():
            said = _WHOSE.search(file.read_bytes()) if file.is_file() else None
            if said is not None and said[1].decode() != name:
                yield f"{file.relative_to(stage.folder)} is of {said[1].decode()}"
    for guest in stage.guests.by_id.values():
        if not guest.name or guest.spec.get("bake"):
            continue  # a launcher that is not ours, or nobody's instance
        for key, _, body in guest.bucket.written if guest.bucket is not None else ():
            said = _WHOSE.search(body) if "/work/" in key else None
            if said is not None and said[1].decode() != guest.name:
                yield f"{key} is of {said[1].decode()}, not of {guest.name}"
        tags = guest.instance.tags
        if (tags["gpulab:name"], tags["gpulab:owner"]) != (guest.name, guest.spec["owner"]):
            yield f"{guest.birth.instance_id} of {guest.name} has the tags {tags}"


def places(stage: Stage) -> Iterator[tuple[Path, str]]:
    """Every folder that holds one name's work, and the name."""
    for guest in stage.guests.by_id.values():
        yield guest.work, guest.name
    for folder in folders_of_work(stage):
        # A killed copy leaves its half under a name that nobody has and nothing reads.
        if not folder.name.startswith(STAGE_PREFIX):
            yield folder, _BESIDE.sub("", folder.name)
    for name, label in stage.labels.items():
        for folder in stage.folder.glob(f"*/handed-in/{label}"):
            yield folder, name


def folders_of_work(stage: Stage) -> Iterator[Path]:
    """Yield every folder of work on a computer: of a profile's own account, and of those it reaches through a role."""
    for account in ("", "accounts/*/"):
        yield from stage.folder.glob(f"*/gpulab/profiles/*/{account}work/*")


def _kept(stage: Stage) -> dict[tuple[str, str], set[bytes]]:
    """Every kept version of a file, by the name and the path: in the bucket as the manifests name them, and in folders of computers."""
    found: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    for folder in folders_of_work(stage):
        name = _BESIDE.sub("", folder.name)
        for file in folder.rglob("*"):
            if file.is_file():
                found[name, str(file.relative_to(folder))].add(file.read_bytes())
    for guest in stage.guests.by_id.values():
        for path, body in ((guest.bucket and guest.bucket.kept()) or {}).items():
            found[guest.name, path].add(body or b"")
    return found
