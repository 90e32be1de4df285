"""The accounts of a course and the way into each: the profile itself, a student's profile, or a role in a student's account. Makes no call by itself."""

from __future__ import annotations

import random as random_module
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from gpulab.aws.accounts import identity
from gpulab.aws.guard import course_role_name, ensure_course_role
from gpulab.aws.roles import Role
from gpulab.errors import AwsError
from gpulab.fleets.pacing import Pace
from gpulab.launch.context import Context, context_of
from gpulab.model.course import Course
from gpulab.model.fleet import AccountRef, Seat
from gpulab.store.config import Config
from gpulab.store.home import Home

if TYPE_CHECKING:
    from gpulab.aws.session import Cloud
    from gpulab.remote.host import Host
    from gpulab.remote.target import SshTarget

#: Who asks, as CloudTrail of a student's account shows it.
SESSION = "gpulab-course"
_ROLE_FOR, _NO_ROLE_FOR = timedelta(days=30), timedelta(days=1)


@dataclass(frozen=True)
class Outside:
    """
    The outside of a whole class, as arguments.

    Attributes:
        cidr: From where port 22 is open: the campus's range; `""` for this computer's address.
        connect: Opens an instance over ssh; for tests, another way.
    """

    home: Home
    config: Config
    environment: Mapping[str, str]
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    random: random_module.Random
    cidr: str = ""
    connect: Callable[[SshTarget], Host] | None = None
    new_id: Callable[[], str] | None = None


@dataclass(frozen=True)
class Account:
    """
    One account of a course, opened at its first call.

    Attributes:
        context: Sets up what the course shares in the account; its owner is the course.
        pace: Shared by everything that calls this account.
    """

    ref: AccountRef
    context: Context
    pace: Pace

    @property
    def looking(self) -> Context:
        """The context that sees everybody's instances."""
        return self.of("")

    def seat(self, seat: Seat) -> Context:
        """Return the context in which a seat's instance is launched: the tags are its owner's."""
        return self.of(seat.owner)

    def of(self, owner: str) -> Context:
        """Return the context whose owner is another one; it calls through the same connection."""
        context = self.context
        return replace(
            context,
            profile=replace(context.profile, owner=owner),
            open_cloud=lambda: context.cloud,
            # Bound here, so that asking for the name never opens the cloud.
            account_name=context.account_name,
        )


@dataclass
class Accounts:
    """The accounts of one course; the same `Account` for the same reference."""

    outside: Outside
    course: Course
    _open: dict[str, Account] = field(default_factory=dict)
    _clouds: dict[str, Cloud] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def account(self, ref: AccountRef) -> Account:
        """
        Return an account.

        Raises:
            WrongUsage: There is no such profile.
        """
        with self._lock:
            if ref.key not in self._open:
                self._open[ref.key] = self._make(ref)
            return self._open[ref.key]

    def base(self, ref: AccountRef) -> Cloud:
        """Return the way to AWS of an account's profile: whose credentials assume its role."""
        with self._lock:
            return self._cloud(self.account(ref).context)

    def arm(self, ref: AccountRef) -> None:
        """
        Make sure, where the account allows it, of the role with which it ends the course's instances by itself; once a month.

        A student's own account has it from the template; without it, the timer on each instance is what ends it.
        """
        with self._lock:
            account = self.account(ref)
            context = account.context
            key = _guard_key(self.course)
            if context.profile.scheduler_role or context.cache.get(key) is not None:
                return
            try:
                number = identity(context.cloud).account_id
                arn = ensure_course_role(context.cloud, course=self.course.id, account_id=number)
            except AwsError:
                arn = ""
            context.cache.put(key, arn, lasting=_ROLE_FOR if arn else _NO_ROLE_FOR)
            profile = replace(context.profile, scheduler_role=arn)
            self._open[ref.key] = replace(account, context=replace(context, profile=profile))

    def _make(self, ref: AccountRef) -> Account:
        outside, profile = self.outside, self.outside.config.profile(ref.profile)
        folder = outside.home.folder(profile.name)
        folder = folder.account(ref.key) if ref.role_arn else folder
        owned = replace(
            profile,
            owner=f"course-{self.course.id}",
            regions=self.course.regions,
            # The bucket's role reaches one owner's prefix; in a shared account every student's instance would carry it.
            keep_bucket="",
            instance_role="",
            scheduler_role=f"arn:aws:iam::{ref.number}:role/{course_role_name(self.course.id)}"
            if ref.role_arn
            else "",
            credit_usd=None if ref.role_arn else profile.credit_usd,
        )
        context = context_of(
            owned,
            folder,
            environment=outside.environment,
            now=outside.now,
            sleep=outside.sleep,
            random=outside.random,
            cidr=outside.cidr or profile.cidr,
        )
        new_id = outside.new_id or context.new_id
        known = context.cache.get(_guard_key(self.course))
        if known:
            context = replace(context, profile=replace(owned, scheduler_role=known))
        context = replace(context, connect=outside.connect, new_id=new_id)
        return Account(
            ref, self._with_cloud(context, ref), Pace(now=outside.now, sleep=outside.sleep)
        )

    def _with_cloud(self, context: Context, ref: AccountRef) -> Context:
        base = self._cloud(context)
        if not ref.role_arn:
            return replace(context, open_cloud=lambda: base)

        def open_cloud() -> Cloud:
            from gpulab.aws.session import Cloud

            role = Role(ref.role_arn, ref.external_id, SESSION)
            return Cloud(now=context.now, role=role, via=base)

        return replace(context, open_cloud=open_cloud, account_name=ref.key)

    def _cloud(self, context: Context) -> Cloud:
        """Return the one way to AWS of a profile: its session is what 300 roles are assumed through."""
        name = context.profile.name
        if name not in self._clouds:
            self._clouds[name] = context.cloud
        return self._clouds[name]


def _guard_key(course: Course) -> str:
    return f"course-role/{course.id}"
