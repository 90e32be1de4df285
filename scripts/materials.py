"""
Says what gpulab is made of: a bill of materials from a lock, and the page of licences. Runs in the gate's environment.

    .venv/bin/python scripts/materials.py licences            # write docs/licences.md
    .venv/bin/python scripts/materials.py licences --check    # 5 when it is out of date
    .venv/bin/python scripts/materials.py sbom FILE           # CycloneDX JSON of what a student installs

The versions and hashes are those of `scripts/locks/run.txt`; the licences are what each package says of itself.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import metadata, requires
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parent.parent
LOCK = CHECKOUT / "scripts" / "locks" / "run.txt"
PAGE = CHECKOUT / "docs" / "licences.md"
EXTRAS = ("sandbox", "report", "dashboard")
_PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==([^ ;\\]+)[^\\\n]*\\?\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n?)*)",
    re.M,
)
#: What packages call their licences in classifiers and old fields -> SPDX.
_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
_HEAD = """\
# Licences

What gpulab brings along, as each package states it. gpulab itself is under the MIT licence (`LICENSE`); it contains none of these, they
are installed beside it. Written by `scripts/materials.py`; a test fails when a package is missing here or has no licence.
The lab environments on the instance are locked in `ami/environments` and install there, from their publishers.
"""


def main() -> int:
    """Write or check; 5 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["licences", "sbom"])
    parser.add_argument("file", nargs="?", type=Path, help="where the bill of materials goes")
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    given = parser.parse_args()
    if given.what == "sbom":
        given.file.write_text(bill(LOCK.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    wanted = page()
    if given.check:
        return 0 if PAGE.read_text(encoding="utf-8") == wanted else 5
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def bill(lock: str) -> str:
    """Write the bill of materials of a lock; the same lock gives the same components."""
    made = Bom(components=list(_components(lock)))
    return make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def page() -> str:
    """Write the page: what is always installed, then what each extra adds."""
    core = _needed("")
    parts = [_HEAD, "## Always\n", *_table(core)]
    for extra in EXTRAS:
        parts += [f"\n## With `gpulab[{extra}]`\n", *_table(_needed(extra) - core)]
    return "\n".join(parts) + "\n"


def licence_of(name: str) -> str:
    """Return what a package says of its licence, in SPDX's words where they are known; empty when it says nothing."""
    about = metadata(name)
    if stated := about.get("License-Expression"):
        return str(stated)
    named = [
        c.rpartition(" :: ")[2]
        for c in about.get_all("Classifier", [])
        if c.startswith("License ::")
    ]
    known = [_SPDX.get(one, one) for one in named if one != "OSI Approved"]
    old = str(about.get("License") or "").strip().splitlines()
    return " AND ".join(known) or (_SPDX.get(old[0], old[0]) if old else "")


def _components(lock: str) -> Iterator[Component]:
    for name, version, hashes in _PIN.findall(lock):
        found = re.findall(r"sha256:([0-9a-f]{64})", hashes)
        licence = _licence_if_installed(name)
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("pypi", None, canonicalize_name(name), version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in found],
            licenses=[DisjunctiveLicense(name=licence)] if licence else [],
        )


def _licence_if_installed(name: str) -> str:
    try:
        return licence_of(name)
    except ModuleNotFoundError:  # for another platform, such as tzdata on Windows
        return ""


def _needed(extra: str) -> set[str]:
    """Every package that gpulab needs, directly or not; with an extra, those beside it too."""
    found: set[str] = set()
    waiting = [("gpulab", frozenset({extra} if extra else set()))]
    while waiting:
        name, extras = waiting.pop()
        for line in requires(name) or []:
            wish = Requirement(line)
            is_wanted = not wish.marker or any(
                wish.marker.evaluate({"extra": e}) for e in extras or {""}
            )
            needed = canonicalize_name(wish.name)
            if is_wanted and needed not in found:
                found.add(needed)
                waiting.append((needed, frozenset(wish.extras)))
    return found


def _table(names: set[str]) -> list[str]:
    rows: Mapping[str, str] = {name: licence_of(name) for name in sorted(names)}
    return [
        "| package | licence |",
        "|---|---|",
        *(f"| {n} | {text} |" for n, text in rows.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
