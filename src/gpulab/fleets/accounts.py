"""The accounts of a course and the way into each: the profile itself, a student's profile, or a role in a student's account. Makes no call by itself."""

from __future__ import annotations

import random as random_module
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from gpulab.aws.accounts import identity
from gpulab.aws.end_schedule import course_role_name, ensure_course_role
from gpulab.aws.roles import Role
from gpulab.errors import AwsError, GpulabError, NotAllowed
from gpulab.fleets import keeping
from gpulab.fleets.keeping import Keeping
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
_NO_STACK = "its stack is older than this: it has no bucket for the work"
_CROWDED = "several students name it, and could read each other's work in its bucket"
#: Why nothing is kept in an account where nothing stands in the way of it.
NOT_MADE_YET = "no role of the course is there yet: the first `gpulab fleet up` makes it"
_ROLE_FOR, _NO_ROLE_FOR = timedelta(days=30), timedelta(days=1)


@dataclass(frozen=True)
class Outside:
    """
    The outside of a whole class, as arguments.

    Attributes:
        cidr: From where port 22 is open, instead of what course.toml or the profile says; `""` where nobody named it.
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
        keeping: Where its instances keep the work; `None` where nothing does, or nobody has looked yet.
        unkept: Why nothing keeps it, a sentence; `""` where something does, or nobody has tried yet.
        unscheduled: Why the account ends nothing by itself, a sentence; `""` where it does, or nobody has tried yet.
    """

    ref: AccountRef
    context: Context
    pace: Pace
    keeping: Keeping | None = None
    unkept: str = ""
    unscheduled: str = ""

    @property
    def looking(self) -> Context:
        """The context that sees everybody's instances."""
        return self.of("")

    def seat(self, seat: Seat) -> Context:
        """Return the context in which a seat's instance is launched: the tags are its owner's."""
        return self.launching(seat.owner)

    def launching(self, owner: str) -> Context:
        """
        Return the context that knows of the bucket: what boots and is launched depends on it.

        Everything else brings the work home over ssh, to the teacher's computer.
        """
        context, keeping = self.of(owner), self.keeping
        if keeping is None:
            return context
        profile = replace(
            context.profile,
            keep_bucket=keeping.role.bucket.name,
            keep_region=keeping.role.bucket.region,
            instance_role=keeping.role.name,
        )
        return replace(context, profile=profile)

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
    """
    The accounts of one course; the same `Account` for the same reference.

    Attributes:
        damaged: By account, why its books could not be kept at a look.
    """

    outside: Outside
    course: Course
    damaged: dict[str, GpulabError] = field(default_factory=dict, init=False)
    _open: dict[str, Account] = field(default_factory=dict)
    _clouds: dict[str, Cloud] = field(default_factory=dict)
    _crowded: set[str] = field(default_factory=set)
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

        A refusal is believed for a day, a bad minute of AWS is not. Without the role, the timer on each instance is what ends it, and
        `Account.unscheduled` says why. A student's own account has the role from the template.
        """
        with self._lock:
            account = self.account(ref)
            context = account.context
            if context.profile.scheduler_role:
                return
            arn, why = "", str(context.cache.get(_end_denied_key(self.course)) or "")
            if not why:
                arn, why = self._end_role(context)
            profile = replace(context.profile, scheduler_role=arn)
            context = replace(context, profile=profile)
            self._open[ref.key] = replace(account, context=context, unscheduled=why)

    def _end_role(self, context: Context) -> tuple[str, str]:
        """Make the role that ends instances, or say why there is none."""
        try:
            number = identity(context.cloud).account_id
            arn = ensure_course_role(context.cloud, course=self.course.id, account_id=number)
        except AwsError as error:
            if isinstance(error, NotAllowed):
                denied = _end_denied_key(self.course)
                context.cache.put(denied, error.message, lasting=_NO_ROLE_FOR)
            return "", error.message
        context.cache.put(_end_role_key(self.course), arn, lasting=_ROLE_FOR)
        return arn, ""

    def find_keeping(self, ref: AccountRef, *, anew: bool = False) -> Account:
        """
        Look where the account keeps the work; asked once a month, once a day where it does not. A bad minute means: not now.

        Args:
            anew: Whether AWS is asked, whatever is remembered.
        """
        account = self.account(ref)
        if ref.key in self._crowded or (account.keeping is not None and not anew):
            return account
        if anew:
            keeping.forget(account.context, self.course.id)
        why = _NO_STACK if ref.role_arn else NOT_MADE_YET
        try:
            found = keeping.find(
                account.context, self.course.id, number=ref.number, is_by_name=bool(ref.role_arn)
            )
        except GpulabError as error:
            found, why = None, error.message
        return self._now(replace(account, keeping=found, unkept="" if found else why))

    def leave_unkept(self, refs: Collection[AccountRef]) -> None:
        """
        Keep nothing in those students' accounts that several of them share: there, work is kept apart by name only.

        Args:
            refs: Of everybody in the roster.
        """
        ways = Counter(ref.key for ref in frozenset(refs) if ref.role_arn)
        for key in (key for key, count in ways.items() if count > 1):
            self._crowded.add(key)
            account = self.account(next(ref for ref in refs if ref.key == key))
            self._now(replace(account, keeping=None, unkept=_CROWDED))

    def make_keeping(self, ref: AccountRef) -> Account:
        """Make sure, in an account reached by a profile, of where its instances keep the work, as far as the account allows it; asked each time."""
        account = self.account(ref)
        if ref.role_arn:
            return account
        if account.keeping is not None:
            found = keeping.confirmed(account.context, account.keeping)
            account = self._now(replace(account, keeping=found))
            if found is not None:
                return account
        context, mine = account.context, self.outside.config.profile(ref.profile)
        denied = f"course-keeping-denied/{self.course.id}"
        why = context.cache.get(denied)
        if why is None:
            try:
                made = keeping.make(
                    context,
                    self.course.id,
                    mine,
                    region=self.course.regions[0],
                )
            except GpulabError as error:
                why = error.message
                if isinstance(error, NotAllowed):
                    context.cache.put(denied, why, lasting=_NO_ROLE_FOR)
            else:
                return self._now(replace(account, keeping=made, unkept=""))
        return self._now(replace(account, unkept=str(why)))

    def _now(self, account: Account) -> Account:
        """From now on this is the account; what another thread has found out about its roles stays."""
        with self._lock:
            known = self._open[account.ref.key]
            found = replace(known, keeping=account.keeping, unkept=account.unkept)
            self._open[account.ref.key] = found
            return found

    def _make(self, ref: AccountRef) -> Account:
        outside, profile = self.outside, self.outside.config.profile(ref.profile)
        folder = outside.home.folder(profile.name)
        folder = folder.account(ref.key) if ref.role_arn else folder
        owned = replace(
            profile,
            owner=f"course-{self.course.id}",
            regions=self.course.regions,
            # The profile's own role reaches one owner's prefix; the course has its own, see `keeping`.
            keep_bucket="",
            keep_region="",
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
            cidr=outside.cidr or self.course.accounts.cidr or profile.cidr,
        )
        new_id = outside.new_id or context.new_id
        known = context.cache.get(_end_role_key(self.course))
        if known:
            context = replace(context, profile=replace(owned, scheduler_role=known))
        context = replace(context, connect=outside.connect, new_id=new_id)
        return Account(
            ref,
            self._with_cloud(context, ref),
            Pace(now=outside.now, sleep=outside.sleep),
            keeping.remembered(context, self.course.id, is_by_name=bool(ref.role_arn)),
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


def _end_role_key(course: Course) -> str:
    return f"course-role/{course.id}"


def _end_denied_key(course: Course) -> str:
    return f"course-role-denied/{course.id}"
