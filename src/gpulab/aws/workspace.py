"""
The kept work in the account's bucket: listed, read, fetched, deleted. `workspace_setup` makes the bucket.

Hides S3. Every call names the expected owner of the bucket, so that a bucket somebody else made under our name is refused.

The layout of a name's kept work, written by the agent: `OWNER/NAME/manifest.json` (after them, so it is true of what is there) and the files it lists.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import AwsError, NotFound, StoreError
from gpulab.model.moment import read_moment

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SHA256 = re.compile(r"[0-9a-f]{64}")
# An instance wrote the manifest, and any notebook there was root. That of 100,000 files has 28 MB, and takes several times that here.
_MOST_MANIFEST_BYTES = 256 << 20
_SEVERAL_AT_ONCE_BYTES = 4 << 20
_ONE_BIG_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Bucket:
    """
    Our bucket.

    Attributes:
        account_id: Whose it must be; every call says so.
    """

    name: str
    region: str
    account_id: str


@dataclass(frozen=True)
class KeptFile:
    """
    One kept file.

    Attributes:
        path: Below the work folder, with `/`; from the instance, so not to be trusted as a path.
        key: Where it lies in the bucket.
        version: S3's version of it; `""` for the current one.
    """

    path: str
    key: str
    version: str
    size_bytes: int
    sha256: str
    mode: int
    modified_ns: int


@dataclass(frozen=True)
class KeptManifest:
    """
    What was kept of one name.

    Attributes:
        at: When the save began; aware UTC; `None` if unreadable.
        files: Sorted by path.
        links: Paths of symbolic links; they are not fetched to a laptop.
        environment: The lab environment it was made in; `""` where the manifest does not say.
        is_complete: False where the save was cut before its end, so that newer files may be missing.
    """

    at: datetime | None
    launch_id: str
    files: tuple[KeptFile, ...]
    links: tuple[str, ...]
    environment: str = ""
    is_complete: bool = True

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(f.size_bytes for f in self.files)


def put(cloud: Cloud, bucket: Bucket, key: str, body: bytes) -> None:
    """Write one object, replacing what is there."""
    s3: S3Client = cloud.client("s3", bucket.region)
    with cloud.explained(f"write to {bucket.name}"):
        s3.put_object(Bucket=bucket.name, Key=key, Body=body, ExpectedBucketOwner=bucket.account_id)


@explained("list what is in the bucket")
def keys(cloud: Cloud, bucket: Bucket, *, prefix: str) -> tuple[str, ...]:
    """List every object under a prefix, sorted."""
    pages = cloud.pages(
        "s3",
        bucket.region,
        "list_objects_v2",
        doing=f"list what is in {bucket.name}",
        Bucket=bucket.name,
        Prefix=prefix,
        ExpectedBucketOwner=bucket.account_id,
    )
    return tuple(sorted(o["Key"] for page in pages for o in page.get("Contents", [])))


def read(cloud: Cloud, bucket: Bucket, key: str) -> bytes:
    """Read one small object."""
    s3: S3Client = cloud.client("s3", bucket.region)
    with cloud.explained(f"read {key} in {bucket.name}"):
        reply = s3.get_object(Bucket=bucket.name, Key=key, ExpectedBucketOwner=bucket.account_id)
        return reply["Body"].read()


@explained("list the kept work")
def names(cloud: Cloud, bucket: Bucket, *, owner: str) -> tuple[str, ...]:
    """List the names with kept work, sorted; a folder that begins with a dot holds none."""
    pages = cloud.pages(
        "s3",
        bucket.region,
        "list_objects_v2",
        doing=f"list the kept work in {bucket.name}",
        Bucket=bucket.name,
        Prefix=f"{owner}/",
        Delimiter="/",
        ExpectedBucketOwner=bucket.account_id,
    )
    found = (p["Prefix"] for page in pages for p in page.get("CommonPrefixes", []))
    listed = (prefix.split("/")[1] for prefix in found)
    return tuple(sorted(name for name in listed if not name.startswith(".")))


def read_manifest(cloud: Cloud, bucket: Bucket, prefix: str) -> KeptManifest | None:
    """
    Read what was kept under a prefix; `None` when nothing ever was.

    Raises:
        StoreError: The manifest is damaged, or larger than any work needs.
        AwsError: AWS refuses.
    """
    key = f"{prefix}manifest.json"
    try:
        body = _read_up_to(cloud, bucket, key, _SEVERAL_AT_ONCE_BYTES)
        if body is not None:
            return _parsed(bucket, prefix, body)
        with _ONE_BIG_AT_A_TIME:
            body = _read_up_to(cloud, bucket, key, _MOST_MANIFEST_BYTES)
            if body is not None:
                return _parsed(bucket, prefix, body)
    except NotFound:
        return None
    raise StoreError(
        f"the manifest {key} in {bucket.name} is larger than {_MOST_MANIFEST_BYTES >> 20} MiB",
        hint="The files lie beside it as plain files",
    )


@explained("list the kept work")
def missing(cloud: Cloud, bucket: Bucket, prefix: str, manifest: KeptManifest) -> tuple[str, ...]:
    """Name the files of a manifest that are not in the bucket with that size; one call for a thousand files."""
    pages = cloud.pages(
        "s3",
        bucket.region,
        "list_objects_v2",
        doing=f"list the kept work in {bucket.name}",
        Bucket=bucket.name,
        Prefix=prefix,
        ExpectedBucketOwner=bucket.account_id,
    )
    there = {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", [])}
    return tuple(f.path for f in manifest.files if there.get(f.key) != f.size_bytes)


def download(cloud: Cloud, bucket: Bucket, file: KeptFile, place: Path) -> None:
    """
    Fetch one file and compare its hash; the place is whole or untouched.

    Args:
        place: Where to put it; its folder exists, and the caller has checked the path.

    Raises:
        StoreError: The copy is not what its manifest says, or this computer's disk is full.
        AwsError: AWS refuses.
    """
    s3: S3Client = cloud.client("s3", bucket.region)
    which: dict[str, Any] = {"VersionId": file.version} if file.version else {}
    part = place.with_name(f".gpulab-{hashlib.sha256(place.name.encode()).hexdigest()[:16]}")
    try:
        with cloud.explained(f"fetch {file.key}"):
            reply = s3.get_object(
                Bucket=bucket.name,
                Key=file.key,
                ExpectedBucketOwner=bucket.account_id,
                **which,
            )
            with closing(reply["Body"]) as body:
                digest = _write(body, part, file)
        if digest != file.sha256:
            raise StoreError(
                f"the kept copy of {file.path!r} is not what its manifest says",
                hint="An older version of it may be whole: S3 keeps them for 30 days",
            )
        part.chmod(file.mode & 0o700 | 0o600)
        part.replace(place)
    except OSError as error:
        raise StoreError(f"could not write {place}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@explained("delete kept work")
def delete_prefix(cloud: Cloud, bucket: Bucket, prefix: str) -> int:
    """
    Delete everything under a prefix, all versions; return how many were deleted. It cannot be undone.

    Args:
        prefix: Ends with a slash and has at least two parts, so that no slip deletes everything.

    Raises:
        AwsError: AWS refuses; some may be left, and the same call goes on.
    """
    if not prefix.endswith("/") or prefix.count("/") < 2 or prefix.startswith("/"):
        raise ValueError(f"{prefix!r} is not the prefix of one name's work")
    s3: S3Client = cloud.client("s3", bucket.region)
    deleted = 0
    for page in _versions(cloud, bucket, prefix):
        rows = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        objects: Any = [{"Key": row["Key"], "VersionId": row["VersionId"]} for row in rows]
        if not objects:
            continue
        with cloud.explained(f"delete kept work in {bucket.name}"):
            reply = s3.delete_objects(
                Bucket=bucket.name,
                Delete={"Objects": objects, "Quiet": True},
                ExpectedBucketOwner=bucket.account_id,
            )
        for error in reply.get("Errors", []):
            raise AwsError(
                f"could not delete {error.get('Key')} ({error.get('Code')})",
                hint="Repeat the command; it goes on where it stopped",
                code=error.get("Code", ""),
            )
        deleted += len(objects)
    return deleted


def _versions(cloud: Cloud, bucket: Bucket, prefix: str) -> Iterator[Mapping[str, Any]]:
    return cloud.pages(
        "s3",
        bucket.region,
        "list_object_versions",
        doing=f"list the kept work in {bucket.name}",
        Bucket=bucket.name,
        Prefix=prefix,
        ExpectedBucketOwner=bucket.account_id,
    )


def _read_up_to(cloud: Cloud, bucket: Bucket, key: str, most_bytes: int) -> bytes | None:
    """Read an object; `None` where it is larger."""
    s3: S3Client = cloud.client("s3", bucket.region)
    with cloud.explained(f"read the kept work in {bucket.name}"):
        reply = s3.get_object(Bucket=bucket.name, Key=key, ExpectedBucketOwner=bucket.account_id)
        with closing(reply["Body"]) as body:
            return body.read() if reply["ContentLength"] <= most_bytes else None


def _parsed(bucket: Bucket, prefix: str, body: bytes) -> KeptManifest:
    try:
        return _manifest(json.loads(body), prefix)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"the manifest {prefix}manifest.json in {bucket.name} is damaged",
            hint="The files lie beside it as plain files; older versions of both are kept for 30 days",
        ) from error


def _write(body: Any, place: Path, file: KeptFile) -> str:
    """Write what comes, no more of it than the manifest says: who wrote both may want this computer's disk full."""
    digest, written = hashlib.sha256(), 0
    # Before the first byte, and not through a link: the folder may be open to everybody on this computer.
    place.unlink(missing_ok=True)
    place.touch(0o600, exist_ok=False)
    with place.open("wb") as out:
        for chunk in body.iter_chunks(1 << 20):
            written += len(chunk)
            if written > file.size_bytes:
                raise StoreError(
                    f"the kept copy of {file.path!r} is not what its manifest says: it is larger",
                    hint="An older version of it may be whole: S3 keeps them for 30 days",
                )
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def _manifest(found: Mapping[str, Any], prefix: str) -> KeptManifest:
    entries = sorted(found["entries"], key=lambda e: e["path"])
    plain = [e for e in entries if e.get("link") is None and not e["path"].endswith("/")]
    return KeptManifest(
        at=read_moment(found.get("at")),
        launch_id=str(found.get("launch", "")),
        files=tuple(_file(e, prefix) for e in plain),
        links=tuple(e["path"] for e in entries if e.get("link") is not None),
        environment=str(found.get("environment", "")),
        is_complete=found.get("complete") is not False,
    )


def _file(entry: Mapping[str, Any], prefix: str) -> KeptFile:
    key = str(entry["key"])
    if not key.startswith(prefix):
        raise ValueError("a manifest names a file outside its prefix")
    return KeptFile(
        path=str(entry["path"]),
        key=key,
        version=str(entry.get("version") or ""),
        size_bytes=_whole(entry["size"]),
        sha256=_hash(entry["sha256"]),
        mode=_whole(entry.get("mode", 0o600)),
        modified_ns=_whole(entry.get("mtime_ns", 0), least=-(2**63)),
    )


def _whole(value: object, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError("a number that is none")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("a hash that is none")
    return value
