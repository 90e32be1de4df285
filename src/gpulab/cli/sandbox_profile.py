"""The doors to a running sandbox: gpulab's profile, AWS files of its own, and variables for other programs. Leaves other profiles alone."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpulab.sandbox.control import PROFILE, Daemon, folder_of
from gpulab.store.config import change_profile
from gpulab.store.files import write_atomically

if TYPE_CHECKING:
    from gpulab.cli.context import Context


def write_profile(context: Context, daemon: Daemon) -> None:
    """Lead the profile `sandbox` of gpulab, and AWS files of its own, to the sandbox that runs."""
    folder = folder_of(context.environment) / "aws"
    config, credentials = folder / "config", folder / "credentials"
    write_atomically(config, _aws_config(daemon).encode())
    write_atomically(credentials, _aws_credentials(daemon).encode())
    proxy = [sys.executable, "-P", "-m", "gpulab.sandbox", "connect", "%h", "%p"]
    change_profile(
        context.home.config_file,
        PROFILE,
        {
            "aws_profile": PROFILE,
            "aws_config_file": str(config),
            "aws_credentials_file": str(credentials),
            # Nobody on the real internet can say from which address this computer reaches the machines.
            "cidr": f"{daemon.seen_as}/32",
            "ssh_proxy_command": proxy if daemon.machines == "process" else None,
        },
    )


def forget_former_world(context: Context) -> None:
    """
    Clear what the profile remembers of a world that has ended: its launches, its simulated money, its keys of machines, its bucket.

    The ssh key and work kept on this computer stay.
    """
    from gpulab.remote import detached

    folder = context.home.folder(PROFILE)
    for tunnel in detached.listing(folder.tunnels):
        detached.stop(folder.tunnels, tunnel.name)
    for path in folder.root.iterdir():
        if path.name in ("keys", "work"):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    former = ("owner", "keep_bucket", "keep_region", "instance_role", "scheduler_role")
    change_profile(context.home.config_file, PROFILE, dict.fromkeys(former))


def _aws_config(daemon: Daemon) -> str:
    return (
        "# Written by `gpulab sandbox start`; a simulated AWS.\n"
        f"[profile {PROFILE}]\n"
        f"region = {daemon.region}\n"
        f"endpoint_url = {daemon.url}\n"
        "s3 =\n"
        "    addressing_style = path\n"
    )


def _aws_credentials(daemon: Daemon) -> str:
    return (
        "# Made up; they open nothing but the sandbox.\n"
        f"[{PROFILE}]\n"
        f"aws_access_key_id = {daemon.access_key}\n"
        f"aws_secret_access_key = {daemon.secret_key}\n"
    )


def variables(daemon: Daemon) -> dict[str, str | None]:
    """Variables to set, and with `None` those to unset, which would lead a client elsewhere."""
    return {
        "AWS_ENDPOINT_URL": daemon.url,
        "AWS_ACCESS_KEY_ID": daemon.access_key,
        "AWS_SECRET_ACCESS_KEY": daemon.secret_key,
        "AWS_DEFAULT_REGION": daemon.region,
        "AWS_REGION": daemon.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PROFILE": None,
        "AWS_SESSION_TOKEN": None,
    }


def shell_of(environment: Mapping[str, str]) -> str:
    """Return the language of the user's shell: `sh`, `fish` or `powershell`."""
    if os.name == "nt" and "SHELL" not in environment:
        return "powershell"
    return "fish" if environment.get("SHELL", "").endswith("fish") else "sh"


def assignment(shell: str, name: str, value: str | None) -> str:
    """Write one variable in the language of a shell; `None` unsets it."""
    if shell == "fish":
        return f"set -e {name}" if value is None else f"set -gx {name} {shlex.quote(value)}"
    if shell == "powershell":
        if value is None:
            return f"Remove-Item Env:{name} -ErrorAction SilentlyContinue"
        quoted = value.replace("'", "''")
        return f"$Env:{name} = '{quoted}'"
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
