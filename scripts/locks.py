"""
Renew the locks of the shipped lab environments and print what changed.

    python scripts/locks.py [NAME ...]            renew (all environments by default)
    python scripts/locks.py --check [NAME ...]    only print the difference; exit 5 if there is one
    python scripts/locks.py --keep-versions NAME  choose hashes again for the versions already locked

What a course does with `gpulab env lock FOLDER`, done for our own; `gpulab.bootstrap.locking` says how a lock is made.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from gpulab.bootstrap.locking import find_uv, renew

ENVIRONMENTS = Path(__file__).resolve().parent.parent / "ami" / "environments"


def main() -> int:
    """Renew or check, and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--keep-versions", action="store_true", help="do not choose newer versions")
    options = parser.parse_args()
    names = options.names or sorted(p.parent.name for p in ENVIRONMENTS.glob("*/environment.toml"))
    changed = False
    for name in names:
        changed |= _renew(ENVIRONMENTS / name, write=not options.check, keep=options.keep_versions)
    return 5 if options.check and changed else 0


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
