"""
Plays the owner of an account who uploads a CloudFormation template and changes none of its parameters: makes what is in it.

Roles, instance profiles, buckets, managed policies, budgets and their actions; a template with anything else is refused. Applied again, they become as it says now,
and an action that it does not change stays as it is. Not played: the deletion of a stack, a rollback, a change that CloudFormation
refuses (of a budget's e-mail addresses), the seconds until a new role can be assumed; e-mails are not sent.

Hides that moto's own CloudFormation would bring every service it has, and knows no budgets.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpulab.errors import WrongUsage
from gpulab.sandbox import budgets, moto_services
from gpulab.sandbox.calls import Answer, Call, Refusal, from_inside

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

_NUMBER = re.compile(r"\d{12}")
_REGION = "us-east-1"
_ROLE = "AWS::IAM::Role"
_PROFILE = "AWS::IAM::InstanceProfile"
_BUCKET = "AWS::S3::Bucket"
_POLICY = "AWS::IAM::ManagedPolicy"
_BUDGET = "AWS::Budgets::Budget"
_ACTION = "AWS::Budgets::BudgetsAction"


def apply(world: World, text: str, *, account: str = "") -> tuple[str, ...]:
    """
    Make what a template has in an account, or make it as the template says again; return the ARNs of its roles.

    Args:
        account: `""` for the one the template says it is for.

    Raises:
        WrongUsage: The account is not twelve digits, the template has something else in it or asks for what it gives no default for, or
            AWS refuses the action of a budget.
    """
    try:
        account, found = _read(text, account)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongUsage(
            "the template cannot be read", hint="One that `gpulab course enrol` wrote"
        ) from error
    if not _NUMBER.fullmatch(account):
        raise WrongUsage(f"`{account}` is not an account", hint="Name one of twelve digits")
    for kind, make in _MAKERS.items():
        for properties in (p for k, p in found if k == kind):
            make(world, account, properties)
    return tuple(_arn(account, "role", p["RoleName"]) for k, p in found if k == _ROLE)


def _read(text: str, account: str) -> tuple[str, list[tuple[str, Any]]]:
    """The account, and each resource's type with its properties as they are there."""
    template = json.loads(text)
    account = account or str(template.get("Metadata", {}).get("gpulab", {}).get("account", ""))
    kinds = {resource["Type"] for resource in template["Resources"].values()}
    if not kinds or kinds - set(_MAKERS):
        has = ", ".join(sorted(kinds - set(_MAKERS))) or "nothing"
        raise WrongUsage(
            f"the sandbox makes roles, buckets, policies and budgets; the template has {has}"
        )
    known = _known(template, account)
    made = template["Resources"].items()
    # What has no name of its own gets one from CloudFormation.
    return account, [
        (r["Type"], {"Name": known.get(name), **_resolved(r["Properties"], known)})
        for name, r in made
    ]


def _known(template: Mapping[str, Any], account: str) -> dict[str, str]:
    """What a template may refer to, by the words that `Ref`, and `Fn::GetAtt` with a dot, have for it."""
    known = {"AWS::AccountId": account, "AWS::Partition": "aws", "AWS::Region": _REGION}
    known.update(_answered(template.get("Parameters", {})))
    for name, resource in template["Resources"].items():
        if resource["Type"] == _ROLE:
            known[name] = resource["Properties"]["RoleName"]
            known[f"{name}.Arn"] = _arn(account, "role", known[name])
        if resource["Type"] == _BUCKET:
            # The same each time, as of one stack: the stack's name, the resource's, and letters that nobody else has.
            letters = hashlib.sha256(f"{account} {name}".encode()).hexdigest()[:12]
            known[name] = f"stack-{name.lower()}-{letters}"
        if resource["Type"] == _POLICY:
            policy = resource["Properties"]["ManagedPolicyName"]
            known[name] = _arn(account, "policy", policy)
    return known


