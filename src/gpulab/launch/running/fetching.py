"""
Where the account has no bucket: while a tunnel is open, changed work comes to this computer over ssh, so that an instance which is taken
back costs less than a minute of edits. Never replaces kept work by that of an instance which did not get it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpulab.errors import GpulabError, StoreError, Unreachable
from gpulab.launch.account.storage import has_bucket
from gpulab.launch.context import Context
from gpulab.launch.running import agent
from gpulab.launch.running.lineage import filling, has_work, note_has_work, note_part
from gpulab.model.instance import Instance
from gpulab.remote import copying
from gpulab.remote.glance import Glance, glance
from gpulab.remote.host import Host
from gpulab.remote.target import SshTarget

EVERY_S = 30.0
LARGEST_BYTES = 100 << 20
# What `gpulab-agent` leaves out of a kept copy as well, as far as it is a plain name.
EXCLUDED = ("__pycache__", ".cache", ".virtual_documents", "lost+found", "node_modules")
_ENDS_WITHIN_S = 5.0


@contextmanager
def fetching(
    context: Context,
    instance: Instance,
    *,
    target: Callable[[], SshTarget],
    say: Callable[[str], None],
) -> Iterator[None]:
    """
    Fetch changed work beside the block, where the account has no bucket.

    Args:
        target: Where the instance is now.
        say: Told what is left out, and what keeps the work from coming, each once.
    """
    if has_bucket(context):
        yield
        return
    folder = context.folder.work / instance.name
    fetcher = Fetcher(folder, say)

    def look() -> None:
        reached = target()
        try:
            if not folder.exists():
                note_has_work(context, reached.instance_id)
            may_fetch = has_work(context, reached.instance_id)
            if may_fetch:
                note_part(context, instance.name, reached.instance_id)
        except StoreError as error:
            fetcher.refuse(error)
        else:
            fetcher.round(context.host(reached) if may_fetch else None)

    with _beside(look, say):
        yield


@contextmanager
def fetching_by_ticket(
    context: Context, name: str, reached: SshTarget, *, say: Callable[[str], None]
) -> Iterator[None]:
    """
    Fetch changed work of an instance that a ticket opens, beside the block, as long as the instance keeps nothing in a bucket by itself.

    Into `work/NAME`; where that has the work of another instance, which may not have reached this one, into a folder of its own.

    Args:
        say: As for `fetching`; told where the work goes, too.
    """
    try:
        folder = _folder_for(context, name, reached.instance_id)
    except StoreError as error:
        # The student's tunnel needs no notes.
        say(f"The work is not copied here: {error.message}")
        yield
        return
    fetcher = Fetcher(folder, say)
    said: list[str] = []

    def look() -> None:
        host = context.host(reached)
        if _keeps_by_itself(host):
            return
        if not said:
            said.append(f"While this is open, the work is copied to {folder} every {EVERY_S:.0f} s")
            say(said[0])
        fetcher.round(host)

    with _beside(look, say):
        yield


def _folder_for(context: Context, name: str, instance_id: str) -> Path:
    folder = context.folder.work / name
    if folder.exists() and not has_work(context, instance_id):
        return folder.with_name(f"{name}-{instance_id}")
    note_has_work(context, instance_id)
    return folder


def _keeps_by_itself(host: Host) -> bool:
    """Whether the instance has kept its work in a bucket; one that does not say is believed not to have."""
    try:
        return agent.status(host).saved_at is not None
    except GpulabError:
        return False


@contextmanager
def _beside(look: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Look again and again in a thread, as long as the block lasts; what nobody foresaw is said, and the next look comes."""
    over = threading.Event()

    def work() -> None:
        said = ""
        while not over.wait(EVERY_S):
            try:
                look()
            except Exception as error:  # the next copy may be all that outlives the instance
                text = f"The work was not copied here: {type(error).__name__}: {error}"
                if text != said:
                    say(_printable(text))
                said = text

    thread = threading.Thread(target=work, name="fetching", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_ENDS_WITHIN_S)


class Fetcher:
    """
    Brings what has changed since the last round into a folder; what fails is told and tried again.

    Args:
        source: Folder on the instance, below the login folder or absolute.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, source: str = "work") -> None:
        self._folder = folder
        self._say = say
        self._source = source
        self._known = Glance()
        self._of = ""
        self._said = ""
        self._large: tuple[str, ...] = ()
        self._skipped: dict[str, str] = {}

    def round(self, host: Host | None) -> None:
        """
        Look once and fetch what has changed.

        Args:
            host: `None` when the instance did not get what is kept in the folder.
        """
        if host is None:
            self._once(
                f"The work is not copied here meanwhile: what is kept in {self._folder} did not reach this instance"
            )
            return
        if host.target.instance_id != self._of:
            self._known, self._of = Glance(), host.target.instance_id
        try:
            with filling(self._folder) as is_ours:
                if is_ours:  # otherwise `gpulab stop` fetches and compares all of it right now
                    self._fetch(host)
        except Unreachable:
            return  # the tunnel says so, and the next round comes
        except GpulabError as error:
            self._once(f"The work is not copied here: {error.message}")
        else:
            self._said = ""

    def refuse(self, error: StoreError) -> None:
        """Fetch nothing this time, and say why: without its notes nothing may be replaced."""
        self._once(f"The work is not copied here: {error.message}")

    def _fetch(self, host: Host) -> None:
        seen = glance(host, self._source, self._known, exclude=EXCLUDED)
        if seen is self._known:
            return
        changed = seen.changed_since(self._known)
        small = tuple(path for path in changed if seen.files[path][0] <= LARGEST_BYTES)
        skipped = {p: why for p, why in self._skipped.items() if p in seen.files and p not in small}
        if small:
            report = copying.pull(host, self._source, self._folder, only=small, exclude=EXCLUDED)
            seen = replace(seen, young=seen.young | frozenset(report.changing))
            skipped |= {one.path: one.reason for one in report.skipped}
        self._known = seen
        self._tell_skipped(dict(seen.others) | skipped)
        self._tell_large(
            tuple(path for path, (size, _) in sorted(seen.files.items()) if size > LARGEST_BYTES)
        )

    def _tell_large(self, large: tuple[str, ...]) -> None:
        if large == self._large:
            return
        self._large = large
        if large:
            self._say(
                f"{large[0]}{_more(large)}, over {LARGEST_BYTES >> 20} MiB, comes to this computer at `gpulab stop` only"
            )

    def _tell_skipped(self, skipped: dict[str, str]) -> None:
        new = [path for path in sorted(skipped) if path not in self._skipped]
        self._skipped = skipped
        if new:
            self._say(
                f"{_printable(new[0])} ({skipped[new[0]]}){_more(new)} will not come to this computer"
            )

    def _once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


def _more(paths: Sequence[str]) -> str:
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""


def _printable(path: str) -> str:
    """A name as it may be shown: what an instance sends may hold anything."""
    return path if path.isprintable() else ascii(path)
