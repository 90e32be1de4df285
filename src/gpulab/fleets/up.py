"""
`gpulab fleet up`: look, decide, show, ask, do, write down, for a whole class. Running it again after any interruption converges: exactly
one instance for each seat.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.errors import Ambiguous, GpulabError, NotFound, Refused, StoreError, Throttled
from gpulab.fleet.lab import request_for
from gpulab.fleet.plan import Wanted, plan_fleet, trouble_of, with_former
from gpulab.fleets import watching
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.ends import schedule_missing
from gpulab.fleets.events import (
    BringingBack,
    BroughtBack,
    Finished,
    FleetEvent,
    Lost,
    Narrowed,
    Polled,
    Pruned,
    Pruning,
    Requested,
    SeatFailed,
    Unbooked,
    Unkept,
    Unscheduled,
    Unwritten,
)
from gpulab.fleets.former import remember_way
from gpulab.fleets.launching import AccountLaunches, Halted, Launched
from gpulab.fleets.looking import Seen, live_of, look
from gpulab.fleets.returning import Returning
from gpulab.fleets.seating import write_down
from gpulab.launch.money.facts import record_end, record_running
from gpulab.launch.money.rebuilding import rebuild
from gpulab.launch.protocol.outcome import (
    FIRST_LOOK_S,
    STILL_PENDING,
    UNLISTED,
    ended_by,
    still_pending,
)
from gpulab.launch.running import booting, stop
from gpulab.launch.running.lineage import other_versions
from gpulab.model.course import Course, Lab
from gpulab.model.fact import FactKind
from gpulab.model.fleet import AccountRef, Action, FleetPlan, Outcome, Result, Seat, Step
from gpulab.model.instance import Instance, State
from gpulab.planning.failover import Failure
from gpulab.store.courses import course_home
from gpulab.store.journal import Intent, Journal

_AT_ONCE = 32
_IN_ONE_ACCOUNT = 8
_NEXT_LOOK_S = 5.0
_ROUNDS = 3
_PRUNED_AT_ONCE = 16


@dataclass(frozen=True)
class Wish:
    """
    What `fleet up` was asked for.

    Attributes:
        everyone: Every seat of the lab.
        seats: Those to serve.
        longest: The longest life of an instance.
        on_demand: Whether places on demand follow the spot places.
        former: Accounts where the lab was launched and which nobody in the roster has any more, see `fleets.former`.
    """

    course: Course
    lab: Lab
    everyone: tuple[Seat, ...]
    seats: tuple[Seat, ...]
    longest: timedelta
    on_demand: bool = False
    former: tuple[AccountRef, ...] = ()


@dataclass(frozen=True)
class Decided:
    """A plan and what was seen for it."""

    plan: FleetPlan
    seen: Seen


def plan(
    accounts: Accounts, wish: Wish, *, at: datetime | None = None, may_settle: bool = False
) -> Decided:
    """
    Decide what would be done; launches nothing.

    Args:
        at: When the launches would begin; `None` for now.
        may_settle: Whether the journals may be written; only while the lab is locked, see `locked`.

    Raises:
        WrongUsage, Refused: Nobody knows the GPU or type the lab names.
    """
    now = max(at or accounts.outside.now(), accounts.outside.now())
    request = request_for(
        wish.course, wish.lab, now=now, longest=wish.longest, on_demand=wish.on_demand
    )
    accounts.leave_unkept([seat.account for seat in wish.everyone])
    seen = look(accounts, request, wish.seats, may_settle=may_settle)
    wanted = Wanted(wish.course, wish.lab, request, wish.everyone, wish.seats, wish.longest)
    decided = plan_fleet(wanted, seen.views, now=now)
    left = {ref: _live(accounts, ref, wish) for ref in wish.former}
    return Decided(with_former(decided, left), seen)


def _live(accounts: Accounts, ref: AccountRef, wish: Wish) -> Sequence[Instance] | GpulabError:
    try:
        found = live_of(accounts, ref, wish.course.id, wish.lab.id)
    except GpulabError as error:
        return error
    return [instance for instance in found if instance.state.is_alive]


@contextlib.contextmanager
def locked(accounts: Accounts, lab: Lab) -> Iterator[None]:
    """
    Keep every other gpulab on this computer from launching the same lab at the same time.

    Raises:
        Refused: Another one is at it.
    """
    folder: Path = course_home(accounts.outside.home, accounts.course.id)
    journal = Journal(folder / "journal.jsonl")
    with journal.launching(lab.id, followed_by=f"gpulab fleet watch {lab.id}"):
        yield


def up(accounts: Accounts, decided: Decided, *, prune: bool = False) -> Iterator[FleetEvent]:
    """
    Carry a plan out. Call it under `locked`, with the plan made under the same lock.

    Args:
        prune: Whether extra instances are saved and ended.

    Yields:
        What happens; the last event is `Finished`, with one outcome for each step.

    Raises:
        Refused: The plan passes a limit of the course; nothing was launched.
    """
    if decided.plan.refusals:
        raise Refused(
            "; ".join(decided.plan.refusals),
            hint="Choose fewer with `--only`, or raise the limit in course.toml",
        )
    yield from _Run(accounts, decided, prune=prune).run()


def attendance(accounts: Accounts, seats: Sequence[Seat], lab: Lab) -> frozenset[str]:
    """
    Return the owners who had an instance in a lab, as this computer's ledgers know.

    Args:
        seats: Whose accounts are looked through.
    """
    refs = {seat.account.key: seat.account for seat in seats}
    return frozenset(
        fact.details.get("owner", "")
        for ref in refs.values()
        for fact in accounts.account(ref).context.ledger.facts(FactKind.LAUNCHED)
        if (fact.details.get("course"), fact.details.get("lab")) == (accounts.course.id, lab.id)
    )


@dataclass
class _Job:
    """One seat that is being launched."""

    step: Step
    rounds: int = 0
    launched: Launched | None = None
    asked_at: datetime | None = None
    is_adopted: bool = False
    failures: list[Failure] = field(default_factory=list)


class _Run:
    def __init__(self, accounts: Accounts, decided: Decided, *, prune: bool) -> None:
        self._accounts = accounts
        self._plan = decided.plan
        self._open = dict(decided.seen.open_intents)
        self._prune = prune
        self._halt, self._leave = threading.Event(), threading.Event()
        self._outcomes: dict[int, Outcome] = {}
        for ref in {s.account.key: s.account for s in decided.plan.steps if s.starts}.values():
            remember_way(accounts, ref)
            accounts.make_keeping(ref)
        for ref in {
            s.account.key: s.account for s in decided.plan.steps if s.instance or s.starts
        }.values():
            accounts.arm(ref)
        self._launches = {
            step.account.key: AccountLaunches(
                accounts.account(step.account),
                decided.plan.launch_plans[step.account.key],
                budgets={s.name: s.budget_usd for s in decided.plan.steps if s.starts},
                needs=[n for n in decided.plan.quotas if n.account.key == step.account.key],
                halt=self._halt,
            )
            for step in decided.plan.steps
            if step.starts
        }
        self._returning = Returning(accounts, decided.plan.lab.id)
        self._launched: list[tuple[AccountRef, Instance]] = []
        self._unscheduled: set[str] = set()
        self._done = 0
        self._total = sum(step.starts for step in decided.plan.steps)

    def run(self) -> Iterator[FleetEvent]:
        jobs, strays = [], []
        for step in self._plan.steps:
            if step.starts:
                jobs.append(_Job(step))
            elif step.action is Action.EXTRA and self._prune:
                strays.append(step)
            else:
                self._outcomes[id(step)] = self._settled(step)
        # Beside the launches: nobody whose lab begins waits until a stray's work is saved.
        pruning = ThreadPoolExecutor(_PRUNED_AT_ONCE)
        try:
            ending = {pruning.submit(self._pruned, step): step for step in strays}
            if ending:
                yield Pruning(self._now(), len(ending))
            yield from self._serve(jobs)
            for future in as_completed(ending):
                outcome = self._outcomes[id(ending[future])] = future.result()
                yield Pruned(self._now(), outcome)
        finally:
            self._leave.set()
            pruning.shutdown(wait=True, cancel_futures=True)
        ordered = tuple(self._outcomes[id(step)] for step in self._plan.steps)
        yield Finished(self._now(), ordered)

    def _serve(self, jobs: list[_Job]) -> Iterator[FleetEvent]:
        """Launch what is to be launched, and complete what goes with it."""
        workers = min(_AT_ONCE, max(1, len(jobs)), _IN_ONE_ACCOUNT * max(1, len(self._launches)))
        pool = ThreadPoolExecutor(workers)
        for why, titles in self._reasons(lambda ref: self._accounts.account(ref).unscheduled):
            yield Unscheduled(self._now(), titles, why)
        yield from self._unkept(lambda ref: self._accounts.account(ref).unkept)
        self._returning.look({step.account for step in self._plan.steps if self._may_lack(step)})
        try:
            while jobs:
                launched = yield from self._request(pool, jobs)
                jobs = yield from self._until_running(launched)
        finally:
            # An interrupted command begins no further call; those under way end, and are written down.
            self._halt.set()
            pool.shutdown(wait=True, cancel_futures=True)
            unwritten = self._write_seats()
        for why, unwritten_in in unwritten.items():
            yield Unwritten(self._now(), tuple(unwritten_in), why)
        yield from self._unkept(lambda ref: self._launches[ref.key].unkept)
        yield from self._narrowed()
        yield from self._complete()
        self._schedule_ends()
        yield from self._bring_back()

    def _unkept(self, why_not: Callable[[AccountRef], str]) -> Iterator[FleetEvent]:
        """Say where nothing keeps the work, each reason once."""
        for why, titles in self._reasons(why_not):
            yield Unkept(self._now(), titles, why)

    def _narrowed(self) -> Iterator[FleetEvent]:
        """Say where the class was let in from before and is no more."""
        for ref in {s.account.key: s.account for s in self._plan.steps if s.starts}.values():
            for region, (former, cidr) in sorted(self._launches[ref.key].narrowed.items()):
                yield Narrowed(self._now(), ref.title, region, former, cidr)

    def _reasons(self, why_not: Callable[[AccountRef], str]) -> list[tuple[str, tuple[str, ...]]]:
        """Gather what is wrong with accounts in which something starts: each reason once, with all that it holds for."""
        accounts: dict[str, list[str]] = {}
        for ref in {s.account.key: s.account for s in self._plan.steps if s.starts}.values():
            accounts.setdefault(why_not(ref), []).append(ref.title)
        return [(why, tuple(titles)) for why, titles in accounts.items() if why]

    def _write_seats(self) -> Mapping[str, Sequence[str]]:
        """Write down whose instance is whose, those found included; return where it could not be, by the reason: the next run writes it."""
        up: dict[str, list[Instance]] = {}
        found = [(s.account, s.instance) for s in self._plan.of(Action.KEEP) if s.instance]
        for ref, instance in [*found, *self._launched]:
            up.setdefault(ref.key, []).append(instance)
        unwritten: dict[str, list[str]] = {}
        for ref in {step.account.key: step.account for step in self._plan.steps}.values():
            account = self._accounts.account(ref)
            keeping = account.keeping
            if ref.key in up and keeping is not None and not keeping.is_by_name:
                try:
                    write_down(account, keeping, self._plan.lab.id, up[ref.key])
                except GpulabError as error:
                    unwritten.setdefault(error.message, []).append(ref.title)
        return unwritten

    def _bring_back(self) -> Iterator[FleetEvent]:
        """Bring the kept work of seats to their new instances, which boot meanwhile."""
        todo = {}
        for step in self._plan.steps:
            outcome = self._outcomes.get(id(step))
            if outcome and outcome.instance and not outcome.is_failed and self._may_lack(step):
                act = self._returning.to(outcome.account, outcome.instance)
                if act is not None:
                    todo[id(step)] = act
        if not todo:
            return
        yield BringingBack(self._now(), len(todo))
        for key, said in self._returning.all(todo):
            outcome = self._outcomes[key]
            detail = "; ".join(filter(None, (outcome.detail, said)))
            self._outcomes[key] = replace(outcome, detail=detail)
            if said:
                yield BroughtBack(self._now(), outcome, said)

    def _may_lack(self, step: Step) -> bool:
        """Whether a step's instance may lack what was kept of its seat: it is new, or was launched by a command that was killed."""
        if step.action is Action.KEEP and step.instance is not None:
            return self._returning.is_left_open(step.account, step.instance)
        return step.starts

    def _settled(self, step: Step) -> Outcome:
        """Say what came of a step that launches and ends nothing."""
        if step.action is Action.KEEP:
            return self._outcome(step, Result.KEPT, instance=step.instance, detail=step.reason)
        if step.action is Action.BLOCKED:
            error = Refused(step.reason, hint=step.hint)
            return self._failed(step, error)
        detail = f"{step.reason}; `--prune` saves its work and ends it"
        return self._outcome(step, Result.KEPT, instance=step.instance, detail=detail)

    def _pruned(self, step: Step) -> Outcome:
        """Save and end an instance that serves nobody."""
        assert step.instance is not None
        try:
            self._end(step, step.instance, halt=self._leave)
        except GpulabError as error:
            return self._failed(step, error, instance=step.instance)
        context = self._accounts.account(step.account).context
        others = other_versions(context, step.instance.name)
        detail = "; ".join(filter(None, (step.reason, others)))
        return self._outcome(step, Result.ENDED, detail=detail)

    def _request(
        self, pool: ThreadPoolExecutor, jobs: Sequence[_Job]
    ) -> Generator[FleetEvent, None, list[_Job]]:
        """Ask AWS for every job's instance, many at once; return those that were taken."""
        waiting: dict[Future[Launched], _Job] = {pool.submit(self._launch, j): j for j in jobs}
        taken = []
        while waiting:
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                job = waiting.pop(future)
                assert job.step.seat is not None
                try:
                    job.launched = future.result()
                except GpulabError as error:
                    self._done += 1
                    outcome = self._outcomes[id(job.step)] = self._failed(job.step, error)
                    yield SeatFailed(self._now(), outcome, self._done, self._total)
                else:
                    self._done += 1
                    job.asked_at = self._now()
                    taken.append(job)
                    instance = job.launched.instance
                    self._launched.append((job.step.account, instance))
                    if job.launched.unscheduled:
                        self._unscheduled.add(instance.id)
                    yield Requested(self._now(), job.step.seat, instance, self._done, self._total)
        return taken

    def _launch(self, job: _Job) -> Launched:
        step, launches = job.step, self._launches[job.step.account.key]
        assert step.seat is not None
        launches.check()
        if step.action is Action.REPLACE and job.rounds == 0 and step.instance is not None:
            self._end(step, step.instance, halt=self._halt)
        job.rounds += 1
        job.is_adopted = False
        intent = self._open.pop(step.seat.name, None)
        if intent is not None:
            launched = self._asked_again(launches, step.seat, intent)
            if launched is not None:
                job.is_adopted = True
                return launched
        return launches.launch(step.seat, before=job.failures)

    def _asked_again(
        self, launches: AccountLaunches, seat: Seat, intent: Intent
    ) -> Launched | None:
        try:
            launched = launches.ask_again(seat, intent)
        except (Ambiguous, Throttled):
            raise
        except GpulabError:
            # Refused: then it was never made, and the way is free for a new launch.
            return None
        return launched if launched.instance.state.is_alive else None

    def _until_running(self, jobs: list[_Job]) -> Generator[FleetEvent, None, list[_Job]]:
        """Look at all of them together until none is pending; return those that have to be launched again."""
        again: list[_Job] = []
        pending = list(jobs)
        pause = FIRST_LOOK_S
        while pending:
            self._accounts.outside.sleep(pause)
            pause = _NEXT_LOOK_S
            where = watching.places_of(
                (j.step.account, j.launched.instance) for j in pending if j.launched
            )
            said = watching.poll(
                self._accounts,
                where,
                course_id=self._plan.course.id,
                lab_id=self._plan.lab.id,
            )
            left = []
            for job in pending:
                assert job.launched is not None
                seen = said[(job.step.account.key, job.launched.instance.place.region)]
                verdict = self._judged(job, seen)
                if verdict == "pending":
                    left.append(job)
                elif verdict == "again":
                    again.append(job)
                    self._done -= 1
                    assert job.step.seat is not None
                    yield Lost(
                        self._now(), job.step.seat, job.launched.instance.state_reason or "ended"
                    )
            pending = left
            yield Polled(self._now(), len(jobs) - len(pending) - len(again), len(pending))
        return again

    def _judged(self, job: _Job, seen: Mapping[str, Instance] | GpulabError) -> str:
        """Decide about one instance after a look: `pending`, `done` or `again`."""
        assert job.launched is not None
        assert job.asked_at is not None
        waited = self._now() - job.asked_at
        known = None if isinstance(seen, GpulabError) else seen.get(job.launched.instance.id)
        if known is None and waited < UNLISTED:
            return "pending"
        if known is None:
            error = seen if isinstance(seen, GpulabError) else _vanished(job.launched.instance)
            return self._conclude(job, self._failed(job.step, error))
        job.launched = replace(job.launched, instance=known)
        if known.state is State.PENDING:
            if waited < STILL_PENDING:
                return "pending"
            error = still_pending(known)
            error = error.reworded(error.message, hint="Run it again")
            return self._conclude(job, self._failed(job.step, error, instance=known))
        if known.state is State.RUNNING:
            return self._conclude(job, self._ran(job, known))
        return self._ended_early(job, known)

    def _ran(self, job: _Job, instance: Instance) -> Outcome:
        assert job.launched is not None
        assert job.asked_at is not None
        context = self._accounts.account(job.step.account).context
        # By the clock of AWS where this command asked for it: this computer's may be minutes off, its seconds are not.
        waited = self._now() - job.asked_at
        running_at = self._now() if job.is_adopted else instance.launched_at + waited
        disk_gib = job.launched.plan.disk_gib
        with contextlib.suppress(StoreError):
            record_running(context, instance, at=running_at, disk_gib=disk_gib)
        result = (
            Result.ADOPTED
            if job.is_adopted
            else Result.REPLACED
            if job.step.action is Action.REPLACE
            else Result.LAUNCHED
        )
        note, boot = job.launched.note, job.launched.boot
        outcome = self._outcome(job.step, result, instance=instance, detail=note)
        return replace(outcome, boot=boot)

    def _ended_early(self, job: _Job, instance: Instance) -> str:
        context = self._accounts.account(job.step.account).context
        with contextlib.suppress(StoreError):
            record_end(
                context,
                instance,
                at=self._now(),
                by=ended_by(instance),
                reason=instance.state_reason,
            )
        assert job.launched is not None
        error, may_go_on = self._launches[job.step.account.key].ended_early(job.launched)
        if may_go_on and job.rounds < _ROUNDS:
            if job.launched.offer is not None:
                job.failures.append(Failure(job.launched.offer, error))
            return "again"
        return self._conclude(job, self._failed(job.step, error))

    def _complete(self) -> Iterator[FleetEvent]:
        """Make up for what a killed command left out of the ledger; one that cannot be read keeps nobody from what was launched."""
        kept: dict[str, list[Step]] = {}
        for step in self._plan.of(Action.KEEP):
            kept.setdefault(step.account.key, []).append(step)
        unbooked: dict[str, list[str]] = {}
        for steps in kept.values():
            ref = steps[0].account
            try:
                self._complete_in(ref, [s.instance for s in steps if s.instance])
            except GpulabError as error:
                unbooked.setdefault(error.message, []).append(ref.title)
        for why, titles in unbooked.items():
            yield Unbooked(self._now(), tuple(titles), why)

    def _complete_in(self, ref: AccountRef, up: Sequence[Instance]) -> None:
        account = self._accounts.account(ref)
        known = {fact.subject for fact in account.context.ledger.facts(FactKind.LAUNCHED)}
        if any(instance.id not in known for instance in up):
            rebuild(account.looking, account.context.profile.regions, of_everyone=True)

    def _schedule_ends(self) -> None:
        """Make up for the ends that no account has scheduled yet: of what runs from before, and of launches whose first try failed."""
        found = {}
        for step in self._plan.steps:
            outcome = self._outcomes.get(id(step))
            instance = outcome.instance if outcome else None
            if instance and (not step.starts or instance.id in self._unscheduled):
                found[id(step)] = (step.account, instance)
        lacking = schedule_missing(self._accounts, list(found.values()), ends_at=self._plan.ends_at)
        for key, (_, instance) in found.items():
            outcome = self._outcomes[key]
            detail = "; ".join(filter(None, (outcome.detail, lacking.get(instance.id, ""))))
            self._outcomes[key] = replace(outcome, detail=detail)

    def _conclude(self, job: _Job, outcome: Outcome) -> str:
        self._outcomes[id(job.step)] = outcome
        return "done"

    def _end(self, step: Step, instance: Instance, *, halt: threading.Event) -> None:
        """Save the work and end an instance; one whose work cannot be saved runs on, and so does one that shows no host key yet at Ctrl-C."""
        context = self._accounts.account(step.account).context
        for _ in booting.pin(context, instance):
            if halt.is_set():
                raise Halted
        for _ in stop.stop(context, instance):
            pass

    def _failed(
        self, step: Step, error: GpulabError, *, instance: Instance | None = None
    ) -> Outcome:
        outcome = self._outcome(step, Result.FAILED, instance=instance)
        return replace(outcome, trouble=trouble_of(error))

    def _outcome(
        self, step: Step, result: Result, *, instance: Instance | None = None, detail: str = ""
    ) -> Outcome:
        return Outcome(
            name=step.name,
            account=step.account,
            result=result,
            seat=step.seat,
            instance=instance,
            detail=detail,
        )

    def _now(self) -> datetime:
        return self._accounts.outside.now()


def _vanished(instance: Instance) -> GpulabError:
    return NotFound(f"EC2 does not show {instance.id} any more", hint="Run it again")
