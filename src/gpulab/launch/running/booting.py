"""
From `running` to an open JupyterLab: the host key is pinned from the console, then ssh, then the phases of the agent. Never connects to
a machine whose key AWS has not vouched for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.aws import instances as ec2
from gpulab.aws import workspace
from gpulab.errors import (
    AwsError,
    CommandFailed,
    GpulabError,
    HostKeyMismatch,
    NoCapacity,
    NotFound,
    RemoteError,
    Unreachable,
)
from gpulab.launch.account.storage import has_bucket, our_bucket, prefix
from gpulab.launch.context import Context
from gpulab.launch.events import (
    Event,
    HostKeyPinned,
    LoggedIn,
    NotebooksBrought,
    PhaseChanged,
    Ready,
    Restored,
    WaitingFor,
    Warned,
)
from gpulab.launch.running import instances, notebooks
from gpulab.launch.running.lineage import note_has_work, put_aside
from gpulab.model.course import Notebooks
from gpulab.model.instance import Instance
from gpulab.model.status import AgentStatus
from gpulab.remote import copying, hostkeys
from gpulab.remote.host import Host
from gpulab.remote.manifest import differing, read_local, read_remote

_HOST_KEY_WITHIN = timedelta(minutes=10)
_LOGIN_WITHIN = timedelta(minutes=8)
_JUPYTER_WITHIN = timedelta(minutes=15)
_LOOK_S = 2.0


def until_ready(
    context: Context, instance: Instance, *, is_new: bool, wanted: Notebooks | None = None
) -> Generator[Event, None, Instance]:
    """
    Wait until JupyterLab answers on an instance.

    Args:
        wanted: Notebooks, brought over ssh, unless a new instance fetches them by itself; failing at it is told and stops nothing.

    Yields:
        What happens, at last `Ready`.

    Raises:
        HostKeyMismatch, LoginRefused: Stop; waiting does not help.
        NoCapacity: AWS took the instance back meanwhile; launch again.
        CommandFailed: A step of the instance's own start failed; the message says which.
        Unreachable: It did not answer in time.
    """
    yield from pin(context, instance)
    yield from _log_in(context, instance)
    if is_new:
        yield from _push_kept_work(context, instance)
    said = yield from _follow_phases(context, instance)
    if wanted is not None and not (is_new and has_bucket(context)):
        yield from _bring_notebooks(context, instance, wanted)
    yield Ready(context.now(), instance, said, is_new)
    return instance


def bring_back(context: Context, instance: Instance) -> Generator[Event, None, None]:
    """
    Wait until a login is possible, and copy what is kept of the name on this computer to its new instance.

    It may be in use already: what is there stays as it is, and what is kept of the same files is put aside here.

    Yields:
        What happens; the last event is `Restored`, or `Warned` where the work is not there.

    Raises:
        HostKeyMismatch, LoginRefused, NoCapacity, Unreachable: As `until_ready`.
    """
    yield from pin(context, instance)
    # The group is a whole class's: for the address of the moment of one computer, the others would be shut out.
    yield from _log_in(context, instance, may_admit=bool(context.cidr))
    yield from _push_kept_work(context, instance, may_be_in_use=True)


def pin(context: Context, instance: Instance) -> Generator[Event, None, None]:
    """
    Pin the host key from the console output, if it is not pinned yet.

    Raises:
        Unreachable: The console did not show it within ten minutes.
        HostKeyMismatch: The console shows another key than the one pinned.
    """
    if hostkeys.pinned(context.folder.known_hosts, instance.id):
        return
    begun = context.now()
    for pause in _growing(context):
        text = ec2.console_output(context.cloud, instance.place.region, instance.id)
        keys = hostkeys.parse_console(text)
        if keys:
            hostkeys.pin(context.folder.known_hosts, instance.id, keys)
            yield HostKeyPinned(context.now(), keys[0].fingerprint)
            return
        if context.now() - begun > _HOST_KEY_WITHIN:
            raise Unreachable(
                f"the console of {instance.id} shows no host key after 10 min, so nothing vouches for the machine",
                hint=f"`gpulab up {instance.name}` waits again; `gpulab stop {instance.name}` ends it",
            )
        yield WaitingFor(context.now(), "host key", "the console does not show it yet")
        _check_alive(context, instance)
        context.sleep(pause)


def _growing(context: Context) -> Iterator[float]:
    """Yield 4, 8, 12, 12, ... seconds with jitter: AWS allows few console calls per account."""
    pause = 4.0
    while True:
        yield pause * (0.8 + 0.4 * context.random.random())
        pause = min(pause + 4.0, 12.0)


def _log_in(
    context: Context, instance: Instance, *, may_admit: bool = True
) -> Generator[Event, None, None]:
    """Wait until a command can be run; a time-out may mean that this computer's address has changed."""
    host, begun = instances.host(context, instance), context.now()
    while True:
        try:
            host.run(["true"], timeout_s=20)
        except (Unreachable, CommandFailed) as error:
            if context.now() - begun > _LOGIN_WITHIN:
                raise Unreachable(
                    f"{instance.name or instance.id} did not accept a login within 8 min: {error.message}",
                    hint=error.hint,
                ) from error
            yield WaitingFor(context.now(), "ssh", error.message)
            if may_admit and context.now() - begun > timedelta(seconds=45):
                may_admit = False
                yield from _admit(context, instance)
            _check_alive(context, instance)
            context.sleep(_LOOK_S)
        else:
            yield LoggedIn(context.now())
            return


