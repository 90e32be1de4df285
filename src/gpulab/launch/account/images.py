"""Images with a lab environment: which one a launch boots from, which ones there are, what they cost. Uses none that was not tested."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.aws import baking
from gpulab.aws.regions import ask_each
from gpulab.bootstrap import Environment, load_environment
from gpulab.errors import AwsError, GpulabError, SetupMissing, WrongUsage
from gpulab.launch.account import setup
from gpulab.launch.account.storage import has_bucket
from gpulab.launch.context import Context
from gpulab.launch.events import Event, ImageCopied, WaitingFor
from gpulab.model import instance as tags_of
from gpulab.model.instance import LaunchRequest
from gpulab.model.setup import BakedImage, Image, ImageChoice

# Somebody else in the account may make one: `forget_none` is told of a bake at once, of a copy nobody is told.
_FOUND, _NONE = timedelta(days=1), timedelta(hours=1)
_AVAILABLE_WITHIN = timedelta(hours=2)
# From EC2's first word of an image to the end of its test, at most.
_UNDER_WAY = _AVAILABLE_WITHIN + timedelta(hours=1)
_LOOK_S = 15.0
_FAILED = "ImageFailed"  # ours: EC2 tells it as a state, not as an error
# EBS snapshots, standard tier, us-east-1. The whole disk counts, since nobody says how many of its blocks are used: the upper end.
_SNAPSHOT_USD_PER_GIB_MONTH = Decimal("0.05")
# https://docs.aws.amazon.com/ebs/latest/userguide/initalize-volume.html, price per GiB at 300 MiB/s, 2026
_INITIALIZATION_USD_PER_GIB = Decimal("0.0036")


@dataclass(frozen=True)
class Listed:
    """
    An image and what has become of what it was made from.

    Attributes:
        has_moved_on: What is newer than the image: `lock`, `base`; empty for a current one, `unknown` for an environment that is not here.
        usd_per_month: Its snapshots, at most.
    """

    baked: BakedImage
    has_moved_on: tuple[str, ...]
    usd_per_month: Decimal


def choose(context: Context, region: str, request: LaunchRequest, *, has_gpu: bool) -> ImageChoice:
    """
    Choose what a launch boots from: a tested image of the environment's lock where there is one, else the publisher's.

    Asks AWS at most once a region and hour, however many launches there are; more often only while an image is made.

    Raises:
        SetupMissing: The request names an image that the region does not have.
        WrongUsage: There is no such environment.
    """
    name = request.environment
    if request.is_bake and not request.image_id:
        return ImageChoice(region, None, f"It installs {name}, for an image", is_news=False)
    found = _wanted(context, region, request, has_gpu=has_gpu)
    if isinstance(found, str):
        why = found or f"It installs {name}: {region} has no image of it"
        return ImageChoice(region, None, why, is_news=bool(found))
    rate = context.profile.image_rate_mib_s or None
    once = _INITIALIZATION_USD_PER_GIB * found.root_gib if rate else Decimal(0)
    why = _why(found, name, rate, once)
    return ImageChoice(region, found, why, rate_mib_s=rate, once_usd=once)


def listing(
    context: Context, regions: Sequence[str] = ()
) -> tuple[tuple[Listed, ...], dict[str, str]]:
    """
    List every image of ours, newest first, and why a region could not be read.

    Raises:
        GpulabError: No region answered.
    """
    asked = regions or context.profile.regions
    for region in asked:
        forget_none(context, region)  # whoever looks wants to see what is there now
    answers = ask_each(asked, lambda region: baking.baked(context.cloud, region))
    found = [i for images in answers.or_raise().values() for i in images]
    newest = sorted(found, key=lambda i: str(i.made_at), reverse=True)
    rows = tuple(Listed(i, _moved_on(context, i), monthly(i)) for i in newest)
    return rows, {region: error.message for region, error in answers.failed.items()}


def find(context: Context, name: str) -> BakedImage:
    """
    Find one image by its id, or the newest one of an environment.

    Raises:
        WrongUsage: There is none.
    """
    rows, _ = listing(context)
    fitting = [r.baked for r in rows if name in (r.baked.image.id, r.baked.image.name)]
    fitting += [r.baked for r in rows if r.baked.environment == name and r.baked.is_usable]
    if not fitting:
        untested = next((r.baked.image.id for r in rows if r.baked.environment == name), "")
        if untested:
            hint = f"`gpulab image test {untested}` does it"
            raise WrongUsage(f"no image of {name} has been tested yet", hint=hint)
        raise WrongUsage(f"there is no image `{name}`", hint="`gpulab image ls` lists them")
    return fitting[0]


def copy(context: Context, image: BakedImage, region: str) -> Iterator[Event]:
    """
    Copy a tested image to another region, encrypted, and wait until it can be used there. One that is there already is left as it is.

    Raises:
        WrongUsage: It was not tested.
        GpulabError: AWS refuses, or it is not ready yet. What was begun goes on, and repeating it waits for the same copy; one that AWS
            could not make is removed.
    """
    if not image.is_usable:
        raise WrongUsage(f"{image.image.id} was not tested", hint="`gpulab image test` does it")
    there = baking.baked(context.cloud, region)
    for copied in there:
        if (copied.lock, copied.bake_id, copied.is_usable) == (image.lock, image.bake_id, True):
            yield ImageCopied(context.now(), copied.image)
            return
    token = f"{image.bake_id}-{region}"[:64]
    made = baking.copy(context.cloud, image, region, token=token, tags=tags(context, image))
    try:
        # Not undone when it is interrupted: AWS answers the same token with the same copy, and would name one that is gone.
        copied = yield from until_available(context, region, made)
    except AwsError as error:
        if error.code == _FAILED:
            undo(context, region, image.bake_id)
        raise
    baking.mark_usable(context.cloud, copied)
    forget(context, region)
    yield ImageCopied(context.now(), copied.image)


def outdated(rows: Iterable[Listed], *, keep: int, now: datetime) -> tuple[BakedImage, ...]:
    """
    Name the images that go when only the last `keep` tested ones of each environment and region stay; oldest last.

    One that is not tested stays for three hours: somebody may be making it.
    """
    kept: dict[tuple[str, str, bool], int] = {}
    gone = []
    for row in rows:
        key = (row.baked.environment, row.baked.image.region, is_gpu(row.baked))
        kept[key] = kept.get(key, 0) + row.baked.is_usable
        made_at = row.baked.made_at
        is_young = made_at is not None and now - made_at < _UNDER_WAY
        if kept[key] > keep if row.baked.is_usable else not is_young:
            gone.append(row.baked)
    return tuple(gone)


def delete(context: Context, image: BakedImage) -> None:
    """
    Delete an image and its snapshots.

    Raises:
        GpulabError: AWS refuses; repeating it goes on.
    """
    baking.delete(context.cloud, image)
    forget(context, image.image.region)


def until_available(
    context: Context, region: str, image_id: str
) -> Generator[Event, None, BakedImage]:
    """
    Wait until an image can be launched.

    Raises:
        AwsError: AWS could not make it, or did not within two hours.
    """
    begun = context.now()
    while True:
        found = next(
            (i for i in baking.baked(context.cloud, region) if i.image.id == image_id), None
        )
        if found is not None and found.state == "available":
            return found
        if found is not None and found.state in ("failed", "error", "invalid", "deregistered"):
            raise AwsError(f"AWS could not make image {image_id}: {found.state}", code=_FAILED)
        if context.now() - begun > _AVAILABLE_WITHIN:
            raise AwsError(
                f"image {image_id} is not ready after 2 h", hint="`gpulab image ls` shows it"
            )
        yield WaitingFor(
            context.now(), "image", f"({found.state if found else 'EC2 does not show it yet'})"
        )
        context.sleep(_LOOK_S)


def undo(context: Context, region: str, bake_id: str) -> None:
    """Delete what a bake or copy that failed has made in a region, also what it never heard of; never replaces the failure."""
    try:
        for image in baking.baked(context.cloud, region):
            if image.bake_id == bake_id and not image.is_usable:
                baking.delete(context.cloud, image)
    except GpulabError:
        return  # `gpulab sweep` finds it


def tags(context: Context, image: BakedImage) -> dict[str, str]:
    """The tags of a copy: the same as its source's, but that it is usable."""
    return {
        tags_of.TAG_OWNER: context.owner,
        tags_of.TAG_ENVIRONMENT: image.environment,
        tags_of.TAG_LOCK: image.lock,
        tags_of.TAG_BASE: image.base_id,
        tags_of.TAG_BASE_NAME: image.base_name,
        tags_of.TAG_BAKE: image.bake_id,
    }


