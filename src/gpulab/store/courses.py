"""
A course's files, and what belongs to it but must not lie beside them: the key that makes opaque ids.

Hides where each lies: `course.toml` and `roster.csv` in the course's folder, which is shared and kept in Git; the key and what is
collected in the user's folder. Refuses to read a key that others could have read or that is too short.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from gpulab.course.plan import read_course
from gpulab.course.roster import read_roster
from gpulab.errors import StoreError, WrongUsage, disk_hint
from gpulab.fleet.seats import unreachable
from gpulab.model.course import Course, Problem, Roster
from gpulab.store.files import private_folder, write_atomically
from gpulab.store.home import Home

COURSE_FILE = "course.toml"
ROSTER_FILE = "roster.csv"
_SECRET_BYTES = 32
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Classroom:
    """
    A course as its files say it.

    Attributes:
        course: `None` when the plan cannot be trusted.
        secret: The key of its opaque ids; `b""` without a course.
        problems: Of both files, by file and line.
    """

    folder: Path
    course: Course | None
    roster: Roster
    secret: bytes
    problems: tuple[Problem, ...]


def find_course(named: str | None, *, environment: Mapping[str, str], here: Path) -> Path:
    """
    Find the folder of a course: the one named, else `GPULAB_COURSE`, else the current folder or the nearest above it.

    Raises:
        WrongUsage: There is no `course.toml`.
    """
    wanted = named or environment.get("GPULAB_COURSE")
    if wanted:
        folder = Path(wanted).expanduser()
        folder = folder.parent if folder.name == COURSE_FILE else folder
        if (folder / COURSE_FILE).is_file():
            return folder
        raise WrongUsage(f"{folder} holds no {COURSE_FILE}", hint=_NEW)
    for folder in (here, *here.parents):
        if (folder / COURSE_FILE).is_file():
            return folder
    raise WrongUsage(
        f"there is no {COURSE_FILE} here or above", hint=f"Name its folder with `--course`. {_NEW}"
    )


def course_id_of(folder: Path) -> str:
    """
    Return the id of the course in a folder, whatever else its file says; `""` when it says none.

    Raises:
        WrongUsage: The file cannot be read at all.
    """
    course, _ = read_course(_read(folder / COURSE_FILE), file=COURSE_FILE)
    return course.id if course else ""


def read_classroom(home: Home, folder: Path) -> Classroom:
    """
    Read a course, its roster and its key, which is made when there is none.

    Raises:
        WrongUsage: A file cannot be read at all.
        StoreError: The key cannot be made, or is not safe.
    """
    course, problems = read_course(_read(folder / COURSE_FILE), file=COURSE_FILE)
    if course is None:
        return Classroom(folder, None, Roster(()), b"", problems)
    secret = course_secret(home, course.id)
    raw = _read(folder / ROSTER_FILE) if (folder / ROSTER_FILE).exists() else None
    if raw is None:
        lost = Problem(ROSTER_FILE, 0, "there is no roster", _ROSTER)
        return Classroom(folder, course, Roster(()), secret, (*problems, lost))
    roster = read_roster(raw, file=ROSTER_FILE, secret=secret)
    unpaid = unreachable(course, roster.students, secret=secret, roster_file=ROSTER_FILE)
    found = sorted((*roster.problems, *unpaid), key=lambda p: p.line)
    return Classroom(folder, course, roster, secret, (*problems, *found))


def write_new_course(folder: Path, *, name: str, is_shared: bool, today: date) -> tuple[Path, ...]:
    """
    Write a course to fill in: a first lab next Monday afternoon, an empty roster, and a `.gitignore` that keeps personal data out of Git.

    Returns:
        The files, in the order they are read.

    Raises:
        WrongUsage: There is a course already; nothing was written.
        StoreError: The folder cannot be written.
    """
    if (folder / COURSE_FILE).exists():
        raise WrongUsage(f"{folder} holds a course already", hint="`gpulab course show` shows it")
    slug = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")[:40]
    monday = today + timedelta(days=7 - today.weekday())
    plan = _COURSE.format(
        id=slug or "course",
        name=re.sub(r'[\x00-\x1f\x7f"\\\\]', "", name)[:120] or folder.resolve().name,
        first=monday,
        last=monday + timedelta(weeks=13),
        accounts=_SHARED if is_shared else _OWN,
    )
    # The course last: once it is there, nothing more is written, and the roster must not lie unprotected in Git.
    files = {".gitignore": _PRIVATE, ROSTER_FILE: _HEADER, COURSE_FILE: plan}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            if not (folder / file).exists():
                # The roster will hold names and addresses of people: nobody else on this computer reads it.
                mode = 0o600 if file == ROSTER_FILE else 0o644
                write_atomically(folder / file, text.encode(), mode=mode)
    except OSError as error:
        raise StoreError(
            f"could not write {folder}: {error.strerror}", hint=disk_hint(error)
        ) from error
    return (folder / COURSE_FILE, folder / ROSTER_FILE)


def course_home(home: Home, course_id: str) -> Path:
    """
    Return (and make) the private folder of a course in the user's folder.

    Raises:
        WrongUsage: The id could not be a folder.
    """
    if not _ID.fullmatch(course_id):
        raise WrongUsage(f"`{course_id}` cannot be the id of a course")
    return private_folder(home.root / "courses" / course_id)


def remember_failed(home: Home, course_id: str, lab_id: str, names: Iterable[str]) -> None:
    """Note for whom the last command on a lab failed, by the instances' names; a full disk costs the note, nothing else."""
    with contextlib.suppress(StoreError):
        text = json.dumps(sorted(names)).encode()
        write_atomically(course_home(home, course_id) / "failed" / f"{lab_id}.json", text)


