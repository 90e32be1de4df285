"""Which facts of a ledger are a course's. Pure: a teacher's own instance in the same account is no part of the course's report."""

from __future__ import annotations

from collections.abc import Iterable

from gpulab.model.fact import Fact, FactKind

# They are about places and credits, which every launch shares.
_COMMON = (FactKind.PRICE, FactKind.STATEMENT)


def facts_of(course_id: str, facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """Return what a course's instances have cost and done, with their disks and the prices they are charged by; each fact once."""
    known = tuple({fact.digest: fact for fact in facts}.values())
    ours = {
        fact.subject
        for fact in known
        if fact.kind is FactKind.LAUNCHED and fact.details.get("course") == course_id
    }
    disks = {f.subject for f in known if f.details.get("instance_id") in ours}
    return tuple(f for f in known if f.kind in _COMMON or f.subject in ours | disks)
