"""How the ledger's facts are listed. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable

from gpulab.model.fact import Fact, written

FACT_COLUMNS = ("at", "kind", "subject", "source", "details")


def fact_rows(facts: Iterable[Fact]) -> list[dict[str, str]]:
    """Make a row of texts of each fact."""
    return [
        {
            "at": written(fact.at),
            "kind": fact.kind.value,
            "subject": fact.subject,
            "source": fact.source.value,
            "details": " ".join(f"{key}={value}" for key, value in sorted(fact.details.items())),
        }
        for fact in facts
    ]
