"""Writing small files so that a kill or a full disk leaves the old one whole. Hides fsync, modes and Windows' rename."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gpulab.errors import StoreError


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """
    Replace a file as a whole, durable when this returns.

    Raises:
        StoreError: The disk is full or the folder is not writable; the old file is untouched.
    """
    import tempfile  # not at the start: it costs a reader of the folder a tenth of its time

    try:
        private_folder(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise _cannot_write(path, error) from error
    except BaseException:  # Ctrl-C leaves nothing half-made either
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def private_folder(path: Path) -> Path:
    """
    Make a folder that only its owner can read, and those above it that are missing; return it.

    Raises:
        StoreError: The disk is full or the folder above is not writable.
    """
    try:
        # One by one: `parents=True` gives the parents the mode that the umask leaves, which may be everybody's.
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def copy_private(source: Path, place: Path) -> None:
    """
    Copy a file with its time, whole or not at all, into a folder that is made where it is missing; only its owner can read the copy.

    Raises:
        OSError: It cannot be read or written.
        StoreError: Its folder cannot be made.
    """
    import shutil  # as `tempfile` above

    private_folder(place.parent)
    part = place.with_name(f".gpulab-{place.name[:80]}")
    try:
        known = source.stat()
        # Not through a link that somebody has laid at that name.
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        shutil.copyfile(source, part)
        os.utime(part, ns=(known.st_atime_ns, known.st_mtime_ns))
        part.chmod(known.st_mode & 0o700 | 0o600)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"could not write {path}: {error.strerror}",
        hint="Free some space or check the folder's owner, then repeat the command",
    )


def sync_folder(folder: Path) -> None:
    """Make what was added to a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder; its rename is durable enough for us
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