def failed_names(home: Home, course_id: str, lab_id: str) -> frozenset[str]:
    """Return for whom the last command on a lab failed; nobody where there is no note."""
    try:
        found = json.loads(
            (course_home(home, course_id) / "failed" / f"{lab_id}.json").read_bytes()
        )
    except (OSError, ValueError):
        return frozenset()
    return (
        frozenset(n for n in found if isinstance(n, str))
        if isinstance(found, list)
        else frozenset()
    )


def course_secret(home: Home, course_id: str) -> bytes:
    """
    Return the key that turns e-mail addresses into opaque ids; made at the first use, readable by its owner only.

    Whoever has it can tell who a tag belongs to, and whoever loses it gives every student another id.

    Raises:
        StoreError: It cannot be written or read, or others may read it.
    """
    file = secret_file(home, course_id)
    try:
        _make_secret(file)
    except OSError as error:
        raise StoreError(
            f"could not read {file}: {error.strerror}", hint=disk_hint(error)
        ) from error
    return read_secret(file)


def secret_file(home: Home, course_id: str) -> Path:
    """
    Say where the key of a course lies.

    Raises:
        WrongUsage: The id could not be a folder.
    """
    return course_home(home, course_id) / "secret"


def read_secret(file: Path) -> bytes:
    """
    Read the key of a course, wherever it lies.

    Raises:
        StoreError: It cannot be read, is no key, or others may read it.
    """
    try:
        return _checked_secret(file)
    except OSError as error:
        raise StoreError(
            f"could not read {file}: {error.strerror}", hint=disk_hint(error)
        ) from error


def _make_secret(file: Path) -> None:
    if file.exists():
        return
    # Written whole beside, then linked: a kill leaves no half key, and of two at once one wins.
    part = file.with_name(f"secret.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_SECRET_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(part, file)
        except FileExistsError:
            return
    finally:
        part.unlink()


def _checked_secret(file: Path) -> bytes:
    mode = file.stat().st_mode
    if os.name != "nt" and stat.S_IMODE(mode) & 0o077:
        raise StoreError(
            f"others may read {file}, which tells who each opaque id is",
            hint=f"`chmod 600 {file}` closes it",
        )
    text = file.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(rf"[0-9a-f]{{{2 * _SECRET_BYTES}}}", text):
        raise StoreError(
            f"{file} is not the key of a course",
            hint="Bring it back from a backup: without it every student gets another id",
        )
    return bytes.fromhex(text)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise WrongUsage(f"{file}: {error.strerror}") from error


_NEW = "`gpulab course new FOLDER` writes one"
_ROSTER = f"Put {ROSTER_FILE} with the columns id, name, email beside {COURSE_FILE}"
# Besides the roster, what the guide for teachers tells them to write beside it: addresses, account numbers and students' work.
_PRIVATE = f"{ROSTER_FILE}\ntemplates/\nhanded-in/\nto-grade/\n"
_HEADER = "id,name,email,group,account,role,profile,ssh_public_key\n"
_SHARED = """\
kind = "shared"         # one course account pays
profile = "default"     # the gpulab profile that reaches it
"""
_OWN = """\
kind = "own"            # each student's own account pays
profile = "default"     # the teacher's gpulab profile, which assumes the students' roles
role_name = "gpulab-course"
"""
_COURSE = """\
# A course of gpulab. `gpulab course check` finds every problem, `gpulab course schema` helps editors.

[course]
id = "{id}"
name = "{name}"
timezone = "Europe/Copenhagen"
first_day = {first}
last_day = {last}
regions = ["eu-west-1", "eu-central-1"]   # in order of preference
budget_usd = "50.00"    # for each student and term

[accounts]
{accounts}
[limits]
max_instances = 320     # no plan starts more
max_usd = "1200.00"     # no plan's worst case is higher

[defaults]
environment = "tf2"
gpu = "T4"
grace_minutes = 10      # after the lab's end, to save the work
prewarm_minutes = 30
budget_usd = "4.00"     # for each student and lab

[[labs]]
id = "week1"
title = "First lab"
date = {first}
starts = "13:00"
ends = "17:00"
"""
