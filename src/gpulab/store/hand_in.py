"""
What was collected, as a folder for grading: each notebook as the student saved it, and beside it a page to read.

Hides the walk. Follows no link, takes no hidden folder, and never writes into what was collected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import GpulabError, StoreError, WrongUsage, disk_hint
from gpulab.store.files import write_atomically

_LARGEST = 64 << 20


@dataclass(frozen=True)
class HandIn:
    """
    One notebook.

    Attributes:
        file: Below the folder for grading, with `/`.
        trouble: Why there is no page beside it; `""` when there is one.
    """

    file: str
    trouble: str = ""


def export(
    collected: Path, into: Path, who: str, *, render: Callable[[bytes, str], str]
) -> Iterator[HandIn]:
    """
    Copy one student's notebooks and write their pages; what has not changed is not written again.

    Args:
        collected: The student's folder.
        who: Name of the student's folder below `into`.
        render: Makes a page of a notebook's bytes and its title.

    Raises:
        StoreError: A file cannot be read or written.
    """
    for file in _notebooks(collected):
        path = file.relative_to(collected)
        name = f"{who}/{path.as_posix()}"
        raw = _read(file)
        if raw is None:
            yield HandIn(name, "it is larger than 64 MiB, so it was left out")
            continue
        _put(into / who / path, raw)
        try:
            page = render(raw, name)
        except WrongUsage as error:
            yield HandIn(name, error.message)
            continue
        _put(into / who / path.with_name(path.name + ".html"), page.encode())
        yield HandIn(name)


def _notebooks(folder: Path) -> list[Path]:
    """Return every notebook, sorted; none of JupyterLab's own checkpoints."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths = (Path(place) / name for name in files if name.lower().endswith(".ipynb"))
        found += [p for p in paths if p.is_file() and not p.is_symlink() and p.name[0] != "."]
    return sorted(found)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if file.stat().st_size <= _LARGEST else None
    except OSError as error:
        raise StoreError(
            f"could not read {file}: {error.strerror}", hint=disk_hint(error)
        ) from error


def _put(file: Path, content: bytes) -> None:
    try:
        if file.is_file() and file.read_bytes() == content:
            return
        write_atomically(file, content)
    except GpulabError:
        raise
    except OSError as error:
        raise StoreError(
            f"could not write {file}: {error.strerror}", hint=disk_hint(error)
        ) from error
