"""Looks at every permission that gpulab asks for in whichever test, and says whether the policy of whoever asks has it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from gpulab.model.instance import TAG_COURSE, TAG_OWNER
from gpulab.rights import roles
from gpulab.rights.policy import OF_THE_CALLER, Reach, known_commands, policy
from gpulab.rights.table import RIGHTS, Part
from gpulab.sandbox.calls import Call
from gpulab.sandbox.iam_policies import Asked, Decision, decide
from gpulab.sandbox.witnesses import APP, Seen, said_in_calls

#: Parts that people hold; the others are of roles that nobody holds in their hands.
_OF_PEOPLE = tuple(
    p for p in Part if p not in (Part.COURSE, Part.INSTANCE, Part.CLASS, Part.SCHEDULER)
)

#: Whoever bakes images may delete them, and so may a student's sweep; whoever sets up an account or holds a course makes end roles;
#: putting a role into its profile passes it, as a launch does; a course's teacher reads the budget that whoever arms guards makes, and
#: sends the agent for all instances of a course as a student does for their own.
_OF_SEVERAL = frozenset(
    {
        "budgets:DescribeBudgetActionsForBudget",
        "budgets:ViewBudget",
        "ec2:DeregisterImage",
        "ec2:DeleteSnapshot",
        "iam:AddRoleToInstanceProfile",
        "iam:CreateInstanceProfile",
        "iam:CreateRole",
        "iam:GetRole",
        "iam:PassRole",
        "iam:PutRolePolicy",
        "iam:TagInstanceProfile",
        "iam:TagRole",
        "s3:PutObject",
    }
)

#: What a typed command is in the table, where it is not called the same.
_TYPED = {
    ("course",): ("fleet",),
    ("course", "close"): ("close",),
    ("dashboard",): ("ls", "fleet"),
    # With `--course` it is the teacher who asks.
    ("ledger", "rebuild"): ("ledger", "fleet"),
    ("report",): ("fleet",),
    # The first of a course makes the bucket, where nobody has typed `gpulab init`; without the right the work is kept on this computer.
    ("fleet", "up"): ("fleet", "init"),
}

#: The command whose work a module does, where no command was typed; the first of its kind from outside counts.
_WORK = {
    "gpulab.launch.up": ("up",),
    "gpulab.launch.bake": ("image",),
    "gpulab.launch.upkeep.prepare": ("init",),
    "gpulab.launch.upkeep.doctor": ("doctor",),
    "gpulab.launch.upkeep.guards": ("guard",),
    "gpulab.launch.upkeep.sweep": ("sweep",),
    "gpulab.launch.running.extend": ("extend",),
    "gpulab.launch.running.stop": ("stop",),
    "gpulab.launch.running.overview": ("ls",),
    "gpulab.launch.money.balance": ("credit", "fleet"),
    "gpulab.launch.money.rebuilding": ("ledger",),
    "gpulab.launch.offers.prices": ("prices",),
    "gpulab.fleets.closing": ("close",),
    "gpulab.fleets": ("fleet", "init"),
}


class Kept:
    """
    What sandboxes in processes of their own have kept, see `witnesses.keep_in`; each call is told once.

    Args:
        folder: Their files, and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Seen]:
        """Read what has come since the last time; a line that is still being written is not there yet."""
        for path in sorted(self.folder.iterdir()):
            begin = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(begin)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = begin + len(whole)
            yield from (Seen.read(line.decode()) for line in whole.splitlines())


