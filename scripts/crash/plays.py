"""
The commands under test: how the stage stands before each, what is typed, and what must be true once it was recovered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crash.stage import Ran, Stage

NAME = "week4"
UP = ("up", NAME, "--yes", "--no-open")
_STOP = ("stop", NAME)
#: Wrong usage: there is nothing any more to do it to.
NOBODY = (2,)
_UNTIL = "2026-11-16T17:00:00Z"


@dataclass(frozen=True)
class End:
    """
    Where a command may end.

    Attributes:
        alive: How many instances must be alive.
        done: Says what is missing.
        again_codes: Exit codes the repeated command may return.
    """

    alive: int
    done: Callable[[Stage], list[str]] = lambda stage: []
    again_codes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Play:
    """
    One command that changes something.

    Attributes:
        prepare: Brings a fresh stage to where the command is typed.
        alive: How many instances must be alive once it was done.
        done: Says what is missing after a recovery that ends with the same command.
        may_end: Whether an instance may be gone after a recovery by another way.
        has_first_files: Whether instances begin with work in them.
        again_codes: Exit codes the repeated command may return.
        code: Exit code of a run that nothing breaks.
        is_known_here_only: Whether nothing but the state folder knows of all that it is about, so that no other computer is tried.
        keeps_work: Whether what stood on machines must be kept; not where the command deletes it.
        is_kept_here: Whether what it is for is done in the state folder, so that another computer or an empty folder has none of it.
        has_key: Whether a course's key belongs to it, which must go along to another computer.
        needs_key: Whether a state folder that is made anew gets the key at once: what was kept of the class before is named by it.
        weight: Its share of a sample.
        counted_by: Brings the ledger up to date on the same computer; empty where no instance is meant.
        rebuilt_by: The same on a new one.
        rival: Another command that may come between; the play's own, again, still brings what it is for, or ends at `or_else`.
        or_else: Where it may end after its rival came between, whose own work stays done: nothing is pushed to what was stopped.
        fills_disk: Whether it is typed on a disk that really is full, too.
        torn_at: The boundary after which it is killed in the cases with a journal that is cut off; empty where there are none.
        first: Done in each case itself before the command: what cannot be copied with the stage.
    """

    name: str
    words: tuple[str, ...]
    prepare: Callable[[Stage], None]
    alive: int
    done: Callable[[Stage], list[str]] = lambda stage: []
    has_first_files: bool = True
    again_codes: tuple[int, ...] = (0,)
    code: int = 0
    is_known_here_only: bool = False
    keeps_work: bool = True
    is_kept_here: bool = False
    has_key: bool = False
    needs_key: bool = False
    weight: int = 1
    counted_by: tuple[str, ...] = ("credit", "--fresh")
    rebuilt_by: tuple[str, ...] = ("ledger", "rebuild")
    rival: tuple[str, ...] = ()
    or_else: End | None = None
    fills_disk: bool = False
    torn_at: str = ""
    first: Callable[[Stage], None] = lambda stage: None


def must(ran: Ran, *codes: int) -> Ran:
    """
    Insist on an exit code while a stage is prepared.

    Raises:
        RuntimeError: It ended otherwise.
    """
    if ran.code not in (codes or (0,)):
        raise RuntimeError(f"`{' '.join(ran.words)}` ended with {ran.code}: {ran.err}")
    return ran


def live(stage: Stage) -> list[Any]:
    """Instances that bill now, as the simulated EC2 itself knows them."""
    return [i for i in stage.world.instances_by_id.values() if i.state in ("pending", "running")]


def initialised(stage: Stage) -> None:
    """`gpulab init` was typed ten minutes ago."""
    must(stage.run("init", "--yes"))
    stage.advance(600)


def up(stage: Stage) -> None:
    """An instance is up since a quarter of an hour."""
    initialised(stage)
    must(stage.run(*UP))
    stage.advance(900)


def _up_at_home(stage: Stage) -> None:
    must(stage.run("init", "--no-resources"))
    must(stage.run(*UP))
    stage.advance(900)


def _stopped(stage: Stage) -> None:
    up(stage)
    must(stage.run("stop", NAME))
    stage.advance(900)


def _pushed(stage: Stage) -> None:
    up(stage)
    put_mine(stage)


def put_mine(stage: Stage) -> None:
    """Lay a folder to push beside the state folder."""
    folder = stage.home.parent / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "model.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "notes.txt").write_bytes(b"notes")


def _leftovers(stage: Stage) -> None:
    _stopped(stage)
    owner = _owner(stage)
    ec2 = stage.client("ec2")
    pairs = {"gpulab:owner": owner, "gpulab:launch": "0" * 32, "gpulab:name": NAME}
    tags = [{"Key": k, "Value": v} for k, v in pairs.items()]
    for name in (NAME, "unkept"):
        named = [{**t, "Value": name} if t["Key"] == "gpulab:name" else t for t in tags]
        spec = [{"ResourceType": "volume", "Tags": named}]
        ec2.create_volume(AvailabilityZone="us-east-1a", Size=8, TagSpecifications=spec)
    spec = [{"ResourceType": "elastic-ip", "Tags": tags}]
    ec2.allocate_address(Domain="vpc", TagSpecifications=spec)
    stage.advance(900)
    # Kept once more after the volume was made, so that one of the two may go.
    must(stage.run(*UP))
    stage.advance(900)
    must(stage.run("stop", NAME))
    stage.advance(4500)


def _owner(stage: Stage) -> str:
    text = (stage.home / "config.toml").read_text()
    return text.split('owner = "')[1].split('"')[0]


def _has_kept_work(stage: Stage) -> list[str]:
    ran = stage.run("pull", NAME, "kept-copy", "--kept")
    files = stage.home.parent / "kept-copy"
    there = {p.name for p in files.rglob("*") if p.is_file()} if files.is_dir() else set()
    missing = {"week4.ipynb", "numbers.csv"} - there
    return [f"lost work: {sorted(missing)} ({ran.err.strip()[-200:]})"] if missing else []


def _has_no_kept_work(stage: Stage) -> list[str]:
    ran = stage.run("pull", NAME, "kept-copy", "--kept")
    return [] if ran.code == 2 else ["the kept work is still there"]


def scheduled(stage: Stage) -> list[str]:
    """Name the ends that accounts have scheduled."""
    clients = stage.clients("scheduler")
    return [row["Name"] for c in clients for row in c.list_schedules()["Schedules"]]


def ends_agree(stage: Stage) -> list[str]:
    """Timer, tag and schedule of every instance must name the end that was asked for."""
    problems = []
    for instance in live(stage):
        guest = stage.guests.by_id[instance.id]
        schedules = scheduled(stage)
        tag = instance.tags["gpulab:expires"]
        shown = guest.deadline.strftime("%Y-%m-%dT%H:%M:%SZ")
        if shown != tag or not tag.startswith("2026-11-16T17:00"):
            problems.append(f"ends differ: timer {shown}, tag {tag}")
        if len(schedules) != len(live(stage)):
            problems.append(f"{len(schedules)} ends are scheduled, not {len(live(stage))}")
    return problems


def push_arrived(stage: Stage) -> list[str]:
    """What was pushed must be on every instance."""
    return [
        f"not pushed: {path}"
        for guest in (stage.guests.by_id[i.id] for i in live(stage))
        for path in ("deep/model.bin", "notes.txt")
        if path not in guest.files()
    ]


def _pull_arrived(stage: Stage) -> list[str]:
    folder = stage.home.parent / "here"
    return [
        f"not pulled: {path}"
        for path in ("week4.ipynb", "data/numbers.csv")
        if not (folder / path).is_file()
    ]


def _is_swept(stage: Stage) -> list[str]:
    ec2 = stage.client("ec2")
    names = [
        next(t["Value"] for t in v["Tags"] if t["Key"] == "gpulab:name")
        for v in ec2.describe_volumes()["Volumes"]
        if not v["Attachments"]
    ]
    left = len(ec2.describe_addresses()["Addresses"])
    problems = [] if names == ["unkept"] else [f"volumes left are {names}, not the unkept one"]
    return problems + ([f"{left} addresses are left"] if left else [])


def baked(stage: Stage) -> None:
    """An image was made and tested."""
    initialised(stage)
    must(stage.run("image", "bake", "--env", "tf2-small", "--yes"))
    stage.advance(900)


def _images(stage: Stage, region: str) -> int:
    rows = stage.client("ec2", region).describe_images(Owners=["self"])["Images"]
    usable = {"Key": "gpulab:usable", "Value": "true"}
    return sum(usable in row.get("Tags", []) for row in rows)


def has_image(stage: Stage) -> list[str]:
    """A tested image must be there."""
    return [] if _images(stage, "us-east-1") else ["there is no tested image"]


def _has_copy(stage: Stage) -> list[str]:
    stage.advance(900)
    rows = stage.client("ec2", "us-east-2").describe_images(Owners=["self"])["Images"]
    return [] if rows else ["there is no copy"]


def _has_no_image(stage: Stage) -> list[str]:
    rows = stage.client("ec2").describe_images(Owners=["self"])["Images"]
    return [f"{len(rows)} images are left"] if rows else []


def exported(stage: Stage) -> None:
    """What one instance came to is in a ledger and in a file beside it."""
    _stopped(stage)
    must(stage.run("ledger", "export", "facts.jsonl"))


def plays() -> Sequence[Play]:
    """Every play, in the order of the report."""
    return (
        Play(
            "up",
            UP,
            initialised,
            1,
            weight=5,
            rival=_STOP,
            fills_disk=True,
            torn_at="aws ec2:RunInstances #1",
        ),
        Play("stop", _STOP, up, 0, _has_kept_work, weight=2, rival=UP, fills_disk=True),
        Play(
            "stop, work kept here",
            _STOP,
            _up_at_home,
            0,
            _has_kept_work,
            is_kept_here=True,
        ),
        Play("up again with the work", UP, _stopped, 1, rival=_STOP),
        Play(
            "extend",
            ("extend", NAME, "--until", _UNTIL),
            up,
            1,
            ends_agree,
            rival=_STOP,
            or_else=End(0, _has_kept_work, NOBODY),
        ),
        Play(
            "push",
            ("push", NAME, "mine"),
            _pushed,
            1,
            push_arrived,
            rival=_STOP,
            or_else=End(0, _has_kept_work, NOBODY),
        ),
        # What is stopped can be pulled all the same, from what was kept of it.
        Play(
            "pull",
            ("pull", NAME, "here"),
            up,
            1,
            _pull_arrived,
            rival=_STOP,
            or_else=End(0, _pull_arrived),
        ),
        Play("pull the kept", ("pull", NAME, "here"), _stopped, 0, _pull_arrived),
        Play(
            "rm",
            ("rm", NAME, "--yes"),
            _stopped,
            0,
            _has_no_kept_work,
            again_codes=(0, 2),
            keeps_work=False,
            rival=UP,
            # While the name is up, nothing of it is deleted.
            or_else=End(1, again_codes=NOBODY),
        ),
        Play(
            "sweep",
            ("sweep", "--apply", "--yes"),
            _leftovers,
            0,
            _is_swept,
            counted_by=(),
            rival=UP,
            or_else=End(1, _is_swept),
        ),
        Play("init", ("init", "--yes"), lambda stage: None, 0),
        *_of_images(),
        Play(
            "credit",
            ("credit", "--fresh"),
            up,
            1,
            fills_disk=True,
            rival=_STOP,
            or_else=End(0, _has_kept_work),
        ),
        Play("ledger import", ("ledger", "import", "facts.jsonl"), exported, 0, fills_disk=True),
        Play(
            "guard arm",
            ("guard", "arm", "--budget", "60", "--email", "ann@example.org", "--yes"),
            initialised,
            0,
        ),
    )


def _of_images() -> tuple[Play, ...]:
    bake = ("image", "bake", "--env", "tf2-small", "--yes")
    prune = ("image", "prune", "--keep", "0", "--yes")
    copy = ("image", "copy", "tf2-small", "us-east-2")
    # Of what was pruned there is no copy.
    pruned = End(0, again_codes=(0, *NOBODY))
    return tuple(
        Play(name, words, prepare, 0, done, has_first_files=False, rival=rival, or_else=or_else)
        for name, words, prepare, done, rival, or_else in (
            ("image bake", bake, initialised, has_image, prune, None),
            ("image copy", copy, baked, _has_copy, prune, pruned),
            ("image prune", prune, baked, _has_no_image, bake, None),
        )
    )
