"""
Instance profiles: what moto answers with a fault of its own.

Source:
    https://docs.aws.amazon.com/IAM/latest/APIReference/API_RemoveRoleFromInstanceProfile.html (NoSuchEntity, 404)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpulab.sandbox import moto_services
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal

if TYPE_CHECKING:
    from gpulab.sandbox.operations import Handler
    from gpulab.sandbox.world import World


def _remove_role(_: World, call: Call, forward: Forward) -> Answer:
    """Refuse to take out a role that is not in there; an unknown profile is moto's to refuse."""
    profile, role = call.params["InstanceProfileName"], call.params["RoleName"]
    known = moto_services.role_of_profile(call.account, profile)
    if known is not None and known[2] != role:
        text = f"Cannot find role {role} in instance profile {profile}."
        raise Refusal("NoSuchEntity", text, status=404)
    return forward(call)


OPERATIONS: Mapping[str, Handler] = {"RemoveRoleFromInstanceProfile": _remove_role}
