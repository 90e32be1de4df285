"""
Host keys: read from an instance's console output, pinned in gpulab's own known-hosts file, compared.
Refuses to pin a second key for a name, and knows no trust on first use.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import HostKeyMismatch, StoreError, WrongUsage, disk_hint

KEY_TYPE = "ssh-ed25519"

# What may stand before a line on a console: the kernel's time and the program's name.
_PREFIX = r"(?:\[ *\d+\.\d+\] +)?(?:cloud-init\[\d+\]: +)?"
_BEGIN = re.compile(_PREFIX + r"-----BEGIN SSH HOST KEY KEYS-----\s*")
_END = re.compile(_PREFIX + r"-----END SSH HOST KEY KEYS-----\s*")
_IN_BLOCK = re.compile(_PREFIX + r"ssh-ed25519 (?P<key>[A-Za-z0-9+/=]+)(?: .*)?")
_EARLY = re.compile(_PREFIX + r"gpulab-hostkey ssh-ed25519 (?P<key>[A-Za-z0-9+/=]+)(?: .*)?")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")


@dataclass(frozen=True)
class HostKey:
    """
    One ed25519 host key.

    Attributes:
        public: The 32 bytes of the public key.
    """

    public: bytes

    @property
    def base64(self) -> str:
        """The key as known-hosts files write it."""
        return base64.b64encode(_blob(self.public)).decode("ascii")

    @property
    def fingerprint(self) -> str:
        """The key as OpenSSH prints it: `SHA256:` and 43 characters."""
        digest = hashlib.sha256(_blob(self.public)).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def parse_console(text: str) -> tuple[HostKey, ...]:
    """
    Find the ed25519 host key in console output.

    Only two forms count: lines between cloud-init's `BEGIN` and `END SSH HOST KEY KEYS`, and the early lines
    `gpulab-hostkey ssh-ed25519 ...`. A line cut off or mixed with another is left out; ask for the console again.

    Returns:
        One key, or nothing yet.

    Raises:
        HostKeyMismatch: The console shows two different keys; nobody can say which is right.

    Source:
        cloud-init `tools/write-ssh-key-fingerprints`, module `keys_to_console`.
    """
    found = dict.fromkeys(key for key in _console_keys(text.splitlines()) if key is not None)
    if len(found) > 1:
        shown = " and ".join(key.fingerprint for key in found)
        raise HostKeyMismatch(
            f"the console output shows more than one host key: {shown}",
            hint="End the instance and launch a new one; do not connect to this one",
        )
    return tuple(found)


def parse_public_key(text: str) -> HostKey | None:
    """Read the base64 part of an ed25519 public key, strictly; `None` if it is anything else."""
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    public = blob[-32:]
    return HostKey(public) if blob == _blob(public) and len(public) == 32 else None


def pin(known_hosts: Path, alias: str, keys: Iterable[HostKey]) -> None:
    """
    Remember the key of one instance. Pinning the same key again changes nothing.

    Args:
        known_hosts: Made with mode 0600 when absent, replaced in one step.
        alias: The instance id.
        keys: At least one.

    Raises:
        HostKeyMismatch: Another key is pinned under this name; the message shows both fingerprints.
        WrongUsage: The alias or the keys are not usable.
        StoreError: The file cannot be read or written.
    """
    new = tuple(dict.fromkeys(keys))
    if not new or not _ALIAS.fullmatch(alias):
        raise WrongUsage(f"there is no host key to pin for {alias!r}")
    with _exclusive(known_hosts):
        lines = _lines(known_hosts)
        old = _keys_of(lines, alias)
        if old and set(old) != set(new):
            raise mismatch(alias, pinned=old, seen=new[0].fingerprint)
        if not old:
            _replace(known_hosts, [*lines, *(f"{alias} {KEY_TYPE} {key.base64}" for key in new)])


def pinned(known_hosts: Path, alias: str) -> tuple[HostKey, ...]:
    """
    Read what is pinned for one instance; empty when nothing is.

    Raises:
        StoreError: The file cannot be read.
    """
    return _keys_of(_lines(known_hosts), alias)


def forget(known_hosts: Path, alias: str) -> None:
    """
    Remove what is pinned for an instance that has ended. Does nothing when nothing is pinned.

    Raises:
        StoreError: The file cannot be read or written.
    """
    with _exclusive(known_hosts):
        lines = _lines(known_hosts)
        kept = [line for line in lines if line.split(" ", 1)[0] != alias]
        if kept != lines:
            _replace(known_hosts, kept)


def mismatch(alias: str, *, pinned: Iterable[HostKey], seen: str) -> HostKeyMismatch:
    """Say that a machine showed another key than the pinned one; `seen` is a fingerprint, or empty."""
    expected = ", ".join(key.fingerprint for key in pinned) or "nothing"
    return HostKeyMismatch(
        f"the machine at {alias}'s address is not {alias}: pinned is {expected}, it shows {seen or 'another key'}",
        hint="Do not go on from this network; compare the fingerprint with the instance's console output",
    )


def _console_keys(lines: Iterable[str]) -> Iterator[HostKey | None]:
    block: list[str] | None = None
    for line in lines:
        if early := _EARLY.fullmatch(line):
            yield parse_public_key(early["key"])
        elif _BEGIN.fullmatch(line):
            block = []
        elif _END.fullmatch(line):
            yield from map(parse_public_key, block or ())
            block = None
        elif block is not None and (inside := _IN_BLOCK.fullmatch(line)):
            block.append(inside["key"])


def _blob(public: bytes) -> bytes:
    name = KEY_TYPE.encode("ascii")
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(public)) + public


def _keys_of(lines: Iterable[str], alias: str) -> tuple[HostKey, ...]:
    words = (line.split() for line in lines)
    found = (parse_public_key(w[2]) for w in words if len(w) >= 3 and w[:2] == [alias, KEY_TYPE])
    return tuple(key for key in found if key is not None)


def _lines(known_hosts: Path) -> list[str]:
    try:
        # In any encoding: what is not ours, such as a comment, is written back as it was.
        text = known_hosts.read_text(encoding="utf-8", errors="surrogateescape")
        return [line for line in text.split("\n") if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _refused("read", known_hosts, error) from error


def _replace(known_hosts: Path, lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    try:
        # mkstemp makes the file with mode 0600.
        handle, name = tempfile.mkstemp(dir=known_hosts.parent, prefix=".known_hosts-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(known_hosts)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _refused("write", known_hosts, error) from error


@contextlib.contextmanager
def _exclusive(known_hosts: Path) -> Iterator[None]:
    """Hold a lock beside the file: a fleet pins many keys at once, and each pin rewrites the file."""
    try:
        known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            known_hosts.with_name(known_hosts.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600
        )
    except OSError as error:
        raise _refused("write", known_hosts, error) from error
    try:
        _lock(lock)
        yield
    finally:
        os.close(lock)


def _lock(handle: int) -> None:
    # Closing the handle releases either lock.
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def _refused(verb: str, known_hosts: Path, error: OSError) -> StoreError:
    return StoreError(
        f"could not {verb} {known_hosts} ({error.strerror})",
        hint=disk_hint(error),
    )
