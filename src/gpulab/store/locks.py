"""Files that one process at a time holds locked. Hides how each system locks; a lock ends with its process, whatever kills that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gpulab.errors import StoreError
from gpulab.store.files import private_folder


@contextlib.contextmanager
def locked(path: Path, *, is_patient: bool = False) -> Iterator[bool]:
    """
    Hold a file locked as long as the block lasts; it and its folder are made where they are missing.

    Args:
        is_patient: Wait until whoever holds it lets go.

    Yields:
        Whether it is ours; with patience always.

    Raises:
        StoreError: The file cannot be made.
    """
    handle = _open(path)
    try:
        is_ours = _try(handle, is_patient=is_patient)
        while is_patient and not is_ours:
            # Windows gives up after ten seconds.
            is_ours = _try(handle, is_patient=True)
        yield is_ours
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    try:
        private_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(
            f"could not write {path}: {error.strerror}",
            hint="Free some space or check the folder's owner, then repeat the command",
        ) from error


def _try(handle: int, *, is_patient: bool) -> bool:
    """Lock an open file until it is closed; say whether that worked."""
    if os.name == "nt":
        import msvcrt

        mode = msvcrt.LK_LOCK if is_patient else msvcrt.LK_NBLCK  # type: ignore[attr-defined,unused-ignore]
        try:
            msvcrt.locking(handle, mode, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
