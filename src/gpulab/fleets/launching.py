"""
The launches of one account: each seat's own attempts, but one memory of what is full, used up or broken.

A seat's launch follows the same steps as `gpulab up` (journal, call, journal). It differs where a class does: it waits for its turn in the
account's token bucket, what one seat learns of a place holds for all, and it does not wait until the instance runs: one look shows all of
them, and whoever looks asks once more for the ends that were not scheduled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network

from gpulab.bootstrap import Keep
from gpulab.errors import (
    AccountNotReady,
    ClockSkewed,
    CredentialsInvalid,
    GpulabError,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaTooLow,
    StoreError,
    Throttled,
)
from gpulab.fleet.plan import at_most_usd
from gpulab.fleets.accounts import Account
from gpulab.fleets.keeping import Keeping, keep_for, put_agent
from gpulab.fleets.pacing import LAUNCH
from gpulab.launch.account import images, setup
from gpulab.launch.context import Context
from gpulab.launch.events import Event, Repeating, Warned
from gpulab.launch.money.facts import record_found, record_launch
from gpulab.launch.offers.look import snapshot
from gpulab.launch.offers.places import remember_full, remember_never
from gpulab.launch.protocol.asking import ask
from gpulab.launch.protocol.intents import intent_of
from gpulab.launch.protocol.outcome import ended_early
from gpulab.launch.protocol.scheduled_end import arm_at
from gpulab.launch.protocol.tries import Tries
from gpulab.model.fleet import QuotaNeed, Seat
from gpulab.model.instance import Instance, LaunchPlan
from gpulab.model.market import Offer, Place
from gpulab.model.setup import ImageChoice
from gpulab.planning import quotas
from gpulab.planning.catalogue import instance_types
from gpulab.planning.failover import (
    ASKED_AGAIN_AFTER,
    Failure,
    Next,
    beside_the_place,
    conclusion,
    what_next,
)
from gpulab.planning.plan import plan_launch
from gpulab.planning.snapshot import Limits
from gpulab.store.journal import Intent

# The same for every seat of the account: asking once is enough.
_SAME_FOR_ALL = (NotAllowed, CredentialsInvalid, ClockSkewed, AccountNotReady)

_ELSEWHERE = (Next.OTHER_ZONE, Next.OTHER_QUOTA, Next.OTHER_REGION)


class Halted(BaseException):
    """The command is being interrupted: no call is begun any more. Nothing catches it but whoever waits for the launches."""


@dataclass(frozen=True)
class Launched:
    """
    What a seat's launch led to.

    Attributes:
        offer: `None` for a launch that was asked for again at a place the plan does not know.
        note: Why something beside the launch is missing; `""` when nothing is.
        unscheduled: Why the account, which has a role for it, did not schedule its end: worth another try once it runs; `""` when it did.
        boot: What it boots from; `None` for a launch that was asked for again, with the bytes of its first time.
    """

    instance: Instance
    offer: Offer | None
    plan: LaunchPlan
    note: str = ""
    boot: ImageChoice | None = None
    unscheduled: str = ""

    def noting(self, why: str) -> Launched:
        """Add why something beside the launch is missing; nothing is said twice."""
        if why in self.note:
            return self
        return replace(self, note="; ".join(filter(None, (self.note, why))))


@dataclass(frozen=True)
class _Ready:
    """What every launch in a region names."""

    setup: setup.Setup
    boot: ImageChoice


class AccountLaunches:
    """
    All launches of one lab in one account. Thread-safe.

    Args:
        plan: What to try, in order; of any seat, but for its name.
        budgets: What each seat's instance may cost before it ends itself, by the seat's name.
        needs: What all launches ask of the account's quotas.
        halt: Set when the command is interrupted.
    """

    def __init__(
        self,
        account: Account,
        plan: LaunchPlan,
        *,
        budgets: Mapping[str, Decimal | None],
        needs: Sequence[QuotaNeed],
        halt: threading.Event,
    ) -> None:
        self._account = account
        self._plan = plan
        self._agreed = at_most_usd(plan)
        self._budgets = budgets
        self._needs = {(need.region, need.code): need for need in needs}
        self._halt = halt
        self._lock = threading.RLock()
        self._full: dict[Place, datetime] = {}
        self._out: set[Place] = set()
        self._broken: GpulabError | None = None
        self._ready: dict[tuple[str, bool], _Ready] = {}
        self._repaired: set[str] = set()
        self._further: list[LaunchPlan] | None = None
        self._keeping: Keeping | None = account.keeping
        self._is_agent_there = False
        self.unkept = ""
        self.narrowed: dict[str, tuple[tuple[str, ...], str]] = {}

    def launch(self, seat: Seat, *, before: Sequence[Failure] = ()) -> Launched:
        """
        Launch a seat's instance, place after place.

        Args:
            before: Launches of the seat that ended at their start: told with the others where no place is left.

        Raises:
            GpulabError: Nothing runs; or nobody knows (`Ambiguous`, `Throttled`), and the next run settles it.
            Halted: The command is being interrupted.
        """
        return _SeatLaunch(self, seat, before).run()

    def ask_again(self, seat: Seat, intent: Intent) -> Launched:
        """
        Ask again for a launch of which nobody knows, with its own token and bytes.

        Raises:
            Ambiguous, Throttled, StoreError, one of `BEFORE_THE_TOKEN`: Still nobody knows; the intent stays open.
            GpulabError: AWS refused: it was never made.
        """
        self.wait_turn(intent.region)
        context, plan = self._account.seat(seat), self.plan_of(seat, self._plan)
        warnings: list[str] = []
        steps = ask(context, intent, may_be_made=True)
        instance = self.call(intent, steps, warn=warnings.append)
        offer = next((o for o in plan.attempts if o.place == instance.place), None)
        return self.recorded(context, Launched(instance, offer, plan, "; ".join(warnings)))

    def plan_of(self, seat: Seat, plan: LaunchPlan) -> LaunchPlan:
        """Name a plan after a seat, and bound what its instance may spend."""
        budget = self._budgets.get(seat.name, plan.request.budget_usd)
        # The handout brings the notebooks: a seat's own work comes before them.
        request = replace(plan.request, name=seat.name, budget_usd=budget, notebooks=None)
        return replace(plan, request=request)

    def mark_full(self, place: Place) -> None:
        """Remember that a place has none free, for every seat and for other commands."""
        with self._lock:
            self._full[place] = self._account.context.now()
        remember_full(self._account.context, place)

    def order(self, attempts: Sequence[Offer]) -> tuple[Offer, ...]:
        """Leave out what another seat found full a moment ago or used up."""
        now = self._account.context.now()
        with self._lock:
            return tuple(
                o
                for o in attempts
                if o.place not in self._out
                and not (o.place in self._full and now - self._full[o.place] < ASKED_AGAIN_AFTER)
            )

    def explained(self, offer: Offer, error: GpulabError) -> GpulabError:
        """Add to a refusal the request that raises the quota for the whole class."""
        if not isinstance(error, QuotaTooLow):
            return error
        context, region = self._account.context, offer.place.region
        context.cache.drop(f"{context.account}/quota/{region}/")
        quota = quotas.unread(offer.type.quota_family, offer.place.market, region)
        need = self._needs.get((region, quota.code))
        if need is None:
            return quotas.with_request(error, offer)
        limit, free = need.limit_vcpus, need.free_vcpus
        used = None if limit is None or free is None else limit - free
        known = replace(quota, limit_vcpus=limit, used_vcpus=used)
        return quotas.with_request(error, offer, known=known, needed_vcpus=need.needed_vcpus)

    def note(self, offer: Offer, error: GpulabError) -> None:
        """Remember a failure for the other seats."""
        if isinstance(error, NoCapacity):
            self.mark_full(offer.place)
        if isinstance(error, NotOffered):
            remember_never(self._account.context, offer.place)
            with self._lock:
                self._out.add(offer.place)
        if isinstance(error, QuotaTooLow):
            with self._lock:
                self._out |= {
                    o.place
                    for o in self._plan.attempts
                    if (o.place.region, o.place.market, o.type.quota_family)
                    == (offer.place.region, offer.place.market, offer.type.quota_family)
                }

    def ended_early(self, launched: Launched) -> tuple[GpulabError, bool]:
        """
        Learn from an instance that ended at its start, as from a refusal: by the class of its reason.

        Returns:
            Why it ended, and whether another launch may fare better.
        """
        error = ended_early(launched.instance)
        if launched.offer is not None:
            error = self.explained(launched.offer, error)
            self.note(launched.offer, error)
        elif isinstance(error, NoCapacity):
            self.mark_full(launched.instance.place)
        return error, what_next(error) in _ELSEWHERE

    def check(self) -> None:
        """
        Stop here when there is no use in going on.

        Raises:
            Halted: The command is being interrupted.
            GpulabError: Another seat met what is the same for all of the account.
        """
        if self._halt.is_set():
            raise Halted
        if self._broken is not None:
            error = self._broken
            raise type(error)(error.message, hint=error.hint, code=error.code, detail=error.detail)

    def stopped_by(self, error: GpulabError) -> None:
        """Let the other seats know of an error that is the same for all."""
        if isinstance(error, _SAME_FOR_ALL):
            with self._lock:
                self._broken = self._broken or error

    def may_repair(self, region: str) -> bool:
        """Whether a region's setup may be made anew: once a command."""
        with self._lock:
            if region in self._repaired:
                return False
            self._repaired.add(region)
            self._ready = {k: v for k, v in self._ready.items() if k[0] != region}
            setup.forget(self._account.context, region)
            return True

    def ready(self, offer: Offer) -> _Ready:
        """Find or make what a launch needs in a region, and choose its image; the first seat does it for all."""
        region, has_gpu = offer.place.region, offer.type.gpus > 0
        context, request = self._account.context, self._plan.request
        with self._lock:
            if (region, has_gpu) not in self._ready:
                found = setup.ensure(context, region, has_gpu=has_gpu)
                if shut_out := _shut_out(found.closed_to, found.network.cidr):
                    self.narrowed[region] = (shut_out, found.network.cidr)
                launching = self._account.launching(context.owner)
                boot = images.choose(launching, region, request, has_gpu=has_gpu)
                self._ready[(region, has_gpu)] = _Ready(found, boot)
            return self._ready[(region, has_gpu)]

    def keep_for(self, seat: Seat) -> Keep | None:
        """
        Say where a seat's instance keeps its work; the first seat puts there, for all, what has no room in user data.

        A bucket that cannot be written keeps nobody waiting whose lab begins: `unkept` says why, and the work comes home over ssh.
        """
        context = self._account.context
        with self._lock:
            if self._keeping is None:
                return None
            environment = self._plan.request.environment
            keep = keep_for(context, self._keeping, name=seat.name, environment=environment)
            if not self._is_agent_there:
                try:
                    put_agent(context, self._keeping, keep)
                except GpulabError as error:
                    self._keeping, self.unkept = None, error.message
                    return None
                self._is_agent_there = True
            return keep

    def further(self, after: int) -> LaunchPlan | None:
        """
        Plan the regions that were not looked at; the first seat that needs them does it for all.

        Args:
            after: How many further plans the seat has tried already.
        """
        with self._lock:
            if self._further is None:
                self._further = list(filter(None, map(self._plan_in, self._plan.later_regions)))
            return self._further[after] if after < len(self._further) else None

    def wait_turn(self, region: str) -> None:
        """
        Wait for the turn to launch in a region.

        Raises:
            Halted, GpulabError: As `check`.
        """
        self._account.pace.bucket(region, LAUNCH).take()
        self.check()

    def call(
        self,
        intent: Intent,
        steps: Generator[Event, None, Instance],
        *,
        warn: Callable[[str], None],
    ) -> Instance:
        """
        Make one launch call whose turn has come, and each repetition in a turn of its own.

        Args:
            steps: From `ask`.
            warn: Told what ledger or journal could not take down.
        """
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                made: Instance = end.value
                return made
            if isinstance(event, Warned):
                warn(event.text)
            if isinstance(event, Repeating):
                if isinstance(event.error, Throttled):
                    self._account.pace.bucket(intent.region, LAUNCH).empty()
                self.wait_turn(intent.region)

    def recorded(self, context: Context, launched: Launched) -> Launched:
        """Write a launch into the ledger and schedule its end; neither can undo what already costs."""
        try:
            if launched.offer is not None:
                record_launch(context, launched.instance, launched.offer, launched.plan)
            else:
                # At a place of another day's plan: what it costs is read from the account.
                record_found(context, launched.instance)
        except StoreError as error:
            launched = launched.noting(error.message)
        ends_at = launched.instance.expires_at or launched.plan.ends_at
        if context.profile.scheduler_role:
            # A role that was made moments ago cannot be assumed for some seconds: the class asks once more when its instances run.
            armed = arm_at(context, launched.instance, ends_at)
            return replace(launched, unscheduled=armed.why_not)
        return launched

    @property
    def account(self) -> Account:
        """Where all of this happens."""
        return self._account

    @property
    def plan(self) -> LaunchPlan:
        """What to try first."""
        return self._plan

    def _plan_in(self, region: str) -> LaunchPlan | None:
        """Plan one more region; none that could cost more than was agreed to, or that does not answer."""
        request = replace(
            self._plan.request,
            regions=(region,),
            duration=self._plan.ends_at - self._account.context.now(),
        )
        try:
            seen = replace(snapshot(self._account.looking, request), types=instance_types())
            found = plan_launch(
                request, replace(seen, instances=()), limits=Limits(timedelta(days=3650))
            )
        except GpulabError:
            return None
        found = replace(found, ends_at=self._plan.ends_at)
        return found if at_most_usd(found) <= self._agreed else None


