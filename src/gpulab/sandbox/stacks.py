"""
Plays the owner of an account who uploads a CloudFormation template: makes the roles in it. Refuses a template with anything else.

Hides that moto's own CloudFormation would bring every service it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.sandbox import moto_services

_NUMBER = re.compile(r"\d{12}")


def apply(text: str, *, account: str = "") -> tuple[str, ...]:
    """
    Make the roles of a template in an account, or give them the template's trust and rights again; return their ARNs.

    Args:
        account: `""` for the one the template says it is for.

    Raises:
        WrongUsage: The account is not twelve digits, or the template is not one of roles with inline policies.
    """
    try:
        template = json.loads(text)
        account = account or str(template.get("Metadata", {}).get("gpulab", {}).get("account", ""))
        resources = template["Resources"]
        kinds = {made["Type"] for made in resources.values()}
        roles = [_resolved(made["Properties"], account) for made in resources.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongUsage(
            "the template cannot be read", hint="One that `gpulab course enrol` wrote"
        ) from error
    if kinds != {"AWS::IAM::Role"}:
        other = ", ".join(sorted(kinds - {"AWS::IAM::Role"})) or "nothing"
        raise WrongUsage(f"the sandbox makes roles only; the template has {other}")
    if not _NUMBER.fullmatch(account):
        raise WrongUsage(f"`{account}` is not an account", hint="Name one of twelve digits")
    return tuple(_make(account, role) for role in roles)


def _make(account: str, role: Mapping[str, Any]) -> str:
    policies = {p["PolicyName"]: json.dumps(p["PolicyDocument"]) for p in role["Policies"]}
    return moto_services.put_role(
        account, role["RoleName"], json.dumps(role["AssumeRolePolicyDocument"]), policies
    )


def _resolved(value: Any, account: str) -> Any:
    """Put the account in for CloudFormation's own words."""
    if isinstance(value, list):
        return [_resolved(item, account) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return {"AWS::AccountId": account, "AWS::Partition": "aws"}[value["Ref"]]
    if set(value) == {"Fn::Sub"}:
        said = str(value["Fn::Sub"]).replace("${AWS::AccountId}", account)
        return said.replace("${AWS::Partition}", "aws")
    return {key: _resolved(item, account) for key, item in value.items()}
