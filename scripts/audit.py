"""
Ask whether a locked package of the lab environments, or of gpulab itself, is known to be vulnerable.

    python scripts/audit.py [NAME ...]    `gpulab` and all environments by default, JupyterLab's among them

Exit 0: all were asked and none is; 5: some are; 1: the database cannot be had from here, or does not know some of them. What only an
experimental environment has is told and forgiven: its versions are those of their time. pip-audit asks the package index; an index that has
the files but not the advisories makes it say "no known vulnerabilities", which is not believed here. It runs in an environment of its own,
from `scripts/locks/audit.txt`: what judges the locks is locked itself.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
from environment import CHECKOUT
from gpulab.bootstrap import parse_lock
from gpulab.bootstrap.environments import describe

ENVIRONMENTS = Path(__file__).resolve().parent.parent / "ami" / "environments"
OWN = "gpulab"
LOCK = "audit"
_WITHIN_S = 900


@dataclass(frozen=True)
class Audit:
    """
    What the database says of a set of packages.

    Attributes:
        vulnerable: A line for each advisory: package, version, its id, the versions without it.
        forgiven: The same of what only experimental environments have.
        unknown: Packages that were not found there, as `name version`.
        asked: How many were asked for.
    """

    vulnerable: tuple[str, ...]
    unknown: tuple[str, ...]
    asked: int
    forgiven: tuple[str, ...] = ()


def main() -> int:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("names", nargs="*", metavar="NAME")
    shipped = sorted(path.parent.name for path in ENVIRONMENTS.glob("*/environment.toml"))
    names = parser.parse_args().names or [OWN, *shipped]
    pins = {name: set(_pins(name)) for name in names}
    reports = []
    for turn in turns(set().union(*pins.values())):
        said = _asked(turn)
        if isinstance(said, str):
            print(f"not audited: {said}")
            return 1
        reports += said["dependencies"]
    held = set().union(*(pins[name] for name in names if not _is_experimental(name)))
    found = read(reports, held=held)
    print("".join(f"{line}\n" for line in found.vulnerable), end="")
    print(
        "".join(f"{line} (only in an experimental environment)\n" for line in found.forgiven),
        end="",
    )
    print(verdict(found))
    return 5 if found.vulnerable else int(bool(found.unknown))


def turns(pins: Iterable[str]) -> list[list[str]]:
    """Deal pins out so that none has a package twice: pip-audit refuses to be asked about two versions in one breath."""
    dealt: list[list[str]] = []
    for pin in sorted(pins):
        name = pin.partition("==")[0]
        free = (turn for turn in dealt if all(p.partition("==")[0] != name for p in turn))
        turn = next(free, None)
        if turn is None:
            dealt.append([pin])
        else:
            turn.append(pin)
    return dealt


def read(packages: Iterable[Mapping[str, Any]], *, held: Container[str]) -> Audit:
    """
    Read pip-audit's list of packages; one it skipped is unknown, not safe.

    Args:
        held: Pins, `name==version`, that must have no hole; those of the others are forgiven.
    """
    vulnerable, forgiven, unknown, asked = [], [], [], 0
    for package in packages:
        asked += 1
        if "skip_reason" in package:
            unknown.append(package["name"])
        for hole in package.get("vulns", []):
            cure = ", ".join(hole["fix_versions"]) or "no version yet"
            line = f"{package['name']} {package['version']}: {hole['id']}, without it: {cure}"
            is_held = f"{package['name']}=={package['version']}" in held
            (vulnerable if is_held else forgiven).append(line)
    return Audit(tuple(vulnerable), tuple(unknown), asked, tuple(forgiven))


def verdict(found: Audit) -> str:
    """Say it in a sentence, with how many packages nobody knows about."""
    known = found.asked - len(found.unknown)
    if not known:
        return f"not audited: the package index used here has no advisories ({found.asked} packages asked for)"
    count = len(found.vulnerable) + len(found.forgiven)
    holes = f"{count} known {'vulnerability' if count == 1 else 'vulnerabilities'} in {known} package{'s' * (known != 1)}"
    names = ", ".join(found.unknown[:5])
    return holes + (f"; unknown there: {len(found.unknown)} ({names})" if found.unknown else "")


def _is_experimental(name: str) -> bool:
    return name != OWN and "experimental" in describe(ENVIRONMENTS / name)


def _pins(name: str) -> list[str]:
    if name == OWN:
        text = (Path(__file__).resolve().parent / "locks" / "run.txt").read_text("utf-8")
        return [
            f"{found[1]}=={found[2]}"
            for found in re.finditer(r"^([\w.-]+)==([^ ;\\]+)", text, re.M)
        ]
    locks = (ENVIRONMENTS / name).glob("*.lock")
    pins = (p for lock in locks for p in parse_lock(lock.read_text("utf-8"), source=str(lock)).pins)
    return [f"{pin.name}=={pin.version}" for pin in pins]


def _asked(pins: list[str]) -> dict[str, Any] | str:
    """Pip-audit's answer, or why there is none."""
    try:
        program = _tool()
    except (environment.CannotPrepare, OSError, subprocess.CalledProcessError) as error:
        return f"pip-audit cannot be had here: {error}"
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder, "requirements.txt"), Path(folder, "said.json")
        asked.write_text("\n".join(pins), "utf-8")
        words = [str(program), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        words += ["-f", "json", "-o", str(said), "-r", str(asked)]
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                timeout=_WITHIN_S,
                env=environment.surroundings(),
            )
            return dict(json.loads(said.read_bytes()))
        except subprocess.TimeoutExpired:
            return f"no answer within {_WITHIN_S} s"
        except (OSError, ValueError):
            return " ".join(done.stderr.split())[-300:] or f"pip-audit ended with {done.returncode}"


def _tool() -> Path:
    """Pip-audit, with everything it needs, in the versions and files of its lock."""
    return environment.prepare(CHECKOUT / ".cache" / "audit", LOCK).program("pip-audit")


if __name__ == "__main__":
    sys.exit(main())
