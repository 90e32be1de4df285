"""
Security groups as nft rules, as text: what may come in to an instance, from the host's side and from other instances alike.

Instances share a bridge whose ports are isolated, and the router answers ARP for all of them, as EC2's fabric does: so all traffic
between two instances passes the router's `ip` forward chain too. The `bridge` chain drops what would go round it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from gpulab.sandbox.machines import Ingress

TABLE = "ip gpulab"

_PORTS = {"tcp": "tcp", "udp": "udp", "6": "tcp", "17": "udp"}


def ruleset(*, network: str, host: str) -> str:
    """
    Return the rules of an empty VPC: everything out, nothing in.

    Args:
        network: The instances' addresses, as a CIDR block.
        host: The address of the host, the only one behind `uplink` that instances may speak to.
    """
    return f"""
table {TABLE} {{
  map guests {{ type ipv4_addr : verdict; }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "br0" oifname "tap0" accept
    iifname "br0" oifname "uplink" ip daddr {host} accept
    ip daddr vmap @guests
  }}
  chain leave {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {network} oifname "tap0" masquerade
  }}
}}
table bridge gpulab {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
  }}
}}
"""


def admit(chain: str, address: str, ingress: Iterable[Ingress], *, is_new: bool) -> str:
    """
    Return the change that lets in what is listed to one instance, and nothing else. nft applies it as one transaction.

    Args:
        chain: The instance's own chain.
        is_new: Whether the instance has no chain yet.
    """
    lines = [f"add chain {TABLE} {chain}"] if is_new else [f"flush chain {TABLE} {chain}"]
    lines += [
        f"add rule {TABLE} {chain} {rule} accept" for way in ingress for rule in _matches(way)
    ]
    if is_new:
        lines.append(f"add element {TABLE} guests {{ {address} : jump {chain} }}")
    return "\n".join(lines) + "\n"


def expel(chain: str, address: str) -> str:
    """Return the change that removes an instance."""
    return (
        f"delete element {TABLE} guests {{ {address} : jump {chain} }}\n"
        f"flush chain {TABLE} {chain}\ndelete chain {TABLE} {chain}\n"
    )


def _matches(way: Ingress) -> Iterator[str]:
    """A rule for IPv6 addresses, or for a protocol EC2 does not know, matches nothing here."""
    try:
        source = ipaddress.ip_network(way.cidr, strict=False)
    except ValueError:
        return
    if source.version != 4:
        return
    if way.protocol in ("-1", "all"):
        yield f"ip saddr {source}"
    elif way.protocol in ("icmp", "1"):
        kind = "" if way.from_port < 0 else f" icmp type {way.from_port}"
        yield f"ip saddr {source} ip protocol icmp{kind}"
    elif way.protocol in _PORTS:
        first, last = (0, 65535) if way.from_port < 0 else (way.from_port, way.to_port)
        yield f"ip saddr {source} {_PORTS[way.protocol]} dport {first}-{last}"
