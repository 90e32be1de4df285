"""The figures of a run, and the page that tells them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from crash import unplayed
from crash.casting import Case, Result
from crash.faults import ON_AWS, RECOVERIES
from crash.keeping import Results


@dataclass
class Tally:
    """
    What was counted.

    Attributes:
        found: Violations with their cases, in the order they were found.
        unmet: Cases whose break was never reached: the command took another way.
        cuts: At how many bytes the journal of a command was cut off and read.
        baselines: Launcher -> kind -> cases.
        commits: At which commit how many of the cases were played last.
        mended: The commit and the result of cases that failed once and hold by now.
    """

    cases: Counter[str] = field(default_factory=Counter)
    possible: dict[str, int] = field(default_factory=dict)
    boundaries: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    slowest_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    slowest_case: dict[str, str] = field(default_factory=dict)
    violations: Counter[str] = field(default_factory=Counter)
    found: list[tuple[str, str, str]] = field(default_factory=list)
    launch_cases: int = 0
    launch_violations: int = 0
    unmet: int = 0
    cuts: dict[str, int] = field(default_factory=dict)
    baselines: dict[str, dict[str, int]] = field(default_factory=dict)
    real_s: float = 0.0
    commits: Counter[str] = field(default_factory=Counter)
    mended: list[tuple[str, Result]] = field(default_factory=list)

    @classmethod
    def of(cls, results: Results) -> Tally:
        """Count everything that was kept."""
        tally = cls()
        for row in results.rows("play"):
            tally.begin(row["name"], row)
        for commit, result in results.latest():
            tally.add(commit, result)
        tally.mended = results.mended()
        for row in results.rows("journals"):
            name = row.get("name", "up")  # earlier runs cut only that one's
            tally.cuts[name] = max(tally.cuts.get(name, 0), row["cuts"])
        for row in results.rows("baselines"):
            tally.baselines[row["launcher"]] = row["counts"]
        tally.real_s = sum(row["seconds"] for row in results.rows("run"))
        return tally

    def begin(self, name: str, said: Mapping[str, int]) -> None:
        """Note what a good run of a command crosses."""
        self.boundaries[name], self.calls[name] = said["boundaries"], said["calls"]
        self.possible[name] = said["possible"]

    def add(self, commit: str, result: Result) -> None:
        """Count one case."""
        case = result.case
        self.commits[commit] += 1
        self.cases[case.play] += 1
        self.kinds[case.broken.kind] += 1
        self.ways[case.recovery] += 1
        self.unmet += not result.broke
        if result.recovery_s > self.slowest_s[case.play] and case.recovery in ("again", "other"):
            self.slowest_s[case.play] = result.recovery_s
            self.slowest_case[case.play] = _break_in_words(case)
        for violation in result.violations:
            self.violations[violation.kind] += 1
            self.found.append((violation.kind, case.name, violation.text))
        if case.play == "up" and case.recovery == "again" and case.broken.kind in ON_AWS:
            self.launch_cases += case.broken.at.startswith("aws ")
            self.launch_violations += bool(result.violations)

    def line(self, name: str) -> str:
        """One command in a line."""
        bad = sum(1 for _, case, _ in self.found if case.startswith(f"{name}: "))
        return f"{self.cases[name]} of {self.possible[name]} cases, {bad} violations"

    def as_json(self) -> dict[str, Any]:
        """The figures for programs."""
        return {
            "cases": dict(self.cases),
            "possible": self.possible,
            "kinds": dict(self.kinds),
            "recoveries": dict(self.ways),
            "violations": dict(self.violations),
            "found": [{"kind": k, "case": c, "text": t} for k, c, t in self.found],
            "unmet": self.unmet,
            "calls": self.calls,
            "baselines": self.baselines,
        }


def summary(tally: Tally) -> str:
    """The figures in some lines."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in tally.violations.most_common()) or "none"
    return (
        f"{sum(tally.cases.values())} cases in {tally.real_s:.0f} s; violations: {kinds};"
        f" {tally.unmet} breaks were not reached; {sum(tally.cuts.values())} journals cut off; baselines {tally.baselines}"
    )


def _break_in_words(case: Case) -> str:
    broken = case.broken
    if broken.kind == "clock":
        return f"clock {broken.detail} min off"
    return f"{broken.kind} {broken.detail}".strip() + f" at {broken.at}"


