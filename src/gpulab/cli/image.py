"""`gpulab image`: images with a lab environment in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, listing_options, yes_option
from gpulab.errors import GpulabError, SomeFailed, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.launch.events import Event, ImageMade, Question
    from gpulab.model.instance import LaunchRequest
    from gpulab.model.setup import BakedImage


@click.group()
def command() -> None:
    """
    Bake, test, copy and delete images with a lab environment in them.

    An instance needs no image: it installs its environment in some minutes. An image saves the download, costs its snapshot every month,
    and pays when many start at once.

    \b
    Example:
      gpulab image bake --env tf2
      gpulab image ls
    """


@command.command()
@click.option(
    "--env", "environment", metavar="NAME", help="Lab environment.  [default: the profile's, tf2]"
)
@click.option(
    "--gpu", metavar="NAME", help="GPU of the builder: T4, A10G, ...  [default: the profile's, T4]"
)
@click.option("--type", "instance_type", metavar="TYPE", help="Exact instance type of the builder.")
@click.option(
    "--region", metavar="REGION", help="Where to make it.  [default: the profile's first]"
)
@click.option(
    "--disk",
    "disk_gib",
    type=click.IntRange(8, 16384),
    metavar="GiB",
    help="Root volume, and so the image's size, GiB.  [default: the profile's, 60]",
)
@yes_option
@json_option
@click.pass_obj
def bake(
    context: Context,
    environment: str | None,
    gpu: str | None,
    instance_type: str | None,
    region: str | None,
    disk_gib: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Make an image of an environment, and test it.

    A spot builder is set up like any instance, checked, cleaned of keys, tokens, histories and machine ids, imaged and ended; a second
    instance boots from the image, is checked and ended; only then is the image used. What fails leaves nothing behind.

    \b
    Example:
      gpulab image bake --env tf2 --region eu-north-1
    """
    from gpulab.launch import bake as baking

    wish = _wish(context, environment, gpu, instance_type, region, disk_gib)
    made = _follow(context, baking.bake(context.launch, wish, confirm=_asker(context, yes=yes)))
    _show_made(context, made, as_json=as_json)


@command.command("ls")
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Look here; repeatable.  [default: the profile's regions]",
)
@listing_options
@click.pass_obj
def list_(context: Context, regions: tuple[str, ...], as_json: bool, as_csv: bool) -> None:
    """
    List images with age, size, cost a month, and whether lock or base have moved on.

    \b
    Example:
      gpulab image ls
    """
    from gpulab.launch.account import images
    from gpulab.view.images import COLUMNS, image_row, images_text

    rows, unread = images.listing(context.launch, regions)
    if as_json:
        context.console.show_json({"images": [image_row(row) for row in rows], "unread": unread})
    elif as_csv:
        context.console.show_csv([image_row(row) for row in rows], COLUMNS)
    else:
        context.console.show(images_text(rows, now=context.now()))
        for region, why in unread.items():
            context.console.say(f"note: {region} was not read: {why}")


