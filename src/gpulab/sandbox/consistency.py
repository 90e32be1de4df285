"""R11: what was created a moment ago is not there yet, for calls by id as for lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from gpulab.sandbox.calls import Answer, Call, Refusal

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

#: Calls that create what is not seen at once, and where the answer names it.
_CREATES = {
    "CreateSecurityGroup": rb"<groupId>(sg-[0-9a-f]+)</groupId>",
    "CreateInstanceProfile": rb"<Arn>(arn:aws:iam::\d+:instance-profile/[^<]+)</Arn>",
}
_NEW_ROLE = re.compile(rb"<Arn>(arn:aws:iam::\d+:role/[^<]+)</Arn>")


class Consistency:
    """
    What is still hidden, and until when.

    Args:
        now: The world's clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._hidden_until: dict[str, datetime] = {}

    def hide(self, id_: str, until: datetime) -> None:
        """Hide a fresh resource."""
        self._hidden_until[id_] = until

    def shows(self, id_: str) -> bool:
        """Whether callers see a resource; true for everything that is not fresh."""
        until = self._hidden_until.get(id_)
        if until is not None and self._now() >= until:
            self._hidden_until.pop(id_, None)
            return True
        return until is None

    def hidden(self) -> list[str]:
        """The ids that callers do not see yet."""
        return [id_ for id_ in list(self._hidden_until) if not self.shows(id_)]


def after_create(world: World, call: Call, answer: Answer) -> None:
    """Hide what a call has just created."""
    if not world.rules.consistency:
        return
    if call.operation == "CreateRole" and (made := _NEW_ROLE.search(answer.body)):
        world.consistency.hide(made[1].decode(), world.now() + world.rules.delays.role)
    pattern = _CREATES.get(call.operation)
    if pattern is None:
        return
    for id_ in re.findall(pattern, answer.body):
        world.consistency.hide(id_.decode(), world.now() + world.rules.delays.consistency)


def check_groups(world: World, call: Call) -> None:
    """
    Refuse calls that name a security group too early.

    Raises:
        Refusal: `InvalidGroup.NotFound`.
    """
    for id_ in _group_ids(call.params):
        if not world.consistency.shows(id_):
            raise Refusal("InvalidGroup.NotFound", f"The security group '{id_}' does not exist")


def without_hidden(world: World, call: Call, answer: Answer) -> Answer:
    """A list of security groups without those that are not seen yet."""
    hidden = set(world.consistency.hidden())
    if call.operation != "DescribeSecurityGroups" or not hidden:
        return answer
    from gpulab.sandbox.trees import drop_items

    return drop_items(
        answer, "securityGroupInfo", lambda item: item.findtext("{*}groupId") in hidden
    )


def _group_ids(params: Mapping[str, object]) -> list[str]:
    single = [params["GroupId"]] if isinstance(params.get("GroupId"), str) else []
    many = params.get("GroupIds")
    return [str(id_) for id_ in [*single, *(many if isinstance(many, list) else [])]]
