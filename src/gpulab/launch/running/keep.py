"""
The kept work of names that may have no instance any more: listed, fetched, deleted. In the account's bucket, or in a folder here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.workspace import Bucket, KeptFile, KeptManifest
from gpulab.errors import StoreError, UnsafeArchive, WrongUsage, disk_hint
from gpulab.launch.account.storage import our_bucket, prefix
from gpulab.launch.context import Context
from gpulab.model.nearest import did_you_mean
from gpulab.remote import archive
from gpulab.remote.copying import CopyReport
from gpulab.remote.manifest import Skipped, digest, read_local
from gpulab.store.files import copy_private, private_folder

_AT_ONCE = 8


@dataclass(frozen=True)
class KeptWork:
    """
    The kept work of one name.

    Attributes:
        where: `s3://BUCKET/PREFIX` or a folder, as people read it.
        files: Regular files.
        bytes: Their size; old versions in the bucket not counted.
        saved_at: When it was last kept; aware UTC; `None` if not known.
        is_in_bucket: In the account's bucket, otherwise in a folder on this computer.
    """

    name: str
    where: str
    files: int
    bytes: int
    saved_at: datetime | None
    is_in_bucket: bool


def kept(context: Context) -> tuple[KeptWork, ...]:
    """
    List the kept work, sorted by name; a name may be kept in both places.

    Raises:
        GpulabError: The bucket cannot be read.
    """
    folders = [_in_folder(f) for f in _folders(context)]
    found = [*folders, *_in_bucket(context)]
    return tuple(sorted(found, key=lambda w: (w.name, w.is_in_bucket)))


def find(context: Context, name: str | None, *, up: Sequence[str] = ()) -> KeptWork:
    """
    Find the kept work of a name, the newest where it is kept in both places.

    Args:
        name: `None` for the only one there is.
        up: Names of instances that may have been meant.

    Raises:
        WrongUsage: There is none, or several and no name.
    """
    works = kept(context)
    fitting = [w for w in works if name in (None, w.name)]
    names = sorted({w.name for w in works})
    if not fitting:
        what = f"no work of `{name}` is kept" if name else "no work is kept"
        hint = (
            f"There is {', '.join(names)}"
            if names
            else "`gpulab stop` keeps the work of what is up"
        )
        if name:
            hint = did_you_mean(name, (*up, *names), otherwise=hint)
        raise WrongUsage(what, hint=hint)
    if name is None and len(names) > 1:
        raise WrongUsage(
            f"the work of {len(names)} names is kept: {', '.join(names)}", hint="Name one of them"
        )
    return max(fitting, key=lambda w: (w.saved_at or datetime.fromtimestamp(0, UTC), w.where))


def kept_here(context: Context, name: str) -> KeptWork | None:
    """Return the work of a name that is kept in a folder on this computer; `None` where there is none."""
    folder = context.folder.work / name
    return _in_folder(folder) if folder.is_dir() else None


def environment(context: Context, name: str) -> str:
    """
    Say in which lab environment the work of a name was kept in the bucket; `""` where there is none.

    Raises:
        GpulabError: The bucket cannot be read.
    """
    if not context.profile.keep_bucket:
        return ""
    bucket = our_bucket(context)
    found = workspace.read_manifest(context.cloud, bucket, prefix(context, name))
    return found.environment if found else ""


def content(context: Context, work: KeptWork, path: str) -> bytes:
    """
    Read one small file of kept work; empty where there is none.

    Raises:
        StoreError: The copy is damaged, or this computer cannot read it.
        GpulabError: The bucket cannot be read.
    """
    if not work.is_in_bucket:
        file = context.folder.work / work.name / path
        try:
            return file.read_bytes() if file.is_file() else b""
        except OSError as error:
            raise StoreError(
                f"could not read {file}: {error.strerror}", hint=disk_hint(error)
            ) from error
    bucket = our_bucket(context)
    manifest = workspace.read_manifest(context.cloud, bucket, prefix(context, work.name))
    found = next((f for f in manifest.files if f.path == path), None) if manifest else None
    if found is None:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        workspace.download(context.cloud, bucket, found, Path(folder, "file"))
        return Path(folder, "file").read_bytes()


def fetch(context: Context, work: KeptWork, into: Path, *, below: str = "") -> CopyReport:
    """
    Copy kept work into a folder, every file compared by its hash. Files that are only there stay; links are left out.

    Args:
        below: Only what is in this folder of it, a safe path; empty for all.

    Raises:
        StoreError: The copy is damaged, or this computer's disk is full; what was right is there.
        GpulabError: The bucket cannot be read.
    """
    if not work.is_in_bucket:
        return _copy_folder(context.folder.work / work.name / below, into)
    bucket = our_bucket(context)
    manifest = workspace.read_manifest(context.cloud, bucket, prefix(context, work.name))
    if manifest is None:
        raise StoreError(f"the kept work of {work.name} is gone")
    return bring(context, bucket, _below(manifest, below), into)


def bring(context: Context, bucket: Bucket, manifest: KeptManifest, into: Path) -> CopyReport:
    """
    Copy what a manifest lists from a bucket into a folder, as `fetch` does.

    Raises:
        StoreError, GpulabError: As `fetch`.
    """
    safe, skipped = _safe(manifest)
    there = {p: e["sha256"] for p, e in read_local(into).entries.items()}
    todo = [f for f in safe if there.get(f.path) != f.sha256]
    _make_folders(into, todo)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda f: workspace.download(context.cloud, bucket, f, into / f.path), todo))
    hashes = {f.path: f.sha256 for f in safe}
    size = sum(f.size_bytes for f in todo)
    return _report(len(todo), size, hashes, skipped, way="s3")


def forget(context: Context, work: KeptWork) -> None:
    """
    Delete kept work, old versions too. It cannot be undone.

    Raises:
        GpulabError: AWS refuses, or the folder cannot be deleted; some may be left.
    """
    if work.is_in_bucket:
        where = prefix(context, work.name)
        workspace.delete_prefix(context.cloud, our_bucket(context), where)
        return
    try:
        shutil.rmtree(context.folder.work / work.name)
    except OSError as error:
        raise StoreError(
            f"could not delete {work.where}: {error.strerror}", hint=disk_hint(error)
        ) from error


def _in_bucket(context: Context) -> Iterable[KeptWork]:
    if not context.profile.keep_bucket:
        return
    bucket = our_bucket(context)
    for name in workspace.names(context.cloud, bucket, owner=context.owner):
        where = prefix(context, name)
        found = workspace.read_manifest(context.cloud, bucket, where)
        if found is not None:
            shown = f"s3://{bucket.name}/{where}"
            yield KeptWork(name, shown, len(found.files), found.size_bytes, found.at, True)  # noqa: FBT003 - the last field


def _folders(context: Context) -> list[Path]:
    return sorted(f for f in context.folder.work.iterdir() if f.is_dir() and f.name[0] != ".")


def _in_folder(folder: Path) -> KeptWork:
    try:
        files = [f.stat() for f in folder.rglob("*") if f.is_file() and not f.is_symlink()]
        saved_at = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    except OSError as error:
        raise StoreError(
            f"could not read {folder}: {error.strerror}", hint=disk_hint(error)
        ) from error
    size = sum(f.st_size for f in files)
    return KeptWork(folder.name, str(folder), len(files), size, saved_at, is_in_bucket=False)


def _below(manifest: KeptManifest, folder: str) -> KeptManifest:
    """Only what is in a folder, by its paths in there."""
    if not folder:
        return manifest
    start = f"{folder}/"
    return replace(
        manifest,
        files=tuple(
            replace(f, path=f.path.removeprefix(start))
            for f in manifest.files
            if f.path.startswith(start)
        ),
        links=tuple(p.removeprefix(start) for p in manifest.links if p.startswith(start)),
    )


def _safe(manifest: KeptManifest) -> tuple[list[KeptFile], tuple[Skipped, ...]]:
    """Leave out, with the reason, what may not or cannot be written here: the instance wrote these names."""
    skipped = [Skipped(path, "a link") for path in manifest.links]
    if not manifest.is_complete:
        skipped.insert(0, Skipped("newer files", "the last save was cut before its end"))
    named, good = [], []
    for file in manifest.files:
        reason = archive.unsafe_name(file.path)
        if reason:
            skipped.append(Skipped(file.path, reason))
        else:
            named.append(file)
    earlier_ones = archive.collisions(file.path for file in named)
    for file, (path, earlier) in zip(named, earlier_ones, strict=True):
        if earlier:
            skipped.append(Skipped(path, f"the same file as {earlier!a} on some systems"))
        else:
            good.append(file)
    return good, tuple(skipped)


def _make_folders(into: Path, files: Iterable[KeptFile]) -> None:
    """Make the folders the files go to; a link on the way would lead out of the destination."""
    try:
        private_folder(into)
        for folder in sorted({(into / f.path).parent for f in files}):
            private_folder(folder)
            if not folder.resolve().is_relative_to(into.resolve()):
                raise UnsafeArchive(f"{folder} leads out of {into} through a link")
    except OSError as error:
        raise StoreError(
            f"could not write {into}: {error.strerror}", hint=disk_hint(error)
        ) from error


def _copy_folder(source: Path, into: Path) -> CopyReport:
    """Copy a folder of this computer, compared by hash afterwards."""
    here, there = read_local(source), read_local(into)
    todo = [
        p for p, e in here.entries.items() if there.entries.get(p, {}).get("sha256") != e["sha256"]
    ]
    try:
        private_folder(into)
        for path in todo:
            copy_private(source / path, into / path)
    except OSError as error:
        raise StoreError(
            f"could not write {into}: {error.strerror}", hint=disk_hint(error)
        ) from error
    copied = read_local(into).entries
    hashes = {p: e["sha256"] for p, e in here.entries.items()}
    wrong = [p for p in todo if copied.get(p, {}).get("sha256") != hashes[p]]
    if wrong:
        raise StoreError(f"{wrong[0]} was not copied whole", hint="Repeat the command")
    size = sum(here.entries[p]["size"] for p in todo)
    return _report(len(todo), size, hashes, here.skipped, way="folder")


def _report(
    files: int, size: int, hashes: dict[str, str], skipped: tuple[Skipped, ...], *, way: str
) -> CopyReport:
    return CopyReport(
        files=files,
        bytes=size,
        unchanged=len(hashes) - files,
        skipped=skipped,
        changing=(),
        verified_files=len(hashes),
        verified_sha256=digest(hashes),
        way=way,
    )
