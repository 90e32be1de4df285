"""This computer's own public address, as Amazon sees it. Hides one HTTPS call; believes nothing but a global address."""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.request
from collections.abc import Callable

from gpulab.errors import AwsError

URL = "https://checkip.amazonaws.com"
_LONGEST = 45


def own_address(fetch: Callable[[], str] | None = None) -> str:
    """
    Ask Amazon from which address this computer comes.

    A wrong answer would only open port 22, where keys alone let in, to one wrong address.

    Args:
        fetch: Returns the service's answer; for tests.

    Raises:
        AwsError: No answer, or one that is no global address; the hint says how to name the address.
    """
    try:
        text = (fetch or _fetch)().strip()
        address = ipaddress.ip_address(text if len(text) <= _LONGEST else "")
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise _unknown(type(error).__name__) from error
    if not address.is_global:
        raise _unknown(f"{address} is not a public address")
    return str(address)


def _unknown(why: str) -> AwsError:
    return AwsError(
        f"could not find this computer's public address ({why})",
        hint='Name it yourself: `gpulab up --cidr 203.0.113.7/32`, or once for all `cidr = "203.0.113.7/32"` in the profile in config.toml',
    )


def _fetch() -> str:
    with urllib.request.urlopen(URL, timeout=3) as reply:
        return str(reply.read(_LONGEST + 20).decode("ascii", "replace"))
