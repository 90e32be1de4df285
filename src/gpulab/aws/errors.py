"""
What AWS's error codes mean and what to do about them. Hides botocore's exceptions; AWS's code and words survive.

The class says what the caller may do next (`errors.py`); the sentence and the hint are for the user. A lost or broken answer is
`Ambiguous`: the call may have taken effect, so it is never a reason to try another place. Of a call that only reads it is `Throttled`:
it changed nothing, and is made again later.

Source:
    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html (November 2026; not yet seen against a live account)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from gpulab.aws.renewing import renewal
from gpulab.errors import (
    AccountNotReady,
    Ambiguous,
    AwsError,
    ClockSkewed,
    CredentialsInvalid,
    GpulabError,
    InvalidRequest,
    NoCapacity,
    NotAllowed,
    NotFound,
    NotOffered,
    QuotaTooLow,
    SetupMissing,
    SpotPriceAboveCap,
    Throttled,
    WrongUsage,
)
from gpulab.model.typed import typed

# AWS refuses signatures that are more than five minutes off; a little less already deserves the right advice.
SKEW_LIMIT = timedelta(minutes=4)


@dataclass(frozen=True)
class _Row:
    """One line of the table: what it is, why, and what to do."""

    kind: type[GpulabError]
    why: str
    hint: str


_REFRESH = renewal("", aws_profile="", is_aws_file=True)
_LATER = "Repeat the command in a minute"
_NONE_FREE = "Another zone, type or region may have one"
_RAISE = "`gpulab doctor` shows the quotas and the request that raises them"
_OURS = "This is a fault in gpulab, or something new at AWS; `gpulab doctor` may know more"
_SUPPORT = "Sign in at https://console.aws.amazon.com and follow what AWS asks for, or write to AWS Support"
_TEACHER = "Ask whoever runs the account to allow it; `gpulab doctor --policy` prints the policy"
_AGAIN = "Check the network, a VPN or a proxy, then repeat the command"
_REPEAT = "Nobody knows yet whether it took effect; repeat the command, it asks with the same token"

_TABLE: dict[str, _Row] = {
    # This place cannot serve.
    "InsufficientInstanceCapacity": _Row(NoCapacity, "the zone has none free", _NONE_FREE),
    "InsufficientHostCapacity": _Row(NoCapacity, "the zone has no host free", _NONE_FREE),
    "InsufficientReservedInstanceCapacity": _Row(NoCapacity, "the zone has none free", _NONE_FREE),
    "InsufficientCapacity": _Row(NoCapacity, "the zone has none free", _NONE_FREE),
    "UnfulfillableCapacity": _Row(NoCapacity, "the zone has none free", _NONE_FREE),
    "ReservationCapacityExceeded": _Row(NoCapacity, "the zone has none free", _NONE_FREE),
    "InsufficientFreeAddressesInSubnet": _Row(
        NoCapacity, "the zone's subnet has no address free", "Another zone may have one"
    ),
    "Server.InsufficientInstanceCapacity": _Row(NoCapacity, "the zone has none free", _NONE_FREE),
    "SpotMaxPriceTooLow": _Row(
        SpotPriceAboveCap,
        "the spot price is over your cap",
        "Raise `--max-price`, or leave it out: AWS's own cap is the on-demand price",
    ),
    "Unsupported": _Row(NotOffered, "the zone does not have this type", "Another zone may have it"),
    # Quotas.
    "MaxSpotInstanceCountExceeded": _Row(QuotaTooLow, "the spot quota is too low", _RAISE),
    "VcpuLimitExceeded": _Row(QuotaTooLow, "the on-demand quota is too low", _RAISE),
    "InstanceLimitExceeded": _Row(QuotaTooLow, "the quota of instances is used up", _RAISE),
    "VolumeLimitExceeded": _Row(QuotaTooLow, "the quota of disk space is used up", _RAISE),
    "Client.VolumeLimitExceeded": _Row(QuotaTooLow, "the quota of disk space is used up", _RAISE),
    "MaxSpotFleetRequestCountExceeded": _Row(QuotaTooLow, "the quota of fleets is used up", _RAISE),
    "MaxFleetCountExceeded": _Row(QuotaTooLow, "the quota of fleets is used up", _RAISE),
    "AddressLimitExceeded": _Row(QuotaTooLow, "the quota of addresses is used up", _RAISE),
    # The account.
    "OptInRequired": _Row(
        AccountNotReady,
        "the region or the service is not switched on for this account",
        "Switch it on at https://console.aws.amazon.com/billing/home#/account, or choose another region",
    ),
    "PendingVerification": _Row(
        AccountNotReady,
        "AWS is still verifying the account for this region",
        "AWS writes an e-mail when it is done, mostly within minutes, at most a day; another region may work already",
    ),
    "Blocked": _Row(AccountNotReady, "AWS has blocked the account", _SUPPORT),
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": _Row(
        AccountNotReady,
        "the account lacks the role that spot needs, and these credentials may not create it",
        "Whoever runs the account does it once: `aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`;"
        " `--on-demand` works without",
    ),
    # Values we sent.
    "InvalidUserData.Malformed": _Row(InvalidRequest, "the user data is over 16 kB", _OURS),
    "InvalidParameterValue": _Row(InvalidRequest, "AWS does not accept a value", _OURS),
    "InvalidParameterCombination": _Row(
        InvalidRequest, "AWS does not accept this combination", _OURS
    ),
    "InvalidBlockDeviceMapping": _Row(
        InvalidRequest, "the disk is smaller than the image", "Ask for a larger one with `--disk`"
    ),
    "UnsupportedOperation": _Row(
        InvalidRequest,
        "AWS does not do that with this instance",
        "A one-time spot instance cannot be stopped, it can only end: `gpulab stop` saves the work and ends it",
    ),
    # Things we rely on.
    "VPCIdNotSpecified": _Row(
        SetupMissing,
        "the region has no default network",
        "Make one with `aws ec2 create-default-vpc`, or choose another region",
    ),
    # The same call again.
    "RequestLimitExceeded": _Row(Throttled, "AWS got too many calls from this account", _LATER),
    "TooManyRequestsException": _Row(Throttled, "AWS got too many calls from this account", _LATER),
    "SlowDown": _Row(Throttled, "AWS got too many calls from this account", _LATER),
    "ServiceUnavailable": _Row(Throttled, "AWS cannot answer right now", _LATER),
    "Unavailable": _Row(Throttled, "AWS cannot answer right now", _LATER),
    "DependencyViolation": _Row(Throttled, "something still uses it", _LATER),
    "IncorrectState": _Row(Throttled, "it is still changing", _LATER),
    "IncorrectInstanceState": _Row(Throttled, "the instance is still changing", _LATER),
    "IncorrectSpotRequestState": _Row(Throttled, "the spot request is still changing", _LATER),
    "OperationAborted": _Row(Throttled, "another change is still under way", _LATER),
    "ConflictException": _Row(Throttled, "another change is still under way", _LATER),
    # Nobody knows.
    "InternalError": _Row(Ambiguous, "AWS failed inside", _REPEAT),
    "InternalFailure": _Row(Ambiguous, "AWS failed inside", _REPEAT),
    "ServerInternal": _Row(Ambiguous, "AWS failed inside", _REPEAT),
    "RequestTimeout": _Row(Ambiguous, "AWS did not get the whole call in time", _REPEAT),
    # Failures that show in an instance's state only.
    "Server.InternalError": _Row(NoCapacity, "AWS failed while starting it", _NONE_FREE),
    "Server.SpotInstanceTermination": _Row(NoCapacity, "AWS took the instance back", _NONE_FREE),
    "Client.InternalError": _Row(
        AccountNotReady,
        "the disk could not be made, mostly a missing right on the encryption key",
        _TEACHER,
    ),
    # Tokens: see planning/failover.py.
    "IdempotentParameterMismatch": _Row(AwsError, "the token was used for another call", _LATER),
    "IdempotentInstanceTerminated": _Row(AwsError, "what the token made has ended already", _LATER),
}
for _code in [
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "AuthFailure",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "MissingAuthenticationToken",
    "IncompleteSignature",
    "RequestTimeTooSkewed",
]:
    _TABLE[_code] = _Row(CredentialsInvalid, "AWS does not accept the credentials", _REFRESH)
for _code in "ExpiredToken ExpiredTokenException".split():  # noqa: SIM905 - reads like its neighbour
    _TABLE[_code] = _Row(CredentialsInvalid, "the credentials have expired", _REFRESH)
for _code in "UnauthorizedOperation AccessDenied AccessDeniedException".split():  # noqa: SIM905 - the same
    _TABLE[_code] = _Row(NotAllowed, "these credentials may not do that", _TEACHER)

# Tried in order where the code itself is not in the table.
_PATTERNS: tuple[tuple[str, _Row], ...] = (
    (r"Throttl|Throttled|ThrottlingException", _TABLE["RequestLimitExceeded"]),
    (
        r"Invalid(AMIID|KeyPair|Group|GroupId|SecurityGroupID|SubnetID|Subnet)\b",
        _Row(SetupMissing, "the image, key pair, group or subnet is gone", _LATER),
    ),
    (
        r"NotFound|NoSuch|ResourceNotFoundException",
        _Row(NotFound, "AWS does not know it, or not yet", _LATER),
    ),
    (
        r"^Invalid|^Missing|^Malformed|^Unknown|Validation",
        _Row(InvalidRequest, "AWS does not accept a value", _OURS),
    ),
)
# Calls that change nothing at AWS, by the names AWS gives them.
_READING = re.compile(r"(Describe|Get|List|Head|Lookup|Simulate|Decode|AssumeRole)")
_TIME_RELATED = [
    "RequestExpired",
    "SignatureDoesNotMatch",
    "AuthFailure",
    "InvalidSignatureException",
    "RequestTimeTooSkewed",
]


@contextmanager
def explained(
    doing: str,
    *,
    now: Callable[[], datetime] | None = None,
    decode: Callable[[str], str] | None = None,
    renew: Callable[[str], str] | None = None,
    profile: str = "",
) -> Iterator[None]:
    """
    Re-raise what goes wrong inside as the class that says what to do next: AWS's refusals, lost answers, and answers that lack what we
    read in them. Also a decorator, for a function that reads.

    Args:
        doing: What is being done, `launch g4dn.xlarge in us-east-1a`; completes "could not ...".
        now: This computer's clock, to tell a wrong clock from wrong credentials.
        decode: Turns an encoded authorization message into the denied action; only asked when AWS's text does not say it.
        renew: Says how the credentials are renewed, given botocore's name of their source where the error tells it, `""` otherwise.
        profile: Of gpulab, as `--profile` must name it in hints; `""` for the default one, or where nobody knows.

    Raises:
        GpulabError: Of the class in the table; the original is its cause.
        TypeError, AttributeError: A fault of gpulab's own, as it is.
    """
    try:
        yield
    except ClientError as error:
        raise explain(error, doing, now=now, decode=decode, renew=renew) from error
    except BotoCoreError as error:
        raise _without_answer(error, doing, renew, profile) from error
    except _UNREADABLE as error:
        if _is_ours(error):
            raise
        raise _unreadable(error, doing) from error


def explain(
    error: ClientError,
    doing: str,
    *,
    now: Callable[[], datetime] | None = None,
    decode: Callable[[str], str] | None = None,
    renew: Callable[[str], str] | None = None,
) -> GpulabError:
    """Turn one refusal of AWS into ours; see `explained`."""
    code, words = code_of(error), str(error.response.get("Error", {}).get("Message", ""))
    skew = _skew(error, now) if code in _TIME_RELATED else None
    if skew is not None:
        return _clock(doing, skew, code, words)
    row = _row(code, words, _status(error))
    if row.kind is Ambiguous and (_READING.match(error.operation_name) or _only_looks(doing)):
        row = _Row(Throttled, row.why, _LATER)
    if row.kind is NotAllowed:
        row = _with_action(row, words, decode)
    if row.kind is CredentialsInvalid and renew is not None:
        row = replace(row, hint=renew(""))
    return row.kind(
        f"could not {doing}: {row.why} ({code})", hint=row.hint, code=code, detail=words
    )


def from_code(code: str, words: str, doing: str) -> GpulabError:
    """Turn a code without an exception (a state reason, a fleet's error list) into ours."""
    row = _row(code, words, status=400)
    return row.kind(
        f"could not {doing}: {row.why} ({code})", hint=row.hint, code=code, detail=words
    )


def code_of(error: ClientError) -> str:
    """Return AWS's code as AWS wrote it, without the `Client.` some services put before it."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if code in _TABLE else code.removeprefix("Client.")


def denied_action(words: str) -> str:
    """Read the denied action from AWS's words, `ec2:RunInstances`; empty when they do not say."""
    found = re.search(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z0-9]+)", words)
    return found[1] if found else ""