def _shut_out(closed_to: Sequence[str], cidr: str) -> tuple[str, ...]:
    """Name the ranges that are not let in any more; those within the new one still are."""
    now = ip_network(cidr)
    kept = (r for r in closed_to if "/" in r and _is_within(ip_network(r), now))
    return tuple(r for r in closed_to if r not in set(kept))


def _is_within(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type] # of one version


class _SeatLaunch:
    """One seat on its way through the places."""

    def __init__(self, launches: AccountLaunches, seat: Seat, before: Sequence[Failure]) -> None:
        self._all = launches
        self._before = before
        self._seat = seat
        self._context = launches.account.seat(seat)
        self._plan = launches.plan_of(seat, launches.plan)
        self._tries = Tries(launches.account.context.new_id(), may_repair=launches.may_repair)
        self._regions_more = 0
        self._warnings: list[str] = []

    def run(self) -> Launched:
        left: Sequence[Offer] = self._plan.attempts
        while True:
            left = self._all.order(left) or self._all.order(self._next_region())
            if not left:
                raise self._none_free()
            offer = left[0]
            try:
                return self._attempt(offer)
            except GpulabError as error:
                left = self._after(error, offer, left)

    def _attempt(self, offer: Offer) -> Launched:
        self._all.check()
        attempt = self._tries.next_at(offer)
        with beside_the_place():
            ready = self._all.ready(offer)
        found, boot = ready.setup, ready.boot
        keep = self._all.keep_for(self._seat)
        intent = intent_of(self._context, self._plan, attempt, found=found, boot=boot, keep=keep)
        self._all.wait_turn(offer.place.region)
        # Written when its turn has come, not before: an intent is what is about to be asked.
        self._context.journal.intend(intent)
        is_fresh = found.is_fresh(self._context.now())
        steps = ask(self._context, intent, is_setup_fresh=is_fresh)
        instance = self._all.call(intent, steps, warn=self._warnings.append)
        launched = Launched(instance, offer, self._plan, boot=boot)
        if self._all.unkept:
            launched = launched.noting(f"nothing keeps its work: {self._all.unkept}")
        for warning in self._warnings:
            launched = launched.noting(warning)
        return self._all.recorded(self._context, launched)

    def _after(self, error: GpulabError, offer: Offer, left: Sequence[Offer]) -> Sequence[Offer]:
        """Decide what is left after a failed attempt."""
        error = self._all.explained(offer, error)
        try:
            left_now = self._tries.after(error, offer, left)
        except GpulabError:
            self._all.stopped_by(error)
            raise
        if not left_now.is_repeat:
            self._all.note(offer, error)
        return left_now.offers

    def _next_region(self) -> Sequence[Offer]:
        if self._tries.is_same_everywhere:
            return ()
        plan = self._all.further(self._regions_more)
        if plan is None:
            return ()
        self._regions_more += 1
        self._plan = self._all.plan_of(self._seat, plan)
        return plan.attempts

    def _none_free(self) -> GpulabError:
        if failures := (*self._before, *self._tries.failures):
            return conclusion(failures)
        return NoCapacity(
            "every place was full a moment ago, as other students' launches found",
            hint="Run it again in a few minutes, or with `--on-demand`",
        )