def page(tally: Tally, *, today: date, words: Sequence[str]) -> str:
    """
    The page for the documentation.

    Args:
        words: The arguments of the run that writes it.
    """
    total = sum(tally.cases.values())
    bad = sum(tally.violations.values())
    verdict = f"**{bad:,} violations**" if bad else "**no violation**"
    return (
        "\n\n".join(
            [
                "# Reliability",
                "What happens to money and work when a command is killed, its answers are lost, its disk is full or its credentials end. Written by"
                f" `{' '.join(['python scripts/crash_matrix.py', *words])}` on {today.isoformat()} at commit {_commits(tally)}, against the simulated AWS"
                " (see [sandbox.md](sandbox.md)); nothing here was seen on a real account (see [unproven.md](unproven.md)).",
                f"{total:,} cases of {sum(tally.possible.values()):,} that there are: {verdict}. A case is one command in a process of its own, broken at one AWS call, ssh call, file or ledger statement"
                " that a good run crosses, then recovered in one of five ways, then judged. Simulated time; the simulated EC2 hides new instances for"
                " 1.5 s and forgets ended ones after an hour.",
                _by_command(tally),
                _by_kind(tally),
                _invariants(tally),
                *_mended(tally),
                _baselines(tally),
                _journals(tally),
                unplayed.table(),
                _open_ends(tally),
            ]
        )
        + "\n"
    )


def _by_command(tally: Tally) -> str:
    head = "| command | boundaries | AWS calls unbroken | cases played | cases there are | slowest way back, simulated s |\n|---|---|---|---|---|---|\n"
    rows = [
        f"| `{name}` | {tally.boundaries[name]} | {tally.calls[name]} | {tally.cases[name]} | {tally.possible[name]}"
        f" | {tally.slowest_s[name]:.0f} ({tally.slowest_case.get(name, 'none')}) |"
        for name in tally.boundaries
    ]
    return "## By command\n\n" + head + "\n".join(rows)


def _by_kind(tally: Tally) -> str:
    kinds = "\n".join(f"| {kind} | {n} |" for kind, n in sorted(tally.kinds.items()))
    ways = "\n".join(f"| {_WAYS[way]} | {tally.ways[way]} |" for way in RECOVERIES)
    return f"## By break and way back\n\n| break | cases |\n|---|---|\n{kinds}\n\n| way back | cases |\n|---|---|\n{ways}"


_WAYS = {
    "again": "the same command, 2 s later",
    "other": "`gpulab ls`, then the same command",
    "sweep": "`gpulab sweep --apply` only, after 15 min and after 13 h",
    "empty": "the state folder deleted, `gpulab init`, the same command",
    "laptop": "another computer, `gpulab init`, the same command",
}
_HELD = {
    "double launch": "never two instances of one launch or one name",
    "wrong number alive": "as many instances as wanted, one or none",
    "untagged": "everything billable carries our tags",
    "orphan": "nothing bills after a sweep once everybody's time is over",
    "dollars unknown": "no instance bills that the ledger does not know",
    "ledger differs": "the ledger equals the simulated bill within 1 % or $0.002, but for what it says itself that nobody can know",
    "lost work": "what stood on an ended instance is kept under its name, byte for byte, and no version that was kept goes",
    "mixed": "no student's work, tags or costs are another's",
    "not recovered": "the command succeeds when it is repeated",
    "not done": "what the command is for is done after it was repeated",
    "exit code": "the exit code is one of `docs/exit-codes.md`, and right",
    "advice": "one sentence that names the cause, and a hint",
    "secret": "no secret in any output",
    "traceback": 'no traceback, nothing "unexpected"',
    "hang": "every command ends",
    "harness": "(the harness itself failed)",
}


def _invariants(tally: Tally) -> str:
    rows = "\n".join(
        f"| {text} | {tally.violations.get(kind, 0)} |" for kind, text in _HELD.items()
    )
    text = f"## What must hold\n\n| invariant | violations |\n|---|---|\n{rows}"
    if tally.found:
        shown = "\n".join(f"- {kind}: {case}" for kind, case, _ in tally.found[:40])
        text += f"\n\nThe first {min(40, len(tally.found))}:\n\n{shown}"
    return text


def _commits(tally: Tally) -> str:
    if len(tally.commits) == 1:
        return next(iter(tally.commits))
    return ", ".join(f"{commit} ({count:,} cases)" for commit, count in tally.commits.items())


def _mended(tally: Tally) -> list[str]:
    """Tell of every case that failed on the way, so that what was mended can be seen."""
    if not tally.mended:
        return []
    shown = "\n".join(
        f"- {violation.kind}: {one.case.name} (at {commit})"
        for commit, one in tally.mended
        for violation in one.violations[:1]
    )
    return [
        "## Found and mended\n\nThese cases failed in a run before. What they showed was mended, or is said now where nobody can know it; they were played again and hold in the figures above:\n\n"
        + shown
    ]


