"""
Uses an installed gpulab as a stranger would: no checkout, no development tools. Run by the gate in a fresh environment.

Renders the user data of every environment the wheel ships; 1 when one cannot be rendered or something foreign is installed.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import gpulab
from gpulab.bootstrap import InstanceSpec, environment_names, load_environment, user_data

_TOOLS = (
    "pytest",
    "mypy",
    "ruff",
    "hypothesis",
    "moto",
    "asyncssh",
    "flask",
    "starlette",
    "uvicorn",
)


def main() -> int:
    """Check where gpulab comes from, what is beside it, and that it can render."""
    home = Path(gpulab.__file__).resolve()
    foreign = [name for name in _TOOLS if importlib.util.find_spec(name)]
    names = environment_names()
    print(f"gpulab {gpulab.__version__}, {_count()} distributions without extras")
    for name in names:
        print(f"user data with {name}: {_rendered(name)} bytes of 16384")
    if not home.is_relative_to(Path(sys.prefix).resolve()):
        print("error: gpulab does not come from the wheel", file=sys.stderr)
    if foreign:
        print(f"error: development tools are here: {', '.join(foreign)}", file=sys.stderr)
    if not names:
        print("error: the wheel ships no environment", file=sys.stderr)
    return 0 if names and not foreign and home.is_relative_to(Path(sys.prefix).resolve()) else 1


def _rendered(name: str) -> int:
    """The size of one environment's user data, after it was unpacked and read again."""
    made_at = datetime(2026, 9, 1, 12, tzinfo=UTC)
    data = user_data(
        InstanceSpec(
            launch="0" * 32,
            name="week4",
            owner="student",
            user="ubuntu",
            made_at=made_at,
            deadline=made_at + timedelta(hours=4),
            idle_minutes=60,
            usd_per_hour=Decimal("0.2158"),
            environment=load_environment(name),
            has_gpu=True,
        )
    )
    head, _, body = gzip.decompress(data).decode().partition("\n")
    paths = [file["path"] for file in json.loads(body)["write_files"]]
    if head != "#cloud-config" or "/usr/local/bin/gpulab-agent" not in paths:
        raise SystemExit(f"error: the user data with {name} has no agent")
    return len(data)


def _count() -> int:
    tools = {"pip", "uv", "setuptools"}
    return len({found.name.lower() for found in importlib.metadata.distributions()} - tools)


if __name__ == "__main__":
    sys.exit(main())
