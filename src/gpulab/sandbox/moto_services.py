"""
What the layer touches inside moto beyond EC2: IAM, EventBridge and its scheduler.

Each function is held by a contract test (`tests/aws/test_sandbox_moto_contract.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from moto.events.models import events_backends
from moto.iam.models import iam_backends
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


def trust_policy(account: str, role_arn: str) -> str | None:
    """The trust policy of a role as text; `None` when there is no such role."""
    role = _role(account, role_arn)
    return str(role.assume_role_policy_document) if role else None


def role_policies(account: str, role_arn: str) -> list[dict[str, Any]] | None:
    """Every policy of a role, inline and attached; `None` when there is no such role."""
    role = _role(account, role_arn)
    if role is None:
        return None
    attached = [policy.default_version.document for policy in role.managed_policies.values()]
    return [json.loads(text) for text in [*role.policies.values(), *attached]]


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
