"""
What runs on the instance while work is copied: lists a folder with hashes, packs files, unpacks files. One program of
the standard library (Python 3.9), sent along with the command, see `copying`; this side uses its functions too.
It never follows a link, and an unfinished copy changes nothing.

    python3 -c PROGRAM list DIR       stdin: options as one JSON line; stdout: one JSON line a file
    python3 -c PROGRAM glance DIR     stdin: options as one JSON line; stdout: every size and time as one JSON line
    python3 -c PROGRAM pack DIR       stdin: the paths as one JSON line; stdout: a tar archive
    python3 -c PROGRAM unpack DIR     stdin: the entries as one JSON line, then a tar archive
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

# A file: {"path", "size", "mtime_ns", "sha256", "executable"}; what cannot be copied: {"path", "skipped"}.
Entry = dict[str, Any]

# Exit status when a file was written to between its hash and its copy (EX_TEMPFAIL of sysexits.h).
CHANGED = 75

STAGE_PREFIX = ".gpulab-copy-"
_CHUNK = 1 << 20


def scan(root: Path, exclude: Iterable[str] = (), only: Iterable[str] = ()) -> Iterator[Entry]:
    """
    List every file below a folder, sorted by path, with its sha256; links and devices as skipped.

    Args:
        exclude: Names (of files or folders, at any depth) to leave out without a word.
        only: Files or folders below it; empty for all. What is not among them is not read.

    Raises:
        OSError: The folder itself cannot be listed. A file that vanishes meanwhile is left out.
    """
    wanted = frozenset(name.rstrip("/") for name in only)
    for path in _walk(root, "", frozenset(exclude)):
        if wanted and not is_below(path, wanted):
            continue
        entry = _entry(root, path)
        if entry is not None:
            yield entry


def is_below(path: str, names: frozenset[str]) -> bool:
    """Whether a path, or a folder it lies in, is one of some names."""
    parts = path.split("/")
    return any("/".join(parts[:n]) in names for n in range(1, len(parts) + 1))


def glance(
    root: Path, exclude: Iterable[str] = ()
) -> tuple[list[tuple[str, int, int]], list[tuple[str, str]]]:
    """
    Look at everything below a folder without reading any of it, sorted by path.

    Returns:
        Path, size and time of every regular file; path and reason of what is none.
    """
    files, others = [], []
    for path in _walk(root, "", frozenset(exclude)):
        try:
            known = (root / path).lstat()
        except OSError:
            continue
        if stat.S_ISREG(known.st_mode):
            files.append((path, known.st_size, known.st_mtime_ns))
        else:
            others.append((path, _no_file(known.st_mode)))
    return files, others


def pack(
    root: Path,
    paths: Iterable[str],
    stream: IO[bytes],
    on_file: Callable[[str, int], None] = lambda path, size: None,
) -> None:
    """
    Write files as a tar archive. One that has vanished is left out; one cut short is padded and fails its hash.

    Args:
        on_file: Told each path and size after it was written.
    """
    with tarfile.open(
        fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK
    ) as archive:
        for path in paths:
            try:
                file = _open(root / path)
            except OSError:
                continue
            with file:
                member = _member(path, os.fstat(file.fileno()))
                archive.addfile(member, _Exactly(file, member.size))  # type: ignore[arg-type]
            on_file(path, member.size)


def commit(stage: Path, destination: Path, paths: Iterable[str], *, mode: int = 0o755) -> None:
    """
    Move staged files to their place: the whole folder in one step where there was none, else file by file.

    Args:
        mode: Of the folders that are made for them, less what the umask takes.

    Raises:
        OSError: A folder stands where a file should be, or the other way round, or a link is in the way;
            nothing was moved.
    """
    if not os.path.lexists(destination):
        stage.rename(destination)
        return
    names = list(paths)
    for path in names:
        _check_way(destination, path)
    for path in names:
        target = destination / path
        _make_folder(target.parent, mode)
        (stage / path).replace(target)
    shutil.rmtree(stage, ignore_errors=True)


def finish(file: IO[bytes], entry: Entry) -> None:
    """Give a written file its time and its executable bit."""
    file.flush()
    os.utime(file.name, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    Path(file.name).chmod(0o755 if entry["executable"] else 0o644)


def make_stage(destination: Path, *, mode: int = 0o755) -> Path:
    """
    Make an empty folder beside the destination, on the same disk; with this mode it becomes the folder where there was none.

    Its name tells whose it is: a process that is killed leaves it, see `leftovers`.
    """
    _make_folder(destination.parent, mode)
    stage = Path(tempfile.mkdtemp(prefix=f"{STAGE_PREFIX}{os.getpid()}-", dir=destination.parent))
    stage.chmod(mode)
    return stage


def _make_folder(folder: Path, mode: int) -> None:
    """Make a folder and those above it that are missing; `parents=True` gives those the mode that the umask leaves."""
    if not folder.is_dir():
        _make_folder(folder.parent, mode)
        folder.mkdir(mode, exist_ok=True)


def _walk(root: Path, folder: str, excluded: frozenset[str]) -> Iterator[str]:
    try:
        names = sorted(os.listdir(root / folder))  # noqa: PTH208 (names, not paths)
    except OSError:
        if not folder:
            raise
        yield folder[:-1]
        return
    for name in names:
        if name in excluded or name.startswith(STAGE_PREFIX):
            continue
        whole = root / folder / name
        if whole.is_dir() and not whole.is_symlink():
            yield from _walk(root, folder + name + "/", excluded)
        else:
            yield folder + name


def _entry(root: Path, path: str) -> Entry | None:
    try:
        mode = (root / path).lstat().st_mode
        if not stat.S_ISREG(mode):
            return {"path": path, "skipped": _no_file(mode)}
        with _open(root / path) as file:
            found, digest = os.fstat(file.fileno()), _sha256(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return {"path": path, "skipped": error.strerror or "unreadable"}
    return {
        "path": path,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "sha256": digest,
        "executable": bool(found.st_mode & 0o100),
    }


def _no_file(mode: int) -> str:
    """Say why something is not copied; a folder is only named where it cannot be listed."""
    if stat.S_ISDIR(mode):
        return "a folder that cannot be read"
    return "a link" if stat.S_ISLNK(mode) else "not a regular file"


def _open(path: Path) -> IO[bytes]:
    # Not followed: a link put there meanwhile. O_NONBLOCK: a pipe put there must not make us wait for ever.
    flags = (os.O_RDONLY, "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    bits = sum(f if isinstance(f, int) else getattr(os, f, 0) for f in flags)
    return os.fdopen(os.open(path, bits), "rb")


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _member(path: str, found: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size = found.st_size
    member.mtime = int(found.st_mtime)
    member.mode = 0o755 if found.st_mode & 0o100 else 0o644
    return member


def _check_way(destination: Path, path: str) -> None:
    """Raise where a file could not be put at a path without following a link or replacing a folder."""
    way = destination
    for part in path.split("/")[:-1]:
        way = way / part
        if way.is_symlink() or (way.exists() and not way.is_dir()):
            raise NotADirectoryError(20, "a file or a link where a folder should be", str(way))
    target = destination / path
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(21, "a folder where a file should be", str(target))


class _Exactly:
    """Reads a file as if it had exactly the size it had when it was opened."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        chunk = self._file.read(wanted)
        self._left -= wanted
        return chunk + bytes(wanted - len(chunk))


