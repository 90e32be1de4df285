"""What every command starts from: streams, environment, clock, the user's folder and the chosen profile."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from gpulab.errors import WrongUsage
from gpulab.store.config import Profile
from gpulab.store.home import Folder, Home
from gpulab.view.console import Console

if TYPE_CHECKING:
    import random

    from gpulab.launch.context import Context as LaunchContext


#: The profile that leads to the simulated AWS; its own command makes it (`sandbox.control.PROFILE`, which is not loaded for a name).
SANDBOX = "sandbox"


@dataclass(frozen=True)
class Context:
    """
    The outside, as arguments for everything below the command line.

    Attributes:
        profile_name: From `--profile`; `None` to follow `GPULAB_PROFILE` or the configuration.
        cidr: From `--cidr`; `""` to follow the profile.
    """

    environment: Mapping[str, str]
    console: Console
    profile_name: str | None = None
    cidr: str = ""

    @cached_property
    def home(self) -> Home:
        """The user's folder."""
        return Home.of(self.environment)

    @cached_property
    def profile(self) -> Profile:
        """The chosen profile; reading it may raise `WrongUsage`."""
        config = self.home.config()
        name = self.profile_name or self.environment.get("GPULAB_PROFILE")
        try:
            return config.profile(name)
        except WrongUsage as error:
            if name != SANDBOX:
                raise
            hint = "`gpulab sandbox start` makes it, and starts what it leads to"
            raise error.reworded(error.message, hint=hint) from error

    @cached_property
    def folder(self) -> Folder:
        """The chosen profile's folder."""
        return self.home.folder(self.profile.name)

    @cached_property
    def random(self) -> random.Random:
        """Randomness for jitter; not for secrets."""
        import random

        return random.Random()  # noqa: S311 - jitter, not secrets

    @cached_property
    def launch(self) -> LaunchContext:
        """What every action on AWS starts from; makes no call by itself."""
        from gpulab.launch.context import context_of as launch_context_of

        return launch_context_of(
            self.profile,
            self.folder,
            environment=self.environment,
            now=self.now,
            sleep=self.sleep,
            random=self.random,
            cidr=self.cidr or self.profile.cidr,
        )

    def admitting(self, cidr: str | None) -> Context:
        """Return the same context with another answer to who may reach port 22; `None` changes nothing."""
        return self if cidr is None else replace(self, cidr=cidr)

    def owning(self) -> Context:
        """
        Return the same context whose profile has an owner's id: that of the credentials is written down before anything is made.

        So what is launched before `gpulab init` is still found, stopped and counted after it, and from another computer too.

        Raises:
            GpulabError: AWS does not say whose the credentials are, or the configuration cannot be written.
        """
        if self.profile.owner:
            return self
        from gpulab.launch.upkeep.prepare import own_id
        from gpulab.store.config import change_profile

        owner = own_id(self.launch)
        change_profile(self.home.config_file, self.profile.name, {"owner": owner})
        return replace(self)

    @staticmethod
    def now() -> datetime:
        """The time; aware UTC."""
        return datetime.now(UTC)

    @staticmethod
    def sleep(duration_s: float) -> None:
        """Wait."""
        time.sleep(duration_s)


def _columns() -> int:
    import shutil  # it brings the compressors along, which commands without a step need not wait for

    return shutil.get_terminal_size().columns


def _every_second(do: Callable[[], None]) -> Callable[[], None]:
    """Call a function every second, beside what is waited for; the returned function ends it."""
    ended = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr was closed meanwhile
            while not ended.wait(1.0):
                do()

    threading.Thread(target=run, daemon=True).start()
    return ended.set


def context_of(
    environment: Mapping[str, str] | None = None, *, profile_name: str | None = None
) -> Context:
    """Make the context of this process."""
    env = os.environ if environment is None else environment
    is_live = sys.stderr.isatty() and env.get("TERM") != "dumb"
    console = Console(
        out=sys.stdout,
        err=sys.stderr,
        is_live=is_live,
        has_colour=is_live and not env.get("NO_COLOR"),
        monotonic=time.monotonic,
        ask=sys.stdin.readline if sys.stdin is not None and sys.stdin.isatty() else None,
        ticking=_every_second,
        columns=_columns,
        is_watched=is_live and sys.stdout.isatty(),
    )
    return Context(environment=env, console=console, profile_name=profile_name)
