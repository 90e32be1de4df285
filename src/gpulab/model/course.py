"""A course, its labs and its students. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal


@dataclass(frozen=True)
class DataSet:
    """
    One file that notebooks read, fetched into the instance's cache.

    Attributes:
        url: https.
        sha256: In hex, of the whole file; anything else at that address is refused.
    """

    url: str
    sha256: str


@dataclass(frozen=True)
class Notebooks:
    """
    Where a lab's notebooks come from; cloned on the instance, never shipped.

    Attributes:
        commit: Full commit id, or the name of a branch or tag; `""` follows the default branch.
        folder: Inside the repository; `""` for all of it.
        data: Besides what the repository's own `gpulab-data.json` names.
    """

    repository: str
    commit: str = ""
    folder: str = ""
    data: tuple[DataSet, ...] = ()


@dataclass(frozen=True)
class Lab:
    """
    One lab afternoon, or a longer period such as the project weeks.

    Attributes:
        starts_at: Aware UTC; after it by the course's time zone.
        ends_at: Aware UTC, later than `starts_at`.
        grace_minutes: How long after the end an instance may live.
        gpu: `T4`, ...; `""` when a type is named.
        instance_type: Exact type; `""` when a GPU is named.
        budget_usd: For each student in this lab; `None` for no limit beside the term's.
        by_group: Whether one instance serves a whole group.
    """

    id: str
    title: str
    starts_at: datetime
    ends_at: datetime
    environment: str
    gpu: str
    instance_type: str
    grace_minutes: int
    prewarm_minutes: int
    budget_usd: Decimal | None
    by_group: bool = False
    notebooks: Notebooks | None = None

    @property
    def hours(self) -> Decimal:
        """Length in hours, without grace."""
        return Decimal(int((self.ends_at - self.starts_at).total_seconds())) / 3600


@dataclass(frozen=True)
class HandIn:
    """One deadline; `due_at` is aware UTC."""

    id: str
    title: str
    due_at: datetime
    labs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accounts:
    """
    Whose credit pays.

    Attributes:
        kind: `own` (each student's account) or `shared` (one course account).
        profile: gpulab profile of the shared account, or of the teaching assistant who assumes the students' roles.
        role_name: Role in each student's account; `own` only.
        cidr: From where ssh is let in, such as the campus's range; `""` for the address of whoever launches.
    """

    kind: str
    profile: str
    role_name: str = ""
    cidr: str = ""


@dataclass(frozen=True)
class Course:
    """
    A course as its `course.toml` says it.

    Attributes:
        timezone: IANA name.
        budget_usd: For each student over the whole term; `None` for no limit.
        max_instances: No plan may go beyond.
        max_usd: No plan's worst case may go beyond; `None` for no limit.
        labs: In order of time.
    """

    id: str
    name: str
    timezone: str
    first_day: date
    last_day: date
    regions: tuple[str, ...]
    accounts: Accounts
    budget_usd: Decimal | None
    max_instances: int
    max_usd: Decimal | None
    labs: tuple[Lab, ...]
    hand_ins: tuple[HandIn, ...] = ()


@dataclass(frozen=True)
class Student:
    """
    One row of the roster.

    Attributes:
        id: As the university writes it; personal data, never sent to AWS.
        owner: Opaque id used in tags, file names and logs.
        account: Twelve digits; `""` in a shared account.
        profile: gpulab profile to reach the student's account; `""` to assume a role.
        public_key: OpenSSH line; `""` when the student has not sent one.
        line: Line of the roster file.
    """

    id: str
    owner: str
    name: str
    email: str
    group: str
    account: str = ""
    role: str = ""
    profile: str = ""
    public_key: str = ""
    line: int = 0


@dataclass(frozen=True)
class Problem:
    """
    One thing wrong in a file that many people edit.

    Attributes:
        line: 1-based; 0 when it belongs to the whole file.
    """

    file: str
    line: int
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Roster:
    """
    The students, in the order of the file.

    Attributes:
        problems: Every bad row; rows with problems are not among the students.
    """

    students: tuple[Student, ...]
    problems: tuple[Problem, ...] = field(default=())
