"""
course.toml: the course, its labs, its accounts and limits.

Hides TOML and local time; refuses nothing at once: every problem is collected with its line, unknown keys with the nearest known one.
"""

from __future__ import annotations

import re
import zoneinfo
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any

from gpulab.course.schema import TABLES, Key
from gpulab.model.course import Accounts, Course, HandIn, Lab, Notebooks, Problem
from gpulab.model.nearest import did_you_mean
from gpulab.model.toml import line_in, read_toml


def read_course(raw: bytes, *, file: str) -> tuple[Course | None, tuple[Problem, ...]]:
    """
    Read a course plan.

    Returns:
        The course, or `None` when it cannot be trusted, and every problem found, by line.
    """
    try:
        document = read_toml(raw)
    except UnicodeDecodeError as error:
        return None, (Problem(file, raw[: error.start].count(b"\n") + 1, "not UTF-8"),)
    except ValueError as error:
        return None, (Problem(file, line_in(error), f"not TOML: {error}"),)
    reader = _Reader(
        file=file, lines=[line[:_LONGEST_LINE] for line in raw.decode("utf-8-sig").split("\n")]
    )
    course = reader.course(document)
    problems = tuple(sorted(reader.problems, key=lambda p: p.line))
    return (None if problems else course), problems


# Nobody mends more at once, and finding the line of each takes a reading of the whole file.
_MOST_PROBLEMS = 50
# Keys stand at the beginning of a line; what follows is not searched.
_LONGEST_LINE = 500


