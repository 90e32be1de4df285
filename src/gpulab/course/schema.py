"""The keys of course.toml, once: for the reader, for the published JSON schema, and for the documentation."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

# A year far outside is a slip of the keyboard, and the first and last that Python knows have no UTC everywhere.
_YEARS = range(1970, 2101)


@dataclass(frozen=True)
class Key:
    """
    One key.

    Attributes:
        json: Its JSON schema, for editors.
        text: What it means, with its unit.
        check: Returns what is wrong with a value, or `""`.
    """

    json: Mapping[str, Any]
    text: str
    check: Callable[[Any], str]
    is_required: bool = False

    def refuses(self, value: Any) -> str:
        """Say what is wrong with a value; empty when nothing is."""
        return self.check(value)


def json_schema() -> str:
    """Return the JSON schema of course.toml, for editors that complete and check while one types."""
    tables = {name: _object(keys) for name, keys in TABLES.items() if name}
    properties = {
        "course": tables["course"],
        "accounts": tables["accounts"],
        "limits": tables["limits"],
        "defaults": tables["defaults"],
        "labs": {"type": "array", "minItems": 1, "items": tables["labs"]},
        "hand_ins": {"type": "array", "items": tables["hand_ins"]},
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gpulab course",
        "type": "object",
        "additionalProperties": False,
        "required": ["course", "labs"],
        "properties": properties,
    }
    return json.dumps(schema, indent=1) + "\n"


def _object(keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, key in keys.items() if key.is_required],
        "properties": {name: {**key.json, "description": key.text} for name, key in keys.items()},
    }


def _text(pattern: str, text: str, *, say: str, is_required: bool = False) -> Key:
    def check(value: Any) -> str:
        return "" if isinstance(value, str) and re.fullmatch(pattern, value) else f"must be {say}"

    return Key({"type": "string", "pattern": f"^{pattern}$"}, text, check, is_required)


def _range(text: str) -> Key:
    def check(value: Any) -> str:
        try:
            network = ipaddress.ip_network(value if isinstance(value, str) else "", strict=False)
        except ValueError:
            return "must be an address range such as 130.225.0.0/16"
        return "" if network.prefixlen else "would open ssh to the whole internet"

    return Key({"type": "string"}, text, check)


def _number(text: str, *, low: int, high: int) -> Key:
    def check(value: Any) -> str:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return (
            ""
            if is_whole and low <= value <= high
            else f"must be a whole number from {low} to {high}"
        )

    return Key({"type": "integer", "minimum": low, "maximum": high}, text, check)


def _amount(text: str) -> Key:
    def check(value: Any) -> str:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        is_amount = isinstance(value, str) and re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,4})?", value)
        if is_amount or (is_whole and 0 <= value < 10**7):
            return ""
        return 'must be dollars in quotes, such as "12.50"'

    return Key({"type": "string", "pattern": r"^\d+(\.\d{1,4})?$"}, text, check)


def _day(text: str, *, is_required: bool = False) -> Key:
    def check(value: Any) -> str:
        is_day = isinstance(value, date) and not isinstance(value, datetime)
        if is_day and value.year not in _YEARS:
            return f"must be a day from {_YEARS[0]} to {_YEARS[-1]}"
        return "" if is_day else "must be a day without quotes, such as 2017-09-04"

    return Key({"type": "string", "format": "date"}, text, check, is_required)


def _clock(text: str, *, is_required: bool = False) -> Key:
    def check(value: Any) -> str:
        if isinstance(value, time):
            return ""
        is_clock = isinstance(value, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value)
        return "" if is_clock else 'must be a clock time such as "13:00"'

    return Key(
        {"type": "string", "pattern": r"^([01]\d|2[0-3]):[0-5]\d$"}, text, check, is_required
    )


def _flag(text: str) -> Key:
    return Key(
        {"type": "boolean"},
        text,
        lambda value: "" if isinstance(value, bool) else "must be true or false",
    )


def _texts(pattern: str, text: str, *, say: str) -> Key:
    def check(value: Any) -> str:
        fits = (
            isinstance(value, list)
            and value
            and all(isinstance(v, str) and re.fullmatch(pattern, v) for v in value)
        )
        return "" if fits else f"must be a list of {say}"

    return Key(
        {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": f"^{pattern}$"}},
        text,
        check,
    )


def _one_of(*values: str, text: str) -> Key:
    return Key(
        {"enum": list(values)},
        text,
        lambda value: "" if value in values else f"must be {' or '.join(values)}",
    )


_ID = r"[a-z0-9][a-z0-9._-]{0,39}"
_SHARED_BY_LABS = {
    "environment": _text(
        _ID, "Lab environment, see `gpulab env ls`.", say="the name of an environment"
    ),
    "gpu": _text(r"[A-Za-z0-9]{1,20}", "GPU wished for, such as T4.", say="the name of a GPU"),
    "instance_type": _text(
        r"[a-z0-9-]+\.[a-z0-9]+", "Exact instance type, instead of a GPU.", say="an instance type"
    ),
    "grace_minutes": _number("Minutes an instance may live after the end.", low=0, high=240),
    "prewarm_minutes": _number(
        "Minutes before the start at which `fleet up --prewarm` begins.", low=0, high=240
    ),
    "budget_usd": _amount("USD for each student in one lab."),
    "by_group": _flag("One instance for a group instead of one for each student."),
    "notebooks": Key(
        {"type": "object"},
        "Git repository, commit and folder.",
        lambda v: "" if isinstance(v, dict) else "must be a table",
    ),
}

TABLES: Mapping[str, Mapping[str, Any]] = {
    "": dict.fromkeys(("course", "accounts", "limits", "defaults", "labs", "hand_ins")),
    "course": {
        "id": _text(
            _ID,
            "Short id, used in tags and folders.",
            say="lower-case letters, digits and dashes",
            is_required=True,
        ),
        "name": _text(
            r"[^\x00-\x1f\x7f]{1,120}",
            "The course's name.",
            say="a text of one line",
            is_required=True,
        ),
        "timezone": _text(
            r"[A-Za-z0-9_+/-]{1,60}", "IANA time zone of all clock times.", say="a time zone"
        ),
        "first_day": _day("First day of the term.", is_required=True),
        "last_day": _day("Last day of the term.", is_required=True),
        "regions": _texts(
            r"[a-z]{2}(-[a-z]+)+-\d",
            "Regions, in order of preference.",
            say="regions such as eu-north-1",
        ),
        "budget_usd": _amount("USD for each student over the whole term."),
    },
    "accounts": {
        "kind": _one_of(
            "own", "shared", text="`own`: each student's account; `shared`: one course account."
        ),
        "profile": _text(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
            "gpulab profile of the course account, or of the assistant.",
            say="the name of a profile",
        ),
        "role_name": _text(
            r"[\w+=,.@-]{1,64}",
            "Role to assume in each student's account.",
            say="the name of a role",
        ),
        "cidr": _range("From where ssh is let in: the campus's range, `130.225.0.0/16`."),
    },
    "limits": {
        "max_instances": _number("No plan starts more.", low=1, high=5000),
        "max_usd": _amount("No plan's worst case is higher; USD."),
    },
    "defaults": _SHARED_BY_LABS,
    "labs": {
        "id": _text(
            _ID, "Short id, `week1`.", say="lower-case letters, digits and dashes", is_required=True
        ),
        "title": _text(r"[^\x00-\x1f\x7f]{1,200}", "What it is about.", say="a text of one line"),
        "date": _day("First day.", is_required=True),
        "until": _day("Last day, for a lab over several days."),
        "starts": _clock("Local clock time.", is_required=True),
        "ends": _clock("Local clock time.", is_required=True),
        **_SHARED_BY_LABS,
    },
    "notebooks": {
        "repository": _text(
            r"https://[^\s\"'\\]{1,300}",
            "Address of the Git repository.",
            say="an https address",
            is_required=True,
        ),
        "commit": _text(r"[0-9a-f]{40}", "Full commit id.", say="40 hexadecimal digits"),
        "folder": _text(
            r"(?!/)(?!.*\.\.)[^\x00-\x1f\x7f\\]{1,200}",
            "Folder inside the repository.",
            say="a folder inside the repository",
        ),
    },
    "hand_ins": {
        "id": _text(
            _ID, "Short id.", say="lower-case letters, digits and dashes", is_required=True
        ),
        "title": _text(r"[^\x00-\x1f\x7f]{1,200}", "What is handed in.", say="a text of one line"),
        "due": _day("Deadline's day.", is_required=True),
        "time": _clock("Deadline's local clock time."),
        "labs": _texts(_ID, "Labs whose notebooks belong to it.", say="lab ids"),
    },
}
