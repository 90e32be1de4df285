"""
Says what gpulab and the lab environments are made of: a bill of materials from each lock, and the page of licences. Runs in the gate's environment.

    .venv/bin/python scripts/materials.py licences            # write docs/licences.md
    .venv/bin/python scripts/materials.py licences --check    # 5 when it is out of date
    .venv/bin/python scripts/materials.py sbom FOLDER         # CycloneDX JSON of what a student installs, and of each lab environment
    .venv/bin/python scripts/materials.py collect FOLDER...   # read the licences of what is unpacked below the folders, such as uv's cache

Versions and hashes are those of `scripts/locks/run.txt` and `ami/environments/*/*.lock`; the licences are what each package says of itself. Those of
the environments' packages, which the gate does not install, are kept in `scripts/licences.json`, by name and version; what nobody has read is "not known".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from email.parser import HeaderParser
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
ENVIRONMENTS = CHECKOUT / "ami" / "environments"
COLLECTED = CHECKOUT / "scripts" / "licences.json"
NOT_KNOWN = "not known"
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
"""
_LABS = """
## In the lab environments

What an instance, or the laptop's own Jupyter, installs from its publishers by the locks in `ami/environments`; gpulab passes none of it on. NVIDIA's packages
are under NVIDIA's own terms, which allow their use and restrict passing them on: mind that before you share an image that holds them.
The licence is what the package said of itself in the version in brackets, or in the one that is locked; "not known": nobody has read it here.
"""


def main() -> int:
    """Write or check; 5 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["licences", "sbom", "collect"])
    parser.add_argument("folders", nargs="*", type=Path, help="where bills go, or metadata lies")
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    given = parser.parse_args()
    if given.what == "sbom":
        (folder,) = given.folders
        for name, text in bills().items():
            (folder / name).write_text(text, encoding="utf-8")
        return 0
    if given.what == "collect":
        known = collected() | dict(_read(given.folders))
        wanted = {key: known[key] for key in sorted(_wanted()) if key in known}
        COLLECTED.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        return 0
    wanted = page()
    if given.check:
        return 0 if PAGE.read_text(encoding="utf-8") == wanted else 5
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def bills() -> dict[str, str]:
    """Write every bill of materials, by its file's name: what a student installs, and what each lock of a lab environment does."""
    texts = {"sbom.json": bill(LOCK.read_text(encoding="utf-8"), _licence_if_installed)}
    for lock, text in lab_locks().items():
        texts[f"sbom-{lock.replace(' ', '-')}.json"] = bill(text, lab_licence)
    return texts


def bill(lock: str, licence: Callable[[str, str], str]) -> str:
    """Write the bill of materials of a lock; the same lock gives the same components."""
    made = Bom(components=list(_components(lock, licence)))
    return make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def page() -> str:
    """Write the page: what is always installed, what each extra adds, what lab environments install."""
    core = _needed("")
    parts = [_HEAD, "## Always\n", *_table(core)]
    for extra in EXTRAS:
        parts += [f"\n## With `gpulab[{extra}]`\n", *_table(_needed(extra) - core)]
    return "\n".join([*parts, _LABS, *_labs_table()]) + "\n"


def lab_locks() -> dict[str, str]:
    """The locks of the lab environments and their text, by `environment variant`."""
    return {
        f"{path.parent.name} {path.stem}": path.read_text(encoding="utf-8")
        for path in sorted(ENVIRONMENTS.glob("*/*.lock"))
    }


def lab_licence(name: str, version: str) -> str:
    """Return what a lab environment's package said of its licence: in this version, else in another one, which is named; or that nobody knows."""
    known, package = collected(), canonicalize_name(name)
    if exact := known.get(f"{package}=={version}"):
        return exact
    others = [key for key in known if key.partition("==")[0] == package and known[key]]
    return f"{known[others[-1]]} ({others[-1].partition('==')[2]})" if others else NOT_KNOWN


def collected() -> dict[str, str]:
    """What was read of licences, by `name==version`; empty for a package that says nothing."""
    return dict(json.loads(COLLECTED.read_bytes())) if COLLECTED.exists() else {}


def licence_of(name: str) -> str:
    """Return what an installed package says of its licence; empty when it says nothing."""
    return stated_in(metadata(name))


def stated_in(about: Message) -> str:
    """Return the licence in a package's metadata, in SPDX's words where they are known; empty when there is none."""
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


def _components(lock: str, licence_in: Callable[[str, str], str]) -> Iterator[Component]:
    for name, version, hashes in _PIN.findall(lock):
        found = re.findall(r"sha256:([0-9a-f]{64})", hashes)
        licence = licence_in(name, version)
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("pypi", None, canonicalize_name(name), version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in found],
            licenses=[DisjunctiveLicense(name=licence)] if licence not in ("", NOT_KNOWN) else [],
        )


def _licence_if_installed(name: str, _: str) -> str:
    try:
        return licence_of(name)
    except ModuleNotFoundError:  # for another platform, such as tzdata on Windows
        return ""


def _wanted() -> dict[str, set[str]]:
    """Every `name==version` that a lab environment locks, and in which locks."""
    found: dict[str, set[str]] = {}
    for lock, text in lab_locks().items():
        for name, version, _ in _PIN.findall(text):
            found.setdefault(f"{canonicalize_name(name)}=={version}", set()).add(lock)
    return found


def _read(folders: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in folder.rglob("*.dist-info/METADATA"):
            about = HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
            yield f"{canonicalize_name(str(about['Name']))}=={about['Version']}", stated_in(about)


def _labs_table() -> list[str]:
    rows = []
    for key, locks in sorted(_wanted().items()):
        name, _, version = key.partition("==")
        where = ", ".join(sorted(locks))
        rows.append(f"| {name} | {version} | {lab_licence(name, version)} | {where} |")
    return ["| package | version | licence | locked in |", "|---|---|---|---|", *rows]


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
