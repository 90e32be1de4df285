"""
Making locks with uv. Hides how one lock serves several Pythons and platforms; knows no package index: versions and hashes are uv's.

For each platform and Python of `environment.toml` uv picks the one file it would install there; a lock allows exactly those files.
Versions are chosen for the oldest Python and must exist for all. An environment on top of another (`base`) keeps that one's versions.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from gpulab.bootstrap.environments import describe, find_environment, wishes_files
from gpulab.bootstrap.locks import Lock, Pin, parse_lock
from gpulab.errors import GpulabError, SetupMissing, WrongUsage

_COMPILE = "pip compile --quiet --system-certs --only-binary :all: --format pylock.toml"
_WITHIN_S = 600


@dataclass(frozen=True)
class Renewed:
    """
    What became of one lock of an environment.

    Attributes:
        variant: `cpu` or `gpu`; of the server also `laptop` and `uv`.
        changes: Lines as `difference` gives them, of a first lock against its base's; empty when nothing changed.
        text: What belongs into the file.
    """

    variant: str
    path: Path
    lock: Lock
    changes: tuple[str, ...]
    text: str


def find_uv(path: str) -> str:
    """
    Find uv.

    Args:
        path: Folders to look in, as `PATH` has them.

    Raises:
        SetupMissing: It is not installed.
    """
    found = shutil.which("uv", path=path)
    if found is None:
        raise SetupMissing(
            "making a lock takes uv, which is not installed",
            hint="`pip install uv`, or `curl -LsSf https://astral.sh/uv/install.sh | sh`; then repeat the command",
        )
    return found


def renew(
    folder: Path,
    *,
    uv: str,
    today: date,
    extra_folders: Sequence[Path] = (),
    keep_versions: bool = False,
) -> tuple[Renewed, ...]:
    """
    Choose versions and hashes for every variant of an environment; writes nothing.

    Args:
        folder: The environment's own, with `environment.toml`.
        uv: From `find_uv`.
        extra_folders: Where a base may lie besides the shipped ones.
        keep_versions: Choose hashes again for the versions already locked.

    Raises:
        WrongUsage: A file is not right, or the wishes cannot all be had; uv's own reason is in the message.
    """
    found = []
    for variant, wanted in variants(folder, extra_folders).items():
        path = folder / f"{variant}.lock"
        old = parse_lock(path.read_text("utf-8"), source=str(path)) if path.exists() else Lock(())
        below = _base_lock(folder, variant, extra_folders)
        fixed = (*below.pins, *(old.pins if keep_versions else ()))
        lock = _lock(uv, wanted, fixed, today)
        changes = tuple(difference(old if old.pins else below, lock))
        found.append(
            Renewed(variant, path, lock, changes, _header(lock, wanted) + lock.requirements())
        )
    return tuple(found)


def variants(folder: Path, extra_folders: Sequence[Path] = ()) -> dict[str, dict[str, Any]]:
    """
    Say what each lock of an environment is made of.

    Returns:
        By name of the lock: `requirements` (paths of files), `pythons`, `platforms`, perhaps `overrides` (a path) and `build`.

    Raises:
        WrongUsage: There is nothing to lock.
    """
    described = describe(folder)
    own = {key: dict(value) for key, value in described.items() if isinstance(value, dict)}
    for wanted in own.values():
        wanted["requirements"] = [folder / wanted["requirements"]]
        if "overrides" in wanted:
            wanted["overrides"] = folder / wanted["overrides"]
    if "base" not in described:
        if not own:
            raise WrongUsage(
                f"{folder / 'environment.toml'} names nothing to lock",
                hint='Add `base = "tf2"`, or a table [cpu] with requirements, pythons and platforms',
            )
        return own
    below = variants(find_environment(described["base"], extra_folders), extra_folders)
    added = wishes_files(folder)
    if not added:
        raise WrongUsage(f"{folder} has neither requirements.in nor requirements.txt")
    for name, wanted in below.items():
        wanted.update(
            {key: value for key, value in own.get(name, {}).items() if key != "requirements"}
        )
        wanted["requirements"] = [*wanted["requirements"], *added]
    return below


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


def _base_lock(folder: Path, variant: str, extra_folders: Sequence[Path]) -> Lock:
    base = describe(folder).get("base")
    if base is None:
        return Lock(())
    below = find_environment(base, extra_folders) / f"{variant}.lock"
    return parse_lock(below.read_text("utf-8"), source=str(below))


def _lock(uv: str, wanted: Mapping[str, Any], fixed: Iterable[Pin], today: date) -> Lock:
    targets = [(p, where) for where in wanted["platforms"] for p in wanted["pythons"]]
    pins: dict[str, Pin] = {pin.name: pin for pin in fixed}
    extra: set[str] = set()
    while True:
        resolved = []
        for target in targets:
            packages = _resolve(uv, wanted, target, pins, extra)
            for package in packages:
                pins.setdefault(package["name"], Pin(package["name"], package["version"], ()))
            resolved.append(packages)
        everywhere = {package["name"] for packages in resolved for package in packages}
        if all({package["name"] for package in packages} == everywhere for packages in resolved):
            break
        extra = everywhere  # what one target needs is installed on all, so that one list of names serves them
    return _collected(resolved, pins, wanted, today)


def _collected(
    resolved: Sequence[Sequence[Mapping[str, Any]]],
    pins: Mapping[str, Pin],
    wanted: Mapping[str, Any],
    today: date,
) -> Lock:
    files: dict[str, set[str]] = {}
    for package in (package for packages in resolved for package in packages):
        hashes = (one["hashes"]["sha256"] for one in _files(package))
        files.setdefault(package["name"], set()).update(hashes)
    download = sum(max(one["size"] for one in _files(package)) for package in resolved[0])
    locked = (replace(pins[name], hashes=tuple(sorted(files[name]))) for name in files)
    return Lock(
        pins=tuple(sorted(locked)),
        locked_on=today,
        download_mib=round(download / 2**20),
        build=tuple(wanted.get("build", [])),
        python=_range(wanted["pythons"]),
    )


def _range(pythons: Sequence[str]) -> str:
    minors = sorted(int(python.split(".")[1]) for python in pythons)
    return f">=3.{minors[0]},<3.{minors[-1] + 1}"


def _resolve(
    uv: str,
    wanted: Mapping[str, Any],
    target: tuple[str, str],
    pins: Mapping[str, Pin],
    extra: Iterable[str],
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        constraints, out = Path(scratch, "constraints.txt"), Path(scratch, "pylock.out.toml")
        also = Path(scratch, "also.in")
        also.write_text("".join(f"{name}\n" for name in sorted(extra)), "utf-8")
        constraints.write_text("".join(f"{p.name}=={p.version}\n" for p in pins.values()), "utf-8")
        words = [
            uv,
            *_COMPILE.split(),
            *("--python-version", target[0], "--python-platform", target[1]),
            *("--constraints", constraints, "--output-file", out),
            *(("--overrides", wanted["overrides"]) if "overrides" in wanted else ()),
            *(f"--no-binary={name}" for name in wanted.get("build", [])),
            *wanted["requirements"],
            also,
        ]
        _run(words, target)
        packages: list[dict[str, Any]] = tomllib.loads(out.read_text("utf-8")).get("packages", [])
        return packages


def _run(words: Sequence[str | Path], target: tuple[str, str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise GpulabError(
            f"uv did not choose versions within {_WITHIN_S} s", hint="Repeat the command"
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-600:]
        raise WrongUsage(
            f"no set of packages fulfils all wishes for Python {target[0]} on {target[1]}: {said}",
            hint="Loosen one of the wishes that it names; those of the base cannot change",
        )


def _files(package: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = package.get("wheels") or [package[key] for key in ("sdist",) if key in package]
    if not files:
        raise WrongUsage(
            f"{package['name']} does not come from an index, so it has no hash to lock",
            hint="Name a published version instead of an address or a folder",
        )
    return files


def _header(lock: Lock, wanted: Mapping[str, Any]) -> str:
    return (
        "# Made by `gpulab env lock`; do not edit.\n"
        f"# locked-on: {lock.locked_on}\n"
        f"# download-mib: {lock.download_mib}\n"
        f"# python: {lock.python}\n"
        + (f"# build: {' '.join(lock.build)}\n" if lock.build else "")
        + f"# for: Python {', '.join(wanted['pythons'])} on {', '.join(wanted['platforms'])}\n"
    )