def _admit(context: Context, instance: Instance) -> Generator[Event, None, None]:
    try:
        if instances.admit_here(context, instance):
            yield Warned(
                context.now(), "this computer's address has changed; port 22 now admits it"
            )
    except AwsError as error:
        yield Warned(context.now(), error.message)


def _push_kept_work(
    context: Context, instance: Instance, *, may_be_in_use: bool = False
) -> Generator[Event, None, None]:
    """Copy what is kept of the name on this computer to its new instance; what is in the bucket, the agent brings back itself."""
    folder = context.folder.work / instance.name
    try:
        if not folder.is_dir():
            note_has_work(context, instance.id)
            return
        if _is_in_bucket(context, instance):
            return
        host = instances.host(context, instance)
        taken = _taken(host, folder) if may_be_in_use else frozenset()
        aside = put_aside(folder, taken, before=instance.id)
        free = [path for path in read_local(folder).entries if path not in taken] if taken else []
        # An empty list would mean all of it.
        report = copying.push(host, folder, "work", only=free) if free or not taken else None
        note_has_work(context, instance.id)
    except GpulabError as error:
        text = f"the kept work is not on the instance: {error.message}; `gpulab push {instance.name} {folder}` repeats it"
        yield Warned(context.now(), text)
        return
    if aside is not None:
        text = f"what the instance has already stays there, as kept before it is in {aside}"
        yield Warned(context.now(), text)
    files, size = (report.files, report.bytes) if report else (0, 0)
    yield Restored(context.now(), files, size)


def _taken(host: Host, folder: Path) -> frozenset[str]:
    """Name what is on the instance in another version, which may be newer."""
    there = read_remote(host, "work")
    different = differing(read_local(folder), there)
    return frozenset(path for path in different if path in there.entries)


def _is_in_bucket(context: Context, instance: Instance) -> bool:
    if not has_bucket(context):
        return False
    where = prefix(context, instance.name)
    return workspace.read_manifest(context.cloud, our_bucket(context), where) is not None


def _bring_notebooks(
    context: Context, instance: Instance, wanted: Notebooks
) -> Generator[Event, None, None]:
    """Bring them and tell it like a step of the instance's own start, which it is where there is a bucket."""
    began = context.now()
    yield PhaseChanged(began, "notebooks", "running", 0, wanted.repository)
    try:
        said = notebooks.bring(context, instance, wanted)
    except RemoteError as error:
        text, took = f"{error.message}; the same command tries again", _since(context, began)
        yield PhaseChanged(context.now(), "notebooks", "failed", took, text)
        return
    yield PhaseChanged(context.now(), "notebooks", "done", _since(context, began), said)
    yield NotebooksBrought(context.now(), said)


def _since(context: Context, began: datetime) -> float:
    return (context.now() - began).total_seconds()


def _follow_phases(context: Context, instance: Instance) -> Generator[Event, None, AgentStatus]:
    """Tell each step of the instance's own start as it begins, passes or fails, until JupyterLab answers."""
    begun, told = context.now(), dict[str, str]()
    while True:
        try:
            said = instances.status(context, instance)
        except HostKeyMismatch:
            raise
        except RemoteError as error:
            yield WaitingFor(context.now(), "jupyter", error.message)
            _check_alive(context, instance)
            said = None
        if said is not None:
            yield from _changes(context, said, told)
            if said.is_jupyter_ready:
                return said
            _check_phases(instance, said)
        if context.now() - begun > _JUPYTER_WITHIN:
            raise Unreachable(
                f"JupyterLab on {instance.name or instance.id} did not answer within 15 min",
                hint="`gpulab logs` shows what the instance wrote",
            )
        context.sleep(_LOOK_S)


def _changes(
    context: Context, said: AgentStatus, told: dict[str, str]
) -> Generator[Event, None, None]:
    for phase in said.phases:
        if phase.state != "waiting" and told.get(phase.name) != phase.state:
            told[phase.name] = phase.state
            yield PhaseChanged(context.now(), phase.name, phase.state, phase.seconds, phase.message)


def _check_phases(instance: Instance, said: AgentStatus) -> None:
    """Stop waiting when a step that JupyterLab needs has failed; others may still fail beside it."""
    needed = {"armed", "jupyter"}
    for phase in said.phases:
        if phase.name in needed and phase.state == "failed":
            raise CommandFailed(
                f"step {phase.name} failed on {instance.name or instance.id}: {phase.message}",
                hint="`gpulab logs` shows why; `gpulab stop` ends it",
            )


def _check_alive(context: Context, instance: Instance) -> None:
    """
    Ask AWS whether the instance is still there.

    Raises:
        NoCapacity: AWS took it back.
        Unreachable: It has ended in another way.
    """
    try:
        seen = ec2.read(context.cloud, instance.place.region, instance.id)
    except NotFound:
        return
    if seen.state.is_alive:
        return
    name = instance.name or instance.id
    if seen.state_reason.startswith("Server.Spot"):
        raise NoCapacity(
            f"AWS took {name} back while it started",
            hint=f"`gpulab up {name}` launches again",
            code=seen.state_reason,
        )
    raise Unreachable(
        f"{name} has ended while it started ({seen.state_reason or seen.state})",
        hint=f"`gpulab up {name}` launches again",
    )
