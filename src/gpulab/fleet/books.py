"""Which facts of a ledger are a course's. Pure: a teacher's own instance in the same account is no part of the course's report."""

from __future__ import annotations

from collections.abc import Iterable

from gpulab.model.fact import Fact, FactKind


def facts_of(course_id: str, facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """Return what a course's instances have cost and done, with their disks, the attempts and the prices they are charged by; each fact once."""
    known = tuple({fact.digest: fact for fact in facts}.values())
    ours = {
        fact.subject
        for fact in known
        if fact.kind is FactKind.LAUNCHED and fact.details.get("course") == course_id
    }
    disks = {f.subject for f in known if f.details.get("instance_id") in ours}
    asked = {
        fact.subject
        for fact in known
        if fact.kind is FactKind.INTENT and fact.details.get("course") == course_id
    }
    # Prices are about places, which every launch shares.
    wanted = ours | disks | asked
    return tuple(f for f in known if f.kind is FactKind.PRICE or f.subject in wanted)
