"""R20: who calls: access keys and their accounts, expiry, permissions that are denied, and roles that trust the caller (`trust.py`)."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from gpulab.sandbox import moto_services, trust
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.signatures import is_signed_with
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

DEFAULT_ACCOUNT = "123456789012"

_ROLE_LIFETIME = timedelta(hours=6)
RENEW_BEFORE = timedelta(minutes=30)

#: Operations whose IAM action has another name.
_ACTIONS = {
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjects": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
}
_PREFIXES = {"service-quotas": "servicequotas", "resourcegroupstaggingapi": "tag"}


@dataclass(frozen=True)
class Key:
    """
    One access key.

    Attributes:
        token: Session token; empty for a long-lived key.
        expires_at: `None` for a long-lived key.
        arn: Whom it belongs to, as GetCallerIdentity says.
    """

    access_key: str
    secret: str
    account: str
    arn: str
    token: str = ""
    expires_at: datetime | None = None

    def environment(self) -> dict[str, str]:
        """The variables with which any AWS client uses this key."""
        variables = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret}
        return {**variables, "AWS_SESSION_TOKEN": self.token} if self.token else variables


@dataclass
class Denial:
    """A permission someone does not have; `*` and `?` are wildcards."""

    action: str
    account: str | None = None
    arn: str | None = None


@dataclass
class Credentials:
    """
    All keys and denials of the world.

    Args:
        new_id: Makes ids; the world's, so that they repeat with its seed.
        salt: Makes this world's keys differ from those of a world before it, so that no cache takes one for the other.
    """

    new_id: Callable[[str, int], str]
    keys: dict[str, Key] = field(default_factory=dict)
    denials: list[Denial] = field(default_factory=list)
    plain_expiry: dict[str, datetime] = field(default_factory=dict)
    salt: str = ""

    def account(self, account: str, *, user: str = "student") -> Key:
        """A long-lived key of a user of an account; the same each time in one world."""
        seed = hashlib.sha256(f"{account}/{user}{self.salt}".encode()).digest()
        letters = base64.b32encode(seed).decode()
        access_key = "AKIA" + letters[:16]
        key = Key(
            access_key,
            base64.b64encode(seed + seed[:6]).decode()[:40],
            account,
            f"arn:aws:iam::{account}:user/{user}",
        )
        return self.keys.setdefault(access_key, key)

    def session(
        self, account: str, *, user: str = "student", expires_at: datetime, arn: str = ""
    ) -> Key:
        """A temporary key, as `aws sts get-session-token` or a class portal hands out."""
        access_key = self.new_id("ASIA", 16).upper()
        secret = self.new_id("", 40)
        token = "FwoGZXIvYXdzE" + self.new_id("", 64)
        arn = arn or f"arn:aws:iam::{account}:user/{user}"
        key = Key(access_key, secret, account, arn, token, expires_at)
        self.keys[access_key] = key
        return key

    def for_role(
        self,
        account: str,
        role: str,
        session: str,
        now: datetime,
        *,
        renewed: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """
        What the instance metadata serves under `iam/security-credentials/ROLE`.

        Args:
            renewed: What was served so far; given back while it is good for more than half an hour.
        """
        if renewed and datetime.fromisoformat(renewed["Expiration"]) - now > RENEW_BEFORE:
            return dict(renewed)
        arn = f"arn:aws:sts::{account}:assumed-role/{role}/{session}"
        key = self.session(account, expires_at=now + _ROLE_LIFETIME, arn=arn)
        assert key.expires_at is not None
        return {
            "Code": "Success",
            "LastUpdated": _z(now),
            "Type": "AWS-HMAC",
            "AccessKeyId": key.access_key,
            "SecretAccessKey": key.secret,
            "Token": key.token,
            "Expiration": _z(key.expires_at),
        }

    def account_of(self, access_key: str) -> str | None:
        """The account a key belongs to; `None` when nobody made it."""
        if access_key in self.keys:
            return self.keys[access_key].account
        return moto_services.account_of_key(access_key)

    def has_user(self, account: str, name: str) -> bool:
        """Whether a user of that name has a key of ours in an account."""
        arn = f"arn:aws:iam::{account}:user/{name}"
        return any(key.arn == arn for key in self.keys.values())

    def admit(self, call: Call, now: datetime) -> None:
        """
        Check the key and the permission to call.

        Raises:
            Refusal: The key is unknown, expired, without its token or with another secret, or the action is denied.
        """
        if not call.access_key:
            return
        key = self.keys.get(call.access_key)
        if self.account_of(call.access_key) is None:
            raise _unknown(call)
        if key is not None and key.token and key.token != _token_of(call):
            raise _unknown(call)
        if key is not None and not is_signed_with(call, key.secret):
            raise _wrong_secret(call)
        expires_at = key.expires_at if key else self.plain_expiry.get(call.access_key)
        if expires_at is not None and now >= expires_at:
            raise _expired(call)
        self.check(call, action_of(call))

    def check(self, call: Call, action: str, *, resource: str = "*") -> None:
        """
        Check one permission of the caller.

        Raises:
            Refusal: `UnauthorizedOperation` from EC2, `AccessDenied` from the others.
        """
        key = self.keys.get(call.access_key)
        arn = key.arn if key else f"arn:aws:iam::{call.account}:user/unknown"
        for denial in self.denials:
            if (
                denial.account in (None, call.account)
                and (denial.arn is None or fnmatch.fnmatchcase(arn, denial.arn))
                and fnmatch.fnmatchcase(action.lower(), denial.action.lower())
            ):
                raise denied(call, action, arn, resource)
        if _forbids(moto_services.attached_policies(call.account, arn), action):
            raise denied(call, action, arn, resource, is_explicit=True)

    def expire(self, access_key: str | None, at: datetime) -> None:
        """Let keys expire at a moment: one of them, or every one there is."""
        for name, key in list(self.keys.items()):
            if access_key in (None, name):
                self.keys[name] = replace(key, expires_at=at)


def action_of(call: Call) -> str:
    """The IAM action of a call, `ec2:RunInstances`."""
    action = f"{_PREFIXES.get(call.service, call.service)}:{call.operation}"
    return _ACTIONS.get(action, action)


def get_caller_identity(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetCallerIdentity with the key's own owner."""
    key = world.credentials.keys.get(call.access_key)
    if key is None:
        return forward(call)
    user = "AIDA" + hashlib.sha256(key.arn.encode()).hexdigest()[:17].upper()
    return write_result(call, {"UserId": user, "Account": key.account, "Arn": key.arn})