def _baselines(tally: Tally) -> str:
    if not tally.baselines:
        return ""
    kinds = [kind for kind in next(iter(tally.baselines.values())) if kind != "cases"]
    head = "| launcher | cases |" + "".join(f" {kind} |" for kind in kinds)
    line = "|---|---|" + "---|" * len(kinds)
    rows = [
        f"| {name} | {found['cases']} |" + "".join(f" {found.get(kind, 0)} |" for kind in kinds)
        for name, found in tally.baselines.items()
    ]
    ours = f"gpulab under the same kinds of breaks at its AWS calls, the same command again: {tally.launch_cases} cases, {tally.launch_violations} with any violation."
    return (
        "## Beside it: launchers of other styles\n\nThe same harness, each AWS call broken in the same ways, then run again once. *Naive* tags after"
        " the launch, saves its state at the end and takes the next zone on any error. *Tags and failover* tags in the launch call and looks by tag"
        " first. Both are models of 40 lines, not anybody's code (`scripts/crash/baselines.py`).\n\n"
        + "\n".join([head, line, *rows])
        + "\n\n"
        + ours
    )


def _journals(tally: Tally) -> str:
    cuts = ", ".join(f"of `{name}` at {count:,} places" for name, count in tally.cuts.items())
    return (
        f"## Journals cut off\n\nThe journals of launches were cut off and read, {cuts}: never an error. For each story that reads"
        " differently, the first, middle and last byte are cases of their own, the command killed after its last launch took effect;"
        f" {tally.kinds['journal torn']} of them were played."
    )


def _open_ends(tally: Tally) -> str:
    return (
        f"## What this cannot show\n\n- {tally.unmet} of the breaks were not reached, because the command took another way that time"
        " (calls of several regions at once come in any order).\n"
        "- The machines let every computer of the owner in over ssh. A real one lets in the key it was launched with, so that another computer"
        " needs a copy of the profile's `keys/` to save, push or pull.\n"
        "- A machine is a folder with a model of the agent; booted machines are tested in `tests/machine`.\n"
        "- `disk full` is an error at every further write; `full disk` is a file system in memory that has 0 to 48 pages left, for the commands"
        " that write most, played where one can be mounted. Killed writes of the ledger itself are played by"
        " `scripts/bench/ledger_kills.py`.\n"
        "- On a new computer `gpulab ledger rebuild` knows what an ended instance cost, its disk included, as long as EC2 shows the instance with"
        " its tags: for an hour here, perhaps for less on AWS. Of what EC2 has forgotten it knows what the instance itself wrote into"
        " its bucket ([money.md](money.md)), as the machines here do: every five minutes, at a save and at their own end. Without a bucket only"
        " the ledger of the computer that launched it has it.\n"
        "- The machines keep work when they are told to, and at their own end; a real agent does so every few minutes, too.\n"
        "- Where a class's launch was killed and another computer goes on, or its journal was cut off, kept work comes to the instances that this one launches; that one of"
        " the killed launch lacks it only the first computer knows. Nothing of it is lost.\n"
        "- A class's key (`~/.gpulab/courses/ID/`) goes along to another computer, and is put back into a folder that was deleted"
        " where work was kept before: the seats are named by it.\n"
        "- An instance that ended within a minute of its launch may have run, and cost a minute, or not; AWS shows both alike. A ledger that was"
        " rebuilt on another computer charges the minute and says so, by name, and is judged by that; so is one"
        " that charges the minute of an instance that another command ended before it ran.\n"
        "- Of a student's own account whose student has left the roster only the state folder of the computer that launched there knows: another one neither"
        " ends nor counts what runs there, which its own timer ends. `fleet up --prune` is not tried from another one there.\n"
        "- Where the disk of the computer was full when it ended an instance, it could note nothing of that. If nobody looks into the account for hours"
        " (`gpulab sweep` looks into none of the students' own), the ledger has a guess, and calls it one: up to 17 minutes too late, judged by that, never too early.\n"
        "- The sandboxes that `gpulab sandbox start` starts here are forks of one process that has imported everything; the rest of them is real.\n"
        "- Each call of AWS meets every code of the error table (`tests/unit/cases/aws_errors.csv`), but for codes that name a thing of EC2's (`InvalidAMIID.NotFound`), which only EC2's own calls meet.\n"
        "- The ways back from one break begin at the same break, which happened once; they are played apart from there."
    )
