"""
R25: what a call must be allowed: its IAM actions, each with the resources it touches and what AWS knows about them.

A call may need several: RunInstances asks for every resource it makes or uses, for `ec2:CreateTags` on what it tags, and for `iam:PassRole`.

Source:
    https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html, and
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html (November 2026)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from gpulab.sandbox import moto_bridge, moto_services
from gpulab.sandbox.calls import Call
from gpulab.sandbox.credentials import action_of
from gpulab.sandbox.iam_policies import Asked

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

Keys = dict[str, tuple[str, ...]]
Found = tuple[str, Keys]

#: Kinds of EC2 resources by the beginning of their ids.
_KINDS = {
    "i": "instance",
    "vol": "volume",
    "ami": "image",
    "snap": "snapshot",
    "sg": "security-group",
    "sgr": "security-group-rule",
    "sir": "spot-instances-request",
    "subnet": "subnet",
    "vpc": "vpc",
    "key": "key-pair",
    "eipalloc": "elastic-ip",
    "eni": "network-interface",
}
_WITHOUT_ACCOUNT = ("image", "snapshot")
_MAKES = {
    "CreateSecurityGroup": ("security-group",),
    "ImportKeyPair": ("key-pair",),
    "AuthorizeSecurityGroupIngress": ("security-group-rule",),
    "CreateImage": ("image", "snapshot"),
    "CopyImage": ("image", "snapshot"),
    "CreateVolume": ("volume",),
}
_S3_ACTIONS = {
    "ListObjectsV2": "ListBucket",
    "ListObjects": "ListBucket",
    "HeadBucket": "ListBucket",
    "ListObjectVersions": "ListBucketVersions",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "HeadObject": "GetObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "DeleteObjects": "DeleteObject",
}
_VIEWS_BUDGET = ("DescribeBudget", "DescribeNotifications", "DescribeSubscribers")


def asked_by(world: World, call: Call, *, caller: str, tags: Mapping[str, str]) -> list[Asked]:
    """
    Say what a call must be allowed; at least one permission.

    Args:
        caller: ARN of who calls.
        tags: Of that user or role: `aws:PrincipalTag/...`.
    """
    everywhere: Keys = {
        "aws:requestedregion": (call.region,),
        "aws:principalarn": (caller,),
        **_user_id(call.account, caller),
        "aws:principalaccount": (call.account,),
        "aws:resourceaccount": (call.account,),
        **{f"aws:principaltag/{key.lower()}": (value,) for key, value in tags.items()},
    }
    by_service = {
        "ec2": _ec2,
        "s3": _s3,
        "iam": _iam,
        "scheduler": _scheduler,
        "budgets": _budgets,
        "ssm": _ssm,
        "service-quotas": _quotas,
    }
    find = by_service.get(call.service, _whole_service)
    return [Asked(action, arn, {**everywhere, **keys}) for action, (arn, keys) in find(world, call)]


def _user_id(account: str, caller: str) -> Keys:
    """
    `aws:userid` of a role's session, which is `ROLE_ID:SESSION`; EC2 names the session of an instance's role after the instance.

    Nobody but an instance can have that name, as far as the role trusts EC2 alone. Of users it is not played: then it is not there.

    Source:
        https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html, "Principal key values" (November 2026)
    """
    if ":assumed-role/" not in caller:
        return {}
    role, session = caller.split("/")[1:3]
    id_ = moto_services.role_id(account, role)
    return {"aws:userid": (f"{id_}:{session}",)} if id_ else {}


def _whole_service(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    arn = str(call.params.get("RoleArn", "*")) if call.operation == "AssumeRole" else "*"
    yield action_of(call), (arn, {})


# -- EC2 ----------------------------------------------------------------------------------------------------------------------


def _ec2(world: World, call: Call) -> Iterator[tuple[str, Found]]:
    action = f"ec2:{call.operation}"
    if call.operation.startswith("Describe"):
        yield action, ("*", {})
    elif call.operation == "RunInstances":
        yield from _launch(world, call)
    elif call.operation == "CreateTags":
        for id_ in call.params.get("Resources", []):
            arn, keys = _existing(call, str(id_))
            yield action, (arn, {**keys, **_tags_asked(call.params.get("Tags", []))})
    else:
        touched = list(_touched(call))
        made = list(_made(call))
        for found in [*touched, *made] or [("*", {})]:
            yield action, found
        yield from _tagging(call, made)


def _launch(world: World, call: Call) -> Iterator[tuple[str, Found]]:
    params, action = call.params, "ec2:RunInstances"
    made = [
        (_arn(call, "instance"), {**_of_launch(params), **_specified(call, "instance")}),
        (_arn(call, "network-interface"), _specified(call, "network-interface")),
        *_disks(call),
    ]
    if params.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        made.append(
            (_arn(call, "spot-instances-request"), _specified(call, "spot-instances-request"))
        )
    for found in [*made, *_used(call)]:
        yield action, found
    yield from _tagging(call, made)
    profile = params.get("IamInstanceProfile", {})
    named = moto_services.role_of_profile(
        call.account, str(profile.get("Name") or profile.get("Arn") or "")
    )
    if profile and named:
        yield _pass_role(f"arn:aws:iam::{call.account}:role/{named[2]}", "ec2.amazonaws.com")


def _used(call: Call) -> Iterator[Found]:
    params = call.params
    cards = params.get("NetworkInterfaces", [])
    groups = [
        *params.get("SecurityGroupIds", []),
        *(g for card in cards for g in card.get("Groups", [])),
    ]
    subnets = [params.get("SubnetId"), *(card.get("SubnetId") for card in cards)]
    yield _existing(call, str(params.get("ImageId", "ami-unknown")))
    for id_ in [*(s for s in subnets if s), *groups]:
        yield _existing(call, str(id_))
    if name := params.get("KeyName"):
        yield _key_pair(call, str(name))


def _disks(call: Call) -> Iterator[Found]:
    blocks = [b.get("Ebs", {}) for b in call.params.get("BlockDeviceMappings", [])] or [{}]
    for block in blocks:
        keys = {"ec2:encrypted": (str(bool(block.get("Encrypted"))).lower(),)}
        if size := block.get("VolumeSize"):
            keys["ec2:volumesize"] = (str(size),)
        yield _arn(call, "volume"), {**keys, **_specified(call, "volume")}


def _of_launch(params: Mapping[str, Any]) -> Keys:
    metadata = params.get("MetadataOptions", {})
    market = params.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
    return {
        "ec2:instancetype": (str(params.get("InstanceType", "m1.small")),),
        "ec2:instancemarkettype": (str(market),),
        # Amazon's and Canonical's images of today leave IMDSv1 on unless the launch says otherwise.
        "ec2:metadatahttptokens": (str(metadata.get("HttpTokens", "optional")),),
        "ec2:metadatahttpputresponsehoplimit": (str(metadata.get("HttpPutResponseHopLimit", 1)),),
    }


def _touched(call: Call) -> Iterator[Found]:
    """What exists already and is named by its id, in whichever parameter."""
    for name, value in call.params.items():
        for one in value if isinstance(value, list) else [value]:
            found = re.fullmatch(r"([a-z]+)-[0-9a-f]{8,}", one) if isinstance(one, str) else None
            if found and found[1] in _KINDS and name != "SecurityGroupRuleIds":
                yield _existing(call, one)
    if call.operation == "DeleteKeyPair" and call.params.get("KeyName"):
        yield _key_pair(call, str(call.params["KeyName"]))


def _made(call: Call) -> Iterator[Found]:
    kinds = _MAKES.get(call.operation, ())
    for kind in kinds:
        asked = _specified(call, kind)
        if kind != "security-group-rule" or asked:
            yield _arn(call, kind), asked


def _tagging(call: Call, made: Iterable[Found]) -> Iterator[tuple[str, Found]]:
    """Each resource that a call tags while it makes it needs `ec2:CreateTags` too."""
    for arn, keys in made:
        if "aws:tagkeys" in keys:
            yield "ec2:CreateTags", (arn, {**keys, "ec2:createaction": (call.operation,)})


def _specified(call: Call, kind: str) -> Keys:
    tags = [
        tag
        for specification in call.params.get("TagSpecifications", [])
        if specification.get("ResourceType") == kind
        for tag in specification.get("Tags", [])
    ]
    return _tags_asked(tags) if tags else {}


def _tags_asked(tags: Iterable[Mapping[str, Any]]) -> Keys:
    pairs = {str(tag["Key"]): str(tag.get("Value", "")) for tag in tags}
    asked = {f"aws:requesttag/{key.lower()}": (value,) for key, value in pairs.items()}
    return {**asked, "aws:tagkeys": tuple(pairs)}


def _existing(call: Call, id_: str) -> Found:
    kind = _KINDS.get(id_.partition("-")[0], "unknown")
    tags = moto_bridge.tags_of(moto_bridge.ec2(call.account, call.region), id_)
    return _arn(call, kind, id_), _tags_there(tags)


def _key_pair(call: Call, name: str) -> Found:
    pair = moto_bridge.key_pair(moto_bridge.ec2(call.account, call.region), name)
    tags = {str(t["key"]): str(t["value"]) for t in pair.get_tags()} if pair else {}
    return _arn(call, "key-pair", name), _tags_there(tags)


def _tags_there(tags: Mapping[str, str]) -> Keys:
    return {f"aws:resourcetag/{key.lower()}": (value,) for key, value in tags.items()}


def _arn(call: Call, kind: str, id_: str = "new") -> str:
    account = "" if kind in _WITHOUT_ACCOUNT else call.account
    return f"arn:aws:ec2:{call.region}:{account}:{kind}/{id_}"


# -- the others ---------------------------------------------------------------------------------------------------------------


def _s3(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    bucket, key, query = _s3_place(call)
    action = f"s3:{_S3_ACTIONS.get(call.operation, call.operation)}"
    if call.operation == "DeleteObjects":
        yield from _s3_deleted(call, bucket)
        return
    keys: Keys = {}
    for word in ("prefix", "delimiter"):
        if found := query.get(word):
            keys[f"s3:{word}"] = (found[0],)
    arn = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    if query.get("versionId") and action in ("s3:GetObject", "s3:DeleteObject"):
        action += "Version"
    yield action, (arn, keys)


def _s3_deleted(call: Call, bucket: str) -> Iterator[tuple[str, Found]]:
    for found in re.findall(rb"<Object>(.*?)</Object>", call.body, re.DOTALL):
        key = re.search(rb"<Key>(.*?)</Key>", found, re.DOTALL)
        action = "s3:DeleteObjectVersion" if b"<VersionId>" in found else "s3:DeleteObject"
        yield action, (f"arn:aws:s3:::{bucket}/{key[1].decode() if key else ''}", {})


def _s3_place(call: Call) -> tuple[str, str, dict[str, list[str]]]:
    """Bucket, key and query of a request: the bucket stands in the host or in front of the path."""
    parts = urlsplit(call.url)
    query = parse_qs(parts.query, keep_blank_values=True)
    host, path = parts.hostname or "", unquote(parts.path).lstrip("/")
    in_host = re.fullmatch(r"(.+)\.s3[.-].*amazonaws\.com", host)
    if in_host:
        return in_host[1], path, query
    bucket, _, key = path.partition("/")
    return bucket, key, query


def _scheduler(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    name = call.params.get("Name")
    group = call.params.get("GroupName") or "default"
    arn = f"arn:aws:scheduler:{call.region}:{call.account}:schedule/{group}/{name}" if name else "*"
    yield f"scheduler:{call.operation}", (arn, {})
    if role := call.params.get("Target", {}).get("RoleArn"):
        yield _pass_role(str(role), "scheduler.amazonaws.com")


def _iam(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    params, home = call.params, f"arn:aws:iam::{call.account}"
    kinds = {
        "RoleName": "role",
        "UserName": "user",
        "PolicyName": "policy",
        "InstanceProfileName": "instance-profile",
    }
    named = [f"{home}:{kind}/{params[n]}" for n, kind in kinds.items() if params.get(n)]
    arn = named[0] if named else str(params.get("PolicyArn", "*"))
    keys: Keys = {}
    if call.operation == "CreateServiceLinkedRole":
        service = str(params["AWSServiceName"])
        arn = f"{home}:role/aws-service-role/{service}/AWSServiceRoleForEC2Spot"
        keys["iam:awsservicename"] = (service,)
    if call.operation == "GetRole" and str(params["RoleName"]).startswith("AWSServiceRole"):
        arn = f"{home}:role/aws-service-role/spot.amazonaws.com/{params['RoleName']}"
    if "PolicyArn" in params:
        keys["iam:policyarn"] = (str(params["PolicyArn"]),)
    if call.operation == "AddRoleToInstanceProfile":
        arn = f"{home}:instance-profile/{params['InstanceProfileName']}"
        yield _pass_role(f"{home}:role/{params['RoleName']}", "ec2.amazonaws.com")
    yield f"iam:{call.operation}", (arn, keys)
    if params.get("Tags"):
        kind = "Tag" + call.operation.removeprefix("Create")
        yield f"iam:{kind}", (arn, _tags_asked(params["Tags"]))


def _budgets(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    params = call.params
    budget = params.get("Budget") or params.get("NewBudget") or {}
    name = params.get("BudgetName") or budget.get("BudgetName") or ""
    arn = f"arn:aws:budgets::{params.get('AccountId', call.account)}:budget/{name}"
    if "BudgetAction" in call.operation:
        one = call.operation in ("CreateBudgetAction", "DeleteBudgetAction")
        id_ = params.get("ActionId", "new")
        yield f"budgets:{call.operation}", (f"{arn}/action/{id_}" if one else arn, {})
    else:
        views = call.operation.startswith(_VIEWS_BUDGET)
        yield f"budgets:{'View' if views else 'Modify'}Budget", (arn, {})
    if role := params.get("ExecutionRoleArn"):
        yield _pass_role(str(role), "budgets.amazonaws.com")


def _ssm(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    names = call.params.get("Names") or [call.params.get("Name", "")]
    for name in names:
        is_public = str(name).startswith("/aws/service/")
        account = "" if is_public else call.account
        arn = f"arn:aws:ssm:{call.region}:{account}:parameter/{str(name).lstrip('/')}"
        yield f"ssm:{call.operation}", (arn, {})


def _quotas(_: World, call: Call) -> Iterator[tuple[str, Found]]:
    service, code = call.params.get("ServiceCode", "*"), call.params.get("QuotaCode", "*")
    arn = f"arn:aws:servicequotas:{call.region}:{call.account}:{service}/{code}"
    yield action_of(call), (arn, {})


def _pass_role(arn: str, service: str) -> tuple[str, Found]:
    return "iam:PassRole", (arn, {"iam:passedtoservice": (service,)})
