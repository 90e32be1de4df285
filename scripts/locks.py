"""
Renew the locks of the lab environments and print what changed.

    python scripts/locks.py [NAME ...]            renew (all environments by default)
    python scripts/locks.py --check [NAME ...]    only print the difference; exit 5 if there is one
    python scripts/locks.py --keep-versions NAME  choose hashes again for the versions already locked

Every version and hash comes from uv, so from whatever index uv is configured with; this script knows none.
For each platform and Python of `environment.toml` uv picks the one wheel it would install there; a lock allows
exactly those files. Versions are chosen for the oldest Python and must exist for all.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpulab.bootstrap.locks import Lock, Pin, parse_lock

_COMPILE = "pip compile --quiet --system-certs --only-binary :all: --format pylock.toml"
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
    wanted = tomllib.loads((folder / "environment.toml").read_text())
    changed = False
    for variant in (key for key, value in wanted.items() if isinstance(value, dict)):
        path = folder / f"{variant}.lock"
        old = parse_lock(path.read_text(), source=str(path)) if path.exists() else Lock(())
        new = _lock(folder, wanted[variant], keep=old if keep else None)
        lines = difference(old, new)
        print(
            f"{folder.name} {variant}: {len(new.pins)} packages, {new.download_mib} MiB, {len(lines)} changes"
        )
        print("".join(f"  {line}\n" for line in lines), end="")
        changed |= bool(lines)
        if write and lines:
            path.write_text(_header(new, wanted[variant]) + new.requirements())
    return changed


def difference(old: Lock, new: Lock) -> list[str]:
    """Say in lines what changed between two locks: `+ name 1.0`, `- name 1.0`, `name 1.0 -> 1.1`, `name 1.0: other files`."""
    before = {pin.name: pin for pin in old.pins}
    after = {pin.name: pin for pin in new.pins}
    lines = [f"- {name} {before[name].version}" for name in sorted(before.keys() - after.keys())]
    for name, pin in after.items():
        was = before.get(name)
        if was is None:
            lines.append(f"+ {name} {pin.version}")
        elif was.version != pin.version:
            lines.append(f"{name} {was.version} -> {pin.version}")
        elif was.hashes != pin.hashes:
            lines.append(f"{name} {pin.version}: other files")
    return lines


def _lock(folder: Path, wanted: dict[str, Any], *, keep: Lock | None) -> Lock:
    targets = [
        (python, platform) for platform in wanted["platforms"] for python in wanted["pythons"]
    ]
    pins: dict[str, Pin] = {p.name: p for p in keep.pins} if keep else {}
    extra: set[str] = set()
    while True:
        resolved = []
        for python, platform in targets:
            packages = _resolve(folder, wanted, (python, platform), pins, extra)
            for package in packages:
                pins.setdefault(package["name"], Pin(package["name"], package["version"], ()))
            resolved.append(packages)
        everywhere = {package["name"] for packages in resolved for package in packages}
        if all({package["name"] for package in packages} == everywhere for packages in resolved):
            break
        extra = everywhere  # what one target needs is installed on all, so that one list of names serves them
    files: dict[str, set[str]] = {}
    for package in (package for packages in resolved for package in packages):
        found = _files(package)
        files.setdefault(package["name"], set()).update(one["hashes"]["sha256"] for one in found)
    download = sum(max(one["size"] for one in _files(package)) for package in resolved[0])
    locked = tuple(sorted(replace(pins[name], hashes=tuple(sorted(files[name]))) for name in files))
    build = tuple(wanted.get("build", []))
    today, mib = datetime.now(UTC).date(), round(download / 2**20)
    return Lock(locked, today, mib, build, _range(wanted["pythons"]))


def _range(pythons: list[str]) -> str:
    minors = sorted(int(python.split(".")[1]) for python in pythons)
    return f">=3.{minors[0]},<3.{minors[-1] + 1}"


def _resolve(
    folder: Path,
    wanted: dict[str, Any],
    target: tuple[str, str],
    pins: dict[str, Pin],
    extra: set[str],
) -> list[dict[str, Any]]:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is not installed: `pip install uv`")
    with tempfile.TemporaryDirectory() as scratch:
        constraints, out = Path(scratch, "constraints.txt"), Path(scratch, "pylock.out.toml")
        also = Path(scratch, "also.in")
        also.write_text("".join(f"{name}\n" for name in sorted(extra)))
        constraints.write_text("".join(f"{p.name}=={p.version}\n" for p in pins.values()))
        subprocess.run(
            [
                uv,
                *_COMPILE.split(),
                *("--python-version", target[0], "--python-platform", target[1]),
                *("--constraints", constraints, "--output-file", out),
                *(("--overrides", folder / wanted["overrides"]) if "overrides" in wanted else ()),
                *(f"--no-binary={name}" for name in wanted.get("build", [])),
                folder / wanted["requirements"],
                also,
            ],
            check=True,
        )
        packages: list[dict[str, Any]] = tomllib.loads(out.read_text())["packages"]
        return packages


def _files(package: dict[str, Any]) -> list[dict[str, Any]]:
    return package.get("wheels") or [package["sdist"]]


def _header(lock: Lock, wanted: dict[str, Any]) -> str:
    return (
        "# Made by scripts/locks.py; do not edit.\n"
        f"# locked-on: {lock.locked_on}\n"
        f"# download-mib: {lock.download_mib}\n"
        f"# python: {lock.python}\n"
        + (f"# build: {' '.join(lock.build)}\n" if lock.build else "")
        + f"# for: Python {', '.join(wanted['pythons'])} on {', '.join(wanted['platforms'])}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
