"""Whose an instance is, and since when, by another word than its own: the ledger's, and what teachers wrote down where no instance can write."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import datetime

from gpulab.aws import told_costs as told
from gpulab.aws.told_costs import ToldCosts
from gpulab.errors import GpulabError
from gpulab.launch.account.storage import our_bucket
from gpulab.launch.context import Context
from gpulab.model.fact import FactKind, Source


@dataclass(frozen=True)
class Served:
    """
    Whom an instance serves.

    Attributes:
        name: The instance's; empty if unknown.
        owners: Of whom it may be one's.
        since: Nothing of it is older; `None` where nobody has seen its first launch.
    """

    name: str
    owners: Container[str]
    since: datetime | None = None


class Whose:
    """
    What is known of instances that tell of themselves; the bucket is asked at most once for each course, and only if something is unknown.

    Args:
        owners: Of whom any unknown instance of a course is, where its account is a student's own; empty elsewhere.
    """

    def __init__(self, context: Context, *, owners: Container[str] = ()) -> None:
        self._context = context
        self._owners = owners
        self._seats: dict[str, Mapping[str, Served]] = {}
        self._known: dict[str, Served] = {}
        self._owner_of_name: dict[str, str] = {}
        self.problems: list[str] = []
        for fact in context.ledger.facts(FactKind.LAUNCHED):
            name, owner = fact.details.get("name", ""), fact.details.get("owner", "")
            before = self._known.get(fact.subject)
            # EC2 overwrites the launch time at a restart; this computer was there at the first.
            if fact.source is Source.LAPTOP:
                self._known[fact.subject] = Served(name, (owner,), fact.at)
            elif before is None or (before.since is None and fact.source is Source.AWS):
                self._known[fact.subject] = Served(name, (owner,))
            if fact.source is not Source.AGENT:
                self._owner_of_name[name] = owner

    def of(self, one: ToldCosts) -> Served | None:
        """Say whom an instance serves; `None` if nobody but itself says so."""
        known = self._known.get(one.instance_id)
        if not one.is_of_course or (known is not None and known.since is not None):
            return known
        found = self._seated(one.folder).get(one.instance_id, known)
        return found or (Served("", self._owners) if self._owners else None)

    def owner_of(self, name: str) -> str:
        """Return who owned the instances of a name; empty if unknown."""
        return self._owner_of_name.get(name, "")

    def _seated(self, folder: str) -> Mapping[str, Served]:
        if folder not in self._seats:
            self._seats[folder] = self._read(folder)
        return self._seats[folder]

    def _read(self, folder: str) -> Mapping[str, Served]:
        found: dict[str, Served] = {}
        if not self._context.profile.keep_bucket:
            return found
        try:
            rows = told.seats(self._context.cloud, our_bucket(self._context), folder)
        except GpulabError as error:
            self.problems.append(f"whose instances were in {folder}: {error.message}")
            return found
        for row in sorted(rows, key=lambda row: row.at, reverse=True):
            # A seat's name is `LAB-OWNER`, and no owner has a dash.
            found[row.instance_id] = Served(row.name, (row.name.rpartition("-")[2],), row.at)
        return found
