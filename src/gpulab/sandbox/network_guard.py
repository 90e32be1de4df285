"""R22: while it stands, no connection and no name leaves this machine; the error names the host."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class NetworkClosed(OSError):
    """Something wanted to leave this machine; the text names the host."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"the sandbox is on, so nothing may leave this machine: refused to reach {host}"
        )
        self.host = host


@contextmanager
def closed_network(allowed: Callable[[str], bool] | None = None) -> Iterator[None]:
    """
    Refuse every connection and name resolution but to this machine itself.

    Args:
        allowed: Further hosts that may be reached, such as the addresses of machines that really boot.
    """
    real_resolve, real_connect = socket.getaddrinfo, socket.socket.connect
    real_connect_ex, real_sendto = socket.socket.connect_ex, socket.socket.sendto

    def check(host: Any) -> None:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
        if not (is_this_machine(name) or (allowed is not None and allowed(name))):
            raise NetworkClosed(name)

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host:
            check(host)
        return real_resolve(host, *args, **kwargs)

    def connect(self: socket.socket, address: Any) -> None:
        _check_address(self, address, check)
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        _check_address(self, address, check)
        return real_connect_ex(self, address)

    def sendto(self: socket.socket, data: Any, *args: Any) -> int:
        _check_address(self, args[-1], check)
        return real_sendto(self, data, *args)

    changes = {"connect": connect, "connect_ex": connect_ex, "sendto": sendto}
    # Another guard may have set its own; then that one comes back afterwards.
    earlier: dict[str, Any] = {name: socket.socket.__dict__.get(name) for name in changes}
    socket.getaddrinfo = resolve
    for name, function in changes.items():
        setattr(socket.socket, name, function)
    try:
        yield
    finally:
        socket.getaddrinfo = real_resolve
        for name, before in earlier.items():
            if before is None:
                delattr(socket.socket, name)
            else:
                setattr(socket.socket, name, before)


def is_this_machine(host: str) -> bool:
    """Whether a host name or address is the loopback."""
    if host in ("localhost", "localhost.localdomain", "ip6-localhost") or host.endswith(
        ".localhost"
    ):
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _check_address(sock: socket.socket, address: Any, check: Callable[[Any], None]) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        check(address[0])
