"""
The policy that forbids launches, and the role with which AWS Budgets attaches it: to the named users and roles, that policy and no other.

Hides IAM. The policy is data: `no-launches.json` beside this module.
"""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import NotFound
from gpulab.model.guard import Principals
from gpulab.model.instance import TAG_OWNER

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

_RIGHTS = "attach-no-launches"


def deny_document() -> dict[str, Any]:
    """Return the policy that forbids launches."""
    text = files("gpulab.aws").joinpath("policies/no-launches.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def policy_arn(account_id: str, owner: str) -> str:
    """Name the deny policy of an owner."""
    return f"arn:aws:iam::{account_id}:policy/gpulab-no-launches-{owner}"


def role_arn(account_id: str, owner: str) -> str:
    """Name the role that AWS Budgets assumes to attach it."""
    return f"arn:aws:iam::{account_id}:role/gpulab-budget-{owner}"


@explained("make the policy that forbids launches")
def ensure_policy(cloud: Cloud, account_id: str, owner: str) -> str:
    """
    Make the deny policy; return its ARN.

    Raises:
        NotAllowed: The credentials may not make policies.
        AwsError: AWS refuses otherwise.
    """
    iam, arn = _client(cloud), policy_arn(account_id, owner)
    with cloud.explained("make the policy that forbids launches"):
        try:
            iam.create_policy(
                PolicyName=arn.rpartition("/")[2],
                PolicyDocument=json.dumps(deny_document()),
                Description="Forbids new instances; attached by AWS Budgets when the budget is spent",
                Tags=[{"Key": TAG_OWNER, "Value": owner}],
            )
        except iam.exceptions.EntityAlreadyExistsException:
            return arn
    return arn


@explained("make the budget's role")
def ensure_role(cloud: Cloud, account_id: str, owner: str, targets: Principals) -> tuple[str, bool]:
    """
    Make the role that may attach the deny policy to the targets and take it off, and nothing else.

    Returns:
        Its ARN, and whether it was made now: AWS needs some seconds before it can be assumed.

    Raises:
        NotAllowed: The credentials may not make roles.
        AwsError: AWS refuses otherwise.
    """
    iam, arn = _client(cloud), role_arn(account_id, owner)
    name, is_new = arn.rpartition("/")[2], True
    with cloud.explained(f"make the role {name}"):
        try:
            iam.create_role(
                RoleName=name,
                AssumeRolePolicyDocument=json.dumps(_trust(account_id)),
                Description="Lets AWS Budgets forbid launches when gpulab's budget is spent",
                Tags=[{"Key": TAG_OWNER, "Value": owner}],
            )
        except iam.exceptions.EntityAlreadyExistsException:
            is_new = False
        rights = _rights(account_id, policy_arn(account_id, owner), targets)
        iam.put_role_policy(RoleName=name, PolicyName=_RIGHTS, PolicyDocument=json.dumps(rights))
    return arn, is_new


@explained("read what the policy forbids")
def why_powerless(cloud: Cloud, account_id: str, owner: str, targets: Principals) -> str:
    """
    Read policy and role back; say what is wrong with them, a half-sentence, `""` when nothing is.

    Args:
        targets: Whom the role must be able to bind.

    Raises:
        AwsError: AWS does not say.
    """
    iam, arn = _client(cloud), policy_arn(account_id, owner)
    role = role_arn(account_id, owner).rpartition("/")[2]
    try:
        with cloud.explained("read the policy that forbids launches"):
            version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
            said = iam.get_policy_version(PolicyArn=arn, VersionId=version)
    except NotFound:
        return "the policy that forbids launches is gone"
    if said["PolicyVersion"]["Document"] != deny_document():
        return "the policy that forbids launches was changed"
    try:
        with cloud.explained(f"read the role {role}"):
            trust: Any = iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
            rights: Any = iam.get_role_policy(RoleName=role, PolicyName=_RIGHTS)
    except NotFound:
        return f"the role {role} is gone"
    wanted = _trust(account_id), _rights(account_id, arn, targets)
    is_ours = (trust, rights["PolicyDocument"]) == wanted
    return "" if is_ours else f"the role {role} was changed"


def lift(cloud: Cloud, account_id: str, owner: str, targets: Principals) -> None:
    """
    Take the deny policy off users and roles; one that is not attached is fine.

    Raises:
        AwsError: AWS refuses.
    """
    iam, arn = _client(cloud), policy_arn(account_id, owner)
    gone = iam.exceptions.NoSuchEntityException
    with cloud.explained("allow launches again"):
        for user in targets.users:
            with suppress(gone):
                iam.detach_user_policy(UserName=user, PolicyArn=arn)
        for role in targets.roles:
            with suppress(gone):
                iam.detach_role_policy(RoleName=role, PolicyArn=arn)


def remove(cloud: Cloud, account_id: str, owner: str) -> None:
    """
    Remove role and policy, lifted before; what is gone is fine.

    Raises:
        AwsError: AWS refuses.
    """
    iam, role = _client(cloud), role_arn(account_id, owner).rpartition("/")[2]
    gone = iam.exceptions.NoSuchEntityException
    with cloud.explained("remove the policy that forbids launches"):
        with suppress(gone):
            iam.delete_role_policy(RoleName=role, PolicyName=_RIGHTS)
        with suppress(gone):
            iam.delete_role(RoleName=role)
        with suppress(gone):
            iam.delete_policy(PolicyArn=policy_arn(account_id, owner))


def _client(cloud: Cloud) -> IAMClient:
    client: IAMClient = cloud.client("iam", "us-east-1")
    return client


def _trust(account_id: str) -> dict[str, Any]:
    """Only this account's budgets may use the role. https://docs.aws.amazon.com/cost-management/latest/userguide/budgets-action-role.html"""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "budgets.amazonaws.com"},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"aws:SourceAccount": account_id}},
            }
        ],
    }


def _rights(account_id: str, policy: str, targets: Principals) -> dict[str, Any]:
    kinds = (("User", targets.users), ("Role", targets.roles))
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": [f"iam:Attach{kind}Policy", f"iam:Detach{kind}Policy"],
                # Users and roles may have a path, which AWS Budgets is not told.
                "Resource": [
                    f"arn:aws:iam::{account_id}:{kind.lower()}/{path}{name}"
                    for name in names
                    for path in ("", "*/")
                ],
                "Condition": {"ArnEquals": {"iam:PolicyARN": policy}},
            }
            for kind, names in kinds
            if names
        ],
    }