def _row(code: str, words: str, status: int) -> _Row:
    if "Free Tier" in words or "free tier" in words:
        return _Row(
            AccountNotReady,
            "an account on the Free plan cannot start this type",
            "Upgrade to the paid plan at https://console.aws.amazon.com/billing/home#/freetier; the credits stay",
        )
    if "Instance Profile" in words and code == "InvalidParameterValue":
        return _Row(SetupMissing, "the instance's role is not there, or not yet", _LATER)
    if code in _TABLE:
        return _TABLE[code]
    for pattern, row in _PATTERNS:
        if re.search(pattern, code):
            return row
    if status >= 500:
        return _Row(Ambiguous, "AWS failed inside", _REPEAT)
    return _Row(AwsError, "AWS refused", _OURS)


def _with_action(row: _Row, words: str, decode: Callable[[str], str] | None) -> _Row:
    action = denied_action(words) or _decoded_action(words, decode)
    if not action:
        return row
    return _Row(
        row.kind,
        f"these credentials may not call {action}",
        f'Ask whoever runs the account to allow "{action}"; `gpulab doctor --policy` prints the policy',
    )


def _decoded_action(words: str, decode: Callable[[str], str] | None) -> str:
    encoded = re.search(r"[Ee]ncoded authorization failure message:?\s*(\S+)", words)
    return decode(encoded[1]) if encoded and decode else ""


