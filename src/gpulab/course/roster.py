"""
roster.csv: who takes the course.

Hides encodings, separators and line ends; refuses nothing as a whole but files that are no table: bad rows become problems.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from gpulab.model.course import Problem, Roster, Student
from gpulab.model.nearest import did_you_mean

COLUMNS = ("id", "name", "email", "group", "account", "role", "profile", "ssh_public_key")
_REQUIRED = ("id", "name", "email")
_LIMIT_BYTES = 10_000_000
_LIMIT_CELL = 2_000
_LIMIT_COLUMNS = 100
_LIMIT_ROWS = 20_000
# Ten thousand rows with every cell wrong are still told in full: `scripts/bench/roster.py`.
_LIMIT_PROBLEMS = 100_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EMAIL = re.compile(r"[^@\s,;<>\"']{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,128}")
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIASES = {
    "student": "id",
    "student id": "id",
    "studentid": "id",
    "e-mail": "email",
    "mail": "email",
    "team": "group",
    "account id": "account",
    "ssh key": "ssh_public_key",
    "ssh_key": "ssh_public_key",
    "public_key": "ssh_public_key",
}
# Key types sshd accepts from students; the type inside the blob must agree with the word before it.
_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com")


def read_roster(raw: bytes, *, file: str, secret: bytes) -> Roster:
    """
    Read a roster.

    Args:
        raw: The file: UTF-8 with or without BOM, comma or semicolon or tab, any line ends.
        file: What to call it in problems.
        secret: The course's key for opaque ids; the same e-mail gives the same id.

    Returns:
        The good rows, and a problem for each bad one. Never raises for what is in the file.
    """
    text, problems = _text(raw, file)
    if text is None:
        return Roster((), tuple(problems))
    rows = _rows(text, file, problems)
    header = next(rows, None)
    if header is None:
        return Roster((), (*problems, Problem(file, 1, "the file is empty", _EXAMPLE)))
    columns = _columns(header[1], file, header[0], problems)
    if columns is None:
        return Roster((), tuple(problems))
    students = _students(rows, columns, file=file, secret=secret, problems=problems)
    return Roster(tuple(students), tuple(sorted(problems, key=lambda p: p.line)))


def owner_id(email: str, *, secret: bytes) -> str:
    """Return the opaque id of a person: nobody without the course's key can tell who it is."""
    address = unicodedata.normalize("NFC", email.strip()).casefold()
    return "s" + hmac.new(secret, address.encode(), hashlib.sha256).hexdigest()[:10]


_EXAMPLE = "The first line names the columns: " + ",".join(COLUMNS)


def _text(raw: bytes, file: str) -> tuple[str | None, list[Problem]]:
    if len(raw) > _LIMIT_BYTES:
        return None, [
            Problem(file, 0, f"{len(raw):,} bytes is no roster: the limit is {_LIMIT_BYTES:,}")
        ]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return None, [
            Problem(file, line, "not UTF-8", "Save it as `CSV UTF-8` from the spreadsheet")
        ]
    if "\0" in text:
        return None, [
            Problem(file, text[: text.index("\0")].count("\n") + 1, "holds a NUL character")
        ]
    return text, []