def _answered(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, parameter in parameters.items():
        said = str(parameter.get("Default", ""))
        if not said or not re.fullmatch(parameter.get("AllowedPattern", ".*"), said):
            raise WrongUsage(
                f"the template asks for {name}, and `{said}` is no answer",
                hint="The address in roster.csv is the default of Email: complete it and write the templates again",
            )
        yield name, said


def _resolved(value: Any, known: Mapping[str, str]) -> Any:
    """Put in what a template refers to."""
    if isinstance(value, list):
        return [_resolved(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return known[value["Ref"]]
    if set(value) == {"Fn::GetAtt"}:
        return known[".".join(value["Fn::GetAtt"])]
    if set(value) == {"Fn::Sub"}:
        return re.sub(r"\$\{([\w:.]+)\}", lambda m: known[m[1]], value["Fn::Sub"])
    return {key: _resolved(item, known) for key, item in value.items()}


def _make_bucket(_: World, account: str, bucket: Mapping[str, Any]) -> None:
    is_versioned = bucket["VersioningConfiguration"]["Status"] == "Enabled"
    moto_services.put_bucket(account, bucket["Name"], _REGION, is_versioned=is_versioned)


def _make_role(_: World, account: str, role: Mapping[str, Any]) -> None:
    policies = {p["PolicyName"]: json.dumps(p["PolicyDocument"]) for p in role["Policies"]}
    trust = json.dumps(role["AssumeRolePolicyDocument"])
    moto_services.put_role(account, role["RoleName"], trust, policies, role.get("Tags", []))


def _make_profile(_: World, account: str, profile: Mapping[str, Any]) -> None:
    moto_services.put_profile(account, profile["InstanceProfileName"], profile["Roles"][0])


def _make_policy(_: World, account: str, policy: Mapping[str, Any]) -> None:
    document = json.dumps(policy["PolicyDocument"])
    moto_services.put_policy(account, policy["ManagedPolicyName"], document)


def _make_budget(_: World, account: str, made: Mapping[str, Any]) -> None:
    limit = {
        **made["Budget"]["BudgetLimit"],
        "Amount": str(made["Budget"]["BudgetLimit"]["Amount"]),
    }
    told = made.get("NotificationsWithSubscribers", [])
    moto_services.put_budget(account, {**made["Budget"], "BudgetLimit": limit}, told)


def _make_action(world: World, account: str, made: Mapping[str, Any]) -> None:
    threshold = made["ActionThreshold"]
    wanted = {
        **made,
        "ActionThreshold": {
            "ActionThresholdType": threshold["Type"],
            "ActionThresholdValue": float(threshold["Value"]),
        },
        "Subscribers": [
            {"SubscriptionType": s["Type"], "Address": s["Address"]} for s in made["Subscribers"]
        ],
    }
    kept = world.money.budget_actions.get((account, made["BudgetName"]), [])
    if any(all(action.get(k) == v for k, v in wanted.items()) for action in kept):
        return
    for action in list(kept):
        _ask(world, account, "DeleteBudgetAction", {**made, "ActionId": action["ActionId"]})
    _ask(world, account, "CreateBudgetAction", wanted)


def _ask(world: World, account: str, operation: str, params: Mapping[str, Any]) -> None:
    call = from_inside(account, "us-east-1", "budgets", operation, {**params, "AccountId": account})
    try:
        budgets.OPERATIONS[operation](world, call, _never)
    except Refusal as refusal:
        raise WrongUsage(f"AWS refuses the template's action: {refusal.message}") from refusal


def _never(call: Call) -> Answer:
    raise AssertionError(f"the layer answers {call.operation} by itself")


def _arn(account: str, kind: str, name: str) -> str:
    return f"arn:aws:iam::{account}:{kind}/{name}"


# In the order in which one needs the other.
_MAKERS = {
    _BUCKET: _make_bucket,
    _ROLE: _make_role,
    _PROFILE: _make_profile,
    _POLICY: _make_policy,
    _BUDGET: _make_budget,
    _ACTION: _make_action,
}
