"""
A small, honest stand-in for cloud-init: it reads the user data from the metadata service, writes its files and arms the agent.

What it does not do (packages, users, shell scripts, systemd units, every other module) it names on the console. It never runs a
script as user data, because this is somebody's laptop and not a machine to throw away.
Run as a program by the machine's first process: `python -P -m gpulab.sandbox.machines.process.userdata ROOT`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpulab.sandbox.machines.process.disk import Disk, make_home

_ARM_LIMIT_S = 120
_SSH_LIMIT_S = 60
_LARGEST_CONFIG = 16 * 1024 * 1024
_APPLIED = {"write_files", "ssh_authorized_keys"}


class Refused(Exception):
    """A part of the user data cannot be applied; the text says which and why."""


def read_config(raw: bytes) -> Mapping[str, Any]:
    """
    Read user data as cloud-init would: gzip or plain, `#cloud-config` in JSON or YAML.

    Returns:
        The configuration; empty for empty user data.

    Raises:
        Refused: It is of another kind, or not readable.
    """
    text = _unpacked(raw).decode("utf-8", errors="strict") if raw else ""
    if not text.strip():
        return {}
    first_line = text.split("\n", 1)[0].strip()
    if first_line != "#cloud-config":
        raise Refused(f"user data that begins with `{first_line[:40]}` is not run here")
    config = _parse(text)
    if not isinstance(config, dict):
        raise Refused("the cloud-config is not a mapping")
    return config


def write_file(entry: Mapping[str, Any], disk: Disk) -> Path:
    """
    Write one entry of `write_files` under the machine's disk; its owner is always the machine's user.

    Returns:
        Where it was written on the host.

    Raises:
        Refused: The path leads out of the disk, or the encoding is not known.

    Source:
        https://cloudinit.readthedocs.io/en/latest/reference/modules.html#write-files
    """
    try:
        place = disk.inside(str(entry["path"]))
        content = _decoded(entry)
        mode = int(str(entry.get("permissions", "0644")), 8)
    except KeyError as error:
        raise Refused("an entry of write_files has no path") from error
    except (ValueError, OSError, binascii.Error, EOFError) as error:
        raise Refused(f"write_files: {error}") from error
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("ab" if entry.get("append") else "wb") as file:
        file.write(content)
    place.chmod(mode)
    return place


def apply(config: Mapping[str, Any], disk: Disk, say: Callable[[str], None]) -> None:
    """Apply what this stand-in knows, and say what it leaves out."""
    for entry in config.get("write_files") or []:
        try:
            write_file(entry, disk)
        except Refused as refusal:
            say(f"not applied: {refusal}")
    authorize(disk, [str(key) for key in config.get("ssh_authorized_keys") or []])
    if left_out := sorted(set(config) - _APPLIED):
        say(f"not applied on machines of kind `process`: {', '.join(left_out)}")


def authorize(disk: Disk, keys: list[str]) -> None:
    """Let the owners of these public keys log in; keys already there stay once."""
    file = disk.authorized_keys
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    lines = list(dict.fromkeys([*known, *(key.strip() for key in keys if key.strip())]))
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    file.chmod(0o600)


class Metadata:
    """The instance's own metadata, read as every program on EC2 reads it (IMDSv2)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""

    def read(self, path: str) -> bytes:
        """Return a value, `b""` for one that is not there or a service that is switched off."""
        try:
            self._token = self._token or self._ask("PUT", "/latest/api/token").decode()
            return self._ask("GET", f"/latest/{path}")
        except urllib.error.HTTPError as error:
            error.close()
            return b""

    def _ask(self, method: str, path: str) -> bytes:
        headers = {"X-aws-ec2-metadata-token": self._token} if self._token else {}
        if method == "PUT":
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        request = urllib.request.Request(self._url + path, method=method, headers=headers)  # noqa: S310 - always http, our own service
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            content: bytes = answer.read()
        return content


def main(root: Path) -> int:
    """Do what cloud-init does on the first boot, and on later ones only what it repeats."""
    disk = Disk(root)
    metadata = Metadata(os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"])
    if not disk.born.exists():
        _apply_user_data(metadata.read("user-data"), disk)
        make_home(disk)
        authorize(disk, [metadata.read("meta-data/public-keys/0/openssh-key").decode()])
        disk.born.parent.mkdir(parents=True, exist_ok=True)
        disk.born.touch()
    if disk.agent.exists():
        _arm(disk)
        _wait_for_ssh(disk)
    say("user data: done")
    return 0


def say(text: str) -> None:
    """Write a line to the console."""
    sys.stdout.write(f"[sandbox] {text}\n")
    sys.stdout.flush()


def _apply_user_data(raw: bytes, disk: Disk) -> None:
    try:
        apply(read_config(raw), disk, say)
    except (Refused, UnicodeDecodeError) as refusal:
        say(f"user data not applied: {refusal}")


def _arm(disk: Disk) -> None:
    """Run the agent's first word, which sets the end of the instance; its answer stands on the console."""
    argv = [sys.executable, "-I", str(disk.agent), "--root", str(disk.root), "arm"]
    try:
        code = subprocess.run(argv, timeout=_ARM_LIMIT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code != 0:
        say(f"`gpulab-agent arm` failed with code {code}")


def _wait_for_ssh(disk: Disk) -> None:
    """The ssh server starts beside us and makes the host key, which the agent's setup shows on the console."""
    for _ in range(_SSH_LIMIT_S * 10):
        if disk.ssh_port.exists():
            return
        time.sleep(0.1)
    say("the ssh server did not start")


def _unpacked(raw: bytes) -> bytes:
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            content = file.read(_LARGEST_CONFIG + 1)
    except (OSError, EOFError) as error:
        raise Refused(f"user data is not readable as gzip: {error}") from error
    if len(content) > _LARGEST_CONFIG:
        raise Refused("user data unpacks to more than 16 MiB")
    return content


def _parse(text: str) -> Any:
    body = text.split("\n", 1)[1] if "\n" in text else ""
    with contextlib.suppress(ValueError):
        return json.loads(body)
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise Refused(f"the cloud-config is not readable as YAML: {error}") from error


def _decoded(entry: Mapping[str, Any]) -> bytes:
    """Decode the content of a file by the names that cloud-init gives the encodings."""
    content = entry.get("content", "")
    raw = content if isinstance(content, bytes) else str(content).encode()
    encoding = str(entry.get("encoding", "text/plain")).lower()
    if encoding in ("b64", "base64"):
        return base64.b64decode(raw)
    if encoding in ("gz+b64", "gz+base64", "gzip+b64", "gzip+base64"):
        return gzip.decompress(base64.b64decode(raw))
    if encoding in ("gz", "gzip"):
        return gzip.decompress(raw)
    if encoding == "text/plain":
        return raw
    raise ValueError(f"the encoding {encoding!r} is not known")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