def _skew(error: ClientError, now: Callable[[], datetime] | None) -> timedelta | None:
    """Return how far this computer's clock is ahead of AWS's, if that explains the refusal."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        there = parsedate_to_datetime(headers["date"])
    except (KeyError, TypeError, ValueError):
        return None
    if there.tzinfo is None:
        there = there.replace(tzinfo=UTC)
    ahead = (now() if now else datetime.now(UTC)) - there
    return ahead if abs(ahead) > SKEW_LIMIT else None


def _clock(doing: str, ahead: timedelta, code: str, words: str) -> ClockSkewed:
    minutes = round(abs(ahead).total_seconds() / 60)
    way = "ahead of" if ahead > timedelta(0) else "behind"
    return ClockSkewed(
        f"could not {doing}: this computer's clock is {minutes} min {way} AWS's ({code})",
        hint="Switch on automatic time in the system's settings, then repeat the command",
        code=code,
        detail=words,
    )


def _status(error: ClientError) -> int:
    metadata: Any = error.response.get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 400))


_NOT_SENT = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.SSLError,
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
)
# Signed in once, and not any more: which word signs in again.
_SIGNED_OUT: tuple[tuple[tuple[type[BotoCoreError], ...], str], ...] = (
    ((boto.TokenRetrievalError, boto.UnauthorizedSSOTokenError, boto.SSOTokenLoadError), "sso"),
    ((boto.LoginError,), "login"),
)
_CONFIGURATION = (
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.ConfigNotFound,
    boto.NoRegionError,
    boto.InvalidRegionError,
    boto.InvalidEndpointConfigurationError,
    boto.InfiniteLoopConfigError,
    boto.InvalidConfigError,
)


# What reading an answer raises that is not as its documentation says.
_UNREADABLE = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


# How Python complains about a call that does not fit the function, which no answer can bring about.
_MISFIT = re.compile(r"\(\) (takes|missing|got) ")
_PLAIN = (type(None), str, bytes, int, float, list, tuple, dict, datetime)


def _is_ours(error: Exception) -> bool:
    """Whether it is a fault of gpulab's own and no answer's: its traceback is worth more than words about AWS."""
    if isinstance(error, AttributeError):
        return not isinstance(error.obj, _PLAIN)
    return isinstance(error, TypeError) and _MISFIT.search(str(error)) is not None


# The key that is missing, or as `replies.check_reply` writes it, the place and what is wrong there.
_LONGEST_PLACE = 200


def _unreadable(error: Exception, doing: str) -> GpulabError:
    kind = AwsError if _only_looks(doing) else Ambiguous
    return kind(
        f"could not {doing}: AWS's answer cannot be read ({type(error).__name__}: {str(error)[:_LONGEST_PLACE]})",
        hint=_OURS if _only_looks(doing) else _REPEAT,
        detail=str(error)[:1000],
    )


def _not_sent(error: BotoCoreError, doing: str) -> Throttled:
    """Explain a call that reached nobody: neither a network nor a VPN stands between here and an address of this computer."""
    endpoint = str(error.kwargs.get("endpoint_url", ""))
    if not _is_here(endpoint):
        return Throttled(
            f"could not {doing}: AWS cannot be reached ({type(error).__name__})",
            hint=_AGAIN,
            detail=str(error),
        )
    return Throttled(
        f"could not {doing}: nothing answers at {endpoint.rstrip('/')}, where this profile leads",
        hint="`gpulab sandbox start` starts a simulated AWS on this computer; `gpulab --profile NAME` or GPULAB_PROFILE choose another profile",
        detail=str(error),
    )


def _is_here(url: str) -> bool:
    """Whether an endpoint is an address of this computer itself."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


