"""`gpulab course`: a course as files, checked before the term begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli import classroom, course_close
from gpulab.cli.classroom import course_option
from gpulab.cli.fleet_options import open_accounts
from gpulab.cli.options import json_option
from gpulab.errors import ProblemsFound, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.store.courses import Classroom


class _InOrder(click.Group):
    """A group that lists its commands in the order they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return list(self.commands)


@click.group(name="course", cls=_InOrder)
def command() -> None:
    """
    Write, check and show a course: its labs, accounts and students.

    \b
    gpulab course new my-course
    gpulab course check --course my-course
    gpulab fleet plan week1 --course my-course
    """


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", metavar="TEXT", help="The course's name.  [default: the folder's]")
@click.option(
    "--shared", is_flag=True, help="One course account pays, instead of each student's own."
)
@json_option
@click.pass_obj
def new(context: Context, folder: Path, name: str | None, shared: bool, as_json: bool) -> None:
    """
    Write a course.toml and a roster.csv to fill in.

    Files that are there are never changed. The folder can be kept in Git: a .gitignore keeps personal data out, which is the roster,
    templates/, and students' work in handed-in/ and to-grade/.

    \b
    Example:
      gpulab course new my-course
      gpulab course new my-course --name "Deep Learning" --shared
    """
    from gpulab.store.courses import write_new_course

    written = write_new_course(
        folder, name=name or "", is_shared=shared, today=context.now().date()
    )
    if as_json:
        context.console.show_json({"files": written})
        return
    for file in written:
        context.console.show(str(file))
    context.console.say(f"Fill them in, then `gpulab course check --course {folder}`")


@command.command(short_help="Find everything that is wrong with the course's files and accounts.")
@click.option(
    "--accounts",
    "with_accounts",
    is_flag=True,
    help="Look at every account, too: the way in, the external id, plan, quotas, credit, the account's own budget.",
)
@course_option
@json_option
@click.pass_obj
def check(context: Context, with_accounts: bool, course_folder: str | None, as_json: bool) -> None:
    """
    Find everything that is wrong with the course's files, with file and line; with `--accounts`, with its accounts.

    Exits with 2 when there is a problem in a file, with 5 when an account is not ready for a lab. Nothing is changed.

    \b
    Example:
      gpulab course check
      gpulab course check --course courses/02456-2017 --json
      gpulab course check --accounts
    """
    from gpulab.view.course import problem_lines
    from gpulab.view.words import counted

    found = classroom.read(context, course_folder)
    problems = found.problems
    if with_accounts and not problems:
        _check_accounts(context, found, as_json=as_json)
        return
    if as_json:
        context.console.show_json({"problems": problems, "students": len(found.roster.students)})
    elif problems:
        context.console.show("\n".join(problem_lines(problems)))
    if problems:
        raise WrongUsage(classroom.summary(problems), hint="Correct them and check again")
    assert found.course is not None
    if not as_json:
        context.console.show(
            f"{found.course.id}: {counted(len(found.course.labs), 'lab')}, {counted(len(found.roster.students), 'student')}, nothing wrong"
        )


def _check_accounts(context: Context, found: Classroom, *, as_json: bool) -> None:
    from gpulab.fleet.needs import needs_of
    from gpulab.fleets import checking
    from gpulab.view.accounts import account_json, accounts_text, totals_text

    course = found.course
    assert course is not None
    needs = needs_of(course, found.roster.students, secret=found.secret)
    said: dict[str, checking.AccountCheck] = {}
    with context.console.step(f"look at {len(needs):,} accounts") as step:
        for one in checking.check(open_accounts(context, course), needs):
            said[one.need.account.key] = one
            step.detail(f"{len(said):,} of {len(needs):,}")
    ordered = [said[need.account.key] for need in needs]
    failed = [one for one in ordered if not one.is_sound]
    if as_json:
        context.console.show_json({"accounts": [account_json(one) for one in ordered]})
    else:
        context.console.show(accounts_text(ordered))
        context.console.say(totals_text(ordered))
    if failed:
        raise ProblemsFound(
            f"{len(failed):,} of {len(ordered):,} accounts are not ready",
            hint="Each cause is named above, with what to do; check again afterwards",
        )


@command.command()
@course_option
@json_option
@click.pass_obj
def show(context: Context, course_folder: str | None, as_json: bool) -> None:
    """
    Show the course: labs and hand-ins in local time, people, accounts, limits.

    \b
    Example:
      gpulab course show
      gpulab course show --course courses/02456-2017 --json
    """
    from gpulab.view.course import course_json, course_text

    found, course = classroom.read_sound(context, course_folder)
    if as_json:
        context.console.show_json(course_json(course, found.roster.students))
    else:
        context.console.show(course_text(course, found.roster.students))


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--trust",
    metavar="ARN",
    help="User or role that may launch for the course.  [default: whose credentials the course's profile has]",
)
@course_option
@json_option
@click.pass_obj
def enrol(
    context: Context, folder: Path, trust: str | None, course_folder: str | None, as_json: bool
) -> None:
    """
    Write a template for each student that lets the course launch in their own account.

    It is for CloudFormation (Create stack, Upload a template), makes three roles with least rights and a bucket for the work, and is taken
    back by deleting the stack, all but the bucket. The role you use asks for an external id of that student only. Where the course has a budget, the account forbids the course's launches
    when it is spent, and tells the student by e-mail at 50, 80 and 100 %.

    \b
    Example:
      gpulab course enrol templates
      gpulab course enrol templates --trust arn:aws:iam::123456789012:role/teacher
    """
    from gpulab.aws.denying import deny_document
    from gpulab.aws.end_schedule import course_role_name
    from gpulab.fleet.enrolment import Guards, template, trusted_arn
    from gpulab.fleet.needs import needs_of
    from gpulab.fleet.seats import account_of
    from gpulab.store.files import write_atomically

    found, course = classroom.read_sound(context, course_folder)
    trusted = trusted_arn(trust or _own_arn(context, course.accounts.profile))
    needs = needs_of(course, found.roster.students, secret=found.secret)
    owners = {need.account.key: need.owners for need in needs}
    written = []
    for student in found.roster.students:
        ref = account_of(course, student, secret=found.secret)
        if isinstance(ref, str) or not ref.role_arn:
            continue
        text = template(
            course,
            trusted=trusted,
            external_id=ref.external_id,
            end_role=course_role_name(course.id),
            owners=owners[ref.key],
            account=ref.number,
            guards=Guards(deny_document(), student.email),
        )
        file = folder / f"{student.id}.template.json"
        write_atomically(file, text.encode())
        written.append(file)
    if as_json:
        context.console.show_json({"files": written, "trusts": trusted})
        return
    context.console.say(f"{len(written):,} templates in {folder}; each trusts {trusted}")


def _own_arn(context: Context, profile: str) -> str:
    from dataclasses import replace

    from gpulab.aws.accounts import identity

    return identity(replace(context, profile_name=profile).launch.cloud).arn


@command.command()
@click.pass_obj
def schema(context: Context) -> None:
    """
    Print the JSON schema of course.toml, for editors that complete and check.

    \b
    Example:
      gpulab course schema > course.schema.json
    """
    from gpulab.course.schema import json_schema

    context.console.show(json_schema().rstrip())


command.add_command(course_close.close)
