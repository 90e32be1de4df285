"""
Takes everything of one owner and one machine off a builder before it becomes an image; what `gpulab image bake` gives to `sudo python3 -`.

One file, standard library only, Python 3.10 or newer. Removes keys, tokens, histories, logs, machine ids, the work folder and what user data
wrote, so that the next instance is born as on AWS's own image. Refuses to run on anything but a builder. Prints `{"removed", "left"}`;
exit code 1 when something is left. Nobody can log in afterwards; the timer that ends the builder stays.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = os.environ.get("GPULAB_ROOT", "")
UNITS = ("gpulab-agent.service", "gpulab-environment.service")
# Patterns below the root. {user} is the login user.
GONE = (
    "etc/gpulab",
    "etc/ssh/ssh_host_*",
    "etc/ssh/sshd_config.d/10-gpulab.conf",
    "etc/systemd/system/gpulab-*.service",
    "home/{user}/.bash_history",
    "home/{user}/.cache",
    "home/{user}/.config",
    "home/{user}/.ipython",
    "home/{user}/.jupyter",
    "home/{user}/.local",
    "home/{user}/.python_history",
    "home/{user}/.ssh",
    "home/{user}/.sudo_as_admin_successful",
    "home/{user}/.*_hist*",
    "home/{user}/work",
    "opt/gpulab/agent-*.py",
    "opt/gpulab/cache",
    "root/.bash_history",
    "root/.cache",
    "root/.python_history",
    "root/.ssh/authorized_keys",
    "run/gpulab/token",
    "usr/local/bin/gpulab-agent",
    "var/cache/gpulab",
    "var/lib/amazon/ssm",
    "var/lib/cloud/data",
    "var/lib/cloud/handlers",
    "var/lib/cloud/instance",
    "var/lib/cloud/instances",
    "var/lib/cloud/sem",
    "var/lib/dbus/machine-id",
    "var/lib/dhcp/*.leases",
    "var/lib/gpulab",
    "var/lib/systemd/random-seed",
    "var/log/cloud-init*",
    "var/log/gpulab",
    "var/log/journal/*",
)
EMPTIED = (
    "etc/machine-id",  # empty, not missing: systemd makes a new one at the next boot
    "var/log/auth.log",
    "var/log/btmp",
    "var/log/lastlog",
    "var/log/syslog",
    "var/log/wtmp",
)


def main() -> int:
    """Clean; returns the exit code."""
    try:
        spec = json.loads(Path(f"{ROOT}/etc/gpulab/spec.json").read_bytes())
    except (OSError, ValueError):
        spec = {}
    if spec.get("bake") is not True:
        print("this is no builder: nothing was removed", file=sys.stderr)
        return 1
    user = str(spec["user"])
    if not ROOT and Path("/run/systemd/system").is_dir():
        stop_services(user)
    removed = sum(remove(path) for path in found(user))
    for name in EMPTIED:
        path = Path(f"{ROOT}/{name}")
        if path.exists():
            path.write_bytes(b"")
    os.sync()
    left = [str(path) for path in found(user)]
    print(json.dumps({"removed": removed, "left": left}))
    return 1 if left else 0


def stop_services(user: str) -> None:
    """Stop what writes, and let the next boot's user data start it: its own specification comes with it."""
    subprocess.run(["systemctl", "stop", f"gpulab-jupyter@{user}.service", *UNITS], check=False)
    subprocess.run(
        ["systemctl", "disable", "--quiet", f"gpulab-jupyter@{user}.service", *UNITS], check=False
    )
    subprocess.run(["journalctl", "--rotate"], check=False, capture_output=True)


def found(user: str) -> Iterator[Path]:
    """Everything that must not be in an image and is there."""
    for pattern in GONE:
        yield from sorted(Path(f"{ROOT}/").glob(pattern.format(user=user)))


def remove(path: Path) -> bool:
    """Remove a file or a folder; whether it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return not os.path.lexists(path)


if __name__ == "__main__":
    sys.exit(main())
