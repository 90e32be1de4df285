"""
R24: who may assume a role: its trust policy, read as AWS reads it. Plain moto hands the key of any role to anybody.

Refuses to guess: a condition this layer does not know is `NotSimulated`.

Source:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html (November 2026)
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from typing import Any

from gpulab.sandbox.calls import Refusal

_SESSION = re.compile(r"arn:aws:sts::(\d{12}):assumed-role/([^/]+)/.+")


def admits(policy: str, *, caller: str, external_id: str | None) -> bool:
    """
    Say whether a trust policy lets a caller assume its role.

    Args:
        policy: JSON, as IAM keeps it.
        caller: ARN of the user or of the role's session that asks.
        external_id: `None` when the call names none.

    Raises:
        Refusal: The policy has a condition that is not simulated.
    """
    known = {
        "aws:PrincipalArn": _identities(caller)[0],
        "aws:PrincipalAccount": caller.split(":")[4],
    }
    if external_id is not None:
        known["sts:ExternalId"] = external_id
    effects = {
        statement.get("Effect")
        for statement in _listed(json.loads(policy).get("Statement", []))
        if _acts(statement) and _names(statement, caller) and _fits(statement, known)
    }
    return "Allow" in effects and "Deny" not in effects


def _acts(statement: Mapping[str, Any]) -> bool:
    actions = _listed(statement.get("Action", []))
    return any(fnmatch.fnmatchcase("sts:assumerole", str(a).lower()) for a in actions)


def _names(statement: Mapping[str, Any], caller: str) -> bool:
    principal = statement.get("Principal", {})
    named = principal if isinstance(principal, str) else principal.get("AWS", [])
    account = caller.split(":")[4]
    everybody = {"*", account, f"arn:aws:iam::{account}:root", *_identities(caller)}
    return not everybody.isdisjoint(_listed(named))


def _identities(caller: str) -> tuple[str, ...]:
    """The ARNs by which a policy can mean the caller: a role's before its session's."""
    session = _SESSION.fullmatch(caller)
    return (f"arn:aws:iam::{session[1]}:role/{session[2]}", caller) if session else (caller,)


def _fits(statement: Mapping[str, Any], known: Mapping[str, str]) -> bool:
    """Whether every condition holds; a key the call does not carry fits no string."""
    folded = {key.lower(): value for key, value in known.items()}
    for operator, wanted in statement.get("Condition", {}).items():
        if operator not in ("StringEquals", "StringLike"):
            raise Refusal(
                "NotSimulated", f"The sandbox does not simulate the condition {operator}."
            )
        for key, values in wanted.items():
            value = folded.get(key.lower())
            patterns = [str(v) for v in _listed(values)]
            is_exact = operator == "StringEquals"
            if value is None or not any(
                value == p if is_exact else fnmatch.fnmatchcase(value, p) for p in patterns
            ):
                return False
    return True


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
