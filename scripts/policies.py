"""
Writes the IAM policies of `docs/iam` from the table in `src/gpulab/rights`. Runs in the gate's environment, since it imports gpulab.

    .venv/bin/python scripts/policies.py
"""

from __future__ import annotations

from pathlib import Path

from gpulab.launch.upkeep.rights import published
from gpulab.rights.policy import as_text

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "iam"

if __name__ == "__main__":
    for name, document in published().items():
        (FOLDER / name).write_text(as_text(document), encoding="utf-8")
