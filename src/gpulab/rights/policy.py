"""Policies made from the table: for whom, where, how large. Pure; the same question always gives the same text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.model.instance import TAG_COURSE, TAG_OWNER
from gpulab.rights.table import RIGHTS, Limit, Part, Right, Whose

#: The owner id that a teacher puts on a student's IAM user or role as its tag `gpulab`.
OF_THE_CALLER = "${aws:PrincipalTag/gpulab}"

#: A managed policy has at most so many characters, white space not counted.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html (November 2026)
LONGEST = 6144

#: What a course tags with its id; its group and key pair serve every lab and carry an owner, `course-ID`.
_OF_A_COURSE = ("instance/*", "volume/*", "spot-instances-request/*")
_SAME_AS_OPEN = dict.fromkeys(("ssh", "push", "show", "check", "logs"), "open")


@dataclass(frozen=True)
class Reach:
    """
    Whose things a policy is about, and how far it goes.

    Attributes:
        owner: An owner id, `OF_THE_CALLER`, or `""` for everything that carries an owner at all.
        course: Id of the course that acts for its students: what it launches carries its tag; `""` for a person of their own.
        regions: Where something may be made; empty for everywhere.
        instance_types: What may be launched; empty for every type.
        owners: Whose scheduled ends a course may touch, since schedules carry no tags; empty for everybody's.
        bucket: Where a role keeps the work.
    """

    owner: str = ""
    course: str = ""
    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    bucket: str = ""


def policy(
    parts: Collection[Part],
    reach: Reach,
    *,
    commands: Collection[str] = (),
    rights: Collection[Right] = RIGHTS,
) -> dict[str, Any]:
    """
    Make the policy that allows what some commands ask for, and nothing else.

    Args:
        parts: Whose hands it is for.
        commands: Of gpulab, such as `up`; empty for every one.
        rights: The table; with less of it, the policy says what the rest is there for.

    Raises:
        WrongUsage: A command of that name asks AWS for nothing, or there is none.
    """
    wanted = frozenset(_SAME_AS_OPEN.get(c, c) for c in commands)
    if "pull" in wanted:
        # From the bucket by rights of its own, and from an instance that runs as everything that reaches one.
        wanted |= {"open"}
    unknown = wanted - known_commands()
    if unknown:
        raise WrongUsage(
            f"no rights are listed for `{min(unknown)}`",
            hint="There are " + ", ".join(sorted(known_commands())),
        )
    rows = [
        r for r in rights if r.part in parts and (not wanted or not wanted.isdisjoint(r.commands))
    ]
    return {"Version": "2012-10-17", "Statement": [_statement(r, reach) for r in _joined(rows)]}


def known_commands() -> frozenset[str]:
    """Name the commands of the table."""
    return frozenset(c for right in RIGHTS for c in right.commands)


def as_text(document: Mapping[str, Any]) -> str:
    """Write a policy as it is checked in and shown: JSON, two spaces, a newline at the end."""
    return json.dumps(document, indent=2) + "\n"


def _joined(rows: Iterable[Right]) -> list[Right]:
    """Put rows that differ in their actions only into one: a policy has few characters."""
    joined: dict[tuple[Any, ...], Right] = {}
    for row in rows:
        key = (row.on, row.whose, row.limits, json.dumps(row.when, sort_keys=True))
        first = joined.setdefault(key, row)
        actions = dict.fromkeys((*first.actions, *row.actions))
        joined[key] = replace(first, actions=tuple(actions))
    return list(joined.values())


def _statement(right: Right, reach: Reach) -> dict[str, Any]:
    conditions = _conditions(right, reach)
    statement: dict[str, Any] = {
        "Sid": right.name,
        "Effect": "Allow",
        "Action": _short(sorted(right.actions)),
        "Resource": _short([_of(each, arn) for arn in right.on for each in _owners(reach, arn)]),
    }
    return {**statement, "Condition": conditions} if conditions else statement


def _conditions(right: Right, reach: Reach) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for operator, pairs in right.when.items():
        found[operator] = {key: _value(reach, value) for key, value in pairs.items()}
    if right.whose is not Whose.ANYBODYS:
        operator, key, value = _marked(right, reach)
        found.setdefault(operator, {})[key] = value
    narrowed = {Limit.REGIONS: reach.regions, Limit.TYPES: reach.instance_types}
    for limit in right.limits:
        if narrowed[limit]:
            found.setdefault("StringEquals", {})[limit.value] = _short(list(narrowed[limit]))
    return {operator: found[operator] for operator in sorted(found)}


def _marked(right: Right, reach: Reach) -> tuple[str, str, str]:
    """Say by which tag a resource must be told: (operator, key, value)."""
    key = right.whose.value
    if reach.course and all(arn.rpartition(":")[2] in _OF_A_COURSE for arn in right.on):
        return "StringEquals", key.replace(TAG_OWNER, TAG_COURSE), reach.course
    owner = _owner(reach)
    return ("StringEquals", key, owner) if owner else ("Null", key, "false")


def _owner(reach: Reach) -> str:
    return f"course-{reach.course}" if reach.course else reach.owner


def _value(reach: Reach, value: Any) -> Any:
    return _of(reach, value) if isinstance(value, str) else value


def _owners(reach: Reach, arn: str) -> list[Reach]:
    """Say for each of whom an ARN is written: a course touches what several own."""
    if "{owners}" not in arn or not reach.owners:
        return [reach]
    return [replace(reach, owners=(owner,)) for owner in reach.owners]


def _of(reach: Reach, text: str) -> str:
    one = _owner(reach) or "*"
    whose = reach.owners[0] if reach.owners else "*" if reach.course else one
    return text.format(owner=one, owners=whose, bucket=reach.bucket)


def _short(values: list[str]) -> Any:
    return values[0] if len(values) == 1 else values
