"""
`gpulab image bake`: a spot builder is set up like any instance, checked, cleaned, imaged, ended, and the image is tested by an instance of
its own before it counts as usable. What fails leaves nothing; what is killed is found by the next bake or by `gpulab sweep`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import gpulab
from gpulab.aws import baking, workspace
from gpulab.bootstrap import load_environment
from gpulab.errors import Ambiguous, CommandFailed, GpulabError, RemoteError
from gpulab.launch.account import images, setup
from gpulab.launch.account.storage import baking_prefix, has_bucket, our_bucket
from gpulab.launch.context import Context
from gpulab.launch.events import (
    Event,
    ImageChecked,
    ImageMade,
    ImageMaking,
    PhaseChanged,
    Question,
    WaitingFor,
)
from gpulab.launch.running import booting, checking, instances, stop
from gpulab.launch.up import until_running
from gpulab.model import instance as tags_of
from gpulab.model.instance import Instance, LaunchRequest
from gpulab.model.setup import BakedImage
from gpulab.planning.catalogue import instance_types

BUILD = timedelta(hours=2)
TEST = timedelta(hours=1)
_SET_UP_WITHIN = timedelta(minutes=60)
_LOOK_S = 5.0
_ANEW = "The machine is ended, nothing is left of it; the same command again starts another"

Confirm = Callable[[Question], bool]


def bake(context: Context, request: LaunchRequest, *, confirm: Confirm) -> Iterator[Event]:
    """
    Make and test an image of an environment.

    Args:
        request: Where to build; its name is not used.

    Yields:
        What happens; at last `ImageMade`, or `Declined`.

    Raises:
        GpulabError: It came to nothing, and nothing is left of it.
    """
    wish = replace(
        request,
        name=f"{tags_of.BAKE_NAME}{request.environment}",
        duration=BUILD,
        is_bake=True,
        idle_minutes=int(BUILD.total_seconds() // 60),
        notebooks=None,
    )
    # One at a time: the second would end the first one's builder.
    with context.journal.launching(f"image-{request.environment}"):
        _end_old(context, wish.name)
        ours: set[str] = set()
        try:
            image = yield from _built(context, wish, confirm, ours)
            if image is None:
                return
            yield from _tested(context, image, request, confirm)
            baking.mark_usable(context.cloud, image)
        except BaseException:
            _undo(context, wish, ours)
            raise
        finally:
            _delete_locks(context, request.environment)
    images.forget(context, image.image.region)
    yield ImageMade(context.now(), replace(image, is_usable=True))


def test(
    context: Context, image: BakedImage, request: LaunchRequest, *, confirm: Confirm
) -> Iterator[Event]:
    """
    Start an instance of an image, check it, end it, and mark the image usable.

    Raises:
        GpulabError: The instance did not come up, or a check failed; the image stays as it was.
    """
    try:
        yield from _tested(context, image, request, confirm)
    finally:
        _delete_locks(context, request.environment)
    baking.mark_usable(context.cloud, image)
    images.forget(context, image.image.region)
    yield ImageMade(context.now(), replace(image, is_usable=True))


def _delete_locks(context: Context, environment: str) -> None:
    """Take what builder and test instance fetched their locks from out of the bucket; never replaces a failure."""
    if has_bucket(context):
        with suppress(GpulabError):
            place = baking_prefix(context, environment)
            workspace.delete_prefix(context.cloud, our_bucket(context), place)


def _built(
    context: Context, wish: LaunchRequest, confirm: Confirm, ours: set[str]
) -> Generator[Event, None, BakedImage | None]:
    """Make an image of a builder; the builder's launch, by which its image is known, is put into `ours` before there is one."""
    found = yield from until_running(context, wish, confirm=confirm)
    if found is None:
        return None
    instance, is_new = found
    ours.add(instance.launch_id)
    yield from _until_set_up(context, instance, is_new=is_new)
    yield from _checked(context, instance)
    _clean(context, instance)
    yield ImageMaking(context.now(), instance)
    image_id = _create(context, instance, wish)
    image = yield from images.until_available(context, instance.place.region, image_id)
    yield from stop.end(context, instance)
    return image


def _tested(
    context: Context, image: BakedImage, request: LaunchRequest, confirm: Confirm
) -> Generator[Event, None, None]:
    """Start an instance of the image in its region, check it and end it; it ends whatever comes."""
    wish = replace(
        request,
        name=f"{tags_of.BAKE_NAME}test-{request.environment}",
        duration=TEST,
        regions=(image.image.region,),
        image_id=image.image.id,
        notebooks=None,
        is_bake=True,
    )
    _end_old(context, wish.name)
    try:
        found = yield from until_running(context, wish, confirm=confirm)
        if found is None:
            raise GpulabError(
                "the image was not tested", hint="Without a test nothing boots from it"
            )
        instance, is_new = found
        yield from _until_set_up(context, instance, is_new=is_new)
        yield from _checked(context, instance)
    except BaseException:
        _end_old(context, wish.name)
        raise
    yield from stop.end(context, instance)


