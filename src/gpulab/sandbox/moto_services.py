"""
What the layer touches inside moto beyond EC2: IAM, EventBridge and its scheduler.

Each function is held by a contract test (`tests/aws/test_sandbox_moto_contract.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from moto.budgets.models import budgets_backends
from moto.events.models import events_backends
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.scheduler.models import scheduler_backends


def role_of_profile(account: str, name_or_arn: str) -> tuple[str, str, str] | None:
    """ARN and id of an instance profile and its role's name; `None` when the profile is unknown."""
    for profile in iam_backends[account]["aws"].instance_profiles.values():
        if name_or_arn in (profile.name, profile.arn):
            role = profile.roles[0].name if profile.roles else ""
            return profile.arn, profile.id, role
    return None


def has_role(account: str, name: str) -> bool:
    """Whether an account has an IAM role."""
    return any(role.name == name for role in iam_backends[account]["aws"].roles.values())


def role_id(account: str, name: str) -> str:
    """The unique id of a role, which no other role of that name ever has; `""` when there is none."""
    roles = iam_backends[account]["aws"].roles.values()
    return next((str(role.id) for role in roles if role.name == name), "")


def trust_policy(account: str, role_arn: str) -> str | None:
    """The trust policy of a role as text; `None` when there is no such role."""
    role = _role(account, role_arn)
    return str(role.assume_role_policy_document) if role else None


def put_role(
    account: str,
    name: str,
    trust: str,
    policies: Mapping[str, str],
    tags: Sequence[Mapping[str, str]] = (),
) -> str:
    """Make a role with inline policies, or give the one of that name this trust, these policies and tags; return its ARN."""
    backend = iam_backends[account]["aws"]
    role = next((role for role in backend.roles.values() if role.name == name), None)
    if role is None:
        role = backend.create_role(
            role_name=name,
            assume_role_policy_document=trust,
            path="/",
            permissions_boundary=None,
            description="",
            tags=[],
            max_session_duration="3600",
        )
    role.assume_role_policy_document = trust
    role.policies = dict(policies)
    if tags:
        backend.tag_role(name, [dict(tag) for tag in tags])
    return str(role.arn)


def put_profile(account: str, name: str, role: str) -> None:
    """Make an instance profile with a role in it; one of that name stays as it is."""
    backend = iam_backends[account]["aws"]
    if role_of_profile(account, name) is None:
        backend.create_instance_profile(name=name, path="/", role_names=[role])


def put_bucket(account: str, name: str, region: str, *, is_versioned: bool) -> None:
    """Make a bucket; one of that name stays as it is."""
    backend = s3_backends[account]["aws"]
    if name not in backend.buckets:
        backend.create_bucket(name, region)
    if is_versioned:
        backend.put_bucket_versioning(name, "Enabled")


def put_policy(account: str, name: str, document: str) -> None:
    """Make a managed policy, or give the one of that name this document."""
    backend, arn = iam_backends[account]["aws"], f"arn:aws:iam::{account}:policy/{name}"
    known = backend.managed_policies.get(arn)
    if known is None:
        backend.create_policy("", "/", document, name, [])
        return
    for version in known.versions:
        version.document = document if version.is_default else version.document


def put_budget(account: str, budget: Mapping[str, Any], told: list[dict[str, Any]]) -> None:
    """Make a budget with whom it tells, or put it in the place of the one of its name."""
    backend = budgets_backends[account]["aws"]
    backend.budgets[account].pop(budget["BudgetName"], None)
    backend.create_budget(account, dict(budget), told)


def role_policies(account: str, role_arn: str) -> list[dict[str, Any]] | None:
    """Every policy of a role, inline and attached; `None` when there is no such role."""
    role = _role(account, role_arn)
    if role is None:
        return None
    inline = [json.loads(text) for text in role.policies.values()]
    return [*inline, *map(_document, role.managed_policies.values())]


