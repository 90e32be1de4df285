"""
The root file system every machine starts from: Debian by mmdebstrap, from this host's own apt sources, kept in a cache.

Nothing in it is ours and nothing in it is this host's, so it is made once for each list of packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from gpulab.sandbox.machines import CannotBoot
from gpulab.sandbox.machines.container.commands import ToolFailed, run_tool
from gpulab.sandbox.machines.container.requirements import missing
from gpulab.sandbox.machines.container.site import apt_settings

# isc-dhcp-client and ifupdown: cloud-init 22.4 asks for DHCP in its first stage and renders Debian's own network files.
# locales: cloud-init sets one, and reports an error where it cannot. lsb-release: its apt module asks for it.
# libpam-systemd: sessions of users. python3-venv: Debian splits it off, AWS's images have it.
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd"),
    *("cloud-init", "cloud-guest-utils", "locales", "lsb-release"),
    *("openssh-server", "sudo", "procps", "psmisc", "netbase", "iproute2", "iputils-ping"),
    *("ifupdown", "isc-dhcp-client", "e2fsprogs", "less", "curl", "ca-certificates", "rsync"),
    *("python3", "python3-venv", "python3-pip", "xz-utils", "zstd", "bsdextrautils", "nftables"),
)

_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*")
_IDENTITY = ("etc/hostname", "etc/resolv.conf", "var/lib/dbus/machine-id")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """
    Return where the sandbox keeps what is dear to make: `GPULAB_SANDBOX_CACHE`, else under the user's cache.

    Raises:
        CannotBoot: The path has a character that mounting would take for its own.
    """
    home = Path(environ.get("HOME") or "/root")
    usual = Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "gpulab" / "sandbox"
    folder = Path(environ.get("GPULAB_SANDBOX_CACHE") or usual).absolute()
    if any(mark in str(folder) for mark in ":,\\ \t\n"):
        raise CannotBoot(
            f"the sandbox's cache may have no space, colon, comma or backslash in its path: {folder}"
        )
    return folder


def build(
    environ: Mapping[str, str],
    *,
    say: Callable[[str], None] = lambda line: None,
    root: Path = Path("/"),
) -> Path:
    """
    Build the base, unless it is in the cache; about 40 s and 350 MB.

    Args:
        environ: This process's environment; names the cache.
        say: Told what goes on, a line at a time.
        root: Where `/etc/apt` is looked for.

    Returns:
        The folder of the root file system.

    Raises:
        CannotBoot: Something is missing or the packages could not be had; the text says what.
    """
    lack = missing(for_build=True)
    if lack:
        raise CannotBoot(lack)
    suite, sources = suite_and_sources(root)
    base = _folder(environ, suite, sources)
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        return _build_once(base, suite, sources, say)
    except OSError as error:
        raise CannotBoot(f"the base could not be built: {error}") from error


def built(environ: Mapping[str, str], *, root: Path = Path("/")) -> Path:
    """
    Find the base in the cache.

    Raises:
        CannotBoot: It has not been built, or for another list of packages.
    """
    base = _folder(environ, *suite_and_sources(root))
    if not base.is_dir():
        raise CannotBoot(
            "the base of the machines has not been built; run `gpulab sandbox build` once"
        )
    return base


def suite_and_sources(root: Path = Path("/")) -> tuple[str, list[Path]]:
    """
    Return this host's release and the apt source files that name it; those of third parties are left out.

    Raises:
        CannotBoot: This is not a Debian, or apt has no sources.
    """
    release = root / "etc/os-release"
    lines = release.read_text().splitlines() if release.exists() else []
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    suite = settings.get("VERSION_CODENAME", "").strip('"')
    if settings.get("ID", "").strip('"') not in ("debian", "ubuntu") or not suite:
        raise CannotBoot(
            "the base is made from this host's apt sources, and this host is not Debian"
        )
    folder = root / "etc/apt"
    candidates = [
        folder / "sources.list",
        *folder.glob("sources.list.d/*.list"),
        *folder.glob("sources.list.d/*.sources"),
    ]
    sources = [
        file for file in sorted(candidates) if file.is_file() and _names(file.read_text(), suite)
    ]
    if not sources:
        raise CannotBoot(f"no apt source in {folder} names {suite}")
    return suite, sources


def _names(text: str, suite: str) -> bool:
    """Whether a source, in either of apt's formats, is Debian's main archive of a release."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = {word for line in lines for word in line.split()}
    return any(word == suite or word.startswith(f"{suite}-") for word in words) and "main" in words


def _folder(environ: Mapping[str, str], suite: str, sources: list[Path]) -> Path:
    ingredients = json.dumps([suite, PACKAGES, _LEFT_OUT, [file.read_text() for file in sources]])
    key = hashlib.sha256(ingredients.encode()).hexdigest()[:12]
    return cache_folder(environ) / "bases" / f"{suite}-{key}"


def _build_once(base: Path, suite: str, sources: list[Path], say: Callable[[str], None]) -> Path:
    with base.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if base.is_dir():
            say(f"the base is in {base}")
            return base
        say(f"building a base of {suite} with {len(PACKAGES)} packages and what they need")
        _make(base, suite, sources)
        say(f"the base is in {base}")
    return base


def _make(base: Path, suite: str, sources: list[Path]) -> None:
    """Under another name until it is whole, so that an interrupted build is never taken for a base."""
    new = base.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    options = ["--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
    settings = [
        'APT::Install-Recommends "false";',
        'Acquire::Languages "none";',
        *apt_settings().splitlines(),
    ]
    options += [f"--aptopt={line}" for line in settings]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    try:
        run_tool("mmdebstrap", *options, suite, new, *sources)
    except ToolFailed as failure:
        shutil.rmtree(new, ignore_errors=True)
        raise CannotBoot(f"the base could not be built: {failure}") from failure
    _forget_identity(new)
    new.rename(base)


def _forget_identity(root: Path) -> None:
    """An image is nobody yet: each machine makes its own machine id and host keys at its first boot."""
    for name in _IDENTITY:
        (root / name).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("")
    shutil.rmtree(root / "var/log/apt", ignore_errors=True)
