"""
Renew the locks of the shipped lab environments and print what changed.

    python scripts/locks.py [NAME ...]            renew (all environments by default)
    python scripts/locks.py --check [NAME ...]    only print the difference; exit 5 if there is one
    python scripts/locks.py --keep-versions NAME  choose hashes again for the versions already locked
    python scripts/locks.py --age [NAME ...]      only say how old they are; exit 5 when one is over 120 days

What a course does with `gpulab env lock FOLDER`, done for our own; `gpulab.bootstrap.locking` says how a lock is made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from gpulab.bootstrap import parse_lock
from gpulab.bootstrap.checking import OLD_AFTER
from gpulab.bootstrap.environments import describe
from gpulab.bootstrap.locking import find_uv, renew

# A month to renew a lock in peace, before the gate refuses it.
_WARN_AFTER = timedelta(days=90)
ENVIRONMENTS = Path(__file__).resolve().parent.parent / "ami" / "environments"


def main() -> int:
    """Renew or check, and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--keep-versions", action="store_true", help="do not choose newer versions")
    parser.add_argument("--age", action="store_true", help="only say how old they are")
    options = parser.parse_args()
    names = options.names or sorted(p.parent.name for p in ENVIRONMENTS.glob("*/environment.toml"))
    if options.age:
        return _tell_age(names)
    changed = False
    for name in names:
        changed |= _renew(ENVIRONMENTS / name, write=not options.check, keep=options.keep_versions)
    return 5 if options.check and changed else 0


def judged(
    name: str, locked_on: date | None, today: date, *, is_experimental: bool
) -> tuple[str, bool]:
    """
    Say how old a lock is, and whether that is too old. Versions of an experimental environment are those of their time.

    Returns:
        A line, and whether nothing may go on with it.
    """
    if locked_on is None:
        return f"{name}: it does not say when it was made", True
    age = today - locked_on
    said = f"{name}: {age.days} days old"
    if is_experimental or age <= _WARN_AFTER:
        return said, False
    if age > OLD_AFTER:
        return f"{said}, over {OLD_AFTER.days}: renew it with `python scripts/locks.py`", True
    return (
        f"{said}; in {(OLD_AFTER - age).days + 1} days the gate fails: `python scripts/locks.py`",
        False,
    )


def _tell_age(names: Sequence[str]) -> int:
    today, is_old = datetime.now(UTC).date(), False
    for path in sorted(path for name in names for path in (ENVIRONMENTS / name).glob("*.lock")):
        lock = parse_lock(path.read_text("utf-8"), source=str(path))
        name = f"{path.parent.name} {path.stem}"
        is_experimental = "experimental" in describe(path.parent)
        line, is_too_old = judged(name, lock.locked_on, today, is_experimental=is_experimental)
        is_old |= is_too_old
        print(line)
    return 5 if is_old else 0


def _renew(folder: Path, *, write: bool, keep: bool) -> bool:
    uv = find_uv(os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    renewed = renew(folder, uv=uv, today=datetime.now(UTC).date(), keep_versions=keep)
    for one in renewed:
        size = f"{len(one.lock.pins)} packages, {one.lock.download_mib} MiB"
        print(f"{folder.name} {one.variant}: {size}, {len(one.changes)} changes")
        print("".join(f"  {line}\n" for line in one.changes), end="")
        if write and one.changes:
            one.path.write_text(one.text)
    return any(one.changes for one in renewed)


if __name__ == "__main__":
    sys.exit(main())
