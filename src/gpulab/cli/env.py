"""`gpulab env`: the lab environments, shipped ones and a course's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, listing_options
from gpulab.errors import ProblemsFound, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.group()
def command() -> None:
    """
    List, check and lock the lab environments.

    \b
    Example:
      gpulab env ls
      gpulab env lock environments/bio --base tf2
    """


@command.command("ls")
@listing_options
@click.pass_obj
def list_(context: Context, as_json: bool, as_csv: bool) -> None:
    """
    List the environments, what each downloads and occupies, and how old its lock is.

    Your own come from the folders that `environment_folders` of the profile names.

    \b
    Example:
      gpulab env ls
    """
    from gpulab.bootstrap import environment_names, load_environment
    from gpulab.view.environments import COLUMNS, environment_row, environments_text

    today, folders = context.now().date(), context.profile.environment_folders
    found, unread = [], {}
    for name in environment_names(folders):
        try:
            found.append(load_environment(name, folders))
        except WrongUsage as error:
            unread[name] = error.message
    rows = [environment_row(environment, today=today) for environment in found]
    if as_json:
        context.console.show_json({"environments": rows, "unread": unread})
        return
    if as_csv:
        context.console.show_csv(rows, COLUMNS)
    else:
        context.console.show(environments_text(found, today=today))
    for name, why in unread.items():
        context.console.say(f"note: {name} cannot be used: {why}")


@command.command()
@click.argument("name", metavar="NAME|FOLDER")
@json_option
@click.pass_obj
def show(context: Context, name: str, as_json: bool) -> None:
    """
    Show everything about one environment: every package with its version, and the hash of the lock.

    \b
    Example:
      gpulab env show tf2
    """
    from gpulab.bootstrap import load_environment
    from gpulab.view.environments import environment_json, environment_text

    today = context.now().date()
    (name,), folders = _named(context, (name,))
    environment = load_environment(name, folders)
    if as_json:
        context.console.show_json(environment_json(environment, today=today))
    else:
        context.console.show(environment_text(environment, today=today))


@command.command()
@click.argument("names", metavar="[NAME|FOLDER]...", nargs=-1)
@json_option
@click.pass_obj
def check(context: Context, names: tuple[str, ...], as_json: bool) -> None:
    """
    Look for what would fail or mislead later; exit with 5 when something is found.

    Every lock is read, every wish must be in it, and none may be older than 120 days. No network.

    \b
    Example:
      gpulab env check
      gpulab env check bio --json
      gpulab env check environments/bio
    """
    from gpulab.bootstrap import environment_names
    from gpulab.bootstrap.checking import problems
    from gpulab.view.environments import problem_text

    names, folders = _named(context, names)
    asked = names or environment_names(folders)
    today = context.now().date()
    found = [p for name in asked for p in problems(name, today=today, extra_folders=folders)]
    if as_json:
        context.console.show_json({"environments": asked, "problems": found})
    else:
        for problem in found:
            context.console.show(problem_text(problem))
    if found:
        names_of_found = ", ".join(dict.fromkeys(p.environment for p in found))
        raise ProblemsFound(f"problems in {names_of_found}: {len(found)}")
    context.console.say(f"No problem in {', '.join(asked)}")


@command.command()
@click.argument("place", metavar="NAME|FOLDER")
@click.option(
    "--base",
    metavar="NAME",
    help="Environment that a folder with only a requirements.txt stands on, such as tf2.",
)
@click.option(
    "--keep-versions", is_flag=True, help="Choose hashes again for the versions already locked."
)
@click.option("--dry-run", is_flag=True, help="Print the difference; write nothing.")
@json_option
@click.pass_obj
def lock(
    context: Context,
    place: str,
    base: str | None,
    keep_versions: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """
    Choose exact versions and hashes for an environment, and print what changed.

    Takes uv and the package index it is configured with. A folder with a requirements.txt and `--base tf2` becomes an environment: what
    tf2 locks stays as it is, and the wishes come on top.

    \b
    Example:
      gpulab env lock environments/bio --base tf2
      gpulab env lock tf2 --dry-run
    """
    from gpulab.bootstrap.locking import find_uv, renew
    from gpulab.view.environments import renewed_json, renewed_text

    folder = _folder(context, place, base=base, is_written=not dry_run)
    beside = str(Path(sys.executable).parent)
    uv = find_uv(os.pathsep.join([beside, context.environment.get("PATH", "")]))
    choosing = context.console.step(f"Choosing versions for {folder.name}")
    with _described(folder, base, is_kept=not dry_run), choosing:
        renewed = renew(
            folder,
            uv=uv,
            today=context.now().date(),
            extra_folders=(folder.parent, *context.profile.environment_folders),
            keep_versions=keep_versions,
        )
    for one in renewed:
        if (one.changes or not one.path.exists()) and not dry_run:
            one.path.write_text(one.text, "utf-8")
    if as_json:
        context.console.show_json(
            {"environment": folder.name, "is_written": not dry_run, "locks": renewed_json(renewed)}
        )
        return
    context.console.show(renewed_text(renewed))
    _advise(context, folder, dry_run=dry_run)


def _named(context: Context, words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Take folders of environments beside names, as `env lock` does; return the names, and where to look for them first."""
    here = [Path(word).expanduser().resolve() for word in words if os.sep in word or word == "."]
    folders = [folder for folder in here if (folder / "environment.toml").is_file()]
    names = tuple(
        folder.name if (folder := Path(word).expanduser().resolve()) in folders else word
        for word in words
    )
    places = dict.fromkeys(folder.parent for folder in folders)
    return names, (*places, *context.profile.environment_folders)