class Judge:
    """
    Looks at calls.

    Args:
        kept: Of sandboxes in processes of their own.

    Attributes:
        forbidden: What the policy of whoever asked does not allow, or what more policies of people allow than should.
        count: How many permissions it has looked at.
    """

    def __init__(self, kept: Kept) -> None:
        self.forbidden: list[str] = []
        self.count = 0
        self._kept = kept
        self._typed: list[tuple[str, ...]] = []

    def listening(self, invoke: Callable[..., Any]) -> Callable[..., Any]:
        """Return click's way to run a command, noting which one runs; its threads ask for what it asks for."""

        def invoked(command: click.Command, context: click.Context) -> Any:
            words = _words(context)
            if not words:
                return invoke(command, context)
            self._typed.append(words)
            self._say_in_calls()
            try:
                return invoke(command, context)
            finally:
                self._typed.remove(words)
                self._say_in_calls()

        return invoked

    def _say_in_calls(self) -> None:
        os.environ.pop(APP, None)
        if self._typed:
            os.environ |= said_in_calls(self._typed[-1])

    def __call__(self, call: Call, asked: list[Asked]) -> None:
        self._look(Seen.of(call, asked), self._commands)

    def read(self) -> None:
        """Look at what sandboxes in processes of their own were asked for meanwhile."""
        for seen in self._kept.new():
            self._look(seen, lambda agent=seen.agent: _commands_in(agent))

    def _look(self, seen: Seen, commands: Callable[[], Sequence[str]]) -> None:
        if not seen.asked:
            if "gpulab/" in seen.agent:
                self.forbidden.append(f"{seen.name}: nobody can tell what it asks for")
            return
        role = _role(seen.asked)
        for one in seen.asked:
            if role and _is_ours(seen.agent, role):
                self._check_role(role, one)
            elif not role and "gpulab/" in seen.agent:
                self._check_person(one, commands())

    def _check_role(self, role: str, asked: Asked) -> None:
        self.count += 1
        named = _as_in_the_table(asked) if not role.startswith("gpulab-work-") else asked
        if decide([_policy_of(role, asked)], named) is not Decision.ALLOWED and not _is_free(asked):
            self.forbidden.append(f"{asked.action} on {asked.resource}: not the right of {role}")

    def _check_person(self, asked: Asked, commands: Sequence[str]) -> None:
        self.count += 1
        parts = _parts_that_allow(asked)
        if not parts or (len(parts) > 1 and asked.action not in _OF_SEVERAL):
            self.forbidden.append(f"{asked.action} on {asked.resource}: allowed by {parts}")
        if commands and not any(_may(command, asked) for command in commands):
            self.forbidden.append(f"{asked.action} on {asked.resource}: not of {commands}")

    def _commands(self) -> Sequence[str]:
        """Name the commands of which one asks now; empty where nobody can tell."""
        if self._typed:
            return [command for words in self._typed for command in _in_the_table(words)]
        return next((c for name in _callers() for c in [_of_module(name)] if c), ())


def _words(context: click.Context) -> tuple[str, ...]:
    names = []
    at: click.Context | None = context
    while at is not None and at.parent is not None:
        names.append(at.info_name or "")
        at = at.parent
    return tuple(reversed(names))


def _commands_in(agent: str) -> Sequence[str]:
    """Name the commands of which one has asked, as the call itself says; empty where it does not."""
    found = re.search(r"\bapp/([a-z.]+)", agent)
    return list(_in_the_table(tuple(found[1].split(".")))) if found else ()


def _in_the_table(words: tuple[str, ...]) -> Collection[str]:
    for length in range(len(words), 0, -1):
        if words[:length] in _TYPED:
            return _TYPED[words[:length]]
    return words[:1]


def _callers() -> Iterator[str]:
    """Name the modules of who calls, from outside inwards."""
    names: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("gpulab.") and not name.startswith("gpulab.sandbox"):
            names.append(name)
        frame = frame.f_back
    return reversed(names)


@cache
def _of_module(name: str) -> tuple[str, ...]:
    return _WORK.get(name) or (_WORK["gpulab.fleets"] if name.startswith("gpulab.fleets.") else ())


@cache
def _least(command: str) -> list[Mapping[str, Any]]:
    known = known_commands()
    parts = [p for p in _OF_PEOPLE if any(command in r.commands for r in RIGHTS if r.part is p)]
    # What asks for the same as `open` is not in the table by its own name.
    same = command in ("ssh", "push", "show", "check", "logs")
    return (
        [policy(parts or [Part.STUDENT], Reach(), commands=[command])]
        if command in known or same
        else []
    )