@dataclass
class _Reader:
    """One reading of one file; collects problems."""

    file: str
    lines: Sequence[str]
    problems: list[Problem] = field(default_factory=list)

    def course(self, document: Mapping[str, Any]) -> Course | None:
        self._unknown("", document, TABLES[""])
        head = self._table(document, "course")
        accounts = self._table(document, "accounts")
        limits = self._table(document, "limits")
        defaults = self._table(document, "defaults")
        zone = self._zone(head.get("timezone", "UTC"))
        labs = self._labs(document, defaults, zone)
        hand_ins = self._hand_ins(document, zone, {lab.id for lab in labs})
        self._dates(head)
        if self.problems:
            return None
        return Course(
            id=head["id"],
            name=head["name"],
            timezone=head.get("timezone", "UTC"),
            first_day=head["first_day"],
            last_day=head["last_day"],
            regions=tuple(head.get("regions", ("us-east-1",))),
            accounts=Accounts(
                accounts.get("kind", "own"),
                accounts.get("profile", "default"),
                accounts.get("role_name", ""),
                accounts.get("cidr", ""),
            ),
            budget_usd=_decimal(head.get("budget_usd")),
            max_instances=limits.get("max_instances", 400),
            max_usd=_decimal(limits.get("max_usd")),
            labs=tuple(sorted(labs, key=lambda lab: lab.starts_at)),
            hand_ins=tuple(sorted(hand_ins, key=lambda h: h.due_at)),
        )

    def _table(self, document: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return the good values of one table; the bad ones become problems."""
        raw = document.get(name, {})
        if not isinstance(raw, dict):
            self._problem(f"`{name}` must be a table, [{name}]", name)
            return {}
        return self._values(raw, name, TABLES[name])

    def _values(
        self, raw: Mapping[str, Any], where: str, keys: Mapping[str, Key]
    ) -> dict[str, Any]:
        self._unknown(where, raw, keys)
        for name, key in keys.items():
            if key.is_required and name not in raw:
                self._problem(f"`{where}` has no `{name}`", where, hint=key.text)
        good = {}
        for name, value in raw.items():
            if name in keys:
                wrong = keys[name].refuses(value)
                if wrong:
                    self._problem(f"`{where}.{name}` {wrong}", name, value=value)
                else:
                    good[name] = value
        return good

    def _unknown(self, where: str, raw: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
        unknown = [name for name in raw if name not in keys]
        for name in unknown[:_MOST_PROBLEMS]:
            hint = did_you_mean(name, keys, otherwise="Known: " + ", ".join(keys))
            place = f"{where + '.' if where else ''}{_short(name)}"
            self._problem(f"unknown key `{place}`", name, hint=hint)
        if len(unknown) > _MOST_PROBLEMS:
            self._problem(f"{len(unknown) - _MOST_PROBLEMS} more unknown keys", where)

    def _zone(self, name: str) -> zoneinfo.ZoneInfo:
        try:
            return zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            self._problem(f"`{name}` is no time zone", "timezone", hint="As in Europe/Copenhagen")
            return zoneinfo.ZoneInfo("UTC")

    def _labs(
        self, document: Mapping[str, Any], defaults: Mapping[str, Any], zone: zoneinfo.ZoneInfo
    ) -> list[Lab]:
        raw = self._list(document, "labs")
        if not raw:
            self._problem(
                "there is no lab",
                "labs",
                hint="Each lab is a table [[labs]] with id, date, starts, ends",
            )
        labs = [lab for n, table in enumerate(raw) if (lab := self._lab(table, n, defaults, zone))]
        self._repeated([lab.id for lab in labs], "labs")
        return labs

    def _lab(
        self,
        raw: Mapping[str, Any],
        number: int,
        defaults: Mapping[str, Any],
        zone: zoneinfo.ZoneInfo,
    ) -> Lab | None:
        before = len(self.problems)
        where = f"labs[{_name_of(raw, number)}]"
        values = {**defaults, **self._values(raw, where, TABLES["labs"])}
        if len(self.problems) > before:
            return None
        starts = self._moment(values["date"], values["starts"], zone)
        ends = self._moment(values.get("until", values["date"]), values["ends"], zone)
        if ends <= starts:
            self._problem(
                f"`{where}` ends before it starts",
                str(raw["id"]),
                hint="Give `until` for a lab over several days",
            )
            return None
        return Lab(
            id=values["id"],
            title=values.get("title", values["id"]),
            starts_at=starts,
            ends_at=ends,
            environment=values.get("environment", "tf2"),
            gpu=values.get("gpu", "" if values.get("instance_type") else "T4"),
            instance_type=values.get("instance_type", ""),
            grace_minutes=values.get("grace_minutes", 10),
            prewarm_minutes=values.get("prewarm_minutes", 30),
            budget_usd=_decimal(values.get("budget_usd")),
            by_group=values.get("by_group", False),
            notebooks=self._notebooks(values, where),
        )

    def _notebooks(self, values: Mapping[str, Any], where: str) -> Notebooks | None:
        raw = values.get("notebooks")
        if raw is None:
            return None
        good = self._values(raw, f"{where}.notebooks", TABLES["notebooks"])
        return Notebooks(good.get("repository", ""), good.get("commit", ""), good.get("folder", ""))

    def _hand_ins(
        self, document: Mapping[str, Any], zone: zoneinfo.ZoneInfo, labs: set[str]
    ) -> list[HandIn]:
        found = []
        for n, raw in enumerate(self._list(document, "hand_ins")):
            before = len(self.problems)
            values = self._values(raw, f"hand_ins[{_name_of(raw, n)}]", TABLES["hand_ins"])
            for lab in values.get("labs", []):
                if lab not in labs:
                    self._problem(
                        f"hand-in `{values.get('id')}` names the lab `{_short(lab)}`, which there is not",
                        str(lab),
                    )
            if len(self.problems) == before:
                due = self._moment(values["due"], values.get("time", "23:59"), zone)
                found.append(
                    HandIn(
                        values["id"],
                        values.get("title", values["id"]),
                        due,
                        tuple(values.get("labs", ())),
                    )
                )
        self._repeated([hand_in.id for hand_in in found], "hand_ins")
        return found

    def _list(self, document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
        raw = document.get(name, [])
        if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
            self._problem(f"`{name}` must be tables, [[{name}]]", name)
            return []
        return raw

    def _repeated(self, ids: Sequence[str], where: str) -> None:
        for repeated in sorted(i for i, times in Counter(ids).items() if times > 1):
            self._problem(f"two of `{where}` have the id `{repeated}`", repeated)

    def _dates(self, head: Mapping[str, Any]) -> None:
        if "first_day" in head and "last_day" in head and head["last_day"] < head["first_day"]:
            self._problem("`course.last_day` is before `course.first_day`", "last_day")

    @staticmethod
    def _moment(day: date, clock: str | time, zone: zoneinfo.ZoneInfo) -> datetime:
        at = time.fromisoformat(clock) if isinstance(clock, str) else clock
        return datetime.combine(day, at, tzinfo=zone).astimezone(UTC)

    def _problem(self, text: str, key: str, *, value: Any = None, hint: str = "") -> None:
        line = self._line_of(key, value) if len(self.problems) < _MOST_PROBLEMS else 0
        self.problems.append(Problem(self.file, line, text, hint))

    def _line_of(self, key: str, value: Any) -> int:
        """Find the line of a key; TOML's parser keeps none, so the text is searched, best match first."""
        word = re.escape(_short(key.split(".")[-1]))
        # A number is at most as long as what the reader shows of it.
        is_shown = isinstance(value, str | bool) or (isinstance(value, int) and abs(value) < 10**9)
        shown = re.escape(_short(str(value))) if is_shown else ""
        patterns = [rf"\b{word}\b\"?\s*=.*{shown}"] if value is not None else []
        patterns += [rf"^\s*\"?{word}\"?\s*=", rf"^\s*\[.*\b{word}\b", rf"\b{word}\b"]
        for pattern in patterns:
            for number, line in enumerate(self.lines, start=1):
                if re.search(pattern, line):
                    return number
        return 0


def _name_of(table: Mapping[str, Any], number: int) -> str:
    """What to call one of several tables: its id where it has one to show, else its number."""
    name = table.get("id")
    return _short(name) if isinstance(name, str) else str(number + 1)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _decimal(value: Any) -> Decimal | None:
    try:
        return None if value is None else Decimal(str(value))
    except InvalidOperation:  # the schema has refused it already
        return None
