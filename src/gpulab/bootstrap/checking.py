"""What is wrong with an environment before anybody launches it. Pure but for reading its folder; collects problems, raises none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from gpulab.bootstrap.environments import (
    Environment,
    load_environment,
)
from gpulab.bootstrap.locking import variants
from gpulab.bootstrap.spec import InstanceSpec
from gpulab.bootstrap.userdata import user_data
from gpulab.errors import GpulabError

OLD_AFTER = timedelta(days=120)
_WISH = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*\])?\s*(?P<versions>[^;#]*)")


@dataclass(frozen=True)
class Flaw:
    """
    One thing that is wrong with an environment.

    Attributes:
        where: Which lock or file, `cpu.lock`; empty for the whole.
        text: What is wrong, a half-sentence.
        hint: What to do about it.
    """

    environment: str
    where: str
    text: str
    hint: str


def problems(name: str, *, today: date, extra_folders: Sequence[Path] = ()) -> tuple[Flaw, ...]:
    """
    Look for what would fail or mislead later: files, wishes that are not locked, old locks.

    Returns:
        In the order in which they are worth mending; empty for a sound environment.
    """
    try:
        environment = load_environment(name, extra_folders)
        wanted = variants(environment.folder, extra_folders)
    except GpulabError as error:
        return (Flaw(name, "", error.message, error.hint),)
    found = [
        *(
            p
            for variant in wanted
            for p in _unlocked(environment, variant, wanted[variant]["requirements"])
        ),
        *_no_kernel(environment),
        *_behind_base(environment, extra_folders),
        *_old(environment, today),
    ]
    return tuple(found)


def wishes(files: Iterable[Path]) -> dict[str, str]:
    """
    Read what is asked for from requirements files, following `-r`.

    Returns:
        Normalised name to its version specifiers (mostly empty); wishes for some platforms only are left out.
    """
    found: dict[str, str] = {}
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            text = line.split(" #")[0].strip()
            if text.startswith("-r "):
                found |= wishes([file.parent / text[3:].strip()])
            elif (match := _WISH.match(text)) and ";" not in text:
                found[_normal(match["name"])] = match["versions"].strip()
    return found


def _unlocked(environment: Environment, variant: str, files: Iterable[Path]) -> Iterator[Flaw]:
    lock = environment.gpu if variant == "gpu" else environment.cpu
    locked = {pin.name: pin.version for pin in lock.pins}
    hint = f"`gpulab env lock {environment.name}` makes the lock again"
    for name, versions in wishes(files).items():
        exact = versions.removeprefix("==") if re.fullmatch(r"==[^,*=]+", versions) else ""
        where = f"{variant}.lock"
        if name not in locked:
            yield Flaw(environment.name, where, f"{name} is asked for and not in it", hint)
        elif exact and exact.strip() != locked[name]:
            text = f"it has {name} {locked[name]}, asked for is {exact.strip()}"
            yield Flaw(environment.name, where, text, hint)


def _no_kernel(environment: Environment) -> Iterator[Flaw]:
    """Kernels are started by `ipykernel_launcher`; a resolver that finds no way goes back to versions from before it."""
    for where, lock in (("cpu.lock", environment.cpu), ("gpu.lock", environment.gpu)):
        version = next((pin.version for pin in lock.pins if pin.name == "ipykernel"), "")
        if (where, lock) != ("gpu.lock", environment.cpu) and int(version.split(".")[0] or 0) < 5:
            text = f"it has {f'ipykernel {version}' if version else 'no ipykernel'}, so no notebook can start"
            yield Flaw(environment.name, where, text, "Ask for `ipykernel>=5`, and lock again")


def _behind_base(environment: Environment, extra_folders: Sequence[Path]) -> Iterator[Flaw]:
    if not environment.base:
        return
    below = load_environment(environment.base, extra_folders)
    for where, own, base in (
        ("cpu.lock", environment.cpu, below.cpu),
        ("gpu.lock", environment.gpu, below.gpu),
    ):
        locked = {pin.name: pin.version for pin in own.pins}
        moved = [p.name for p in base.pins if locked.get(p.name, p.version) != p.version]
        if moved and (where, own) != ("gpu.lock", environment.cpu):
            yield Flaw(
                environment.name,
                where,
                f"{environment.base} has moved on since: {', '.join(moved[:3])}"
                + (f" and {len(moved) - 3} more" if len(moved) > 3 else ""),
                f"`gpulab env lock {environment.name}` follows it",
            )


def _old(environment: Environment, today: date) -> Iterator[Flaw]:
    locks = {"cpu.lock": environment.cpu, "gpu.lock": environment.gpu}
    if environment.gpu == environment.cpu:
        del locks["gpu.lock"]
    hint = (
        "A newer gpulab brings a newer one"
        if environment.is_shipped
        else f"`gpulab env lock {environment.name}` renews it and prints the difference"
    )
    for where, lock in locks.items():
        if lock.locked_on is None:
            yield Flaw(environment.name, where, "it does not say when it was made", hint)
        elif today - lock.locked_on > OLD_AFTER:
            days = (today - lock.locked_on).days
            text = f"it is {days} days old; old versions collect known holes"
            yield Flaw(environment.name, where, text, hint)


def fits_alone(environment: Environment) -> bool:
    """Whether an instance can be launched with it where no bucket brings the locks: all of it fits into user data."""
    try:
        user_data(_widest(environment))
    except GpulabError:
        return False
    return True


def _widest(environment: Environment) -> InstanceSpec:
    """A specification without a bucket, every value about as long as it gets."""
    made_at = datetime(2026, 11, 23, 13, 7, 33, tzinfo=UTC)
    return InstanceSpec(
        launch="0123456789abcdef0123456789abcdef",
        name="week4-convolutional-nets",
        owner="7f3a9c21b05d",
        user="ubuntu",
        made_at=made_at,
        deadline=made_at + timedelta(hours=12),
        idle_minutes=60,
        usd_per_hour=Decimal("0.21584"),
        environment=environment,
        has_gpu=True,
        budget_usd=Decimal("2.10"),
        course="02456-2026",
        lab="week4",
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
