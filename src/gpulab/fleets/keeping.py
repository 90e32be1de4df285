"""
Where the instances of a course keep the work in one account, so that it outlives an end that nobody watches.

An account that is reached by a profile may be a whole class's: one role lets each instance write under a prefix that is named after
its id, which the instance itself fills in. In a student's own account the stack has made bucket and role, and the work lies under the
seat's name, as for a student alone. An account without them is served without; that is an answer, and remembered as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

from gpulab.aws import workspace
from gpulab.aws.accounts import identity
from gpulab.aws.workspace import Bucket
from gpulab.aws.workspace_setup import (
    WorkRole,
    ensure_bucket,
    ensure_class_role,
    read_class_role,
)
from gpulab.bootstrap import Keep, load_environment
from gpulab.errors import Ambiguous, GpulabError, NotAllowed, Throttled
from gpulab.launch.account.storage import bucket_region
from gpulab.launch.context import Context
from gpulab.launch.protocol.asking import pauses
from gpulab.model.status import AgentStatus
from gpulab.store.config import Profile

Answer = TypeVar("Answer")

_FOUND_FOR, _NONE_FOR = timedelta(days=30), timedelta(days=1)
#: What the agent says when it cannot have the rest of itself.
_NOT_FETCHED = "in the bucket cannot be read"


@dataclass(frozen=True)
class Keeping:
    """
    Where one account keeps the work of a course.

    Attributes:
        course: Its id.
        is_by_name: Whether the work lies under the seat's name; else under the instance's id.
    """

    course: str
    role: WorkRole
    is_by_name: bool

    @property
    def owner(self) -> str:
        """The course's part of the bucket, without a slash."""
        return f"course-{self.course}"

    def prefix(self, name: str) -> str:
        """Return the prefix that a seat's instance is born with; see `Keep.prefix`."""
        return f"{self.owner}/{name if self.is_by_name else f'{self.role.id}:{Keep.INSTANCE}'}/"

    def place(self, name: str, instance_id: str) -> str:
        """Return the prefix of what one instance has kept."""
        return self.prefix(name).replace(Keep.INSTANCE, instance_id)

    @property
    def shown(self) -> str:
        """The course's part of the bucket, for people."""
        return f"s3://{self.role.bucket.name}/{self.owner}/"


def remembered(context: Context, course: str, *, is_by_name: bool) -> Keeping | None:
    """Return what was found or made before; asks nobody."""
    said = context.cache.get(_key(course))
    if not isinstance(said, dict):
        return None
    bucket = Bucket(said["bucket"], said["region"], said["account"])
    return Keeping(course, WorkRole(said["name"], said["id"], bucket), is_by_name)


def find(context: Context, course: str, *, number: str, is_by_name: bool) -> Keeping | None:
    """
    Look whether an account has what it takes; asked once a month, once a day where it has not.

    Args:
        number: The account's twelve digits; `""` asks AWS.

    Raises:
        GpulabError: AWS does not say; no refusal, which means no.
    """
    if context.cache.get(_key(course)) is None:
        try:
            number = number or identity(context.cloud).account_id
            role = read_class_role(context.cloud, course=course, account_id=number)
        except NotAllowed:
            role = None
        _remember(context, course, role)
    return remembered(context, course, is_by_name=is_by_name)


def confirmed(context: Context, known: Keeping) -> Keeping | None:
    """
    Read anew what is believed of an account, in one call; `None` where it is gone.

    A course that another computer has closed and opened again has a role of the same name and another id; under the prefix of the
    old one its instances could write nothing. Where AWS does not say, what is believed stays.
    """
    number = known.role.bucket.account_id
    try:
        role = read_class_role(context.cloud, course=known.course, account_id=number)
    except GpulabError:
        return known
    if role == known.role:
        return known
    if role is None:
        forget(context, known.course)
        return None
    _remember(context, known.course, role)
    return replace(known, role=role)


def make(context: Context, course: str, mine: Profile, *, region: str) -> Keeping:
    """
    Make sure of bucket and role in an account that is reached by a profile.

    Args:
        mine: The assistant's own profile, whose bucket serves, if `gpulab init` has made one.
        region: Where a bucket is made.

    Raises:
        GpulabError: The account does not allow it, or AWS has a bad minute.
    """
    cloud, number = context.cloud, identity(context.cloud).account_id

    def made() -> WorkRole:
        known = read_class_role(cloud, course=course, account_id=number)
        if known is not None:
            where = known.bucket
        elif mine.keep_bucket:
            where = Bucket(mine.keep_bucket, bucket_region(mine), number)
        else:
            where = ensure_bucket(cloud, number, region)
        try:
            return ensure_class_role(cloud, where, course=course)
        except NotAllowed:
            # Somebody who may has made it, for everybody.
            if known is None:
                raise
            return known

    role = patiently(context, made)
    _remember(context, course, role)
    return Keeping(course, role, is_by_name=False)


def forget(context: Context, course: str) -> None:
    """Forget what was found or made, or that nothing was."""
    context.cache.drop(_key(course))


def keep_for(context: Context, keeping: Keeping, *, name: str, environment: str) -> Keep:
    """
    Say where a seat's instance keeps its work.

    Raises:
        WrongUsage: There is no such environment.
    """
    bucket = keeping.role.bucket
    endpoint = context.cloud.client("s3", bucket.region).meta.endpoint_url
    wanted = load_environment(environment, context.profile.environment_folders)
    return Keep(
        bucket.name,
        keeping.prefix(name),
        bucket.region,
        endpoint,
        wanted.locks,
        shared=f"{keeping.owner}/.agent/",
        check=wanted.check(),
    )


def put_agent(context: Context, keeping: Keeping, keep: Keep) -> None:
    """
    Put the rest of the agent where every instance of the course fetches it; once a month for each version of it.

    Raises:
        GpulabError: The bucket cannot be written.
    """
    key = f"{_agents(keeping.course)}{keep.bucket}/{keep.agent_sha256}"
    if context.cache.get(key) is None:
        body, bucket = keep.agent_body, keeping.role.bucket
        patiently(context, lambda: workspace.put(context.cloud, bucket, keep.agent_key, body))
        context.cache.put(key, value=True, lasting=_FOUND_FOR)


def heed(context: Context, course: str, status: AgentStatus) -> None:
    """Forget that the agent is in the bucket when an instance did not find it there: the next launch puts it there again."""
    if any(_NOT_FETCHED in phase.message for phase in status.phases):
        context.cache.drop(_agents(course))


def patiently(context: Context, call: Callable[[], Answer]) -> Answer:
    """
    Make a call again while AWS has a bad minute.

    Raises:
        GpulabError: As the call; the bad minute does not pass.
    """
    for wait in pauses(context):
        try:
            return call()
        except (Throttled, Ambiguous):
            context.sleep(wait)
    return call()


def _remember(context: Context, course: str, role: WorkRole | None) -> None:
    if role is None:
        context.cache.put(_key(course), "", lasting=_NONE_FOR)
        return
    said = {
        "name": role.name,
        "id": role.id,
        "bucket": role.bucket.name,
        "region": role.bucket.region,
        "account": role.bucket.account_id,
    }
    context.cache.put(_key(course), said, lasting=_FOUND_FOR)


def _key(course: str) -> str:
    return f"course-keeping/{course}"


def _agents(course: str) -> str:
    return f"course-agent/{course}/"
