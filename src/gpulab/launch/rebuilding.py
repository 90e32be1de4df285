"""
Completing the ledger from the account: what EC2 remembers, and what the instances left beside the kept work.

Repeatable: a fact that is known already stays as it is. Says what nobody could tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.history import history_of
from gpulab.aws.regions import ask_each
from gpulab.errors import GpulabError, WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.keeping import our_bucket, prefix
from gpulab.model.fact import Fact
from gpulab.store.fact_lines import import_lines

# Where the agent writes its facts, below the work folder.
_AGENTS_FACTS = ".gpulab/ledger/"


@dataclass(frozen=True)
class Rebuilt:
    """
    What was found.

    Attributes:
        facts: Found in the account.
        new: Of them, not in the ledger before.
        unknown: Sentences about what nobody could tell.
    """

    facts: int
    new: int
    unknown: tuple[str, ...]


def rebuild(context: Context, regions: tuple[str, ...]) -> Rebuilt:
    """
    Read the account and the kept work, and add what the ledger lacks.

    Raises:
        StoreError: The ledger cannot be written.
        GpulabError: No region answered; the first region's error.
    """
    now = context.now()
    answers = ask_each(regions, lambda region: history_of(context.cloud, region, now=now))
    histories = answers.or_raise()
    facts = [one for history in histories.values() for one in history.facts]
    unknown = [text for history in histories.values() for text in history.unknown]
    unknown += [f"{region}: {error.message}" for region, error in answers.failed.items()]
    kept, problems = _kept_facts(context)
    new = context.ledger.append([*facts, *kept])
    return Rebuilt(len(facts) + len(kept), new, (*unknown, *problems))


def _kept_facts(context: Context) -> tuple[list[Fact], list[str]]:
    """Read what the agents wrote; a file that cannot be read is named, and the rest counts."""
    facts: list[Fact] = []
    problems: list[str] = []
    try:
        for path in _agents_files(context):
            try:
                facts += import_lines(path.read_bytes())
            except WrongUsage as error:
                problems.append(f"{path.name}: {error.message}")
    except (GpulabError, OSError) as error:
        problems.append(f"the kept work could not be read: {error}")
    return facts, problems


def _agents_files(context: Context) -> Iterator[Path]:
    yield from sorted(context.folder.work.glob(f"*/{_AGENTS_FACTS}*.jsonl"))
    if not context.profile.keep_bucket:
        return
    bucket = our_bucket(context)
    with tempfile.TemporaryDirectory() as folder:
        for name in workspace.names(context.cloud, bucket, owner=context.owner):
            manifest = workspace.read_manifest(context.cloud, bucket, prefix(context, name))
            files = manifest.files if manifest else ()
            for number, file in enumerate(f for f in files if f.path.startswith(_AGENTS_FACTS)):
                place = Path(folder) / f"{number}.jsonl"
                workspace.download(context.cloud, bucket, file, place)
                yield place
