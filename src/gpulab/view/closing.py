"""The end of a term in words: what would go, what went, and what stays and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from gpulab.fleets.closing import Cleared, Standing
from gpulab.model.course import Course
from gpulab.model.fleet import Outcome
from gpulab.model.leftover import Kind
from gpulab.view.fleet import causes_lines, outcome_json, trouble_lines
from gpulab.view.words import local_time, one_line

_MANY_BUCKETS = 5
_MANY_REASONS = 10
_NOUNS = {
    Kind.SCHEDULE: "scheduled end",
    Kind.SECURITY_GROUP: "security group",
    Kind.KEY_PAIR: "key pair",
}


def standing_text(course: Course, found: Sequence[Standing], *, now: datetime) -> str:
    """Say what is left of the course in its accounts, before anything is done."""
    running, off = _members(found)
    kinds = Counter(resource.kind for one in found for resource in one.setup)
    roles = sum(len(one.roles) for one in found)
    busy = sum(not one.is_clear for one in found)
    setup = [_many(kinds[kind], noun) for kind, noun in _NOUNS.items() if kinds[kind]]
    setup += [_many(roles, "role")] if roles else []
    lines = [
        f"{course.id}: {course.name}",
        f"  accounts  {len(found):,}, something is left in {busy:,}",
        f"  running   {_many(running, 'instance')}: saved, then ended"
        if running
        else "  running   nothing",
        *([f"  stopped   {_many(off, 'instance')}: {_STOPPED}"] if off else []),
        f"  setup     {', '.join(setup)}: removed" if setup else "  setup     nothing is left",
    ]
    ahead = [lab for lab in course.labs if lab.ends_at > now]
    if ahead:
        first = f"{ahead[0].id} {local_time(ahead[0].starts_at, now=now)}"
        lines.append(f"  note      {_many(len(ahead), 'lab')} not over yet, the first: {first}")
    return "\n".join([*lines, *_unheard(found), *_troubles(found)])


_STOPPED = (
    "the disk of each may hold work, so it stays until it is started and saved; `--no-save` ends it"
)


def _members(found: Sequence[Standing]) -> tuple[int, int]:
    """Count what runs or is about to, and what is stopped."""
    off = sum(member.is_off for one in found for member in one.members)
    return sum(len(one.members) for one in found) - off, off


def _unheard(found: Sequence[Standing]) -> list[str]:
    """Say that the last report may count too little; a student can make a thousand reasons, of which a few are named."""
    said = list(dict.fromkeys(text for one in found for text in one.unheard))
    if not said:
        return []
    more = [f"    and {len(said) - _MANY_REASONS:,} more"] if len(said) > _MANY_REASONS else []
    named = [f"    {one_line(text)}" for text in said[:_MANY_REASONS]]
    return ["", "The last report may count too little:", *named, *more]


def question(found: Sequence[Standing], *, save: bool) -> str:
    """Ask once for the whole."""
    running, off = _members(found)
    ending = f"save and end {_many(running, 'instance')}, " if running else ""
    if running + off and not save:
        count = _many(running + off, "instance")
        ending = f"end {count} WITHOUT saving: what was not kept before is lost, "
    return f"End the term: {ending}remove what the course has set up?"


def purge_question(file: str, *, students: int) -> str:
    """Name what is deleted for good."""
    return (
        f"Delete {file} with {students:,} students, and the key of their opaque ids?"
        " Nobody can tell afterwards who they were"
    )


def ended_text(outcomes: Sequence[Outcome], cleared: Sequence[Cleared]) -> str:
    """Count what ended and went, then each cause of what did not."""
    counts = Counter(str(outcome.result) for outcome in outcomes)
    gone = Counter(resource.kind for one in cleared for resource in one.removed)
    words = [f"{_many(n, 'instance')} {word}" for word, n in counts.items()]
    words += [f"{_many(gone[kind], noun)} removed" for kind, noun in _NOUNS.items() if gone[kind]]
    roles = sum(len(one.roles) for one in cleared)
    words += [f"{_many(roles, 'role')} removed"] if roles else []
    return "\n".join(
        [", ".join(words) or "nothing was left", *causes_lines(outcomes), *_troubles(cleared)]
    )


def leaves_lines(
    course: Course, cleared: Sequence[Cleared], *, work: str, works: int, is_purged: bool
) -> list[str]:
    """Say what stays, and how it goes."""
    lines = [f"kept      {works:,} folders of saved work in {work}"] if works else []
    lines += _in_buckets(cleared)
    lines.append("kept      the ledgers: `gpulab report` reads them; they name opaque ids only")
    if course.accounts.kind == "own":
        lines.append(
            "kept      the roles in the students' accounts: each deletes the stack in CloudFormation"
        )
    lines.append(
        "kept      the accounts' own guards and images: `gpulab guard disarm`, `gpulab image prune`"
    )
    if is_purged:
        lines.append(
            "kept      what you copied elsewhere: collected work, templates, tickets, mail-merge tables"
        )
    else:
        lines.append("kept      the roster: `gpulab course close --purge-roster` deletes it")
    return lines


def _in_buckets(cleared: Sequence[Cleared]) -> list[str]:
    """Name where instances have kept work by themselves: each bucket of a few, the number of many."""
    kept = [one.kept for one in cleared if one.kept[1]]
    if len(kept) > _MANY_BUCKETS:
        return [
            f"kept      work that instances kept by themselves, in the buckets of {len(kept):,} accounts:"
            f" `aws s3 sync {kept[0][0]} kept-work` fetches it from the first, with that account's own credentials;"
            " in the others the bucket has their number and region in its name"
        ]
    return [
        f"kept      the work of {_many(count, 'instance')} in {where}, as kept by themselves:"
        f" `aws s3 sync {where} kept-work` fetches it, with the account's own credentials"
        for where, count in kept
    ]


def closed_json(
    outcomes: Iterable[Outcome], cleared: Iterable[Cleared], *, report: list[str], is_purged: bool
) -> dict[str, Any]:
    """Return what was done for programs."""
    return {
        "outcomes": [outcome_json(outcome) for outcome in outcomes],
        "accounts": [
            {
                "account": one.account.key,
                "removed": [f"{r.kind} {r.id}" for r in one.removed],
                "role_removed": bool(one.roles),
                "kept": one.kept[0],
                "error": one.trouble.message if one.trouble else "",
                "hint": one.trouble.hint if one.trouble else "",
            }
            for one in cleared
        ],
        "report": report,
        "roster_purged": is_purged,
    }


def _many(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def _troubles(found: Sequence[Standing] | Sequence[Cleared]) -> list[str]:
    return trouble_lines((one.account, one.trouble) for one in found)
