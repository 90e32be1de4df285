"""
Lists of files with their hashes, of a folder here or on the instance, and how they differ. Believes nothing that an
instance says before it was checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from gpulab.errors import CommandFailed, StoreError, disk_hint
from gpulab.remote import archive, instance_side
from gpulab.remote.host import Host

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_LISTING = 256 << 20


@dataclass(frozen=True)
class Skipped:
    """Something in a folder that is not copied, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """
    What a folder holds.

    Attributes:
        exists: Whether the folder is there at all.
        entries: By path, relative with `/`; sorted by path.
        skipped: Links, devices, unreadable files, and names that cannot be copied everywhere.
        has_rsync: Whether rsync is installed where the folder is; only known of an instance.
    """

    exists: bool
    entries: Mapping[str, instance_side.Entry]
    skipped: tuple[Skipped, ...] = ()
    has_rsync: bool = False

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(entry["size"] for entry in self.entries.values())

    @property
    def sha256(self) -> str:
        """One hash over every path and its hash; equal folders have equal hashes."""
        return digest({path: entry["sha256"] for path, entry in self.entries.items()})


def digest(hashes: Mapping[str, str]) -> str:
    """Hash the lines `sha256  path`, sorted by path: what `sha256sum` would print."""
    lines = (f"{hashes[path]}  {path}\n" for path in sorted(hashes))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def differing(source: Manifest, copy: Manifest) -> tuple[str, ...]:
    """Find the paths of a source that its copy lacks or has with other contents; sorted."""
    return tuple(
        path
        for path, entry in source.entries.items()
        if path not in copy.entries or copy.entries[path]["sha256"] != entry["sha256"]
    )


def read_local(folder: Path, *, only: Sequence[str] = (), exclude: Iterable[str] = ()) -> Manifest:
    """
    List a folder on this computer.

    Args:
        only: Files or folders below it; empty for all.
        exclude: Names left out at any depth.

    Raises:
        StoreError: The folder cannot be read.
    """
    if not folder.is_dir():
        return Manifest(exists=False, entries={})
    try:
        return _manifest(instance_side.scan(folder, exclude, only), only)
    except OSError as error:
        raise StoreError(
            f"could not read {folder} ({error.strerror})", hint=disk_hint(error)
        ) from error


def read_remote(
    host: Host, folder: str, *, only: Sequence[str] = (), exclude: Iterable[str] = ()
) -> Manifest:
    """
    List a folder on the instance, in one call.

    Args:
        folder: Absolute, or relative to the login user's home; `~/` may begin it.

    Raises:
        RemoteError: See `Host.run`; `CommandFailed` also when the answer is not a listing.
    """
    options = json.dumps({"exclude": list(exclude), "only": list(only)}).encode()
    answer = host.run(
        program("list", folder), given=options + b"\n", timeout_s=None, max_bytes=_LARGEST_LISTING
    )
    try:
        said = enumerate(answer.stdout.splitlines(), 1)
        header, *entries, end = [_on_line(number, json.loads, line) for number, line in said]
        if end != {"end": len(entries)}:
            raise ValueError("the listing ended early")
        exists, has_rsync = _on_line(1, _flags, header)
        checked = [_on_line(number, _checked, entry) for number, entry in enumerate(entries, 2)]
    except _UNREADABLE as error:
        raise CommandFailed(f"the instance sent no usable listing of {folder} ({error})") from error
    found = _manifest(checked, only)
    return Manifest(exists, found.entries, found.skipped, has_rsync)


def safe(source: Manifest) -> Manifest:
    """Leave out, with the reason, what could not be written on every system."""
    reasons = {path: reason for path in source.entries if (reason := archive.unsafe_name(path))}
    kept = {path: entry for path, entry in source.entries.items() if path not in reasons}
    for path, earlier in archive.collisions(tuple(kept)):
        if earlier:
            reasons[path] = f"the same file as {earlier!a} on some systems"
            del kept[path]
    skipped = tuple(Skipped(path, reason) for path, reason in reasons.items())
    return Manifest(source.exists, kept, (*source.skipped, *skipped), source.has_rsync)


def program(command: str, folder: str) -> list[str]:
    """Say how to run the instance's side of a copy: `python3` with the program in its arguments."""
    # -I: a `json.py` in the user's home must not take the place of the library's.
    return ["python3", "-I", "-c", _program(), command, folder]


@cache
def _program() -> str:
    source = resources.files("gpulab.remote").joinpath("instance_side.py").read_bytes()
    packed = base64.b64encode(zlib.compress(source, 9)).decode("ascii")
    return f"import zlib,base64;exec(zlib.decompress(base64.b64decode('{packed}')))"


def _manifest(found: Iterable[instance_side.Entry], only: Sequence[str]) -> Manifest:
    names = frozenset(name.rstrip("/") for name in only)
    chosen = [e for e in found if not names or instance_side.is_below(e["path"], names)]
    entries = {
        e["path"]: e for e in sorted(chosen, key=lambda e: str(e["path"])) if "skipped" not in e
    }
    skipped = tuple(Skipped(e["path"], e["skipped"]) for e in chosen if "skipped" in e)
    return Manifest(exists=True, entries=entries, skipped=skipped)


_UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


def _on_line(number: int, read: Callable[[Any], Any], given: Any) -> Any:
    try:
        return read(given)
    except _UNREADABLE as error:
        raise ValueError(f"line {number:,}: {error}") from error


def _flags(header: Any) -> tuple[bool, bool]:
    return bool(header["exists"]), bool(header["rsync"])


def _checked(entry: Any) -> instance_side.Entry:
    """Return an entry from an instance with the types it must have."""
    if not isinstance(entry["path"], str):
        raise TypeError("a path that is not text")
    if "skipped" in entry:
        return {"path": entry["path"], "skipped": str(entry["skipped"])[:200]}
    size, mtime_ns = entry["size"], entry["mtime_ns"]
    if type(size) is not int or type(mtime_ns) is not int or size < 0:
        raise TypeError("a size that is not a number")
    if not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError("a hash that is none")
    return {
        "path": entry["path"],
        "size": size,
        # Not every file system takes a time before 1970 or past 2106.
        "mtime_ns": min(max(mtime_ns, 0), 0xFFFFFFFF * 10**9),
        "sha256": entry["sha256"],
        "executable": entry["executable"] is True,
    }
