"""What an instance is born with, as values. Hides the JSON form; refuses a user name that could become an option or a path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

from gpulab.bootstrap.environments import Environment
from gpulab.bootstrap.locks import Lock
from gpulab.bootstrap.shipping import whole_agent
from gpulab.errors import InvalidRequest
from gpulab.model.course import Notebooks

VERSION = 1
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Keep:
    """
    Where the instance keeps the work.

    Attributes:
        prefix: Ends with a slash. `Keep.INSTANCE` in it is for the instance to fill in: with its own id, which nobody knows before the launch.
        endpoint: URL of S3, `https://s3.us-east-1.amazonaws.com`.
        locks: What travels with the whole agent; any other lock has to fit into user data.
        check: The environment's own check, which travels there too.
        shared: The prefix where the whole agent lies for many instances; `""` for the instance's own.
    """

    #: What stands for the instance's id in a prefix.
    INSTANCE: ClassVar[str] = "{instance}"

    bucket: str
    prefix: str
    region: str
    endpoint: str
    locks: tuple[Lock, ...] = ()
    shared: str = ""
    check: str = ""

    @property
    def agent_key(self) -> str:
        """Where the whole agent must lie in the bucket before the launch; user data has no room for it."""
        return f"{self.shared or self.prefix}agent-{self.agent_sha256[:16]}.py"

    @property
    def agent_body(self) -> bytes:
        """What must lie there; the instance compares its hash."""
        return whole_agent(self.locks, self.check)

    @property
    def agent_sha256(self) -> str:
        """The hash by which the instance knows it, and the locks in it."""
        return hashlib.sha256(self.agent_body).hexdigest()


@dataclass(frozen=True)
class InstanceSpec:
    """
    Everything an instance is born with; nothing in it is secret, since every process there can read its user data.

    Attributes:
        launch: Journal id of the launch.
        user: Login user of the image, `ubuntu`.
        made_at: When the launch was decided, aware UTC; the first timer counts `deadline - made_at` from the boot.
        deadline: When the instance ends itself; aware UTC.
        idle_minutes: 0 for never.
        budget_usd: `None` for no budget.
        usd_per_hour: Everything that bills while it runs: instance, disk, address.
        has_gpu: Which of the environment's locks to install.
        keep: `None` when the work is fetched over ssh instead.
        notebooks: What the instance brings into the work folder; without `keep` the laptop does it over ssh.
        is_bake: It becomes an image or tests one: nothing is installed onto a disk that is not in it, and no work is kept.
        facts: Of each kind of fact that the instance writes about its costs, what it cannot find out itself; travels only with `keep`.
    """

    launch: str
    name: str
    owner: str
    user: str
    made_at: datetime
    deadline: datetime
    idle_minutes: int
    usd_per_hour: Decimal
    environment: Environment
    has_gpu: bool
    budget_usd: Decimal | None = None
    course: str = ""
    lab: str = ""
    jupyter_port: int = 8888
    keep: Keep | None = None
    notebooks: Notebooks | None = None
    is_bake: bool = False
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _USER.fullmatch(self.user):
            raise InvalidRequest(
                f"{self.user!r} is not a login user", hint="On AWS's Ubuntu images it is `ubuntu`"
            )

    @property
    def lifetime_seconds(self) -> int:
        """From decision to deadline, whole seconds; at least one."""
        return max(1, round((self.deadline - self.made_at).total_seconds()))

    def as_json(self) -> dict[str, Any]:
        """Give the object of `/etc/gpulab/spec.json`."""
        kernel, keep = self.environment.kernel(has_gpu=self.has_gpu), self.keep
        is_extended = keep is not None and self.environment.server in keep.locks
        server = self.environment.server if is_extended else self.environment.core_server
        # Without a bucket the laptop brings them and says itself what.
        alone = self.notebooks if self.keep is not None else None
        lab = {"notebooks": notebooks_json(alone)} if alone is not None else {}
        return {
            "version": VERSION,
            "launch": self.launch,
            "name": self.name,
            "owner": self.owner,
            "course": self.course,
            "lab": self.lab,
            "user": self.user,
            "deadline": self.deadline.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "idle_minutes": self.idle_minutes,
            "budget_usd": None if self.budget_usd is None else str(self.budget_usd),
            "usd_per_hour": str(self.usd_per_hour),
            "jupyter_port": self.jupyter_port,
            "environment": {
                "name": self.environment.name,
                "title": self.environment.title,
                "server": self._lock_json(server),
                "kernel": self._lock_json(kernel),
                "uv": self.environment.uv,
            },
            "keep": None if keep is None else _keep_json(keep),
            **lab,
            **({"bake": True} if self.is_bake else {}),
            **({"facts": self.facts} if keep is not None and self.facts else {}),
        }

    def _lock_json(self, lock: Lock) -> dict[str, Any]:
        return lock.named() if self.keep and lock in self.keep.locks else lock.compact()


def _keep_json(keep: Keep) -> dict[str, str]:
    return {
        "bucket": keep.bucket,
        "prefix": keep.prefix,
        "region": keep.region,
        "endpoint": keep.endpoint,
        "agent": keep.agent_sha256,
        **({"shared": keep.shared} if keep.shared else {}),
    }


def notebooks_json(notebooks: Notebooks) -> dict[str, Any]:
    """Give the object that the instance reads: what is empty is left out."""
    about = {
        "repository": notebooks.repository,
        "commit": notebooks.commit,
        "folder": notebooks.folder,
        "data": [[one.url, one.sha256] for one in notebooks.data],
    }
    return {key: value for key, value in about.items() if value}
