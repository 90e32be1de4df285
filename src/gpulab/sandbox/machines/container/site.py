"""
The layer between the base and a machine's own disk: what makes Debian believe it is on EC2, and this host's package settings.

It is made anew for each sandbox, so that a changed certificate or package index never needs a new base. cloud-init is not changed.
"""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path

from gpulab.sandbox.machines.container.commands import ToolFailed, run_tool
from gpulab.sandbox.machines.container.indexes import PackageSettings

HARDWARE = "/usr/local/lib/gpulab-sandbox/hardware"
"""The program that makes device nodes inside a machine; run before cloud-init and after each change of volumes."""

VOLUME_LIST = "/run/gpulab-sandbox"
"""The folder in a machine whose file `volumes` lists them: name, minor number, volume id, one a line."""

UV_CACHE = "/var/cache/uv"
PIP_CACHE = "/var/cache/pip"

# `ubuntu` is the login user of the images gpulab starts on AWS; Debian's own image says `admin`.
# Newer kernels say "Address already assigned" where cloud-init 22.4 waits for "File exists" (cloudinit/net/ephemeral.py), so its
# network stage may not ask the metadata service again in the same boot; on Debian 12's own kernel that makes no difference.
# The kinds of host keys are those of Ubuntu 24.04.
# The apt sources of the base are the host's, which a machine without a free way out may depend on.
_CLOUD_CONFIG = """\
datasource_list: [Ec2]
locale: C.UTF-8
manage_etc_hosts: true
apt: {preserve_sources_list: true}
ssh_genkeytypes: [rsa, ecdsa, ed25519]
updates: {network: {when: [boot-new-instance]}}
system_info: {default_user: {name: ubuntu, gecos: Ubuntu}}
"""

# cloud-init speaks IMDSv2 only where it recognizes EC2: by DMI, which a container has not, or by /sys/hypervisor/uuid, as on Xen.
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html
# The kernel's network settings are the machine's own and may be changed, as on EC2; systemd-nspawn makes them read-only.
# sysfs takes no new files, so a tmpfs with its entries bound into it takes its place.
_HARDWARE_PROGRAM = f"""\
#!/bin/sh
set -eu
if [ ! -e /sys/hypervisor/uuid ]; then
  new=/run/sys-with-hypervisor
  mkdir -p $new
  mount -t tmpfs -o mode=0755 tmpfs $new
  for entry in /sys/*; do
    name=${{entry#/sys/}}
    if [ -d "$entry" ]; then mkdir "$new/$name"; else : > "$new/$name"; fi
    mount --rbind "$entry" "$new/$name"
  done
  mkdir $new/hypervisor
  echo "ec2$(cut -c4-36 /proc/sys/kernel/random/uuid)" > $new/hypervisor/uuid
  mount --rbind $new /sys
fi
if [ ! -w /proc/sys/net/ipv4/ip_forward ]; then
  new=/run/proc-with-net
  mkdir -p $new
  mount -t proc proc $new
  mount --bind $new/sys/net /proc/sys/net
  umount $new
fi
list={VOLUME_LIST}/volumes
ids=/dev/disk/by-id
mkdir -p $ids
for node in /dev/nvme[0-9]*n1 $ids/nvme-Amazon_Elastic_Block_Store_*; do
  case $node in *'*'*) continue ;; esac
  name=$(readlink "$node" || echo "$node")
  grep -q "^${{name##*/}} " $list || rm -f "$node"
done
while read -r name minor volume; do
  [ -b "/dev/$name" ] || mknod -m 660 "/dev/$name" b 7 "$minor"
  chgrp disk "/dev/$name"
  ln -sfn "../../$name" "$ids/nvme-Amazon_Elastic_Block_Store_$volume"
done < $list
"""

_HARDWARE_UNIT = f"""\
[Unit]
Description=The parts of an EC2 instance that a container lacks
DefaultDependencies=no
After=systemd-remount-fs.service
Before=cloud-init-local.service local-fs-pre.target sysinit.target shutdown.target
Wants=local-fs-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={HARDWARE}

[Install]
WantedBy=sysinit.target
"""

# What the host's apt was told about the way to its mirror.
_APT_SETTINGS = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::http",
    "Acquire::https",
    "Acquire::ftp",
)


def make_site(
    folder: Path, *, environ: Mapping[str, str], packages: PackageSettings, name_server: str
) -> None:
    """
    Make the layer.

    Args:
        folder: An empty or absent folder.
        environ: This process's environment: where the host keeps its certificate authorities.
        name_server: The resolver's address until DHCP says it.
    """
    _write(folder, "etc/cloud/cloud.cfg.d/90_gpulab_sandbox.cfg", _CLOUD_CONFIG)
    _write(folder, HARDWARE, _HARDWARE_PROGRAM, mode=0o755)
    _enable_unit(folder, "gpulab-sandbox-hardware.service", _HARDWARE_UNIT)
    _write(folder, "etc/resolv.conf", f"nameserver {name_server}\n")
    _write(folder, "etc/apt/apt.conf.d/95host", apt_settings())
    _write(folder, "etc/pip.conf", packages.pip_conf())
    _write(folder, "root/.config/pip/pip.conf", f"[global]\ncache-dir = {PIP_CACHE}/root\n")
    (folder / "root").chmod(0o700)
    _write(folder, "etc/uv/uv.toml", packages.uv_toml(cache=f"{UV_CACHE}/user"))
    _write(folder, "root/.config/uv/uv.toml", f'cache-dir = "{UV_CACHE}/root"\n')
    for cache in (UV_CACHE, PIP_CACHE):
        (folder / cache.lstrip("/")).mkdir(parents=True)
    _copy_authorities(folder, environ)


def apt_settings() -> str:
    """The lines of the host's apt configuration that say how its mirror is reached; empty where apt is absent."""
    try:
        lines = run_tool("apt-config", "dump").splitlines()
    except ToolFailed:
        return ""
    return "".join(
        f"{line}\n" for line in lines if line.startswith(_APT_SETTINGS) and '""' not in line
    )


def authorities_of(environ: Mapping[str, str]) -> Path | None:
    """The file of certificate authorities this host trusts: the environment's, else OpenSSL's, else Debian's."""
    named = [
        environ.get(name, "") for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    ]
    usual = [ssl.get_default_verify_paths().cafile or "", "/etc/ssl/certs/ca-certificates.crt"]
    return next((Path(file) for file in named + usual if file and Path(file).is_file()), None)


def _copy_authorities(folder: Path, environ: Mapping[str, str]) -> None:
    """The bundle at once, and the host's own additions where `update-ca-certificates` finds them again."""
    bundle = authorities_of(environ)
    if bundle is not None:
        _write(folder, "etc/ssl/certs/ca-certificates.crt", bundle.read_text())
    for certificate in sorted(Path("/usr/local/share/ca-certificates").glob("*.crt")):
        target = folder / "usr/local/share/ca-certificates" / certificate.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(certificate, target)


def _enable_unit(folder: Path, name: str, text: str) -> None:
    _write(folder, f"etc/systemd/system/{name}", text)
    wants = folder / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / name).symlink_to(f"/etc/systemd/system/{name}")


def _write(folder: Path, path: str, text: str, *, mode: int = 0o644) -> None:
    file = folder / path.lstrip("/")
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def volume_lines(volumes: Mapping[str, tuple[int, str]]) -> str:
    """The text of the file `volumes`: node name -> (minor number, volume id)."""
    return "".join(
        f"{name} {minor} {volume.replace('-', '')}\n" for name, (minor, volume) in volumes.items()
    )
