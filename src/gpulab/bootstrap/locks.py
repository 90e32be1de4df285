"""
Lock files and their compact form. Hides the file format; refuses a pin without an exact version and a hash.

A lock file is a requirements file with exact versions and the sha256 of every file that may be installed, headed by
comment lines `# key: value` (`locked-on`, `download-mib`). One lock serves every Python and platform it was made for.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from gpulab.errors import WrongUsage

_PIN = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][0-9A-Za-z.!+]*)(?P<hashes>(?:\s+--hash=sha256:[0-9a-f]{64})+)"
)
_HEADER = re.compile(r"#\s*(?P<key>[a-z-]+):\s*(?P<value>.+)")
PREFIX_LENGTH = 4
_AGAIN = "Make the lock again with `gpulab env lock`"


@dataclass(frozen=True, order=True)
class Pin:
    """
    One package, exactly.

    Attributes:
        name: Normalised, lower case with dashes.
        hashes: sha256 of the files that may be installed, sorted; never empty; one for each platform and Python at most.
    """

    name: str
    version: str
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Lock:
    """
    Everything that is installed, exactly.

    Attributes:
        pins: Sorted by name; unique names.
        locked_on: When the versions were chosen; `None` if the file does not say.
        download_mib: What an instance downloads, MiB; `None` if the file does not say.
        python: Which Pythons it is for, as uv reads it: `>=3.11,<3.13`; empty if the file does not say.
        build: Names of packages that were only published as source, and run their own code to be installed.
    """

    pins: tuple[Pin, ...]
    locked_on: date | None = None
    download_mib: int | None = None
    build: tuple[str, ...] = ()
    python: str = ""

    @property
    def sha256(self) -> str:
        """The digest of all names, versions and full hashes; what an instance compares before it installs."""
        return digest(self.pins)

    def compact(self) -> dict[str, Any]:
        """
        Give the form that fits into user data: hash prefixes, and one digest over the full hashes.

        Returns:
            `{"python": ">=3.11,<3.13", "pins": "name==1.2 abcd;other==3 1234 5678", "sha256": "..."}`, and
            `"build": "name other"` where packages come as source.
        """
        named = self.named()
        sha256 = named.pop("sha256")
        return {
            **named,
            "pins": ";".join(
                f"{pin.name}=={pin.version} " + " ".join(h[:PREFIX_LENGTH] for h in pin.hashes)
                for pin in self.pins
            ),
            "sha256": sha256,
        }

    def named(self) -> dict[str, Any]:
        """Give what a lock is known by on an instance that has its pins from elsewhere: the compact form without them."""
        more = {"python": self.python, "build": " ".join(self.build)}
        return {**{key: value for key, value in more.items() if value}, "sha256": self.sha256}

    def requirements(self) -> str:
        """Write the lock as a requirements file for `--require-hashes`."""
        return "".join(
            f"{pin.name}=={pin.version}"
            + "".join(f" \\\n    --hash=sha256:{h}" for h in pin.hashes)
            + "\n"
            for pin in self.pins
        )


def digest(pins: Iterable[Pin]) -> str:
    """
    Hash names, versions and full hashes.

    Returns:
        sha256 in hex over the lines `name==version sha256:FULL`, sorted, joined by newlines.
    """
    lines = sorted(f"{pin.name}=={pin.version} sha256:{h}" for pin in pins for h in pin.hashes)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parse_lock(text: str, *, source: str = "the lock") -> Lock:
    """
    Read a lock file.

    Args:
        source: What to call it in an error; a path.

    Raises:
        WrongUsage: A line is neither an exact pin with hashes nor a comment, a package appears twice, or the header is not right.
    """
    pins = [_pin(line, source=source) for line in _logical_lines(text)]
    name, times = next(iter(Counter(pin.name for pin in pins).most_common(1)), ("", 0))
    if times > 1:
        raise WrongUsage(f"{source} pins {name} twice", hint=_AGAIN)
    header = _header(text)
    try:
        locked_on = date.fromisoformat(header["locked-on"]) if "locked-on" in header else None
        download_mib = int(header["download-mib"]) if "download-mib" in header else None
    except ValueError as error:
        raise WrongUsage(
            f"{source} has a header that is not right: {error}", hint=_AGAIN
        ) from error
    return Lock(
        pins=tuple(sorted(pins)),
        locked_on=locked_on,
        download_mib=download_mib,
        build=tuple(header.get("build", "").split()),
        python=header.get("python", ""),
    )


def _header(text: str) -> dict[str, str]:
    matches = (
        _HEADER.fullmatch(line.strip()) for line in text.splitlines() if line.startswith("#")
    )
    return {m["key"]: m["value"] for m in matches if m}


def _logical_lines(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    lines = (line.split(" #")[0].strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _pin(line: str, *, source: str) -> Pin:
    match = _PIN.fullmatch(line)
    if match is None:
        raise WrongUsage(
            f"{source} has a line that is not an exact, hashed pin: {line[:60]!r}",
            hint=_AGAIN,
        )
    hashes = re.findall(r"sha256:([0-9a-f]{64})", match["hashes"])
    return Pin(match["name"], match["version"], tuple(sorted(set(hashes))))
