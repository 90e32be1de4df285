"""
Accounts in which this computer has launched for a course and which nobody in the roster has any more. Makes no call.

A student who leaves the roster takes neither the instance nor its cost with them: the ledgers and journals here still know both, and
the way into the account is written down before the first launch in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gpulab.errors import StoreError, disk_hint
from gpulab.fleet.seats import external_id_of
from gpulab.fleets.accounts import Accounts
from gpulab.model.course import Course
from gpulab.model.fact import FactKind
from gpulab.model.fleet import AccountRef
from gpulab.model.instance import TAG_COURSE, TAG_LAB, TAG_OWNER
from gpulab.store.files import write_atomically
from gpulab.store.home import Folder
from gpulab.store.journal import Intent, Journal
from gpulab.store.ledger import Ledger

HINT = (
    "Nobody in the roster has this account any more. Put its student back into roster.csv and try again;"
    " if the account itself is gone, move its folder below ~/.gpulab/profiles away"
)

_KEYS = {"course": TAG_COURSE, "lab": TAG_LAB}


def former(
    accounts: Accounts, refs: Iterable[AccountRef], *, secret: bytes, lab: str = ""
) -> tuple[AccountRef, ...]:
    """
    Return the accounts beside `refs` in which the course has launched, with the way that led into each.

    Args:
        refs: Of the roster.
        secret: The course's key, which the roles' external ids were made with.
        lab: Only where this lab was launched; `""` for any.
    """
    course, known = accounts.course, {ref.key for ref in refs}
    tags = {"course": course.id, **({"lab": lab} if lab else {})}
    root = accounts.outside.home.root / "profiles"
    own = root / course.accounts.profile
    by_role = [
        _way(folder, course) or _by_convention(course, folder.name, owners[-1], secret)
        for folder in sorted(own.glob("accounts/*"))
        if folder.name not in known and (owners := tuple(_owners(folder, tags)))
    ]
    by_profile = [
        AccountRef(f"profile-{name}", name)
        for name in _same_world(accounts)
        if f"profile-{name}" not in known and tuple(_owners(root / name, tags))
    ]
    return (*by_role, *by_profile)


def remember_way(accounts: Accounts, ref: AccountRef) -> None:
    """
    Write down how an account is reached through a role: the roster may name another role than the course, and forget its student.

    Raises:
        StoreError: It cannot be written.
    """
    if ref.role_arn:
        file = _way_file(accounts.account(ref).context.folder.root, accounts.course)
        said = json.dumps({"role": ref.role_arn, "external_id": ref.external_id}).encode()
        try:
            if not file.exists() or file.read_bytes() != said:
                write_atomically(file, said)
        except OSError as error:
            raise StoreError(f"cannot write {file}: {error}", hint=disk_hint(error)) from error


def _way_file(folder: Path, course: Course) -> Path:
    return folder / f"way-{course.id}.json"


def _way(folder: Path, course: Course) -> AccountRef | None:
    """Read what was written down; `None` where nothing was, or where it is damaged."""
    try:
        said = json.loads(_way_file(folder, course).read_bytes())
        role, external_id = str(said["role"]), str(said["external_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_its = role.startswith("arn:") and role.split(":")[4:5] == [folder.name]
    return AccountRef(folder.name, course.accounts.profile, role, external_id) if is_its else None


def _by_convention(course: Course, number: str, owner: str, secret: bytes) -> AccountRef:
    """Guess the way: the role that the course names, with the id of whom the course launched for last."""
    role = course.accounts.role_name or "gpulab-course"
    arn = f"arn:aws:iam::{number}:role/{role}"
    return AccountRef(number, course.accounts.profile, arn, external_id_of(owner, secret=secret))


def _same_world(accounts: Accounts) -> list[str]:
    """Name the profiles that lead to the same AWS as the course's: a rehearsal's never stand beside real ones."""
    config, name = accounts.outside.config, accounts.course.accounts.profile
    world = config.profile(name).aws_config_file
    return [
        n for n in {**config.profiles, name: None} if config.profile(n).aws_config_file == world
    ]


def _owners(root: Path, wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield whom the course launched for in one account, in the order of the ledger, then of launches nobody wrote the end of."""
    folder = Folder(root)
    for fact in Ledger(folder.ledger).facts(FactKind.LAUNCHED):
        if wanted.items() <= fact.details.items():
            yield fact.details.get("owner", "")
    if folder.journal.exists():
        for intent in Journal(folder.journal).read().open_intents:
            tags = _tags(intent)
            if all(tags.get(_KEYS[key]) == value for key, value in wanted.items()):
                yield tags.get(TAG_OWNER, "")


def _tags(intent: Intent) -> dict[str, str]:
    specifications = intent.parameters.get("TagSpecifications", ())
    return {tag["Key"]: tag["Value"] for one in specifications for tag in one["Tags"]}
