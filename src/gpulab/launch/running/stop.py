"""
`gpulab stop`: keep the work, compare the copy, end the instance, wait until AWS says so, write it down. In that order: an instance whose
work could not be kept goes on running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from gpulab.aws import instances as ec2
from gpulab.aws import workspace
from gpulab.errors import AwsError, NotFound, RemoteError, StoreError, Unreachable
from gpulab.launch.account.storage import has_bucket, our_bucket, prefix, where
from gpulab.launch.context import Context
from gpulab.launch.events import Ended, Ending, Event, Saved, Saving, WaitingFor, Warned
from gpulab.launch.money import asked_ends
from gpulab.launch.money.facts import record_end, record_usage
from gpulab.launch.money.rebuilding import complete
from gpulab.launch.protocol import scheduled_end
from gpulab.launch.running import agent, instances
from gpulab.launch.running.lineage import filling, has_work, held, note_begun, note_held, put_aside
from gpulab.model.instance import Instance, State
from gpulab.model.timeline import EndedBy
from gpulab.remote import copying, hostkeys
from gpulab.remote.host import Host

_GONE_WITHIN = timedelta(minutes=10)
_LOOK_S = 5.0
_FILLED_WITHIN = timedelta(minutes=10)
# For the command that lost the race to end the same instance.
_KEPT_IS_TOLD = timedelta(hours=1)


def stop(
    context: Context, instance: Instance, *, save: bool = True, unsaved: str = ""
) -> Iterator[Event]:
    """
    Keep the work of an instance and end it.

    Args:
        save: Without it, what was not kept before is lost.
        unsaved: The command that ends it without its work, for hints; by default `gpulab stop NAME --no-save`.

    Yields:
        `Saving`, `Saved`, `Ending`, at last `Ended`.

    Raises:
        Unreachable: It does not run, and its disk may hold work; nothing was ended, and the hint says what can be done.
        RemoteError, StoreError: The work could not be kept; the instance runs on, and the hint says what can be done.
        AwsError: AWS does not end it, or does not say so within ten minutes.
    """
    unsaved = f"`{unsaved or f'gpulab stop {instance.name or instance.id} --no-save'}` ends it without its work"
    if save and _is_off(instance):
        raise _off(instance, unsaved)
    if save and instance.state is State.RUNNING:
        try:
            yield from _keep_work(context, instance, unsaved)
        except (RemoteError, StoreError) as error:
            yield from _ended_meanwhile(context, instance, error)
            return
    yield from end(context, instance)


def _keep_work(context: Context, instance: Instance, unsaved: str) -> Generator[Event, None, None]:
    """
    Keep the work of a running instance and compare the copy, file by file.

    Raises:
        RemoteError, StoreError: It could not be kept, or the copy differs.
    """
    host = instances.host(context, instance)
    try:
        # Where the bucket is not this profile's, as for a whole class, the work comes to this computer.
        if agent.save(host) and has_bucket(context):
            yield from _compared_bucket(context, instance, host)
        else:
            yield from _into_folder(context, instance, host)
    except (RemoteError, StoreError) as error:
        raise error.reworded(error.message, hint=error.hint or unsaved) from error
    context.cache.put(_kept_key(instance), value=True, lasting=_KEPT_IS_TOLD)
    # Whoever is ended from outside writes no word about its use any more.
    with contextlib.suppress(RemoteError, StoreError):
        record_usage(context, instance, agent.status(host).used)


def _is_off(instance: Instance) -> bool:
    """Whether its disk may hold work that nobody can save now; one that starts for the first time has none."""
    if instance.state is State.PENDING:
        return instance.has_run_before
    return instance.state.is_off


def _off(instance: Instance, unsaved: str) -> Unreachable:
    name, region = instance.name or instance.id, instance.place.region
    if instance.state is State.PENDING:
        start = "Stop it again once `gpulab ls` shows it running"
    else:
        command = f"aws ec2 start-instances --region {region} --instance-ids {instance.id}"
        start = f"Start it (in the EC2 console, or `{command}`) and stop again once it runs"
    return Unreachable(
        f"{name} is {instance.state}, so its work cannot be saved; it was not ended",
        hint=f"{start}, or {unsaved}",
    )


def _kept_key(instance: Instance) -> str:
    return f"kept-whole/{instance.id}"


def _ended_meanwhile(
    context: Context, instance: Instance, error: RemoteError | StoreError
) -> Generator[Event, None, None]:
    """
    Look again before saying that an instance runs on: another command, its deadline or AWS may have ended it while its work was read.

    Raises:
        RemoteError, StoreError: It runs on, or nobody here knows whether its work was kept whole.
    """
    if not _is_over(context, instance):
        raise error.reworded(
            f"the work of {instance.name} was not kept, so it runs on: {error.message}"
        ) from error
    if not context.cache.get(_kept_key(instance)):
        raise error.reworded(
            f"{instance.name} was ended meanwhile, and whether its work was kept is not known here",
            hint=f"`gpulab pull {instance.name} --kept` copies what was kept",
        ) from error
    place = where(context, instance.name)
    text = (
        f"{instance.name} was ended by another command meanwhile; its work is kept whole in {place}"
    )
    yield Warned(context.now(), text)
    yield Ended(context.now(), instance)


def _is_over(context: Context, instance: Instance) -> bool:
    """Whether it has ended or is about to; where AWS does not answer, it is believed to run on."""
    try:
        return ec2.read(context.cloud, instance.place.region, instance.id).state.is_over
    except NotFound:
        return True
    except AwsError:
        return False


def end(context: Context, instance: Instance) -> Generator[Event, None, None]:
    """
    End an instance and wait until AWS says `terminated`.

    Raises:
        NotFound: AWS does not find it to end it, and shows it all the same.
        AwsError: AWS refuses, or does not say so within ten minutes; it is asked to, so the next look may show it.
    """
    region = instance.place.region
    yield Ending(context.now(), instance)
    asked_at, lasted = context.now(), None
    asked_ends.note(context, instance.id)
    if _is_taken(context, instance):
        try:
            seen, gone_at = yield from _until_gone(context, instance)
            instance, lasted = replace(instance, ended_at=seen.ended_at), gone_at - asked_at
        except NotFound:
            pass  # it has gone since
        except AwsError:
            # It ends whoever looks; that it was asked to is known here and now only.
            with contextlib.suppress(StoreError):
                record_end(context, instance, at=asked_at, by=EndedBy.USER, reason="stop")
            raise
    try:
        with contextlib.suppress(AwsError):
            complete(context, region, instance.id)
        record_end(
            context,
            instance,
            at=asked_at,
            by=EndedBy.USER,
            reason="stop",
            disks_went_after=lasted,
        )
        asked_ends.drop(context, instance.id)
    except StoreError as error:
        yield Warned(context.now(), f"{error.message}; `gpulab ledger rebuild` adds it later")
    scheduled_end.disarm(context, instance)
    hostkeys.forget(context.folder.known_hosts, instance.id)
    yield Ended(context.now(), instance)


def _is_taken(context: Context, instance: Instance) -> bool:
    """
    Ask AWS to end an instance; false where there is none any more, as AWS forgets one an hour after its end.

    Raises:
        NotFound: AWS does not find it to end it, and shows it all the same.
        AwsError: AWS refuses.
    """
    try:
        ec2.terminate(context.cloud, instance.place.region, [instance.id])
    except NotFound as error:
        if _is_over(context, instance):
            return False
        raise error.reworded(
            f"AWS does not find {instance.id} to end it; for all that is known it runs on",
            hint="Stop it again in a minute; `gpulab ls` shows whether it runs",
        ) from error
    return True


def _compared_bucket(
    context: Context, instance: Instance, host: Host
) -> Generator[Event, None, None]:
    """Compare what the bucket holds with what the instance has, by hash and by what S3 lists."""
    bucket, place = our_bucket(context), prefix(context, instance.name)
    shown = f"s3://{bucket.name}/{place}"
    yield Saving(context.now(), shown)
    found = workspace.read_manifest(context.cloud, bucket, place)
    if found is None or found.launch_id != instance.launch_id:
        raise StoreError(f"{shown} does not hold the work of this launch")
    lost = workspace.missing(context.cloud, bucket, place, found)
    kept = {f.path: f.sha256 for f in found.files}
    lost += tuple(p for p, sha256 in agent.hashes(host).items() if kept.get(p) != sha256)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise StoreError(
            f"the kept copy of {lost[0]}{more} in {shown} is not what is on the instance",
            hint="Close what writes to them and stop again, or use `--no-save`",
        )
    yield Saved(context.now(), shown, len(found.files), found.size_bytes)


def _into_folder(context: Context, instance: Instance, host: Host) -> Generator[Event, None, None]:
    """
    Fetch the work over ssh and compare it, while no tunnel fetches some of it into the same folder.

    Raises:
        StoreError: It could not be kept whole, or another command fills the folder for ten minutes.
    """
    folder, begun = context.folder.work / instance.name, context.now()
    yield Saving(context.now(), str(folder))
    while context.now() - begun < _FILLED_WITHIN:
        with filling(folder) as is_ours:
            if is_ours:
                yield from _filled(context, instance, host)
                return
        yield WaitingFor(context.now(), "other copy", str(folder))
        context.sleep(_LOOK_S)
    raise StoreError(
        f"another command has been copying work into {folder} for ten minutes",
        hint=f"`gpulab open {instance.name} --close` ends a tunnel that does, then stop again",
    )


def _filled(context: Context, instance: Instance, host: Host) -> Generator[Event, None, None]:
    """
    Fetch the work over ssh and compare it; what was kept before and is gone on the instance stays.

    What the instance never got is put aside before its own takes the place.
    """
    folder, name = context.folder.work / instance.name, instance.name
    if not has_work(context, instance.id) and instance.id not in held(context, name):
        yield from _put_aside(context, instance, host)
    note_begun(context, name, instance.id)
    at = context.now()
    report = copying.pull(host, "work", folder)
    if report.changing:
        raise StoreError(agent.being_written(report.changing), hint=agent.STOP_WRITING)
    compared = copying.verify(host, "work", folder)
    if not compared.is_complete:
        first = (*compared.missing, *compared.different)[0]
        raise StoreError(f"the copy of {first} in {folder} differs from the instance")
    folder.touch()
    note_held(context, name, instance.id, instance.launch_id, at=at)
    for skipped in compared.skipped:
        yield Warned(context.now(), f"{skipped.path} is not kept: {skipped.reason}")
    yield Saved(context.now(), str(folder), compared.files, compared.bytes)


def _put_aside(context: Context, instance: Instance, host: Host) -> Generator[Event, None, None]:
    folder = context.folder.work / instance.name
    if not folder.is_dir():
        return
    different = copying.verify(host, "work", folder).different
    aside = put_aside(folder, different, before=instance.id)
    if aside is not None:
        files = "1 file" if len(different) == 1 else f"{len(different):,} files"
        text = f"{files} kept before, which {instance.id} did not get, stay in {aside}"
        yield Warned(context.now(), text)


def _until_gone(
    context: Context, instance: Instance
) -> Generator[Event, None, tuple[Instance, datetime]]:
    """Return the instance at its end and when it was gone: half-way between the look that still saw it and the one that did not."""
    begun = there_at = context.now()
    while True:
        seen = ec2.read(context.cloud, instance.place.region, instance.id)
        if seen.state is State.TERMINATED:
            return seen, there_at + (context.now() - there_at) / 2
        there_at = context.now()
        if there_at - begun > _GONE_WITHIN:
            raise AwsError(
                f"AWS was asked to end {instance.id} and still says {seen.state} after 10 min",
                hint="`gpulab ls` shows when it has ended",
            )
        yield WaitingFor(context.now(), "terminated", seen.state.value)
        context.sleep(_LOOK_S)