def _folder(context: Context, place: str, *, base: str | None, is_written: bool) -> Path:
    """Find the folder to lock, and refuse one that is no environment and does not become one."""
    from gpulab.bootstrap.environments import find_environment, wishes_files
    from gpulab.cli.options import valid_name

    folder = Path(place).expanduser().resolve()
    if not folder.is_dir():
        folder = find_environment(place, context.profile.environment_folders)
        if is_written and _is_shipped(folder):
            raise WrongUsage(
                f"{place} comes with gpulab and is locked already",
                hint="`--dry-run` shows what newer versions there are; to change it, put a folder on top of it with `--base`",
            )
    described = folder / "environment.toml"
    if described.exists():
        if base is not None:
            raise WrongUsage(f"{described} says what it stands on", hint="Leave `--base` out")
        return folder
    if base is None or not wishes_files(folder):
        raise WrongUsage(
            f"{folder} is no environment",
            hint="Put a requirements.txt there and name what it stands on: `--base tf2`",
        )
    find_environment(base, context.profile.environment_folders)
    valid_name(folder.name)
    return folder


@contextmanager
def _described(folder: Path, base: str | None, *, is_kept: bool) -> Iterator[None]:
    """Give a folder with nothing but wishes its `environment.toml`, for good only where it can be locked."""
    path = folder / "environment.toml"
    is_new = not path.exists()
    if is_new:
        path.write_text(f'title = "{folder.name}"\nbase = "{base}"\n', "utf-8")
    try:
        yield
    except BaseException:
        is_kept = False
        raise
    finally:
        if is_new and not is_kept:
            path.unlink(missing_ok=True)


def _is_shipped(folder: Path) -> bool:
    from gpulab.bootstrap.resources import shipped

    return folder.parent == shipped("ami") / "environments"


def _advise(context: Context, folder: Path, *, dry_run: bool) -> None:
    from gpulab.bootstrap import load_environment
    from gpulab.bootstrap.checking import fits_alone, problems
    from gpulab.view.environments import problem_text

    if dry_run:
        context.console.say("Nothing was written (`--dry-run`)")
        return
    folders = (folder.parent, *context.profile.environment_folders)
    for problem in problems(folder.name, today=context.now().date(), extra_folders=folders):
        context.console.say(f"note: {problem_text(problem)}")
    if not fits_alone(load_environment(folder.name, folders)):
        context.console.say(
            "note: it launches only where the work is kept in a bucket; `gpulab init` makes one"
        )
    if folder.parent not in context.profile.environment_folders:
        context.console.say(
            f'To launch with it, add `environment_folders = ["{folder.parent}"]` to the profile in {context.home.config_file}; then `gpulab up --env {folder.name}`'
        )