def assume_role(world: World, call: Call, forward: Forward) -> Answer:
    """Answer AssumeRole through moto where the role trusts the caller, and keep the key it hands out with its account and expiry."""
    _check_trust(world, call)
    answer = forward(call)
    found = {
        name: (re.search(rf"<{name}>([^<]+)</{name}>".encode(), answer.body) or [b"", b""])[
            1
        ].decode()
        for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration", "Arn")
    }
    if answer.ok and found["AccessKeyId"]:
        account = str(call.params.get("RoleArn", "")).split(":")[4]
        world.credentials.keys[found["AccessKeyId"]] = Key(
            found["AccessKeyId"],
            found["SecretAccessKey"],
            account,
            found["Arn"],
            found["SessionToken"],
            datetime.fromisoformat(found["Expiration"]),
        )
    return answer


def _check_trust(world: World, call: Call) -> None:
    """
    Refuse whom the role does not trust. AWS has one answer for that, for another external id, and for a role that is not there.

    A caller of moto's own making is known by its account only.
    """
    key = world.credentials.keys.get(call.access_key)
    caller = key.arn if key else f"arn:aws:iam::{call.account}:user/unknown"
    arn = str(call.params.get("RoleArn", ""))
    named = call.params.get("ExternalId")
    policy = moto_services.trust_policy(arn.split(":")[4], arn) if arn.count(":") > 4 else None
    external_id = None if named is None else str(named)
    if policy is None or not trust.admits(policy, caller=caller, external_id=external_id):
        said = f"User: {caller} is not authorized to perform: sts:AssumeRole on resource: {arn}"
        raise Refusal("AccessDenied", said, status=403)


