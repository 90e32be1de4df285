"""
The attempts of one plan, place by place, until an instance runs. The order of the steps survives a kill: what is about to be asked is
written down and synced, then asked; what AWS answered is written down before anything else happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence

from gpulab.aws import instances
from gpulab.bootstrap import Keep
from gpulab.errors import (
    Ambiguous,
    ClockSkewed,
    CredentialsInvalid,
    GpulabError,
    NoCapacity,
    NotFound,
    NotOffered,
    QuotaTooLow,
    StoreError,
    Throttled,
    WrongUsage,
)
from gpulab.launch.account import images, setup
from gpulab.launch.context import Context
from gpulab.launch.events import (
    Attempting,
    BuyOnDemand,
    Event,
    ImageChosen,
    Launched,
    PlaceRefused,
    Planned,
    Question,
    Running,
    StartPlan,
    WaitingFor,
    Warned,
)
from gpulab.launch.money.facts import record_end, record_launch, record_running
from gpulab.launch.offers.places import remember_full, remember_never
from gpulab.launch.protocol.asking import ask, pauses
from gpulab.launch.protocol.intents import intent_of
from gpulab.launch.protocol.outcome import (
    FIRST_LOOK_S,
    STILL_PENDING,
    ended_by,
    ended_early,
    still_pending,
)
from gpulab.launch.protocol.scheduled_end import arm, disarm
from gpulab.launch.protocol.tries import Tries
from gpulab.launch.protocol.userdata import keep_for
from gpulab.model.instance import Instance, LaunchPlan, State
from gpulab.model.market import Market, Offer
from gpulab.planning import quotas
from gpulab.planning.failover import beside_the_place, conclusion, on_demand_cures

_NEXT_LOOK_S = 4.0


class Attempts:
    """
    One plan being carried out.

    Args:
        confirm: Asks the user; only for what the plan did not cover.
        further: Plans the next region once every attempt of the plan came to nothing; `None` when there is none.
    """

    def __init__(
        self,
        context: Context,
        plan: LaunchPlan,
        *,
        confirm: Callable[[Question], bool],
        further: Callable[[], LaunchPlan | None],
    ) -> None:
        self._context = context
        self._plan = plan
        self._confirm = confirm
        self._further = further
        self._agreed_usd = plan.at_most_usd
        self._on_demand_offers = list(plan.on_demand)
        self._tries = Tries(context.new_id(), may_repair=self._may_repair)
        self._keep: Keep | None = None
        self._repaired: set[str] = set()

    def run(self) -> Generator[Event, None, Instance]:
        """
        Try place after place until an instance runs.

        Returns:
            The instance, `running`.

        Raises:
            GpulabError: Nothing runs. Distinct causes first; a cause that is the same everywhere stops at the first attempt.
                `Ambiguous`: nobody knows; the journal holds the open launch and the next command settles it.
        """
        left: Sequence[Offer] = self._plan.attempts
        yield from self._find_keep()
        while left:
            offer = left[0]
            try:
                launched = yield from self._ask(offer)
            except GpulabError as error:
                left = yield from self._after(error, offer, left)
            else:
                # From here on it costs: an error of what is asked about it says nothing of the place, and must not lead to another one.
                instance = yield from self._settle(offer, launched)
                if instance.state is State.RUNNING:
                    return instance
                left = yield from self._after(ended_early(instance), offer, left)
            if not left:
                left = (yield from self._next_region()) or self._on_demand()
        raise conclusion(self._tries.failures)

    def _find_keep(self) -> Generator[Event, None, None]:
        """
        Find where the work is kept. A bucket that cannot be used is told, and the work then comes home over ssh.

        Raises:
            Throttled, Ambiguous: S3 has a bad minute that does not pass: a whole session without a bucket would be the price for not waiting.
            CredentialsInvalid, ClockSkewed: EC2 would say the same.
        """
        waits = pauses(self._context)
        while True:
            try:
                self._keep = keep_for(self._context, self._plan.request)
            except (CredentialsInvalid, ClockSkewed):
                raise
            except (Throttled, Ambiguous) as error:
                wait = next(waits, None)
                if wait is None:
                    raise error.reworded(
                        f"nothing was launched: {error.message}, and the work would not be kept",
                        hint="Repeat the command in a few minutes; nothing costs meanwhile",
                    ) from error
                yield WaitingFor(self._context.now(), "bucket", error.message)
                self._context.sleep(wait)
            except GpulabError as error:
                text = f"the bucket cannot be used ({error.message}); `gpulab stop` copies the work to this computer"
                yield Warned(self._context.now(), text)
                return
            else:
                return

    def _after(
        self, error: GpulabError, offer: Offer, left: Sequence[Offer]
    ) -> Generator[Event, None, Sequence[Offer]]:
        """Decide what is left after a failed attempt."""
        if isinstance(error, QuotaTooLow):
            self._context.cache.drop(f"{self._context.account}/quota/{offer.place.region}/")
        error = quotas.with_request(error, offer)
        left_now = self._tries.after(error, offer, left)
        if not left_now.is_repeat:
            self._remember(offer, error)
        yield PlaceRefused(self._context.now(), offer, error, left_now.then)
        return left_now.offers

    def _agrees(self, question: Question) -> bool:
        """Ask; where nobody can answer, the answer is no, so that the cause is told and not the missing person."""
        try:
            return self._confirm(question)
        except WrongUsage:
            return False

    def _may_repair(self, region: str) -> bool:
        """Let a region's setup be made anew, once."""
        if region in self._repaired:
            return False
        self._repaired.add(region)
        setup.forget(self._context, region)
        return True

    def _remember(self, offer: Offer, error: GpulabError) -> None:
        if isinstance(error, NoCapacity):
            remember_full(self._context, offer.place)
        if isinstance(error, NotOffered):
            remember_never(self._context, offer.place)

    def _next_region(self) -> Generator[Event, None, Sequence[Offer]]:
        """Plan the next region, and ask again only if it may cost more than was agreed to."""
        if self._tries.is_same_everywhere:
            return ()
        plan = self._further()
        if plan is None:
            return ()
        yield Planned(self._context.now(), plan)
        if plan.at_most_usd > self._agreed_usd and not self._agrees(StartPlan(plan)):
            return ()
        self._plan, self._agreed_usd = plan, max(self._agreed_usd, plan.at_most_usd)
        self._on_demand_offers += plan.on_demand
        return plan.attempts

    def _on_demand(self) -> Sequence[Offer]:
        """Ask whether to buy on demand, once every spot place has said no for a reason that on demand cures."""
        failures = self._tries.failures
        markets = {f.offer.place.market for f in failures}
        offers = self._on_demand_offers
        if not offers or Market.ON_DEMAND in markets or not on_demand_cures(failures):
            return ()
        extra = offers[0].usd_per_hour - self._plan.attempts[0].usd_per_hour
        causes = tuple(f.error for f in failures)
        return offers if self._agrees(BuyOnDemand(self._plan, offers[0], extra, causes)) else ()

    def _ask(self, offer: Offer) -> Generator[Event, None, Instance]:
        """Ask one place; an error means that nothing was launched there, or that nobody knows."""
        context, region = self._context, offer.place.region
        attempt = self._tries.next_at(offer)
        yield Attempting(context.now(), offer, attempt.number)
        with beside_the_place():
            found = setup.ensure(context, region, has_gpu=offer.type.gpus > 0)
            boot = images.choose(context, region, self._plan.request, has_gpu=offer.type.gpus > 0)
        if boot.is_news:
            beside = ", beside the plan" if boot.once_usd else ""
            yield ImageChosen(context.now(), boot.baked or found.image, f"{boot.why}{beside}")
        intent = intent_of(context, self._plan, attempt, found=found, boot=boot, keep=self._keep)
        context.journal.intend(intent)
        return (yield from ask(context, intent, is_setup_fresh=found.is_fresh(context.now())))

    def _settle(self, offer: Offer, instance: Instance) -> Generator[Event, None, Instance]:
        """Write down what was launched, arm its end, and wait until it runs or has ended."""
        context = self._context
        told_at = context.now()
        yield Launched(told_at, instance, offer)
        yield from recorded(context, instance, offer, self._plan)
        is_late = yield from arm(context, instance, self._plan.ends_at)
        instance = yield from until_settled(context, instance)
        if instance.state is not State.RUNNING:
            return instance
        # By the clock of AWS: this computer's may be minutes off, its seconds are not.
        running_at = instance.launched_at + (context.now() - told_at)
        if is_late:
            yield from arm(context, instance, self._plan.ends_at, is_last=True)
        with contextlib.suppress(StoreError):
            record_running(context, instance, at=running_at, disk_gib=self._plan.disk_gib)
        return instance


