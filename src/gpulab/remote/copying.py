"""
Copying work to and from an instance: a streamed tar, rsync for what has changed, every file compared by its hash.
Hides the two ways; an interrupted copy leaves what was there before. It never deletes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpulab.errors import CommandFailed, StoreError, Unreachable, WrongUsage, disk_hint
from gpulab.remote import archive, instance_side, leftovers, rsync
from gpulab.remote.host import Host
from gpulab.remote.manifest import (
    Manifest,
    Skipped,
    differing,
    digest,
    program,
    read_local,
    read_remote,
    safe,
)
from gpulab.remote.process import Ended, RemoteProcess, command_failed

# Files that change while they are copied are asked for again so often.
_ROUNDS = 3


@dataclass(frozen=True)
class Progress:
    """How far a copy is; `path` is the file just finished."""

    files: int
    total_files: int
    bytes: int
    total_bytes: int
    path: str


@dataclass(frozen=True)
class CopyReport:
    """
    What a copy did.

    Attributes:
        files: Transferred now; files equal on both sides are not.
        bytes: Size of the transferred files.
        unchanged: Files that were equal already.
        skipped: Links, devices, and names that cannot be copied, each with its reason.
        changing: Copied whole, but written to meanwhile; the copy is older than the original.
        verified_files: Files whose hash is equal on both sides: all but `changing`.
        verified_sha256: One hash over all verified paths and hashes, see `manifest.digest`.
        way: `tar`, `rsync`, or `none` when nothing was transferred.
    """

    files: int
    bytes: int
    unchanged: int
    skipped: tuple[Skipped, ...]
    changing: tuple[str, ...]
    verified_files: int
    verified_sha256: str
    way: str


@dataclass(frozen=True)
class Verification:
    """
    How a copy here compares with the folder on the instance.

    Attributes:
        files: Files on the instance.
        bytes: Their size.
        missing: Paths that are not here.
        different: Paths whose contents differ.
        skipped: What is on the instance and cannot be copied.
        sha256: One hash over all files on the instance.
    """

    files: int
    bytes: int
    missing: tuple[str, ...]
    different: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    sha256: str

    @property
    def is_complete(self) -> bool:
        """Whether every file of the instance that can be copied is here, equal by hash."""
        return not self.missing and not self.different


OnProgress = Callable[[Progress], None]


def push(
    host: Host,
    source: Path,
    destination: str,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_progress: OnProgress = lambda progress: None,
) -> CopyReport:
    """
    Copy a folder of this computer to the instance. Files that are only there stay.

    Args:
        destination: Folder on the instance: absolute, or relative to the user's home.
        only: Files or folders below `source`; empty for all.
        exclude: Names left out at any depth.

    Raises:
        WrongUsage: There is no such folder here.
        CommandFailed: The instance could not write, or a file kept changing; nothing was replaced there.
        RemoteError: As from `Host.run`; nothing was replaced there.
    """
    if not source.is_dir():
        raise WrongUsage(f"there is no folder {source} on this computer")
    there = read_remote(host, destination, exclude=exclude)
    for _ in range(_ROUNDS):
        here = read_local(source, only=only, exclude=exclude)
        todo = differing(here, there)
        try:
            way = _send(host, source, destination, there, _Tally(here, todo, on_progress))
        except _ChangedMeanwhile:
            continue
        return _pushed(here, read_remote(host, destination, exclude=exclude), todo, way)
    raise CommandFailed(
        f"files in {source} kept changing while they were copied; nothing was replaced on the instance",
        hint="Close what writes to them, then copy again",
    )


def pull(
    host: Host,
    source: str,
    destination: Path,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_progress: OnProgress = lambda progress: None,
) -> CopyReport:
    """
    Copy a folder of the instance to this computer. Files that are only here stay.

    Args:
        source: Folder on the instance: absolute, or relative to the user's home.
        only: Files or folders below `source`; empty for all.
        exclude: Names left out at any depth.

    Raises:
        UnsafeArchive: The instance sent something it was not asked for; nothing was written.
        StoreError: This computer's disk is full or not writable; nothing was replaced.
        RemoteError: As from `Host.run`; nothing was replaced.
    """
    there = safe(_existing(host, source, only, exclude))
    todo = differing(there, read_local(destination, only=only, exclude=exclude))
    tally = _Tally(there, todo, on_progress)
    with _stage(destination) as stage:
        fetching = _Fetching(host, source, destination, stage, there, tally)
        for _ in range(_ROUNDS):
            if fetching.pending:
                fetching.fetch()
            if fetching.pending:
                fetching.look_again(safe(_existing(host, source, only, exclude)))
        _place(stage, destination, fetching.received)
    return fetching.report()


def verify(host: Host, source: str, destination: Path) -> Verification:
    """
    Compare a copy here with the folder on the instance: both sides are read and hashed again.

    Raises:
        RemoteError: As from `Host.run`.
        StoreError: The copy cannot be read.
    """
    there = safe(_existing(host, source, (), ()))
    here = read_local(destination)
    todo = differing(there, here)
    return Verification(
        files=len(there.entries),
        bytes=there.bytes,
        missing=tuple(path for path in todo if path not in here.entries),
        different=tuple(path for path in todo if path in here.entries),
        skipped=there.skipped,
        sha256=there.sha256,
    )


class _ChangedMeanwhile(Exception):
    """A file was written to between its hash and its copy."""


class _Tally:
    """Counts what has been copied and tells the caller."""

    def __init__(self, source: Manifest, todo: Sequence[str], on_progress: OnProgress) -> None:
        self.source = source
        self.todo = tuple(todo)
        self._total_bytes = sum(source.entries[path]["size"] for path in todo)
        self._on_progress = on_progress
        self._files = 0
        self._bytes = 0

    def add(self, path: str, size: int) -> None:
        self._files += 1
        self._bytes += size
        self._on_progress(
            Progress(self._files, len(self.todo), self._bytes, self._total_bytes, path)
        )


def _send(host: Host, source: Path, destination: str, there: Manifest, tally: _Tally) -> str:
    if not tally.todo:
        return "none"
    if there.exists and rsync.is_usable(host, there):
        rsync.send(host, source, destination, tally.todo)
        return "rsync"
    command = program("unpack", destination)
    process = host.start(command)
    entries = [tally.source.entries[path] for path in tally.todo]
    with _killed_on_error(process):
        # A broken pipe means that the instance has stopped reading; why, its end says.
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(entries).encode() + b"\n")
            instance_side.pack(source, tally.todo, process.stdin, tally.add)
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.read()
        _raise_if_failed(host, command, process.wait())
    return "tar"


def _pushed(here: Manifest, there: Manifest, todo: Sequence[str], way: str) -> CopyReport:
    return _report(here, todo, changing=differing(here, there), way=way)


class _Fetching:
    """One pull: what is still to come, and what lies in the stage."""

    def __init__(
        self,
        host: Host,
        source: str,
        destination: Path,
        stage: Path,
        there: Manifest,
        tally: _Tally,
    ) -> None:
        self.pending = tally.todo
        self.received: dict[str, str] = {}
        self._host = host
        self._source = source
        self._destination = destination
        self._stage = stage
        self._there = there
        self._tally = tally
        self._way = "none"

    def fetch(self) -> None:
        """Copy what is pending into the stage, and keep pending what is not what was listed."""
        for path in self.pending:
            (self._stage / path).unlink(missing_ok=True)
        self.received.update(self._by_rsync() if self._rsync_is_usable() else self._by_tar())
        self._settle()

    def look_again(self, there: Manifest) -> None:
        """Take a new listing for what is pending: it was written to, or removed, meanwhile."""
        known = {
            path: there.entries[path] if path in self.pending else entry
            for path, entry in self._there.entries.items()
            if path not in self.pending or path in there.entries
        }
        self._there = replace(self._there, entries=known)
        self.pending = tuple(path for path in self.pending if path in known)
        self._settle()

    def report(self) -> CopyReport:
        """Say what this pull did."""
        return _report(self._there, tuple(self.received), changing=self.pending, way=self._way)

    def _settle(self) -> None:
        entries = self._there.entries
        self.pending = tuple(
            p for p in self.pending if self.received.get(p) != entries[p]["sha256"]
        )

    def _rsync_is_usable(self) -> bool:
        return self._destination.is_dir() and rsync.is_usable(self._host, self._there)

    def _by_rsync(self) -> dict[str, str]:
        self._way = "rsync"
        rsync.fetch(self._host, self._source, self._stage, self.pending, basis=self._destination)
        found = read_local(self._stage).entries
        for path in self.pending:
            if path in found:
                self._tally.add(path, found[path]["size"])
        return {path: found[path]["sha256"] for path in self.pending if path in found}

    def _by_tar(self) -> dict[str, str]:
        self._way = "tar"
        command = program("pack", self._source)
        process = self._host.start(command)
        with _killed_on_error(process):
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(self.pending).encode() + b"\n")
                process.stdin.close()
            try:
                files = self._unpack(process)
            except Unreachable:
                process.stdout.close()
                _raise_if_failed(self._host, command, process.wait())
                raise
            _raise_if_failed(self._host, command, process.wait())
        return {file.path: file.sha256 for file in files}

    def _unpack(self, process: RemoteProcess) -> tuple[archive.Unpacked, ...]:
        wanted = {path: self._there.entries[path] for path in self.pending}
        files = archive.unpack(process.stdout, self._stage, wanted=wanted, on_file=self._tally.add)
        while process.stdout.read(1 << 16):
            pass
        return files


def _existing(host: Host, source: str, only: Sequence[str], exclude: Sequence[str]) -> Manifest:
    found = read_remote(host, source, only=only, exclude=exclude)
    if not found.exists:
        raise CommandFailed(f"there is no folder {source} on {host.target.instance_id}")
    return found


def _report(
    source: Manifest, copied: Sequence[str], changing: Sequence[str], way: str
) -> CopyReport:
    entries = source.entries
    verified = {p: entry["sha256"] for p, entry in entries.items() if p not in set(changing)}
    return CopyReport(
        files=len(copied),
        bytes=sum(entries[path]["size"] for path in copied if path in entries),
        unchanged=len(entries) - len([path for path in copied if path in entries]),
        skipped=source.skipped,
        changing=tuple(changing),
        verified_files=len(verified),
        verified_sha256=digest(verified),
        way=way,
    )


@contextlib.contextmanager
def _stage(destination: Path) -> Iterator[Path]:
    if destination.exists() and not destination.is_dir():
        raise StoreError(f"{destination} is a file, not a folder")
    leftovers.clear(destination.parent)
    try:
        stage = instance_side.make_stage(destination, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"could not write {destination} ({error.strerror})", hint=disk_hint(error)
        ) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _place(stage: Path, destination: Path, paths: Collection[str]) -> None:
    try:
        # While it is in the stage: the folder that it goes to may be open to everybody on this computer.
        for path in paths:
            file = stage / path
            file.chmod(file.stat().st_mode & 0o700 | 0o600)
        for folder, _, _ in os.walk(stage):
            Path(folder).chmod(0o700)
        instance_side.commit(stage, destination, paths, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"could not write {error.filename or destination} ({error.strerror})"
        ) from error


@contextlib.contextmanager
def _killed_on_error(process: RemoteProcess) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        raise


def _raise_if_failed(host: Host, command: Sequence[str], ended: Ended) -> None:
    host.raise_if_ssh_failed(ended)
    if ended.exit_code == instance_side.CHANGED:
        raise _ChangedMeanwhile
    if ended.exit_code != 0:
        raise command_failed(command, ended.exit_code, ended.stderr)
