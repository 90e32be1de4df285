"""
User data for cloud-init. Hides its layout; refuses anything over EC2's limit.

It is one `#cloud-config` written as JSON, which is YAML: no value is ever put into YAML or shell by hand.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from gpulab.bootstrap.resources import shipped
from gpulab.bootstrap.shipping import shipped_agent
from gpulab.bootstrap.spec import InstanceSpec
from gpulab.errors import InvalidRequest

# Before base64. https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html, October 2026
LIMIT_BYTES = 16384
_UNITS = ("gpulab-agent.service", "gpulab-environment.service")


def user_data(spec: InstanceSpec) -> bytes:
    """
    Render what RunInstances is given.

    Returns:
        gzip bytes, the same for the same specification: a launch that is asked again must send the same bytes.

    Raises:
        InvalidRequest: It does not fit into 16384 bytes; a lock that is not in the bucket has too many packages.
    """
    text = "#cloud-config\n" + json.dumps(cloud_config(spec), separators=(",", ":"))
    packed = _packed(text.encode())
    if len(packed) > LIMIT_BYTES:
        raise InvalidRequest(
            f"the user data has {len(packed)} bytes, {len(packed) - LIMIT_BYTES} over EC2's limit",
            hint=f"Make the environment {spec.environment.name} smaller"
            + ("" if spec.keep else "; with a bucket (`gpulab init`) its size does not matter"),
        )
    return packed


def _packed(text: bytes) -> bytes:
    # The agent is noise to a compressor and the rest is text. Each gets a deflate stream of its own, the second begun
    # where the first was flushed to a byte; together they are one gzip file (RFC 1952), some hundred bytes smaller.
    split = text.rindex(b'"content":')
    words = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    noise = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 8, zlib.Z_FILTERED)
    body = words.compress(text[:split]) + words.flush(zlib.Z_FULL_FLUSH)
    body += noise.compress(text[split:]) + noise.flush()
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"  # no name, no time: the same bytes for the same text
    return header + body + struct.pack("<II", zlib.crc32(text), len(text))


def cloud_config(spec: InstanceSpec) -> dict[str, Any]:
    """
    Give the cloud-config as data.

    The power-off is armed by `bootcmd`, which runs in the boot's first second, before any file is written;
    the agent takes over a few seconds later. `runcmd` starts units and waits for none of them.
    """
    return {
        "user": spec.user,
        "disable_root": True,
        "ssh_pwauth": False,
        "ssh_genkeytypes": ["ed25519"],
        "manage_etc_hosts": True,
        "locale": "C.UTF-8",
        "bootcmd": [_first_timer(spec.lifetime_seconds)],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", *_UNITS],
            ["systemctl", "start", "--no-block", *_UNITS],
        ],
        "write_files": _files(spec),
    }


def _first_timer(seconds: int) -> list[str]:
    # --no-block and no default dependencies: bootcmd runs before sysinit.target, which the timer would wait for.
    return [
        "systemd-run",
        "--quiet",
        "--no-block",
        "--unit=gpulab-end-0",
        f"--on-active={seconds}",
        "--timer-property=AccuracySec=1s",
        "--timer-property=DefaultDependencies=no",
        "systemctl",
        "poweroff",
    ]


def _files(spec: InstanceSpec) -> list[dict[str, str]]:
    templates = shipped("cloud-init")
    units = sorted((templates / "systemd").iterdir())
    return [
        _file("/etc/gpulab/spec.json", json.dumps(spec.as_json(), separators=(",", ":"))),
        *(
            _file(f"/etc/systemd/system/{unit.name}", _bare(unit.read_text("utf-8")))
            for unit in units
        ),
        _file(
            "/etc/ssh/sshd_config.d/10-gpulab.conf",
            _bare((templates / "ssh" / "10-gpulab.conf").read_text("utf-8")),
        ),
        _file(
            "/usr/local/bin/gpulab-agent",
            shipped_agent(has_bucket=spec.keep is not None),
            mode="0755",
        ),
    ]


def _file(path: str, content: str, *, mode: str = "0644") -> dict[str, str]:
    return {"path": path, "permissions": mode, "content": content}


def _bare(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line and not line.startswith("#"))
