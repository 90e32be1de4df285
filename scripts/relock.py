"""
Renews the exact, hashed versions in `scripts/locks` from `pyproject.toml`. Standard library only; needs the network.

    python3 scripts/relock.py            # the newest versions that fit
    python3 scripts/relock.py --keep     # only what pyproject.toml newly asks for
    python3 scripts/relock.py --check    # do the locks still answer pyproject.toml? no network
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import environment
from environment import CHECKOUT, LOCKS

# Name of the lock -> what of pyproject.toml it holds, as arguments of `uv pip compile`.
_LOCKS: dict[str, tuple[str, ...]] = {
    "run": ("pyproject.toml",),
    "audit": ("--group", "audit"),
    "demo": ("pyproject.toml", "--extra", "sandbox", "--group", "build"),
    "fuzz": (
        *("pyproject.toml", "--extra", "sandbox", "--extra", "report"),
        *("--group", "build", "--group", "fuzz"),
    ),
    "dev": ("pyproject.toml", "--all-extras", "--group", "dev"),
}
_HEADER = "# Written by scripts/relock.py; for pyproject.toml's requirements {digest}.\n"


def main() -> int:
    """Renew or check the locks; 5 when a check finds one out of date."""
    parser = argparse.ArgumentParser(description="Renew the hashed versions in scripts/locks.")
    parser.add_argument("--check", action="store_true", help="only say whether they are current")
    parser.add_argument("--keep", action="store_true", help="keep versions that still fit")
    arguments = parser.parse_args()
    if arguments.check:
        return _report(outdated())
    made = environment.prepare(CHECKOUT / ".cache" / "relock", "uv")
    if not arguments.keep:
        _compile(made, "uv", ("-",), keep=False, stdin="uv\n")
    for name, parts in _LOCKS.items():
        _compile(made, name, parts, keep=arguments.keep)
    return 0


def outdated() -> list[str]:
    """The locks that were written for other requirements than `pyproject.toml` has now, by name."""
    header = _header()
    return [
        name for name in _LOCKS if not _path(name).read_text(encoding="utf-8").startswith(header)
    ]


def _report(names: list[str]) -> int:
    for name in names:
        print(f"{_path(name).relative_to(CHECKOUT)} is older than pyproject.toml")
    if names:
        print("\nhint: `python3 scripts/relock.py --keep`")
    return 5 if names else 0


def _compile(
    made: environment.Environment,
    name: str,
    sources: tuple[str, ...],
    *,
    keep: bool,
    stdin: str | None = None,
) -> None:
    lock = _path(name)
    command = [
        *(str(made.program("uv")), "pip", "compile", "--quiet", "--system-certs"),
        *("--universal", "--python-version", "3.11", "--generate-hashes"),
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *(() if keep else ("--upgrade",)),
        *("--output-file", str(lock), *sources),
    ]
    subprocess.run(
        command, check=True, text=True, input=stdin, cwd=CHECKOUT, env=environment.surroundings()
    )
    header = "" if name == "uv" else _header()
    pins = [line for line in lock.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    lock.write_text(header + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{lock.relative_to(CHECKOUT)}: {sum('==' in line for line in pins)} packages")


def _header() -> str:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [
        project["project"]["requires-python"],
        project["project"]["dependencies"],
        project["project"]["optional-dependencies"],
        project["dependency-groups"],
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return _HEADER.format(digest=digest[:16])


def _path(name: str) -> Path:
    return LOCKS / f"{name}.txt"


if __name__ == "__main__":
    environment.require_python()
    sys.exit(main())
