"""What can be done to every instance of a lab: end, extend, run a command, send files, bring the work home. One outcome each."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from gpulab.errors import CommandFailed, GpulabError, NotFound, RemoteError, Unreachable
from gpulab.fleet.plan import trouble_of
from gpulab.fleet.ticket import expiry
from gpulab.fleets import collected, kept
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.collected import Collected
from gpulab.fleets.extending import extending
from gpulab.fleets.keeping import heed
from gpulab.fleets.kept import Home
from gpulab.fleets.members import Member, each, ending_unsaved, off_hint, reached
from gpulab.launch.context import Context
from gpulab.launch.running import instances, keep
from gpulab.launch.running import stop as stopping
from gpulab.launch.running.extend import limit_idle as limit_one
from gpulab.launch.running.keep import KeptWork
from gpulab.launch.running.lineage import other_versions
from gpulab.model.course import Lab
from gpulab.model.fleet import Outcome, Result
from gpulab.model.instance import Instance, State
from gpulab.model.status import AgentStatus
from gpulab.remote import authorized_keys, copying
from gpulab.store.files import private_folder

_OUTPUT_BYTES = 4 << 20
_STATUS_S = 12.0


def stop(accounts: Accounts, chosen: Sequence[Member], *, save: bool) -> Iterator[Outcome]:
    """
    Save the work of each and end it; one whose work cannot be saved runs on.

    Args:
        save: Without it, what was not kept before is lost.
    """

    def act(context: Context, member: Member, instance: Instance) -> str:
        if save and instance.state is State.RUNNING:
            reached(accounts.account(member.account), instance)
        for _ in stopping.stop(context, instance, save=save, unsaved=ending_unsaved(member)):
            pass
        said = f"its work is in {context.folder.work / instance.name}" if save else "not saved"
        return "; ".join(filter(None, (said, other_versions(context, instance.name))))

    return each(accounts, chosen, act, done=Result.ENDED, may_be_off=True)


def extend(
    accounts: Accounts, chosen: Sequence[Member], *, new_end: Callable[[Instance], datetime]
) -> Iterator[Outcome]:
    """
    Move the end of each: the timer on it, the schedule in the account, the tag, and the keys of tickets; within what each may spend.

    Args:
        new_end: Until when an instance shall run.
    """
    move = extending(accounts, chosen, new_end=new_end)

    def act(context: Context, member: Member, instance: Instance) -> str:
        reached(accounts.account(member.account), instance)
        notes = move(member, instance)
        try:
            _let_in_until(context, instance, new_end(instance))
        except RemoteError:
            notes = (*notes, "the keys of tickets end as before: extend again to move them")
        return "; ".join(notes)

    return each(accounts, chosen, act)


def _let_in_until(context: Context, instance: Instance, until: datetime) -> None:
    host = context.host(instances.target(context, instance))
    authorized_keys.move_ends(host, expiry(until), timeout_s=_STATUS_S)


def limit_idle(accounts: Accounts, chosen: Sequence[Member], minutes: int) -> Iterator[Outcome]:
    """Change after how many minutes without activity each ends; their ends stand."""

    def act(context: Context, member: Member, instance: Instance) -> str:
        reached(accounts.account(member.account), instance)
        return "; ".join(limit_one(context, instance, minutes).notes)

    return each(accounts, chosen, act)


def run(
    accounts: Accounts,
    chosen: Sequence[Member],
    command: Sequence[str],
    *,
    timeout_s: float,
    take: Callable[[Member, int, str], None],
) -> Iterator[Outcome]:
    """
    Run a command on each.

    Args:
        take: Given the member, the exit code and what the command printed, from a thread.
    """

    def act(context: Context, member: Member, instance: Instance) -> str:
        reached(accounts.account(member.account), instance)
        host = context.host(instances.target(context, instance))
        said = host.run(command, timeout_s=timeout_s, check=False, max_bytes=_OUTPUT_BYTES)
        text = said.stdout.decode("utf-8", "replace") + said.stderr
        take(member, said.exit_code, text)
        if said.exit_code != 0:
            last = "".join(f": {line[:200]}" for line in text.strip().splitlines()[-1:])
            raise CommandFailed(f"`{_shown(command)}` ended with {said.exit_code}{last}")
        return ""

    return each(accounts, chosen, act)


def _shown(command: Sequence[str]) -> str:
    """The program, or the line of shell."""
    return command[-1] if command[:2] == ["bash", "-c"] else command[0]


def push(
    accounts: Accounts, chosen: Sequence[Member], source: Path, *, into: str
) -> Iterator[Outcome]:
    """
    Send a file, or what is in a folder, to each; nothing is deleted there.

    Args:
        into: Folder below the work folder; `""` for the work folder itself.
    """
    there = f"work/{into}" if into else "work"
    folder, only = (source.parent, [source.name]) if source.is_file() else (source, [])

    def act(context: Context, member: Member, instance: Instance) -> str:
        reached(accounts.account(member.account), instance)
        host = context.host(instances.target(context, instance))
        report = copying.push(host, folder, there, only=only)
        return f"{report.files} {'file' if report.files == 1 else 'files'} sent, {report.verified_files} verified by hash"

    return each(accounts, chosen, act)


def collect(
    accounts: Accounts, chosen: Sequence[Member], folder: Path, *, is_anonymous: bool
) -> Iterator[Outcome]:
    """
    Bring the work of each home into a folder of its own, compared by hash; what is there already is not fetched again.

    What was collected over ssh is never replaced by an older copy.

    Args:
        is_anonymous: Whether folders are named by opaque ids, for peer grading; else by the roster's ids.
    """

    def act(context: Context, member: Member, instance: Instance) -> str:
        into = folder / folder_name(member, is_anonymous=is_anonymous)
        try:
            if member.is_off:
                raise Unreachable(f"{member.label} is {instance.state}", hint=off_hint(member))
            reached(accounts.account(member.account), instance)
            host = context.host(instances.target(context, instance))
            aside = collected.put_aside(context, host, instance.id, into)
            begun = collected.starting(context, host, instance.id)
            private_folder(folder)  # names of students are in it
            report = copying.pull(host, "work", into)
            collected.remember(context, into, begun)
            compared = copying.verify(host, "work", into)
        except RemoteError as error:
            return _from_bucket(accounts, member, instance, into, error)
        if not compared.is_complete:
            first = (*compared.missing, *compared.different)[0]
            raise RemoteError(
                f"the copy of {first} differs from the instance", hint="Collect again"
            )
        said = (
            f"{report.files} new, {report.unchanged} unchanged, {compared.files} verified by hash"
        )
        return f"{said}; what it never got is in {aside}" if aside else said

    return each(accounts, chosen, act, may_be_off=True)


def _from_bucket(
    accounts: Accounts, member: Member, instance: Instance, into: Path, error: RemoteError
) -> str:
    """Take what the instance has kept by itself, since it does not answer; if nothing is, its silence is the trouble."""
    account = accounts.find_keeping(member.account)
    before = collected.recall(account.context, into)
    try:
        report, at = kept.bring_from(account, instance, into, after=before.at if before else None)
    except GpulabError:
        raise error from None
    silent = f"it does not answer itself ({error.message})"
    if report is None:
        return f"{_left(_kept_at(at))}; {silent}"
    return f"{report.files} new, {report.unchanged} unchanged, {_kept_at(at)}: {silent}"


def homes(accounts: Accounts, lab: Lab, gone: Sequence[Member]) -> Mapping[str, Home]:
    """
    Bring what is kept of seats without an instance to this computer, by the seat's name; who has nothing kept is left out.

    What `stop` has saved is here already; what an instance kept by itself comes from the bucket.
    """
    found = kept.bring_home(accounts, lab.id, gone) if gone else {}
    return {name: home for name, home in found.items() if home.has_work or home.error}


def collect_kept(
    accounts: Accounts,
    gone: Sequence[Member],
    homes: Mapping[str, Home],
    folder: Path,
    *,
    is_anonymous: bool,
) -> Iterator[Outcome]:
    """
    Copy the work of those whose instance has ended, as it is kept on this computer.

    Args:
        gone: Members without an instance.
        homes: From `homes`; who is not in it is left out.
    """
    for member in gone:
        if member.name not in homes:
            continue
        context, home = accounts.account(member.account).context, homes[member.name]
        into = folder / folder_name(member, is_anonymous=is_anonymous)
        outcome = Outcome(member.name, member.account, Result.DONE, member.seat)
        try:
            work = keep.kept_here(context, member.name)
            if work is None:
                raise home.error or NotFound(f"nothing is kept of {member.label}")
            if _is_older(work, home, collected.recall(context, into)):
                said = _left(_whence(home))
            else:
                report = keep.fetch(context, work, into)
                said = f"{report.files} new, {report.unchanged} unchanged, {_whence(home)}"
            others = other_versions(context, member.name)
        except GpulabError as error:
            yield replace(outcome, result=Result.FAILED, trouble=trouble_of(error))
        else:
            yield replace(outcome, detail="; ".join(filter(None, (said, others))))


def _is_older(work: KeptWork, home: Home, before: Collected | None) -> bool:
    """Whether kept work is older than what was collected over ssh, by the clock that says when it was kept."""
    if before is None:
        return False
    if home.kept_at is not None:
        return home.kept_at < before.at
    return work.saved_at is not None and work.saved_at < before.here_at


def _left(whence: str) -> str:
    return f"left as it was collected, which is newer than what is kept ({whence})"


def _whence(home: Home) -> str:
    if home.error is not None:
        return (
            f"from the saved work; whether the bucket has newer is not known ({home.error.message})"
        )
    return _kept_at(home.kept_at) if home.kept_at else "from the saved work"


def _kept_at(at: datetime) -> str:
    return f"as the instance kept it in the bucket at {at:%Y-%m-%d %H:%M} UTC, verified by hash"


def statuses(
    accounts: Accounts, chosen: Sequence[Member], *, take: Callable[[Member, AgentStatus], None]
) -> Iterator[Outcome]:
    """
    Ask the agent on each what it is doing.

    Args:
        take: Given the member and its status, from a thread.
    """

    def act(context: Context, member: Member, instance: Instance) -> str:
        reached(accounts.account(member.account), instance, may_wait=False)
        status = instances.status(context, instance, timeout_s=_STATUS_S)
        heed(context, accounts.course.id, status)
        take(member, status)
        return ""

    return each(accounts, chosen, act)


def folder_name(member: Member, *, is_anonymous: bool) -> str:
    """Name the folder of one student's work: safe on every system, unique, and the same each time."""
    if member.seat is None:
        return f"extra-{member.instance.id if member.instance else member.name}"
    if is_anonymous:
        return member.seat.owner
    plain = unicodedata.normalize("NFKD", member.seat.label).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")
    if safe == member.seat.label and not _RESERVED.fullmatch(safe):
        return safe
    # A group's name is free text; two that look alike must not share a folder.
    return f"{safe or 'group'}-{hashlib.sha256(member.seat.label.encode()).hexdigest()[:6]}"


# Names Windows keeps for itself.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)
