"""Where the shipped templates and environments lie. Hides whether gpulab runs from a wheel or from a checkout."""

from __future__ import annotations

from pathlib import Path

import gpulab
from gpulab.errors import StoreError


def shipped(name: str) -> Path:
    """
    Find a folder that travels with gpulab.

    Args:
        name: `ami` or `cloud-init`.

    Raises:
        StoreError: The installation is incomplete.
    """
    package = Path(gpulab.__file__).parent
    for folder in (package / "data" / name, package.parent.parent / name):
        if folder.is_dir():
            return folder
    raise StoreError(
        f"this installation of gpulab has no {name} folder", hint="Install gpulab again"
    )