def budget(account: str, name: str) -> dict[str, Any] | None:
    """A budget as moto keeps it, to be read and changed; `None` when there is none."""
    found = budgets_backends[account]["aws"].budgets[account].get(name)
    return found.budget if found else None


def subscribers(account: str, name: str, notification: Mapping[str, Any]) -> Any:
    """Whom a notification of a budget tells; `None` when there is no such notification."""
    found = budgets_backends[account]["aws"].budgets[account].get(name)
    for kept in found.notifications if found else []:
        if all(kept.details.get(key) == value for key, value in notification.items()):
            return kept.subscribers
    return None


def ensure_user(account: str, name: str) -> None:
    """Make an IAM user that has a key of ours but was never made in IAM."""
    backend = iam_backends[account]["aws"]
    if name not in backend.users:
        backend.create_user("us-east-1", name)


def attach_policy(account: str, policy_arn: str, *, kind: str, name: str) -> bool:
    """Attach a managed policy to a `User` or a `Role`; false when either does not exist."""
    backend = iam_backends[account]["aws"]
    known = backend.users if kind == "User" else {r.name for r in backend.roles.values()}
    if policy_arn not in backend.managed_policies or name not in known:
        return False
    attach = backend.attach_user_policy if kind == "User" else backend.attach_role_policy
    attach(policy_arn, name)
    return True


def attached_policies(account: str, arn: str) -> list[dict[str, Any]]:
    """The managed policies attached to the user or role behind a caller's ARN."""
    backend, parts = iam_backends[account]["aws"], arn.rpartition(":")[2].split("/")
    if parts[0] == "user":
        owner = backend.users.get(parts[-1])
    else:
        roles = backend.roles.values() if parts[0] == "assumed-role" else ()
        owner = next((role for role in roles if role.name == parts[1]), None)
    policies = owner.managed_policies.values() if owner else ()
    return [_document(policy) for policy in policies]


def _document(policy: Any) -> dict[str, Any]:
    """The version in force of a managed policy."""
    text = next(v.document for v in policy.versions if v.is_default)
    document: dict[str, Any] = json.loads(text)
    return document


def _role(account: str, role_arn: str) -> Any:
    roles = iam_backends[account]["aws"].roles.values()
    return next((role for role in roles if role.arn == role_arn), None)


_SPOT_TRUST = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", '
    '"Principal": {"Service": "spot.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
)


def create_spot_role(account: str) -> None:
    """Create the service-linked role of EC2 Spot."""
    iam_backends[account]["aws"].create_role(
        role_name="AWSServiceRoleForEC2Spot",
        assume_role_policy_document=_SPOT_TRUST,
        path="/aws-service-role/spot.amazonaws.com/",
        permissions_boundary=None,
        description="Default EC2 Spot Service Linked Role",
        tags=[],
        max_session_duration="3600",
        linked_service="spot.amazonaws.com",
    )


def account_of_key(access_key: str) -> str | None:
    """The account of an access key that IAM made; `None` when it made none such."""
    for account, partitions in list(iam_backends.items()):
        if access_key in partitions["aws"].access_keys:
            return str(account)
    return None


def schedules(account: str, region: str) -> Iterator[Any]:
    """Every EventBridge schedule of an account in a region."""
    for group in list(scheduler_backends[account][region].schedule_groups.values()):
        yield from list(group.schedules.values())


def delete_schedule(account: str, region: str, group: str, name: str) -> None:
    """Delete a schedule."""
    scheduler_backends[account][region].delete_schedule(group, name)


def put_event(
    account: str,
    region: str,
    detail_type: str,
    detail: Mapping[str, Any],
    resources: list[str],
    at: datetime,
) -> None:
    """Send an event of EC2 to the rules of an account's default bus."""
    event = {
        "Source": "aws.ec2",
        "DetailType": detail_type,
        "Detail": json.dumps(dict(detail)),
        "Resources": resources,
        "Time": at.timestamp(),
    }
    events_backends[account][region].put_events([event])