@command.command()
@click.argument("image", metavar="IMAGE")
@click.option("--gpu", metavar="NAME", help="GPU to test on.  [default: the profile's, T4]")
@click.option("--type", "instance_type", metavar="TYPE", help="Exact instance type to test on.")
@yes_option
@json_option
@click.pass_obj
def test(
    context: Context,
    image: str,
    gpu: str | None,
    instance_type: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Start an instance of IMAGE, check it, end it, and mark the image usable.

    IMAGE is an id, a name, or an environment for its newest one.

    \b
    Example:
      gpulab image test ami-0123456789abcdef0
    """
    from gpulab.launch import bake as baking
    from gpulab.launch.account import images

    found = images.find(context.launch, image)
    wish = _wish(context, found.environment, gpu, instance_type, found.image.region, None)
    steps = baking.test(context.launch, found, wish, confirm=_asker(context, yes=yes))
    _show_made(context, _follow(context, steps), as_json=as_json)


@command.command()
@click.argument("image", metavar="IMAGE")
@click.argument("regions", metavar="[REGION]...", nargs=-1)
@json_option
@click.pass_obj
def copy(context: Context, image: str, regions: tuple[str, ...], as_json: bool) -> None:
    """
    Copy IMAGE to other regions, encrypted; without REGION to the profile's others.

    Each copy costs its own snapshot every month. One region that fails does not stop the others.

    \b
    Example:
      gpulab image copy tf2
      gpulab image copy tf2 eu-west-1 us-east-1
    """
    from gpulab.launch.account import images

    found = images.find(context.launch, image)
    wanted = regions or tuple(r for r in context.profile.regions if r != found.image.region)
    if not wanted:
        raise WrongUsage(
            f"the profile has no other region than {found.image.region}",
            hint=f"Name one: `gpulab image copy {image} eu-west-1`",
        )
    outcomes = []
    for region in wanted:
        try:
            _follow(context, images.copy(context.launch, found, region))
            outcomes.append({"region": region, "error": ""})
        except GpulabError as error:
            context.console.say(f"{region}: {error.message}")
            outcomes.append({"region": region, "error": error.message})
        else:
            _note_elsewhere(context, region)
    if as_json:
        context.console.show_json({"image": found.image.id, "copies": outcomes})
    failed = [o["region"] for o in outcomes if o["error"]]
    if failed:
        raise SomeFailed(f"not copied to {', '.join(failed)}", hint="Repeat the command for these")


@command.command()
@click.option(
    "--keep",
    default=2,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="How many tested images of each environment and region stay.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Look here; repeatable.  [default: the profile's regions]",
)
@click.option("--dry-run", is_flag=True, help="Name what would be deleted; delete nothing.")
@yes_option
@json_option
@click.pass_obj
def prune(
    context: Context,
    keep: int,
    regions: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Delete old images and their snapshots, and those that nobody has tested within three hours.

    \b
    Example:
      gpulab image prune --keep 1
    """
    from gpulab.launch.account import images
    from gpulab.view.images import image_row, images_text

    rows, _ = images.listing(context.launch, regions)
    ids = {image.image.id for image in images.outdated(rows, keep=keep, now=context.now())}
    gone = [row for row in rows if row.baked.image.id in ids]
    if not as_json:
        context.console.show(images_text(gone, now=context.now()) if gone else "Nothing to delete")
    may = gone and not dry_run and (yes or context.console.confirm(f"Delete these {len(gone)}?"))
    failed = []
    for row in gone if may else ():
        try:
            images.delete(context.launch, row.baked)
        except GpulabError as error:
            failed.append(row.baked.image.id)
            context.console.say(f"{row.baked.image.id} is not deleted: {error.message}")
        else:
            context.console.say(f"{row.baked.image.id} in {row.baked.image.region} is deleted")
    if as_json:
        context.console.show_json(
            {"is_deleted": bool(may), "images": [image_row(row) for row in gone]}
        )
    if failed:
        raise SomeFailed(f"not deleted: {', '.join(failed)}", hint="Repeat the command")


@command.command()
@click.option(
    "--env", "environment", metavar="NAME", help="Lab environment.  [default: the profile's, tf2]"
)
@click.option(
    "--region", metavar="REGION", help="Where Packer builds.  [default: the profile's first]"
)
@click.option(
    "--type",
    "instance_type",
    default="g4dn.xlarge",
    show_default=True,
    metavar="TYPE",
    help="Instance type of the builder.",
)
@click.pass_obj
def packer(
    context: Context, environment: str | None, region: str | None, instance_type: str
) -> None:
    """
    Print an HCL template that makes the same image with Packer.

    For those who run Packer already; good for two hours. Its images carry the tags that `gpulab up` looks for; `gpulab image test` marks them usable.

    \b
    Example:
      gpulab image packer --env tf2 --region eu-north-1
    """
    from gpulab.bootstrap import load_environment
    from gpulab.bootstrap.packer import template

    found = load_environment(
        environment or context.profile.environment, context.profile.environment_folders
    )
    where = region or context.profile.regions[0]
    text = template(
        found,
        region=where,
        instance_type=instance_type,
        owner=context.launch.owner,
        now=context.now(),
        course=context.profile.course,
    )
    context.console.show(text.rstrip("\n"))


def _note_elsewhere(context: Context, region: str) -> None:
    """Say where a copy is listed that costs every month and is in no region that is looked at."""
    if region not in context.profile.regions:
        context.console.say(
            f"note: the profile does not name {region}; `gpulab image ls --region {region}` lists what costs there, and `image prune` needs `--region` too"
        )


def _wish(
    context: Context,
    environment: str | None,
    gpu: str | None,
    instance_type: str | None,
    region: str | None,
    disk_gib: int | None,
) -> LaunchRequest:
    from gpulab.model.instance import LaunchRequest
    from gpulab.model.market import Market

    if gpu and instance_type:
        raise WrongUsage("`--gpu` and `--type` exclude each other", hint="Leave one of them out")
    profile = context.profile
    return LaunchRequest(
        name="bake",
        gpu=None if instance_type else gpu or profile.gpu,
        instance_type=instance_type,
        duration=timedelta(hours=2),
        max_usd_per_hour=profile.max_usd_per_hour,
        regions=(region or profile.regions[0],),
        markets=(Market.SPOT,),
        environment=environment or profile.environment,
        disk_gib=disk_gib or profile.disk_gib,
        course=profile.course,
    )


def _asker(context: Context, *, yes: bool) -> Callable[[Question], bool]:
    from gpulab.launch.events import BuyOnDemand
    from gpulab.view.events import question_text

    def confirm(question: Question) -> bool:
        if yes and not isinstance(question, BuyOnDemand):
            return True
        return context.console.confirm(question_text(question, now=context.now()))

    return confirm


def _follow(context: Context, steps: Iterator[Event]) -> ImageMade | None:
    """Tell every step; return the image that came of them."""
    from gpulab.launch.events import ImageMade, Planned
    from gpulab.view.events import Teller
    from gpulab.view.plan import plan_text

    teller, made = Teller(context.console), None
    try:
        for event in steps:
            if isinstance(event, Planned):
                context.console.say(plan_text(event.plan, now=context.now()))
            else:
                teller.tell(event)
            made = event if isinstance(event, ImageMade) else made
    finally:
        teller.close()
    return made


def _show_made(context: Context, made: ImageMade | None, *, as_json: bool) -> None:
    image: BakedImage | None = made.image if made is not None else None
    if as_json:
        context.console.show_json({"image": image})
    elif image is not None:
        context.console.show(image.image.id)