def _until_set_up(
    context: Context, instance: Instance, *, is_new: bool
) -> Generator[Event, None, None]:
    """
    Wait until every step of the instance's own start is over.

    Raises:
        CommandFailed: One failed, or they were not over within an hour.
    """
    told = set[str]()
    for event in booting.until_ready(context, instance, is_new=is_new):
        if isinstance(event, PhaseChanged) and event.state == "done":
            told.add(event.name)
        yield event
    begun = context.now()
    while True:
        said = None
        try:
            said = instances.status(context, instance)
        except RemoteError as error:
            yield WaitingFor(context.now(), "environment", error.message)
        for phase in said.phases if said else ():
            if phase.state == "failed":
                text = f"step {phase.name} failed on the builder: {phase.message}"
                raise CommandFailed(text, hint=_ANEW)
            if (
                phase.state == "done"
                and phase.name in ("environment", "gpu")
                and phase.name not in told
            ):
                told.add(phase.name)
                yield PhaseChanged(
                    context.now(), phase.name, phase.state, phase.seconds, phase.message
                )
        if said and all(phase.state == "done" for phase in said.phases):
            return
        if context.now() - begun > _SET_UP_WITHIN:
            text = "the environment was not installed within an hour"
            raise CommandFailed(text, hint=_ANEW)
        yield WaitingFor(context.now(), "environment", "")
        context.sleep(_LOOK_S)


def _checked(context: Context, instance: Instance) -> Generator[Event, None, None]:
    found = checking.check(context, instance)
    failed = [f"{f.name}: {f.text}" for f in found if f.state == "failed"]
    if failed:
        text = f"{instance.name} failed its check: {'; '.join(failed)}"
        raise CommandFailed(text, hint=_ANEW)
    yield ImageChecked(context.now(), instance, sum(f.state == "ok" for f in found), len(found))


def _clean(context: Context, instance: Instance) -> None:
    """
    Take keys, tokens, histories and machine ids off the builder; nobody can log in afterwards.

    Raises:
        RemoteError: Something is left; no image is made of that.
    """
    program = (Path(gpulab.__file__).parent / "agent" / "clean.py").read_bytes()
    said = instances.host(context, instance).run(
        ["sudo", "-n", "python3", "-"], given=program, timeout_s=600, check=False
    )
    try:
        left = json.loads(said.stdout or b"null")["left"]
    except (ValueError, TypeError, KeyError):
        raise CommandFailed(f"the builder was not cleaned: {said.stderr.strip()[-300:]}") from None
    if left or said.exit_code:
        raise CommandFailed(f"the builder could not be cleaned of {', '.join(left[:3])}")


def _create(context: Context, instance: Instance, wish: LaunchRequest) -> str:
    """Ask for the image; an answer that was lost is looked up by the bake's id."""
    region = instance.place.region
    try:
        name, tags = _labels(context, instance, wish)
        return baking.create(context.cloud, region, instance.id, name=name, tags=tags)
    except Ambiguous:
        for image in baking.baked(context.cloud, region):
            if image.bake_id == instance.launch_id:
                return image.image.id
        raise


def _labels(
    context: Context, instance: Instance, wish: LaunchRequest
) -> tuple[str, dict[str, str]]:
    kind = next(t for t in instance_types() if t.name == instance.place.instance_type)
    has_gpu = kind.gpus > 0
    folders = context.profile.environment_folders
    environment = load_environment(wish.environment, folders)
    lock = environment.image_key(has_gpu=has_gpu, has_bucket=has_bucket(context))
    base = setup.base_image(context, instance.place.region, has_gpu=has_gpu)
    day = context.now().strftime("%Y%m%d-%H%M%S")
    name = f"gpulab-{wish.environment}-{'gpu' if has_gpu else 'cpu'}-{lock[:8]}-{day}"
    return name, {
        tags_of.TAG_OWNER: context.owner,
        tags_of.TAG_COURSE: wish.course,
        tags_of.TAG_NAME: wish.name,
        tags_of.TAG_ENVIRONMENT: wish.environment,
        tags_of.TAG_LOCK: lock,
        tags_of.TAG_BASE: instance.image_id or base.id,
        tags_of.TAG_BASE_NAME: base.name[:255],
        tags_of.TAG_BAKE: instance.launch_id,
    }


def _end_old(context: Context, name: str) -> None:
    """End a builder or test instance that an interrupted bake has left."""
    try:
        for instance in instances.mine(context):
            if instance.name == name and instance.state.is_alive:
                for _ in stop.end(context, instance):
                    pass
                images.undo(context, instance.place.region, instance.launch_id)
    except GpulabError:
        return  # it ends itself; `gpulab sweep` finds it


def _undo(context: Context, wish: LaunchRequest, ours: Iterable[str]) -> None:
    """
    Delete what a bake that failed has made, also what it never heard of; never replaces the failure.

    Of images only its own: one that waits for its test, and a copy under way, are another's.
    """
    _end_old(context, wish.name)
    for region in wish.regions:
        for bake_id in ours:
            images.undo(context, region, bake_id)