def _rows(text: str, file: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line that is not blank."""
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(
                Problem(
                    file,
                    line,
                    f"not CSV from here on: {error}",
                    "Look for a quote that is not closed",
                )
            )
            return
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]


def _columns(
    header: Sequence[str], file: str, line: int, problems: list[Problem]
) -> Mapping[str, int] | None:
    if len(header) > _LIMIT_COLUMNS:
        problems.append(Problem(file, line, f"{len(header):,} columns are no roster", _EXAMPLE))
        return None
    found: dict[str, int] = {}
    for place, raw in enumerate(header):
        name = _ALIASES.get(raw.casefold(), raw.casefold().replace(" ", "_"))
        if name in found:
            problems.append(Problem(file, line, f"two columns are called `{name}`"))
        elif name in COLUMNS:
            found[name] = place
        elif raw:
            hint = did_you_mean(name, COLUMNS, otherwise="Known: " + ", ".join(COLUMNS))
            problems.append(Problem(file, line, f"unknown column `{_short(raw)}`", hint))
    missing = [name for name in _REQUIRED if name not in found]
    if missing:
        problems.append(Problem(file, line, f"no column `{'`, `'.join(missing)}`", _EXAMPLE))
        return None
    return found


def _students(
    rows: Iterator[tuple[int, list[str]]],
    columns: Mapping[str, int],
    *,
    file: str,
    secret: bytes,
    problems: list[Problem],
) -> Iterator[Student]:
    seen: dict[tuple[str, str], int] = {}
    for number, (line, cells) in enumerate(rows):
        if number == _LIMIT_ROWS or len(problems) > _LIMIT_PROBLEMS:
            what = (
                f"{_LIMIT_ROWS:,} students"
                if number == _LIMIT_ROWS
                else f"{len(problems):,} problems"
            )
            problems.append(Problem(file, line, f"{what}, and from here on it was not read"))
            return
        if len(cells) > max(columns.values()) + 1 + 8:
            problems.append(Problem(file, line, f"{len(cells)} cells, more than there are columns"))
            continue
        row = {name: cells[place] if place < len(cells) else "" for name, place in columns.items()}
        wrong = [*_wrong_cells(row), *_repeats(row, line, seen)]
        problems.extend(Problem(file, line, text, hint) for text, hint in wrong)
        if not wrong:
            yield _student(row, line, secret)


def _student(row: Mapping[str, str], line: int, secret: bytes) -> Student:
    return Student(
        id=row["id"],
        owner=owner_id(row["email"], secret=secret),
        name=row["name"],
        email=row["email"],
        group=row.get("group", ""),
        account=row.get("account", "").replace("-", ""),
        role=row.get("role", ""),
        profile=row.get("profile", ""),
        public_key=row.get("ssh_public_key", ""),
        line=line,
    )


def _wrong_cells(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, cell in row.items():
        if len(cell) > _LIMIT_CELL:
            yield f"`{name}` has {len(cell):,} characters", "At most 2,000"
        elif any(unicodedata.category(c) in ("Cc", "Cs", "Cf") for c in cell):
            yield f"`{name}` holds characters that cannot be seen", "Type the cell again"
        elif cell[:1] in tuple("=+-@") and name != "profile":
            yield (
                f"`{name}` begins like a spreadsheet formula: `{_short(cell)}`",
                "Remove the first character",
            )
    for name in _REQUIRED:
        if not row[name]:
            yield f"`{name}` is empty", ""
    yield from _wrong_forms(row)


def _wrong_forms(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if row["id"] and not _ID.fullmatch(row["id"]):
        yield f"`{_short(row['id'])}` cannot be an id", "Letters, digits, dot, dash, underscore"
    if row["email"] and not _EMAIL.fullmatch(row["email"]):
        yield f"`{_short(row['email'])}` is not an e-mail address", ""
    account = row.get("account", "").replace("-", "")
    if account and not re.fullmatch(r"\d{12}", account):
        yield (
            f"`{_short(account)}` is not an AWS account",
            "Twelve digits; a spreadsheet may have cut leading zeros",
        )
    if row.get("role") and not _ROLE.fullmatch(row["role"]):
        yield (
            f"`{_short(row['role'])}` is not the ARN of a role",
            "arn:aws:iam::123456789012:role/NAME",
        )
    if row.get("profile") and not _PROFILE.fullmatch(row["profile"]):
        yield (
            f"`{_short(row['profile'])}` cannot be a profile",
            "The name of a profile in your config.toml",
        )
    if row.get("ssh_public_key") and not _is_public_key(row["ssh_public_key"]):
        yield (
            "`ssh_public_key` is not an OpenSSH public key",
            "One line, such as ssh-ed25519 AAAA... name",
        )


def _repeats(
    row: Mapping[str, str], line: int, seen: dict[tuple[str, str], int]
) -> Iterator[tuple[str, str]]:
    for name in ("id", "email"):
        key = (name, unicodedata.normalize("NFKC", row[name]).casefold())
        if row[name] and key in seen:
            yield f"`{name}` {_short(row[name])} is the same as in line {seen[key]}", ""
        seen.setdefault(key, line)


def _is_public_key(text: str) -> bool:
    words = text.split(" ", 2)
    if len(words) < 2 or words[0] not in _KEY_TYPES:
        return False
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    kind = words[0].encode()
    return (
        blob[:4] == len(kind).to_bytes(4, "big")
        and blob[4 : 4 + len(kind)] == kind
        and len(blob) > 40
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