def _list(root: Path, options: dict[str, Any]) -> None:
    _say({"version": 1, "exists": root.is_dir(), "rsync": shutil.which("rsync") is not None})
    count = 0
    if root.is_dir():
        for entry in scan(root, options.get("exclude", ()), options.get("only", ())):
            _say(entry)
            count += 1
    _say({"end": count})


def _glance(root: Path, options: dict[str, Any]) -> None:
    files, others = glance(root, options.get("exclude", ())) if root.is_dir() else ([], [])
    seen = hashlib.sha256(json.dumps([files, others]).encode()).hexdigest()
    found = {"seen": seen, "now_ns": time.time_ns(), "files": files, "others": others}
    _say(found | {"files": None, "others": None} if seen == options.get("known") else found)


def _unpack(root: Path, entries: list[Entry]) -> None:
    """Write the files of an archive whose every member is expected, in order, with its hash."""
    stage = make_stage(root)
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", bufsize=_CHUNK) as archive:
            for entry in entries:
                member = archive.next()
                if member is None:
                    raise ValueError("the archive ended early, before " + entry["path"])
                if member.name != entry["path"]:
                    sys.exit(CHANGED)
                _write(archive, member, entry, stage / entry["path"])
        commit(stage, root, [entry["path"] for entry in entries])
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _say({"files": len(entries)})


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, entry: Entry, target: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise ValueError(entry["path"] + " is not a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        finish(file, entry)
    if digest.hexdigest() != entry["sha256"]:
        sys.exit(CHANGED)


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def main(argv: list[str]) -> None:
    """Carry out one of the four commands."""
    command, root = argv[0], Path(argv[1]).expanduser()
    given = json.loads(sys.stdin.buffer.readline())
    if command == "list":
        _list(root, given)
    elif command == "glance":
        _glance(root, given)
    elif command == "pack":
        pack(root, given, sys.stdout.buffer)
    else:
        _unpack(root, given)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, tarfile.TarError) as error:
        sys.exit(str(error))