def forget(context: Context, region: str) -> None:
    """Forget which images a region has."""
    context.cache.drop(f"{context.account}/image/{region}/baked/")


def forget_none(context: Context, region: str) -> None:
    """Forget that a region had no image that fits; one that was found is still believed."""
    for key, said in context.cache.below(f"{context.account}/image/{region}/baked/").items():
        if isinstance(said, str):
            context.cache.drop(key)


def is_gpu(image: BakedImage) -> bool:
    """Whether an image is for instances with a GPU."""
    return "-gpu-" in image.image.name


def monthly(image: BakedImage) -> Decimal:
    """What an image's snapshots cost a month, at most."""
    return _SNAPSHOT_USD_PER_GIB_MONTH * image.image.root_gib


def _wanted(context: Context, region: str, request: LaunchRequest, *, has_gpu: bool) -> Image | str:
    """Find the image a request names, or a tested one that has what the environment's lock names; or say why none of ours is."""
    if request.image_id:
        for baked in baking.baked(context.cloud, region):
            if baked.image.id == request.image_id:
                return baked.image
        raise SetupMissing(f"{region} has no image {request.image_id}")
    environment = load_environment(request.environment, context.profile.environment_folders)
    locks = _fitting(context, environment, has_gpu=has_gpu)
    key = f"{context.account}/image/{region}/baked/{locks[0]}"
    known = context.cache.get(key)
    if known is not None:
        return Image(**known) if isinstance(known, dict) else str(known)
    try:
        images = baking.baked(context.cloud, region)
    except AwsError as error:
        # Not remembered: a busy moment must not cost everybody an hour of installing.
        return f"It installs {environment.name}: the images of {region} could not be read ({error.message})"
    ready = [i for i in images if i.is_usable and i.state == "available"]
    image = next((i.image for lock in locks for i in ready if i.lock == lock), None)
    if image is not None:
        context.cache.put(key, asdict(image), lasting=_FOUND)
        return image
    ours = [i for i in images if i.environment == environment.name and is_gpu(i) is has_gpu]
    why = _why_none(ours[0], environment.name) if ours else ""
    if not any(i.lock in locks for i in ours):
        # One that is still made, copied or tested may be usable in a minute.
        context.cache.put(key, why, lasting=_NONE)
    return why