def recorded(
    context: Context, instance: Instance, offer: Offer, plan: LaunchPlan
) -> Generator[Event, None, None]:
    """Write the launch into the ledger; a ledger that cannot be written is told and stops nothing that already costs."""
    try:
        record_launch(context, instance, offer, plan)
    except StoreError as error:
        yield Warned(context.now(), f"{error.message}; `gpulab ledger rebuild` adds it later")


def until_running(context: Context, instance: Instance) -> Generator[Event, None, Instance]:
    """
    Wait until an instance runs.

    Raises:
        NoCapacity, QuotaTooLow, ...: It ended instead; the class of its state reason.
        GpulabError: As `until_settled`.
    """
    settled = yield from until_settled(context, instance)
    if settled.state is not State.RUNNING:
        raise ended_early(settled)
    return settled


def until_settled(context: Context, instance: Instance) -> Generator[Event, None, Instance]:
    """
    Wait until an instance runs or has ended; an end is written down.

    Returns:
        The instance, no longer `pending`.

    Raises:
        GpulabError: It is still pending after eight minutes, or AWS does not say: it may run, and the same command again goes on with it.
    """
    begun = context.now()
    pause = FIRST_LOOK_S
    while instance.state is State.PENDING:
        context.sleep(pause)
        pause = _NEXT_LOOK_S
        looked = _looked_at(context, instance)
        if looked is None:
            # EC2 does not know everywhere yet what it has just made.
            yield WaitingFor(context.now(), "running", "EC2 does not show it yet")
        instance = looked or instance
        if instance.state is State.PENDING and context.now() - begun > STILL_PENDING:
            raise still_pending(instance)
    if instance.state is State.RUNNING:
        yield Running(context.now(), instance)
        return instance
    with contextlib.suppress(StoreError):
        reason = instance.state_reason
        record_end(context, instance, at=context.now(), by=ended_by(instance), reason=reason)
    disarm(context, instance)
    return instance


def _looked_at(context: Context, instance: Instance) -> Instance | None:
    """Read an instance; `None` while EC2 does not show it."""
    try:
        return instances.read(context.cloud, instance.place.region, instance.id)
    except NotFound:
        return None
    except GpulabError as error:
        again = "the same command again goes on with it"
        raise error.reworded(
            f"{instance.id} was launched and costs, and AWS does not say whether it runs: {error.message}",
            hint=f"{error.hint}; {again}" if error.hint else again.capitalize(),
        ) from error
