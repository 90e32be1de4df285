"""How the ledger's facts are listed. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpulab.model.fact import Fact, written
from gpulab.spending.facts import Asked
from gpulab.view.words import counted

FACT_COLUMNS = ("at", "kind", "subject", "source", "details")


def asked_text(asked: Sequence[Asked]) -> str:
    """Write how often AWS was asked for an instance and how many it launched; `""` when it never was."""
    taken = sum(bool(one.instance_id) for one in asked)
    return f"asked AWS {counted(len(asked), 'time')}, {taken:,} taken" if asked else ""


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
