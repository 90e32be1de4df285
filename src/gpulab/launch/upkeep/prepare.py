"""What `gpulab init` makes in an account, once: the bucket for the work, and two narrow roles. What is not allowed is an answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from gpulab.aws import end_schedule, workspace_setup
from gpulab.aws.accounts import Identity, identity, make_spot_role, spot_role_exists
from gpulab.aws.session import Cloud
from gpulab.errors import CredentialsInvalid, GpulabError
from gpulab.launch.context import Context
from gpulab.launch.money.credit import credit_left_usd

Made = TypeVar("Made")

# Names that SDKs make for a session when nobody names it, such as `botocore-session-1733050000`.
_RANDOM_SESSION = re.compile(r"(?<=/)[a-z-]*session[a-z-]*-\d+$|(?<=/)\d{10,}$")


@dataclass(frozen=True)
class Prepared:
    """
    What the profile may rely on from now on.

    Attributes:
        owner: Opaque id for tags; the one the profile had, or that of the credentials.
        keep_bucket: `""` where the account does not allow one.
        instance_role: The same.
        scheduler_role: ARN; the same.
        has_spot_role: Whether the role exists that spot needs.
        notes: Why something is missing, and what is done instead.
    """

    identity: Identity
    owner: str
    keep_bucket: str
    instance_role: str
    scheduler_role: str
    has_spot_role: bool
    notes: tuple[str, ...]


def prepare(context: Context) -> Prepared:
    """
    Make sure of everything an account gives for good. Repeatable; nothing of it costs while it is empty.

    Raises:
        CredentialsInvalid, ClockSkewed: AWS does not accept the credentials.
    """
    cloud, who = context.cloud, identity(context.cloud)
    context.cache.put(f"{context.account}/account", who.account_id, lasting=timedelta(days=365))
    owner = context.profile.owner or owner_of(who)
    notes: list[str] = []
    region = context.profile.regions[0]
    bucket = _allowed(
        notes,
        "the work is kept on this computer",
        lambda: workspace_setup.ensure_bucket(cloud, who.account_id, region),
    )
    role = bucket and _allowed(
        notes,
        "the work is kept on this computer",
        lambda: workspace_setup.ensure_instance_role(cloud, bucket, owner=owner),
    )
    scheduler = _allowed(
        notes,
        "only the timer on the instance ends it",
        lambda: end_schedule.ensure_role(cloud, owner=owner, account_id=who.account_id),
    )
    spot = _allowed(notes, "spot may not work", lambda: _spot_role(cloud))
    # Also remembers the credit for the first plan; a free-plan or Academy account is told here, before anybody counts on it.
    _, account_notes = credit_left_usd(context, is_ledger_enough=True)
    notes += account_notes
    return Prepared(
        identity=who,
        owner=owner,
        keep_bucket=bucket.name if bucket and role else "",
        instance_role=role or "",
        scheduler_role=scheduler or "",
        has_spot_role=bool(spot),
        notes=tuple(notes),
    )


def owner_of(who: Identity) -> str:
    """
    Make the opaque id of whoever owns some credentials: the same on each of their computers, and after their folder is lost.

    So nothing they pay for is invisible to a new `gpulab init`. A session that a role got a random name for counts as the role.
    """
    arn = _RANDOM_SESSION.sub("", who.arn)
    return hashlib.sha256(f"gpulab {who.account_id} {arn}".encode()).hexdigest()[:10]


def own_id(context: Context) -> str:
    """
    Ask AWS whose credentials these are, and return their opaque id.

    Raises:
        CredentialsInvalid, ClockSkewed: They are not accepted.
    """
    return owner_of(identity(context.cloud))


def _spot_role(cloud: Cloud) -> bool:
    # Whoever may not make it may often look, and in a course account it was made long ago.
    if not spot_role_exists(cloud):
        make_spot_role(cloud)
    return True


def _allowed(notes: list[str], instead: str, make: Callable[[], Made]) -> Made | None:
    try:
        return make()
    except CredentialsInvalid:
        raise
    except GpulabError as error:
        notes.append(f"{error.message}; {instead}")
        return None
