"""
R25: what a caller may do. A role may do what its policies allow; a user may do anything until `restrict` says what.

Users are free by default because most tests are about something else; roles never are, since gpulab itself writes their policies.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import moto_services
from gpulab.sandbox.calls import Call, Refusal
from gpulab.sandbox.credentials import denied
from gpulab.sandbox.iam_policies import Asked, Decision, decide
from gpulab.sandbox.iam_requests import asked_by
from gpulab.sandbox.witnesses import EVERYWHERE

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

Policies = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Restriction:
    """Policies and tags of the users and sessions whose ARN matches; `*` and `?` are wildcards."""

    arn: str
    policies: Policies
    tags: Mapping[str, str]


class Permissions:
    """Restrictions of users; whoever is in `witnesses.EVERYWHERE` sees what every call asked for."""

    def __init__(self) -> None:
        self._restrictions: list[Restriction] = []

    def restrict(self, restriction: Restriction) -> None:
        """Let a restriction hold from now on; a later one of the same ARN replaces it."""
        kept = [r for r in self._restrictions if r.arn != restriction.arn]
        self._restrictions = [*kept, restriction]

    def admit(self, world: World, call: Call) -> None:
        """
        Check every permission that a call needs.

        Raises:
            Refusal: One of them is denied, or allowed by no policy of the caller.
        """
        key = world.credentials.keys.get(call.access_key)
        if key is None:
            return
        limited = self._of(call, key.arn)
        if limited is None and not EVERYWHERE:
            return
        if limited is None:
            asked = _asked_freely(world, call, key.arn)
        else:
            asked = asked_by(world, call, caller=key.arn, tags=limited.tags)
        for witness in EVERYWHERE:
            witness(call, asked)
        if limited is None:
            return
        for one in asked:
            decision = decide(limited.policies, one)
            if decision is not Decision.ALLOWED and not _is_free(one.action):
                raise refused(call, one, key.arn, decision)

    def _of(self, call: Call, arn: str) -> Restriction | None:
        found = next((r for r in self._restrictions if fnmatch.fnmatchcase(arn, r.arn)), None)
        if found is not None or ":assumed-role/" not in arn:
            return found
        name = arn.split("/")[1]
        role = f"arn:aws:iam::{call.account}:role/{name}"
        policies = moto_services.role_policies(call.account, role)
        return None if policies is None else Restriction(arn, policies, {})


def refused(call: Call, asked: Asked, arn: str, decision: Decision) -> Refusal:
    """How AWS words it."""
    return denied(call, asked.action, arn, asked.resource, is_explicit=decision is Decision.DENIED)


def _asked_freely(world: World, call: Call, arn: str) -> list[Asked]:
    """What whoever may do anything asks for; nothing where nobody can tell."""
    try:
        return asked_by(world, call, caller=arn, tags={})
    except Exception:  # a malformed call: the operation itself refuses it
        return []


def _is_free(action: str) -> bool:
    # https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html: no policy is needed, and none can forbid it.
    return action == "sts:GetCallerIdentity"