_LOOKING = ("read", "list", "ask", "look", "find", "check", "compare", "fetch")


def _only_looks(doing: str) -> bool:
    """Whether nothing could have taken effect, by the verb."""
    return doing.split()[0] in _LOOKING


def _without_answer(
    error: BotoCoreError, doing: str, renew: Callable[[str], str] | None, profile: str
) -> GpulabError:
    """Explain what never became an answer: nothing sent, answer lost, no credentials, our own mistake."""
    if isinstance(error, _NOT_SENT):
        return _not_sent(error, doing)
    if isinstance(error, boto.HTTPClientError):
        kind, hint = (Throttled, _AGAIN) if _only_looks(doing) else (Ambiguous, _REPEAT)
        return kind(
            f"could not {doing}: the connection broke before AWS's answer ({type(error).__name__})",
            hint=hint,
            detail=str(error),
        )
    source = next((name for kinds, name in _SIGNED_OUT if isinstance(error, kinds)), "")
    if source:
        return CredentialsInvalid(
            f"could not {doing}: the AWS sign-in cannot be used ({type(error).__name__})",
            hint=renew(source) if renew else _REFRESH,
            detail=str(error),
        )
    if isinstance(error, _NO_CREDENTIALS):
        return CredentialsInvalid(
            f"could not {doing}: there are no usable AWS credentials ({type(error).__name__})",
            hint=f"{typed('init', profile=profile)} sets them up, {typed('init --paste', profile=profile)} those of a class page;"
            " `gpulab sandbox start` tries everything without an account",
            detail=str(error),
        )
    if isinstance(error, _CONFIGURATION):
        return WrongUsage(
            f"could not {doing}: {error}",
            hint=f"Correct the AWS configuration, or run {typed('init', profile=profile)}",
        )
    return InvalidRequest(
        f"could not {doing} ({type(error).__name__})", hint=_OURS, detail=str(error)
    )
