"""R1: client tokens. The same token and the same parameters start nothing new; in another zone they do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpulab.sandbox.calls import Call, Refusal

#: Not compared: where the call was sent. https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html
_WHERE = frozenset({"AvailabilityZone", "AvailabilityZoneId"})


@dataclass(frozen=True)
class Remembered:
    """What a token stands for: the parameters' digest and the resource that was made."""

    digest: str
    resource: str


class Tokens:
    """Tokens of all accounts. Kept for as long as the world lasts, longer than AWS's 24 hours after termination."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Remembered] = {}

    def recall(self, call: Call, zone: str) -> str | None:
        """
        The resource this call has made before, or `None` when it is new.

        Args:
            zone: Named by the call, itself or through a subnet; empty when it names none.

        Raises:
            Refusal: The token is malformed, or was used with other parameters.
        """
        token = call.params.get("ClientToken")
        if not token:
            return None
        if len(token) > 64 or not token.isascii():
            raise Refusal(
                "InvalidParameterValue", "Invalid clientToken: at most 64 ASCII characters."
            )
        known = self._known.get(_key(call, zone))
        if known is None:
            return None
        if known.digest != _digest(call.params):
            raise Refusal(
                "IdempotentParameterMismatch",
                "The request uses the same client token as a previous, but non-identical request.",
            )
        return known.resource

    def remember(self, call: Call, zone: str, resource: str) -> None:
        """Note what a call has made; a call without a token is not noted."""
        if call.params.get("ClientToken"):
            self._known[_key(call, zone)] = Remembered(_digest(call.params), resource)


def _key(call: Call, zone: str) -> tuple[str, ...]:
    return (call.account, call.region, call.operation, zone, str(call.params["ClientToken"]))


def _digest(params: Mapping[str, Any]) -> str:
    text = json.dumps(_without_where(params), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_where(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_where(inner) for key, inner in value.items() if key not in _WHERE}
    if isinstance(value, list):
        return [_without_where(inner) for inner in value]
    return value