def _may(command: str, asked: Asked) -> bool:
    return decide(_least(command), asked) is Decision.ALLOWED


_POLICIES = {part: [policy([part], Reach())] for part in _OF_PEOPLE}
_OF_ONE_OWNER = [policy([Part.STUDENT], Reach(OF_THE_CALLER))]


def _parts_that_allow(asked: Asked) -> list[str]:
    allowing = [p for p, rules in _POLICIES.items() if decide(rules, asked) is Decision.ALLOWED]
    if Part.STUDENT in allowing and not _is_of_one_owner(asked):
        allowing.remove(Part.STUDENT)
    return [part.value for part in allowing]


def _is_of_one_owner(asked: Asked) -> bool:
    """Whether the policy of a shared account allows it too, to the owner that the call is about."""
    context = {**asked.context, "aws:principaltag/gpulab": (_owner_in(asked),)}
    return decide(_OF_ONE_OWNER, Asked(asked.action, asked.resource, context)) is Decision.ALLOWED


def _owner_in(asked: Asked) -> str:
    for key in ("aws:requesttag/gpulab:owner", "aws:resourcetag/gpulab:owner"):
        if key in asked.context:
            return asked.context[key][0]
    if "s3:prefix" in asked.context:
        return asked.context["s3:prefix"][0].partition("/")[0]
    named = re.search(r":::[^/]+/([^/]+)/|gpulab-(?:end|work)-(.+?)(?:-i-|$)", asked.resource)
    return (named[1] or named[2]) if named else "nobody"


# -- roles --------------------------------------------------------------------------------------------------------------------


def _role(asked: Sequence[Asked]) -> str:
    """Name the role that asks; `""` for a person."""
    found = re.search(r":(?:assumed-)?role/([^/]+)", asked[0].context["aws:principalarn"][0])
    return found[1] if found else ""


def _is_ours(agent: str, role: str) -> bool:
    """Whether gpulab asks, its agent or the scheduler for it; tests play thieves of a role with clients of their own."""
    if role.startswith(("gpulab-work-", "gpulab-end-")):
        return "Boto3" not in agent or "gpulab/" in agent
    return "gpulab/" in agent


def _policy_of(role: str, asked: Asked) -> Mapping[str, Any]:
    owner = role.removeprefix("gpulab-").partition("-")[2]
    if role.startswith("gpulab-end-"):
        course = owner.removeprefix("course-")
        return (
            roles.end_role(TAG_OWNER, owner)
            if course == owner
            else roles.end_role(TAG_COURSE, course)
        )
    if role.startswith("gpulab-work-"):
        bucket = asked.resource.partition(":::")[2].partition("/")[0]
        # A stack's bucket has a name of CloudFormation's making, and is one student's.
        is_class = owner.startswith("course-") and bucket.startswith("gpulab-")
        return (roles.class_role if is_class else roles.work_role)(bucket, owner)
    return _course_policy(_course_in(asked))


def _as_in_the_table(asked: Asked) -> Asked:
    """Name the bucket of a student's stack, which has a name of CloudFormation's making, as the template replaces it."""
    resource = re.sub(r":::stack-", ":::gpulab-", asked.resource)
    return Asked(asked.action, resource, asked.context)


@cache
def _course_policy(course: str) -> Mapping[str, Any]:
    return policy([Part.STUDENT, Part.COURSE], Reach(course=course), commands=("fleet", "close"))


def _course_in(asked: Asked) -> str:
    for key in ("aws:requesttag/gpulab:course", "aws:resourcetag/gpulab:course"):
        if key in asked.context:
            return asked.context[key][0]
    said = " ".join((asked.resource, *(v for values in asked.context.values() for v in values)))
    named = re.search(r"\bcourse-([\w-]+)", said)
    return named[1] if named else "none"


def _is_free(asked: Asked) -> bool:
    return asked.action == "sts:GetCallerIdentity"