def _fitting(context: Context, environment: Environment, *, has_gpu: bool) -> tuple[str, ...]:
    """
    Name what an image may have, the best first: all that a launch of this profile installs, or the same with another JupyterLab.

    JupyterLab has its extensions only with a bucket; on the other image it is installed anew, in seconds. The hour of an installation is
    in both.
    """
    bucket = has_bucket(context)
    return tuple(environment.image_key(has_gpu=has_gpu, has_bucket=b) for b in (bucket, not bucket))


def _why_none(newest: BakedImage, environment: str) -> str:
    name = newest.image.name
    if newest.is_usable:
        return f"It installs {environment}: image {name} has an older lock; `gpulab image bake --env {environment}` makes a new one"
    return f"It installs {environment}: image {name} was not tested yet (`gpulab image test {newest.image.id}`)"


def _why(image: Image, environment: str, rate: int | None, once_usd: Decimal) -> str:
    said = f"It boots from {image.name}, which has {environment} as it is locked now"
    if rate is None:
        return f"{said}; its first reads come from S3 and are slow"
    return f"{said}; its disk is filled at {rate} MiB/s, ${once_usd:.2f} once"


def _moved_on(context: Context, image: BakedImage) -> tuple[str, ...]:
    try:
        environment = load_environment(image.environment, context.profile.environment_folders)
    except WrongUsage:
        return ("unknown",)
    has_gpu = is_gpu(image)
    keys = [environment.image_key(has_gpu=has_gpu, has_bucket=b) for b in (True, False)]
    moved = [] if image.lock in keys else ["lock"]
    with suppress(GpulabError):
        base = setup.base_image(context, image.image.region, has_gpu=has_gpu)
        moved += ["base"] if base.name != image.base_name else []
    return tuple(moved)
