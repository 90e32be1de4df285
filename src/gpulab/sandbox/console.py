"""R15: what GetConsoleOutput shows: nothing at first, later the boot text with the host keys between their markers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gpulab.sandbox import moto_bridge
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World

#: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleOutput.html
_LARGEST_BYTES = 64 * 1024

_BOOT = """\
[    0.000000] Linux version 6.8.0-1018-aws (buildd@lcy02-amd64-053) (simulated)
[    0.000000] Command line: BOOT_IMAGE=/vmlinuz-6.8.0-1018-aws root=PARTUUID=simulated ro console=tty1 console=ttyS0
[    4.318224] cloud-init[681]: Cloud-init v. 24.4-0ubuntu1~24.04.1 running 'init' at {at}. Up 4.31 seconds.
ci-info: +++++++++++++++++++++++++++++++++++++++Net device info+++++++++++++++++++++++++++++++++++++++
ci-info: |  ens5  | True | {private} | 255.255.240.0 | global |
<14>{at} cloud-init: #############################################################
<14>{at} cloud-init: -----BEGIN SSH HOST KEY FINGERPRINTS-----
<14>{at} cloud-init: 256 {fingerprint} root@{host} (ED25519)
<14>{at} cloud-init: -----END SSH HOST KEY FINGERPRINTS-----
<14>{at} cloud-init: #############################################################
-----BEGIN SSH HOST KEY KEYS-----
{key} root@{host}
-----END SSH HOST KEY KEYS-----
[   21.071934] cloud-init[1204]: Cloud-init v. 24.4-0ubuntu1~24.04.1 finished at {at}. Datasource DataSourceEc2Local.  Up 21.07 seconds

Ubuntu 24.04.1 LTS {host} ttyS0

{host} login: \
"""


@dataclass(frozen=True)
class HostKey:
    """An ssh host key that nobody listens with; `line` is its public half, `ssh-ed25519 AAAA…`."""

    line: str
    fingerprint: str


def new_host_key() -> HostKey:
    """Make a host key; the same kind a booting instance makes."""
    public = Ed25519PrivateKey.generate().public_key()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return HostKey(line, _fingerprint(line))


def get_console_output(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetConsoleOutput; without `Latest` it shows the snapshot EC2 takes some time after the boot."""
    from gpulab.sandbox.instances import by_ids

    instance = by_ids(world, call)[0]
    is_latest = bool(call.params.get("Latest"))
    if is_latest and not _is_nitro(instance.instance_type):
        raise Refusal(
            "UnsupportedOperation",
            "This instance type does not support retrieving the latest console logs. "
            "You can retrieve the latest console logs only for Nitro-based instances.",
        )
    text = console_text(world, instance, latest=is_latest).encode()[-_LARGEST_BYTES:]
    shown = base64.b64encode(text).decode()
    return write_result(
        call, {"InstanceId": instance.id, "Output": shown, "Timestamp": world.now()}
    )


def console_text(world: World, instance: SimInstance, *, latest: bool) -> str:
    """What the console shows now; empty before the first output."""
    if instance.running_at is None and not instance.is_gone and instance.stopped_at is None:
        return ""
    delays = world.rules.delays
    wait = delays.first_console if latest else delays.console_snapshot
    if instance.running_at is not None and world.now() < instance.running_at + wait:
        return ""
    if instance.machine is not None:
        return instance.machine.console()
    host = "ip-" + str(instance.moto.private_ip).replace(".", "-")
    return _BOOT.format(
        at=instance.launched_at.strftime("%a, %d %b %Y %H:%M:%S +0000"),
        private=instance.moto.private_ip,
        fingerprint=instance.host_key.fingerprint,
        key=instance.host_key.line,
        host=host,
    )


def _is_nitro(instance_type: str) -> bool:
    found = moto_bridge.instance_type(instance_type) or {}
    return found.get("Hypervisor") == "nitro" or bool(found.get("BareMetal"))


def _fingerprint(line: str) -> str:
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


OPERATIONS: Mapping[str, Any] = {"GetConsoleOutput": get_console_output}
