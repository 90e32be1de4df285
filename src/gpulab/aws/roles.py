"""
Roles in other accounts: assuming one, with the external id its owner gave us. Hides STS; keeps no key anywhere but in memory.

Source:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/confused-deputy.html (November 2026)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.credentials import ReadOnlyCredentials

from gpulab.aws.errors import explained
from gpulab.errors import NotAllowed

if TYPE_CHECKING:
    from gpulab.aws.session import Cloud

# A role that is assumed from another role lives an hour at most, whatever is asked for.
_LIFE_S = 3600
_RENEW_BEFORE = timedelta(minutes=5)


@dataclass(frozen=True)
class Role:
    """
    A role and how to ask for it.

    Attributes:
        external_id: What its trust policy asks for; `""` for none.
        session: Who asks, as CloudTrail of the other account shows it: 2 to 64 of `\\w+=,.@-`.
    """

    arn: str
    external_id: str
    session: str


@dataclass(frozen=True)
class RoleKey:
    """The temporary key of an assumed role."""

    key: ReadOnlyCredentials
    expires_at: datetime

    def is_old(self, now: datetime) -> bool:
        """Whether it ends so soon that a new one is due."""
        return now >= self.expires_at - _RENEW_BEFORE


@explained("assume the role")
def assume(cloud: Cloud, role: Role) -> RoleKey:
    """
    Ask for the key of a role.

    Args:
        cloud: Whose credentials ask.

    Raises:
        NotAllowed: The role is not there, does not trust these credentials, or wants another external id; AWS does not say which.
        AwsError: AWS refuses otherwise.
    """
    sts = cloud.client("sts", "us-east-1")
    asked: dict[str, Any] = {
        "RoleArn": role.arn,
        "RoleSessionName": role.session,
        "DurationSeconds": _LIFE_S,
    }
    if role.external_id:
        asked["ExternalId"] = role.external_id
    try:
        with cloud.explained(f"assume {role.arn}"):
            given = sts.assume_role(**asked)["Credentials"]
    except NotAllowed as error:
        raise NotAllowed(
            f"{role.arn} cannot be assumed: it is not there, or does not trust us ({error.code})",
            hint="`gpulab course enrol` writes the template that makes it; the owner of the account applies it again",
            code=error.code,
            detail=error.detail,
        ) from error
    key = ReadOnlyCredentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    return RoleKey(key, given["Expiration"].astimezone(UTC))
