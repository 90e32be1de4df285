"""
The machines that stand behind simulated instances: what the simulated EC2 tells a machine, and what it asks of one.

Kinds: `none` (nothing boots), `process` (an ssh server, a private folder and JupyterLab; no root) and `container` (a real boot of
systemd and cloud-init; root on Linux). A kind hides how a machine is made; it refuses by raising `CannotBoot`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


class CannotBoot(Exception):
    """The host lacks something a machine of this kind needs; the text says what and how to install it."""


@dataclass(frozen=True)
class Disk:
    """
    One EBS volume of an instance.

    Attributes:
        device: As the caller named it, `/dev/sda1`, `/dev/sdf`.
        is_root: The volume the instance boots from.
        delete_on_termination: Whether it ends with the instance; otherwise it survives in the kind's keeping, by volume id.
    """

    volume_id: str
    device: str
    size_gib: int
    is_root: bool
    delete_on_termination: bool


@dataclass(frozen=True)
class Ingress:
    """One allowed way in, from the instance's security groups; what is not listed is dropped."""

    protocol: str
    from_port: int
    to_port: int
    cidr: str


@dataclass(frozen=True)
class Birth:
    """
    What RunInstances decided: everything a machine needs to start.

    Attributes:
        private_address: Chosen by the machine kind where it needs to; see `MachineKind.addresses`.
        public_key: OpenSSH line of the key pair; empty when the launch named none.
        user_data: Raw bytes as the instance reads them (decoded, possibly gzip); empty when none.
        tags: All instance tags; visible in the metadata only when `tags_in_metadata`.
        http_tokens: `required` or `optional` (IMDSv2).
        role: Name of the instance role; empty when none.
        endpoint: URL at which this simulated AWS answers, as seen from the caller's host.
    """

    instance_id: str
    account: str
    region: str
    zone: str
    instance_type: str
    image_id: str
    market: str
    private_address: str
    public_address: str
    public_key: str
    user_data: bytes
    tags: Mapping[str, str]
    launched_at: datetime
    tags_in_metadata: bool = False
    http_tokens: str = "required"
    hop_limit: int = 1
    http_endpoint: bool = True
    role: str = ""
    disks: tuple[Disk, ...] = ()
    ingress: tuple[Ingress, ...] = ()
    security_groups: tuple[str, ...] = ()
    endpoint: str = ""
    speed: float = 1.0


@dataclass(frozen=True)
class LiveMetadata:
    """
    The part of an instance's metadata that changes while it runs; replaced as a whole by `Machine.publish`.

    Attributes:
        notice: `{"action": "terminate", "time": "...Z"}` after a spot notice, else `None`.
        rebalance_at: When a rebalance recommendation was made; `None` without one.
        credentials: The body of `iam/security-credentials/ROLE`; `None` without a role.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    notice: Mapping[str, str] | None = None
    rebalance_at: datetime | None = None
    credentials: Mapping[str, str] | None = None


class Machine(Protocol):
    """One machine behind one instance. Every call returns quickly; work goes on in the background."""

    @property
    def door(self) -> tuple[str, int] | None:
        """Host and port where its ssh is reached from this host, or `None` while there is none."""

    def console(self) -> str:
        """Everything the machine has written to its console so far."""

    def publish(self, metadata: LiveMetadata) -> None:
        """Replace the changing part of the metadata."""

    def admit(self, ingress: tuple[Ingress, ...]) -> None:
        """Replace the rules of what may come in."""

    def power_off(self) -> None:
        """Begin a clean power-off; `on_exit` is called when it is off. Harmless on a machine that is off."""

    def cut(self) -> None:
        """Cut the power; `on_exit` is called when it is off. Harmless on a machine that is off."""

    def power_on(self) -> None:
        """Boot again from the same disks after a power-off (EC2 StartInstances)."""

    def attach(self, disk: Disk) -> None:
        """Attach a volume while it runs."""

    def detach(self, volume_id: str) -> None:
        """Detach a volume."""

    def discard(self) -> None:
        """Remove what is left of an ended machine; volumes that outlive it stay in the kind's keeping."""


class MachineKind(Protocol):
    """A way to make machines."""

    name: str

    def boot(self, birth: Birth, *, on_exit: Callable[[str], None]) -> Machine:
        """
        Start a machine and return at once, before it has booted.

        Args:
            birth: What EC2 knows of the instance.
            on_exit: Called once with the instance id each time the machine goes off by whatever cause: from inside
                (`poweroff`), by `power_off` or by `cut`. May be called from another thread.

        Raises:
            CannotBoot: Nothing was started.
        """

    def addresses(self) -> tuple[str, str] | None:
        """A fresh (private, public) address pair for the next instance, or `None` to let the simulated EC2 choose."""

    def endpoint_host(self) -> str:
        """The host name or address under which machines of this kind reach a server that listens on this host."""

    def delete_volume(self, volume_id: str) -> None:
        """Remove a kept volume; unknown ids are ignored."""

    def close(self) -> None:
        """End every machine and give back everything: processes, mounts, namespaces, folders."""
