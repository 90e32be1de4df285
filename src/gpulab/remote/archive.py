"""
Archives from an instance, unpacked as if their maker were hostile. Hides tar; refuses links, devices, and every name
that means something else on another system. The rules are functions of names and numbers.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, TypeVar

from gpulab.errors import StoreError, Unreachable, UnsafeArchive, disk_hint
from gpulab.remote import instance_side

_T = TypeVar("_T")
_CHUNK = 1 << 20
# Long names and times travel in headers of their own, which tarfile reads into memory as a whole.
_LARGEST_HEADER = 64 << 10
_LONGEST_NAME = 255
_LONGEST_PATH = 4096
_DEEPEST = 64

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE
)
_NOT_ON_WINDOWS = frozenset('<>"|?*')


@dataclass(frozen=True)
class Limits:
    """
    How much an archive may hold.

    Attributes:
        files: Number of members, folders included.
        bytes: Of all files together.
    """

    files: int = 200_000
    bytes: int = 200 << 30


@dataclass(frozen=True)
class Unpacked:
    """One file that was written, with the hash of what was written."""

    path: str
    size: int
    sha256: str


def unsafe_name(name: str, *, windows: bool = os.name == "nt") -> str:
    """
    Say why a path from an archive may not be written; empty when it may.

    Args:
        name: Relative, with `/` between folders.
        windows: Whether characters that only Windows forbids count too.
    """
    parts = name.split("/")
    if name.startswith("/"):
        return "an absolute path"
    if len(os.fsencode(_encodable(name))) > _LONGEST_PATH or len(parts) > _DEEPEST:
        return "a path that is too long"
    return next(filter(None, (_unsafe_part(part, windows=windows) for part in parts)), "")


def collisions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """
    Yield each path with the earlier one that it is the same as on some systems, `""` where there is none.

    One that is the same as an earlier one is left out of what later ones are compared with.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        above = {_same(spelt): spelt for spelt in _folders_of(name)}
        earlier = _earlier(name, above, files, folders)
        if not earlier:
            files[_same(name)] = name
            folders |= above
        yield name, earlier


