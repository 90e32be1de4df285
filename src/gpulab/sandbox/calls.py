"""The values that pass through the layer: a call, its answer, a refusal, a lost connection, and the log of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

Params = Mapping[str, Any]

#: Values of these parameters never enter the log; the size of the text does.
_SECRET = frozenset(
    {"UserData", "SecretAccessKey", "SessionToken", "SecretString", "Password", "Value", "Token"}
)


@dataclass(frozen=True)
class Call:
    """
    One API call as it arrived.

    Attributes:
        headers: Names in lower case.
        service: botocore's name of the service, `ec2`, `s3`, `service-quotas`; empty when nothing tells.
        operation: API operation, `RunInstances`; empty when nothing tells.
        access_key: From the `Authorization` header or the presigned URL; empty for an unsigned call.
        account: Twelve digits; set by the world from the access key.
        params: Parsed by the service's own model; for S3 only what stands in the path.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    service: str
    region: str
    operation: str
    access_key: str = ""
    account: str = ""
    params: Params = field(default_factory=dict)

    def of_account(self, account: str) -> Call:
        """The same call, with the account that its access key belongs to."""
        headers = {**self.headers, "x-moto-account-id": account}
        return replace(self, account=account, headers=headers)


def from_inside(account: str, region: str, service: str, operation: str, params: Params) -> Call:
    """A call that AWS makes by itself for an account, such as a schedule's target: nobody signed it."""
    url, headers = "https://internal/", {"x-moto-account-id": account}
    return Call("POST", url, headers, b"", service, region, operation, "", account, params)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `body` is the whole of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return self.status < 400


Forward = Callable[[Call], Answer]


class Refusal(Exception):
    """AWS says no: an error code, a message and an HTTP status."""

    def __init__(self, code: str, message: str = "", *, status: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message or f"The request was refused ({code})."
        self.status = status if status is not None else status_of(code)


class ConnectionLost(Exception):
    """
    The connection breaks instead of an answer.

    Attributes:
        took_effect: Whether the call was carried out before the connection broke.
    """

    def __init__(self, *, took_effect: bool) -> None:
        super().__init__("reply lost" if took_effect else "request lost")
        self.took_effect = took_effect


#: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html ; the status of
#: InsufficientInstanceCapacity was not seen on AWS.
_STATUS = {
    "InsufficientInstanceCapacity": 500,
    "InsufficientHostCapacity": 500,
    "InternalError": 500,
    "InternalFailure": 500,
    "InternalServerError": 500,
    "RequestLimitExceeded": 503,
    "ServiceUnavailable": 503,
    "Unavailable": 503,
    "SlowDown": 503,
    "UnauthorizedOperation": 403,
    "AccessDenied": 403,
    "AuthFailure": 401,
    "InvalidClientTokenId": 403,
    "SignatureDoesNotMatch": 403,
    "OptInRequired": 401,
    "Blocked": 403,
    "DryRunOperation": 412,
    "NotSimulated": 501,
}


def status_of(code: str) -> int:
    """The HTTP status AWS sends with an error code; 400 for most."""
    return _STATUS.get(code, 400)


@dataclass
class LoggedCall:
    """
    One line of the log.

    Attributes:
        outcome: `ok`, an error code, or `reply lost` and `request lost`; empty while the call is under way.
        params: As parsed, with user data and secrets replaced by their length.
    """

    at: datetime
    account: str
    region: str
    service: str
    operation: str
    params: Params
    outcome: str = ""

    def as_json(self) -> dict[str, Any]:
        """Time, account, region, service, operation, outcome, parameters: as `gpulab sandbox log --json` prints it."""
        return {
            "time": self.at.isoformat().replace("+00:00", "Z"),
            "account": self.account,
            "region": self.region,
            "service": self.service,
            "operation": self.operation,
            "outcome": self.outcome,
            "parameters": _plain(self.params),
        }


class CallLog:
    """Every call in the order it arrived. Iterable, countable, sliceable; appended to by the world only."""

    def __init__(self) -> None:
        self._calls: list[LoggedCall] = []

    def begin(self, call: Call, at: datetime) -> LoggedCall:
        """Note a call that has arrived; its outcome is filled in later."""
        entry = LoggedCall(
            at,
            call.account,
            call.region,
            call.service,
            call.operation,
            _without_secrets(call.params),
        )
        self._calls.append(entry)
        return entry

    def operations(self) -> list[str]:
        """The operations, in order: `["DescribeInstances", "RunInstances"]`."""
        return [entry.operation for entry in self._calls]

    def of(self, operation: str) -> list[LoggedCall]:
        """The calls of one operation."""
        return [entry for entry in self._calls if entry.operation == operation]

    def clear(self) -> None:
        """Forget everything so far."""
        self._calls.clear()

    def __iter__(self) -> Iterator[LoggedCall]:
        return iter(list(self._calls))

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, index: int) -> LoggedCall:
        return self._calls[index]


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: f"<{len(inner)} characters>"
            if key in _SECRET and isinstance(inner, str | bytes) and _is_secret_value(value, key)
            else _without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return value


def _is_secret_value(parent: Mapping[str, Any], key: str) -> bool:
    # A tag and a filter have a `Value` beside their `Key`; an SSM parameter has one beside its `Name`.
    return key != "Value" or "Key" not in parent


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value