def decode_authorization_message(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DecodeAuthorizationMessage for messages this layer has encoded."""
    try:
        text = base64.urlsafe_b64decode(str(call.params.get("EncodedMessage", ""))).decode()
        json.loads(text)
    except ValueError:
        raise Refusal(
            "InvalidAuthorizationMessageException", "Message could not be decoded."
        ) from None
    return write_result(call, {"DecodedMessage": text})


def _token_of(call: Call) -> str:
    if token := call.headers.get("x-amz-security-token"):
        return token
    found = re.search(r"X-Amz-Security-Token=([^&]+)", call.url)
    return unquote(found[1]) if found else ""


def _unknown(call: Call) -> Refusal:
    if call.service == "ec2":
        return Refusal(
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
        )
    if call.service == "s3":
        return Refusal(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
            status=403,
        )
    code = (
        "InvalidClientTokenId" if call.service in ("sts", "iam") else "UnrecognizedClientException"
    )
    return Refusal(code, "The security token included in the request is invalid", status=403)


def _wrong_secret(call: Call) -> Refusal:
    if call.service == "ec2":
        return _unknown(call)
    code = (
        "SignatureDoesNotMatch" if call.service in ("sts", "iam") else "InvalidSignatureException"
    )
    return Refusal(
        code,
        "The request signature we calculated does not match the signature you provided. "
        "Check your AWS Secret Access Key and signing method.",
        status=403,
    )


def _expired(call: Call) -> Refusal:
    if call.service == "ec2":
        return Refusal("RequestExpired", "Request has expired.")
    if call.service in ("sts", "iam"):
        return Refusal(
            "ExpiredToken", "The security token included in the request is expired", status=403
        )
    if call.service == "s3":
        return Refusal("ExpiredToken", "The provided token has expired.", status=400)
    return Refusal("ExpiredTokenException", "The security token included in the request is expired")


def _forbids(policies: Iterable[Mapping[str, Any]], action: str) -> bool:
    """Whether a policy that is attached to the caller denies an action outright; what policies allow is not looked at."""
    denied = [
        name
        for policy in policies
        for statement in policy.get("Statement", [])
        if statement.get("Effect") == "Deny"
        for name in _listed(statement.get("Action", []))
    ]
    return any(fnmatch.fnmatchcase(action.lower(), name.lower()) for name in denied)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def denied(
    call: Call, action: str, arn: str, resource: str, *, is_explicit: bool = False
) -> Refusal:
    """How AWS words that a caller may not do something, in each service's way."""
    why = (
        "with an explicit deny in an identity-based policy"
        if is_explicit
        else f"because no identity-based policy allows the {action} action"
    )
    said = f"User: {arn} is not authorized to perform: {action} on resource: {resource} {why}"
    if call.service == "ec2":
        context = {"principal": {"arn": arn}, "action": action, "resource": resource}
        encoded = base64.urlsafe_b64encode(
            json.dumps({"allowed": False, "explicitDeny": is_explicit, "context": context}).encode()
        ).decode()
        return Refusal(
            "UnauthorizedOperation",
            f"You are not authorized to perform this operation. {said}. Encoded authorization failure message: {encoded}",
        )
    if call.service in ("s3", "sts", "iam"):
        return Refusal("AccessDenied", said, status=403)
    return Refusal("AccessDeniedException", said, status=400)


def _z(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


OPERATIONS: Mapping[str, Any] = {
    "GetCallerIdentity": get_caller_identity,
    "AssumeRole": assume_role,
    "DecodeAuthorizationMessage": decode_authorization_message,
}
