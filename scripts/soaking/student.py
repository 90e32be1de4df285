"""One student's term: labs and project hours, done with gpulab's own code on a simulated laptop, before an account of the student's own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gpulab.aws.session import Cloud
from gpulab.errors import CredentialsInvalid, GpulabError, StoreError, WrongUsage
from gpulab.launch import up
from gpulab.launch.context import Context
from gpulab.launch.events import Event, Ready
from gpulab.launch.money.rebuilding import rebuild
from gpulab.launch.running import extend, instances, keep, overview, stop
from gpulab.launch.upkeep import sweep
from gpulab.launch.upkeep.prepare import Prepared, prepare
from gpulab.model.instance import Instance, LaunchRequest
from gpulab.model.market import Market
from gpulab.remote import keys
from gpulab.store.config import Profile
from gpulab.store.credentials import Credentials, write_credentials
from gpulab.store.home import Folder
from soaking.machines import Machine

if TYPE_CHECKING:
    from soaking.term import Term

_T = TypeVar("_T")
_TRIES = 10
_PASTED_FOR_S = 4 * 3600
_FILES = ("week.ipynb", "model.py", "data/results.csv", "notes.md")


class LidClosed(Exception):
    """The laptop was closed in the middle of a command, for good."""


class Student:
    """
    One student.

    Attributes:
        work: What the student relies on: hash by path, by the instance's name.
    """

    def __init__(self, term: Term, number: int, folder: Path) -> None:
        self.account = f"{222200000000 + number}"
        self.work: dict[str, dict[str, str]] = {}
        self._machines: dict[str, Machine] = {}
        self._term, self._folder = term, folder
        self._random = random.Random(f"{term.seed}/{number}")
        self._has_pasted_keys = self._random.random() < 0.3
        self._is_prepared = False
        self._profile = Profile(
            name="soak",
            aws_profile="gpulab",
            aws_config_file=folder / "config",
            aws_credentials_file=folder / "credentials",
            regions=term.regions,
        )
        self._cloud: Cloud | None = None
        folder.mkdir(parents=True)
        (folder / "config").write_text(f"[profile gpulab]\nregion = {term.regions[0]}\n")
        self._take_keys()

    # -- what a student does ---------------------------------------------------------------------------------------------------

    def session(self, name: str, *, minutes: float) -> None:
        """Start an instance, work on it for a while through every interruption, and end it, or forget to."""
        term, chance = self._term, self._random
        ends_at = term.now() + timedelta(minutes=minutes)
        if not self._prepare():
            term.figures.gave_up += 1
            return
        wished_at = term.now()
        machine = self._up(name)
        if machine is not None:
            term.figures.wish_to_jupyter_s.append((term.now() - wished_at).total_seconds())
        while machine is not None and term.now() < ends_at:
            term.clockwork.sleep(chance.expovariate(1 / 700))
            if machine.is_off:
                machine = self._up(name)
                continue
            self._work_on(name, machine)
            if chance.random() < 0.1:
                self._tried("ls", lambda: overview.look(self._context()))
            if chance.random() < 0.03:
                self._tried("extend", lambda: self._extend(name))
        if machine is not None and chance.random() < 0.75:
            self._tried("stop", lambda: self._stop(name))

    def sunday(self) -> None:
        """Complete the ledger from the account, as before a report."""
        if self._is_prepared:
            self._tried("ledger rebuild", lambda: rebuild(self._context(), self._term.regions))

    def last_day(self) -> None:
        """Delete what is left over."""
        if self._is_prepared:
            self._tried("sweep", self._sweep)

    def wrong_files(self) -> list[str]:
        """Fetch all kept work, as `gpulab pull` does, and compare it with what the student relies on."""
        wrong = []
        for name in self.work:
            self._settle(name)
            files = self.work[name]
            into = self._folder / "fetched" / name
            context = self._context()
            if files:
                keep.fetch(context, keep.find(context, name), into)
            wrong += [
                f"{name}/{path}" for path, sha in files.items() if _sha256(into / path) != sha
            ]
        return wrong

    def ledger(self) -> Context:
        """Give the context whose ledger is this student's."""
        return self._context()

    # -- commands --------------------------------------------------------------------------------------------------------------

    def _prepare(self) -> bool:
        """Run `gpulab init` once; whether the account is ready."""
        if self._is_prepared:
            return True
        made = self._tried("init", self._init)
        if made is None:
            return False
        keys.make_key_pair(self._folder / "home" / "keys" / "soak")
        self._is_prepared = True
        self._profile = replace(
            self._profile,
            owner=made.owner,
            keep_bucket=made.keep_bucket,
            instance_role=made.instance_role,
            scheduler_role=made.scheduler_role,
        )
        return True

    def _init(self) -> Prepared:
        """Where an outage kept it from making the bucket it says so, and is run again."""
        made = prepare(self._context())
        if not made.keep_bucket:
            raise StoreError("the work would be kept on this computer", code="without a bucket")
        return made

    def _up(self, name: str) -> Machine | None:
        """Run `gpulab up` until JupyterLab answers; what fails is tried again, as its hint says."""
        term = self._term
        for _ in range(_TRIES):
            began = term.now()
            ready = self._tried("up", lambda: self._ready(name), tries=1)
            machine = term.machines.by_id.get(ready.instance.id) if ready else None
            if ready and machine and machine.ready_at:
                if ready.is_new:
                    term.figures.to_jupyter_s.append((term.now() - began).total_seconds())
                    late = (term.now() - machine.ready_at).total_seconds()
                    term.figures.noticed_late_s.append(late)
                self._compare_restored(name, machine)
                return machine
            term.clockwork.sleep(self._random.uniform(20, 180))
        term.figures.gave_up += 1
        return None

    def _ready(self, name: str) -> Ready:
        steps: Iterator[Event] = up.up(self._context(), self._wish(name), confirm=lambda _: True)
        ready = None
        for event in steps:
            self._maybe_close_the_lid(steps)
            if isinstance(event, Ready):
                ready = event
        assert ready is not None
        return ready

    def _maybe_close_the_lid(self, steps: Iterator[Event]) -> None:
        closes = self._random.random()
        if closes < 0.003:
            self._term.figures.lids_closed += 1
            steps.close()  # type: ignore[attr-defined]
            raise LidClosed
        if closes < 0.006:
            self._term.figures.lids_closed += 1
            self._term.clockwork.sleep(self._random.uniform(30, 900))

    def _stop(self, name: str) -> None:
        context = self._context()
        instance = self._find(context, name)
        if instance is not None:
            for _ in stop.stop(context, instance):
                pass
            self._compare_fetched(name, instance.id)

    def _extend(self, name: str) -> None:
        context = self._context()
        instance = self._find(context, name)
        if instance is not None:
            extend.extend(context, instance, context.now() + timedelta(hours=4))

    def _sweep(self) -> None:
        context = self._context()
        outcomes = list(sweep.apply(context, sweep.look(context).found))
        failed = [o for o in outcomes if not o.is_done]
        self._term.figures.swept += len(outcomes) - len(failed)
        if failed:
            raise StoreError(f"{len(failed)} were not deleted: {failed[0].error}")

    def _tried(self, command: str, run: Callable[[], _T], *, tries: int = _TRIES) -> _T | None:
        """Run a command; one that fails is counted by its cause and run again, with new keys where they had expired."""
        figures = self._term.figures
        for attempt in range(tries):
            figures.count_command(command)
            try:
                return run()
            except LidClosed:
                figures.count_failure(command, "the lid was closed")
            except GpulabError as error:
                figures.count_failure(command, f"{type(error).__name__} {error.code}".strip())
                if isinstance(error, CredentialsInvalid):
                    self._take_keys()
            if attempt < tries - 1:
                self._term.clockwork.sleep(self._random.uniform(20, 120))
        return None

    # -- the laptop ------------------------------------------------------------------------------------------------------------

    def _context(self) -> Context:
        """A new process: nothing is remembered but what was written, and boto's clients, which take longer to make than to use."""
        term = self._term
        if self._cloud is None:
            self._cloud = Cloud(
                aws_profile="gpulab",
                config_file=self._folder / "config",
                credentials_file=self._folder / "credentials",
                now=term.now,
            )
        cloud = self._cloud
        return Context(
            profile=self._profile,
            folder=Folder(self._folder / "home"),
            environment={},
            now=term.now,
            sleep=term.clockwork.sleep,
            random=self._random,
            cidr="203.0.113.7/32",
            connect=term.machines.host,  # type: ignore[arg-type]
            open_cloud=lambda: cloud,
        )

    def _take_keys(self) -> None:
        world = self._term.world
        if self._has_pasted_keys:
            key = world.session_of(self.account, lasts_seconds=_PASTED_FOR_S)
        else:
            key = world.key_of(self.account)
        given = Credentials(key.access_key, key.secret, key.token)
        write_credentials(self._folder / "credentials", given, profile="gpulab")
        self._cloud = None

    def _wish(self, name: str) -> LaunchRequest:
        return LaunchRequest(
            name=name,
            gpu="T4",
            instance_type="g4dn.xlarge",
            duration=timedelta(hours=4),
            max_usd_per_hour=None,
            regions=self._profile.regions,
            markets=(Market.SPOT,),
            environment="tf2-small",
            lab=name,
        )

    def _find(self, context: Context, name: str) -> Instance | None:
        with suppress(WrongUsage):
            return instances.find_alive(context, name).instance
        return instances.find(context, name)

    # -- the work --------------------------------------------------------------------------------------------------------------

    def _work_on(self, name: str, machine: Machine) -> None:
        path = self._random.choice(_FILES)
        content = self._random.randbytes(self._random.randint(50, 4000))
        machine.write(path, content)
        self.work.setdefault(name, {})[path] = hashlib.sha256(content).hexdigest()

    def _settle(self, name: str) -> None:
        """Rely no more on what an ended machine could not keep: it has counted it, and it is not counted again."""
        ended = self._machines.get(name)
        if ended is not None and ended.is_off:
            # What was fetched from an instance without a bucket was compared when it ended, and stays on the laptop.
            files = self.work.get(name, {}) if ended.has_bucket else {}
            self.work[name] = {path: ended.kept[path] for path in files if path in ended.kept}

    def _compare_fetched(self, name: str, instance_id: str) -> None:
        """Compare what `gpulab stop` fetched of an instance without a bucket with what was on it."""
        machine = self._machines.get(name)
        if machine is not None and machine.birth.instance_id == instance_id:
            folder = self._folder / "home" / "work" / name
            wrong = [p for p, sha in machine.fetched.items() if _sha256(folder / p) != sha]
            self._term.figures.wrong_at_end += [f"{self.account}: fetched {p}" for p in wrong]

    def _compare_restored(self, name: str, machine: Machine) -> None:
        """Compare what an instance has with what is relied on."""
        self._settle(name)
        self._machines[name] = machine
        if not machine.is_restored:
            return
        files = self.work.get(name, {})
        wrong = [p for p, sha in files.items() if _sha256(machine.here.work / p) != sha]
        self._term.figures.wrong_after_restore += [f"{name}/{path}" for path in wrong]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
