"""
Machines that really boot: systemd, unpatched cloud-init, sshd. Hides Linux namespaces, mounts and cgroups; refuses without root.

`open_kind(environ)` gives the `MachineKind`; `build(environ)` makes the root file system it starts from, once.
"""

from gpulab.sandbox.machines.container.image import build
from gpulab.sandbox.machines.container.kind import ContainerKind, open_kind
from gpulab.sandbox.machines.container.requirements import missing

__all__ = ["ContainerKind", "build", "missing", "open_kind"]