def _folders_of(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _earlier(
    name: str, above: Mapping[str, str], files: Mapping[str, str], folders: Mapping[str, str]
) -> str:
    key = _same(name)
    if key in files or key in folders:
        return files.get(key) or folders[key]
    for folder, spelt in above.items():
        if folder in files or folders.get(folder, spelt) != spelt:
            return files.get(folder) or folders[folder]
    return ""


def refuse_member(member: tarfile.TarInfo, *, windows: bool = os.name == "nt") -> None:
    """
    Refuse a member that is not a plainly named regular file or folder.

    Raises:
        UnsafeArchive: The message names the member and the reason.
    """
    kinds = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
    if member.type not in kinds or getattr(member, "sparse", None) is not None:
        raise unsafe(member.name, "a link, a device or a sparse file")
    name = member.name.removesuffix("/") if member.isdir() else member.name
    if reason := unsafe_name(name, windows=windows):
        raise unsafe(member.name, reason)


def unsafe(name: str, reason: str) -> UnsafeArchive:
    """Say which member is refused and why."""
    return UnsafeArchive(
        f"the instance sent {name!a}, {reason}; nothing was unpacked",
        hint="Rename or remove it on the instance, then copy again",
    )


def unpack(
    stream: IO[bytes],
    folder: Path,
    *,
    wanted: Mapping[str, instance_side.Entry] | None = None,
    limits: Limits = Limits(),
    on_file: Callable[[str, int], None] = lambda path, size: None,
) -> tuple[Unpacked, ...]:
    """
    Unpack a tar stream into a new, empty folder of ours.

    Args:
        folder: Exists, is empty, and nobody else writes there.
        wanted: The only files that may come, with their sizes and times; `None` for any.
        on_file: Told each path and size after it was written.

    Returns:
        The files in the order they came.

    Raises:
        UnsafeArchive: A member is refused; the caller throws the folder away.
        Unreachable: The stream ended early.
        StoreError: This computer's disk is full or not writable.
    """
    unpacking = _Unpacking(folder, wanted, limits, on_file)
    try:
        with tarfile.open(
            fileobj=stream, mode="r|", bufsize=_CHUNK, tarinfo=_CarefulTarInfo
        ) as archive:
            for member in archive:
                unpacking.take(archive, member)
    except (tarfile.TarError, EOFError) as error:
        raise unpacking.ended_early(error) from error
    return tuple(unpacking.files.values())


def extract(
    stream: IO[bytes], destination: Path, *, limits: Limits = Limits()
) -> tuple[Unpacked, ...]:
    """
    Unpack a tar stream to a folder that does not exist yet: all of it, or nothing.

    Raises:
        UnsafeArchive, Unreachable, StoreError: See `unpack`; nothing is left behind.
    """
    try:
        stage = instance_side.make_stage(destination, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"could not write {destination} ({error.strerror})", hint=disk_hint(error)
        ) from error
    try:
        files = unpack(stream, stage, limits=limits)
        stage.rename(destination)
    except OSError as error:
        raise StoreError(
            f"could not write {destination} ({error.strerror})", hint=disk_hint(error)
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return files


# A few kilobytes of either unpack to gigabytes; gpulab's own archives are never packed.
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip"}


def _packed(kind: str) -> UnsafeArchive:
    return UnsafeArchive(
        f"the instance sent a {kind} file where a member of its archive was to begin; nothing was unpacked",
        hint="Something on the instance answers in its `python3`'s place; a fresh instance has its own",
    )


class _CarefulTarInfo(tarfile.TarInfo):
    """Refuses what tarfile forgives: a damaged or missing header taken for the end, a header of gigabytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros is the end of an archive
            packed = next((name for magic, name in _PACKED.items() if buf.startswith(magic)), "")
            if packed:
                raise _packed(packed) from error
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) and self.size > _LARGEST_HEADER:
            raise unsafe(self.name, f"a header of {self.size} bytes")
        try:
            return super()._proc_member(archive)  # type: ignore[misc,no-any-return]
        except (ValueError, LookupError, ArithmeticError) as error:
            raise tarfile.ReadError(f"{self.name!a}: {error}") from error


class _Unpacking:
    """One archive on its way to a folder: counts, compares, writes."""

    def __init__(
        self,
        folder: Path,
        wanted: Mapping[str, instance_side.Entry] | None,
        limits: Limits,
        on_file: Callable[[str, int], None],
    ) -> None:
        self.files: dict[str, Unpacked] = {}
        self._folder = folder
        self._wanted = wanted
        self._limits = limits
        self._on_file = on_file
        self._members = 0
        self._last = ""
        self._bytes = 0
        self._seen: dict[str, str] = {}

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        refuse_member(member)
        self._count(member)
        self._refuse_collision(member)
        if self._wanted is not None and member.isdir():
            raise unsafe(member.name, "a folder that was not asked for")
        if self._wanted is not None and member.name not in self._wanted:
            raise unsafe(member.name, "a file that was not asked for")
        if member.isdir():
            self._on_disk(lambda: (self._folder / member.name).mkdir(parents=True, exist_ok=True))
            return
        source = archive.extractfile(member)
        assert source is not None
        self.files[member.name] = self._on_disk(lambda: self._write(source, member))
        self._on_file(member.name, member.size)

    def ended_early(self, error: Exception) -> Unreachable:
        """Say where the stream ended: behind which member."""
        where = f"behind {self._last!a}" if self._members else "before its first member"
        return Unreachable(f"the archive from the instance ended early, {where} ({error})")

    def _count(self, member: tarfile.TarInfo) -> None:
        self._members += 1
        self._last = member.name
        self._bytes += member.size
        if self._members > self._limits.files:
            raise unsafe(member.name, f"more than {self._limits.files} members")
        if self._bytes > self._limits.bytes:
            raise unsafe(member.name, f"more than {self._limits.bytes} bytes in all")

    def _refuse_collision(self, member: tarfile.TarInfo) -> None:
        """Refuse a path that is, somewhere, the same as an earlier one; folders may repeat in one spelling."""
        parts = member.name.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            spelt = "/".join(parts[:depth])
            is_file = depth == len(parts) and not member.isdir()
            mark = spelt + ("" if is_file else "/")
            earlier = self._seen.setdefault(_same(spelt), mark)
            if earlier != mark or (is_file and spelt in self.files):
                raise unsafe(member.name, f"the same file as {earlier!a} on some systems")

    def _write(self, source: IO[bytes], member: tarfile.TarInfo) -> Unpacked:
        target = self._folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with target.open("xb") as file:
            while chunk := self._from_instance(source):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
            instance_side.finish(file, self._attributes(member))
        return Unpacked(member.name, size, digest.hexdigest())

    def _from_instance(self, source: IO[bytes]) -> bytes:
        try:
            return source.read(_CHUNK)
        except OSError as error:
            raise self.ended_early(error) from error

    def _attributes(self, member: tarfile.TarInfo) -> instance_side.Entry:
        if self._wanted is not None:
            return self._wanted[member.name]
        # Times before 1970 and past 2106 are not accepted by every file system; a pax header may even say `nan`.
        is_usual = 0 <= member.mtime <= 0xFFFFFFFF
        seconds = int(member.mtime) if is_usual else 0
        return {"mtime_ns": seconds * 10**9, "executable": bool(member.mode & 0o100)}

    def _on_disk(self, write: Callable[[], _T]) -> _T:
        try:
            return write()
        except FileExistsError as error:
            raise unsafe(str(error.filename), "the same file as another member") from error
        except OSError as error:
            raise StoreError(
                f"could not write {self._folder} ({error.strerror})", hint=disk_hint(error)
            ) from error


def _unsafe_part(part: str, *, windows: bool) -> str:
    if part in ("", ".", ".."):
        return "a path with an empty part, `.` or `..`"
    if len(os.fsencode(_encodable(part))) > _LONGEST_NAME:
        return f"a name of more than {_LONGEST_NAME} bytes"
    if "\\" in part or ":" in part:
        return "a name with `\\` or `:`"
    if _encodable(part) != part or any(unicodedata.category(c) == "Cc" for c in part):
        return "a name with control or undecodable characters"
    if _RESERVED.fullmatch(part.rstrip(". ")) or part.endswith((".", " ")):
        return "a name that Windows reserves"
    if windows and _NOT_ON_WINDOWS & set(part):
        return "a name that Windows does not take"
    return ""


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
