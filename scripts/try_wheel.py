"""
Uses an installed gpulab as a stranger would: no checkout, no development tools. Run by the gate in a fresh environment.
"""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.resources import files
from pathlib import Path


def main() -> int:
    """Find the data the wheel must carry; 1 when something is missing."""
    data = files("gpulab") / "data"
    here = Path(str(data)).resolve()
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    distributions = sorted(
        {d.name for d in importlib.metadata.distributions()} - {"pip", "uv", "setuptools"}
    )
    print(f"gpulab lies in {here.parent.name}, with {len(names)} data files")
    print(f"{len(distributions)} distributions without extras")
    return 0 if names else 1


if __name__ == "__main__":
    sys.exit(main())
