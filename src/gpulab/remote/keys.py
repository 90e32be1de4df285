"""
The user's own ssh key: made here, so that the private half never travels. Hides file modes and Windows' access
lists; never overwrites a key.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpulab.errors import StoreError, disk_hint

Runner = Callable[[Sequence[str]], int]


def make_key_pair(
    path: Path,
    *,
    comment: str = "gpulab",
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    run: Runner | None = None,
) -> str:
    """
    Make an ed25519 key pair, or keep the one that is there.

    Args:
        path: The private key, mode 0600; its folder is made with mode 0700 when absent.
        comment: Written behind the public key; one word.
        run: Runs Windows' `icacls`; for tests.

    Returns:
        The public key on one line, `ssh-ed25519 AAAA... comment`, as EC2's ImportKeyPair takes it.

    Raises:
        StoreError: The file cannot be written, or what is there is not a private key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, private, platform=platform, environ=environ, run=run or _run)
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreError(
            f"could not write the ssh key {path} ({error.strerror})",
            hint=disk_hint(error),
        ) from error
    return public_key(path, comment=comment)


def public_key(path: Path, *, comment: str = "gpulab") -> str:
    """
    Derive the public key from a private one, on one line.

    Raises:
        StoreError: The file cannot be read, is not a private key, or has a passphrase.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise StoreError(
            f"could not read the ssh key {path} ({error.strerror})", hint=disk_hint(error)
        ) from error
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is not a private ssh key without a passphrase",
            hint="Move the file away; gpulab then makes a new key",
        ) from error
    line = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{line.decode('ascii')} {comment}"


def _write_new(
    path: Path, private: bytes, *, platform: str, environ: Mapping[str, str], run: Runner
) -> None:
    # mkstemp opens with mode 0600: the key is never readable to others, not for a moment. It appears under its
    # name only when it is whole, since another command may look for it at the same time; a link, unlike a rename,
    # never replaces one that came first.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if platform == "win32":
                _restrict(draft, environ, run)
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _restrict(path: Path, environ: Mapping[str, str], run: Runner) -> None:
    """Leave only the user in a file's access list: Windows' ssh refuses a key that others may read."""
    user = "\\".join(filter(None, (environ.get("USERDOMAIN"), environ.get("USERNAME"))))
    if run(["icacls", str(path), "/inheritance:r", "/grant:r", f"{user}:F"]) != 0:
        raise StoreError(f"could not restrict {path} to {user}", hint="Ask who owns the folder")


def _run(argv: Sequence[str]) -> int:
    return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode
