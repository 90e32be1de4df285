"""
The VPC of one sandbox: hides the router, bridge, DHCP, the way out and the firewall, all inside namespaces of its own.

The host gets one interface and one route; no setting and no firewall rule of the host is changed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from gpulab.sandbox.machines import Ingress
from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container import cgroups, firewall
from gpulab.sandbox.machines.container.bed import Bed
from gpulab.sandbox.machines.container.commands import (
    ToolFailed,
    in_network,
    run_tool,
    tool_environment,
)
from gpulab.sandbox.machines.metadata import mac_of

METADATA_ADDRESS = "169.254.169.254"
NAME_SERVER = "10.0.2.3"
"""slirp4netns's own resolver, which asks the host's."""

_CLONE_NEWNET = 0x40000000
_LEASE = "12h"


class Vpc:
    """
    One bed's network; made by `Vpc.open`, removed with the bed.

    Instances are told apart by their address alone. May be used from several threads.
    """

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._namespace = bed.namespace("vpc")
        self._free = deque(bed.addresses)
        self._known: set[str] = set()
        self._services: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    @classmethod
    def open(cls, bed: Bed) -> Vpc:
        """
        Make the network and start its services.

        Raises:
            ToolFailed: A step failed; the bed has to be reaped.
        """
        vpc = cls(bed)
        vpc._make_router()
        vpc._start_way_out()
        vpc._load_rules()
        vpc._start_dhcp()
        return vpc

    def metadata_listener(self) -> socket.socket:
        """A socket bound to the metadata address, which only instances reach."""
        return _socket_in(self._namespace, METADATA_ADDRESS, 80)

    def take_address(self) -> str:
        """
        Take an address that no instance has; the one given back longest ago comes first.

        Raises:
            IndexError: All are in use.
        """
        with self._lock:
            return self._free.popleft()

    def give_back(self, address: str) -> None:
        """Make an address free again."""
        with self._lock:
            if address not in self._free:
                self._free.append(address)

    def is_ours(self, address: str) -> bool:
        """Whether an instance of this network may have the address."""
        return address in self._bed.addresses

    def plug(self, address: str) -> Path:
        """
        Make the network of one instance, which gets its address by DHCP.

        Returns:
            The file of the instance's namespace.
        """
        space, port = self._bed.namespace(address), _port(address)
        _make_namespace(space)
        self._in_vpc(
            f"link add {port} type veth peer name eth0 address {mac_of(address)} netns {space}",
            f"link set {port} master br0 up",
            f"link set {port} type bridge_slave isolated on",
        )
        run_tool(*in_network(space, ["ip", "link", "set", "lo", "up"]))
        return space

    def unplug(self, address: str) -> None:
        """Remove the network of one instance; harmless when there is none."""
        space = self._bed.namespace(address)
        with suppress(ToolFailed):
            run_tool("umount", space)
        with suppress(ToolFailed):
            self._in_vpc(f"link del {_port(address)}")
        space.unlink(missing_ok=True)

    def admit(self, address: str, ingress: Iterable[Ingress]) -> None:
        """Replace what may come in to one instance; connections that stand are not cut, as on EC2."""
        with self._lock:
            is_new = address not in self._known
            self._nft(firewall.admit(_port(address), address, ingress, is_new=is_new))
            self._known.add(address)

    def expel(self, address: str) -> None:
        """Forget the rules of one instance."""
        with self._lock:
            if address in self._known:
                self._known.remove(address)
                self._nft(firewall.expel(_port(address), address))

    def close(self) -> None:
        """End the services; the rest goes with the bed."""
        for service in self._services:
            service.kill()
            service.wait()

    def _make_router(self) -> None:
        bed = self._bed
        _make_namespace(self._namespace)
        run_tool(
            "ip",
            "link",
            "add",
            bed.name,
            "type",
            "veth",
            "peer",
            "name",
            "uplink",
            "netns",
            self._namespace,
        )
        run_tool("ip", "addr", "add", f"{bed.host_side}/30", "dev", bed.name)
        run_tool("ip", "link", "set", bed.name, "up")
        self._in_vpc(
            "link set lo up",
            f"addr add {bed.vpc_side}/30 dev uplink",
            "link set uplink up",
            "link add br0 type bridge",
            f"addr add {bed.router}/{bed.network.prefixlen} dev br0",
            f"addr add {METADATA_ADDRESS}/32 dev br0",
            "link set br0 up",
        )
        run_tool("ip", "route", "add", str(bed.network), "via", bed.vpc_side)
        _set_kernel(
            self._namespace,
            {
                "ip_forward": "1",
                "conf/all/send_redirects": "0",
                "conf/br0/send_redirects": "0",
                "conf/br0/proxy_arp_pvlan": "1",
                "neigh/br0/proxy_delay": "0",
            },
        )

    def _start_way_out(self) -> None:
        """slirp4netns is a TCP/IP stack of an ordinary process: the host's own settings stay as they are."""
        ready, ready_w = os.pipe()
        words = [
            "slirp4netns",
            "--configure",
            "--mtu=65520",
            "--disable-host-loopback",
            f"--ready-fd={ready_w}",
        ]
        words += ["--netns-type=path", str(self._namespace), "tap0"]
        self._start("slirp4netns", words, pass_fds=(ready_w,))
        os.close(ready_w)
        with open(ready, "rb") as pipe:  # noqa: PTH123 - a file descriptor
            if not pipe.read(1):
                raise ToolFailed(f"slirp4netns did not start: {self._log_of('slirp4netns')}")

    def _load_rules(self) -> None:
        self._nft(firewall.ruleset(network=str(self._bed.network), host=self._bed.host_side))

    def _start_dhcp(self) -> None:
        """
        Every address of the pool has its line from the start, since the hardware address follows from it.

        Option 121 brings the on-link route to the metadata service. A client that receives it ignores the router option
        (RFC 3442), so it repeats the default route.
        """
        bed = self._bed
        hosts = bed.folder / "net" / "hosts"
        hosts.write_text(
            "".join(f"{mac_of(a)},{a},ip-{a.replace('.', '-')}\n" for a in bed.addresses)
        )
        routes = f"{METADATA_ADDRESS}/32,0.0.0.0,0.0.0.0/0,{bed.router}"
        words = [
            "dnsmasq",
            "--conf-file=/dev/null",
            "--keep-in-foreground",
            "--user=root",
            "--log-facility=-",
        ]
        words += [
            "--port=0",
            "--interface=br0",
            "--bind-interfaces",
            "--no-ping",
            "--pid-file",
            "--dhcp-authoritative",
        ]
        words += [
            f"--dhcp-range={bed.network[0]},static,{bed.network.netmask},{_LEASE}",
            f"--dhcp-hostsfile={hosts}",
        ]
        words += [f"--dhcp-leasefile={bed.folder / 'net' / 'leases'}", "--dhcp-lease-max=2000"]
        words += [
            f"--dhcp-option=option:router,{bed.router}",
            f"--dhcp-option=option:dns-server,{NAME_SERVER}",
        ]
        words += ["--dhcp-option=option:domain-name,ec2.internal", f"--dhcp-option=121,{routes}"]
        self._start("dnsmasq", in_network(self._namespace, words))

    def _start(self, name: str, words: list[str], pass_fds: tuple[int, ...] = ()) -> None:
        entered = cgroups.enter(self._bed.name, "vpc", words)
        with self._log_file(name).open("wb") as log:
            service = subprocess.Popen(
                entered,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=tool_environment(),
                pass_fds=pass_fds,
                start_new_session=True,
            )
        beds.note_process(self._bed, name, service.pid)
        self._services.append(service)

    def _log_file(self, name: str) -> Path:
        return self._bed.folder / "net" / f"{name}.log"

    def _log_of(self, name: str) -> str:
        return self._log_file(name).read_text(errors="replace").strip()[-500:]

    def _in_vpc(self, *commands: str) -> None:
        run_tool(
            *in_network(self._namespace, ["ip", "-batch", "-"]), stdin="\n".join(commands) + "\n"
        )

    def _nft(self, rules: str) -> None:
        run_tool(*in_network(self._namespace, ["nft", "-f", "-"]), stdin=rules)


def _port(address: str) -> str:
    """The bridge's port of an instance: at most 15 characters, the limit of interface names."""
    return "m" + address.split(".", 2)[2].replace(".", "x")


def _make_namespace(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    run_tool("unshare", f"--net={file}", "true")


def _set_kernel(namespace: Path, settings: dict[str, str]) -> None:
    """Set IPv4 settings of one namespace; `/proc/sys/net` shows those of the thread that opens it."""

    def write() -> None:
        for name, value in settings.items():
            Path("/proc/sys/net/ipv4", name).write_text(value)

    _inside(namespace, write)


def _socket_in(namespace: Path, address: str, port: int) -> socket.socket:
    """A bound TCP socket that belongs to another network namespace than this process."""
    made: list[socket.socket] = []

    def bind() -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        made.append(listener)

    _inside(namespace, bind)
    return made[0]


def _inside(namespace: Path, act: Callable[[], None]) -> None:
    """Call `act` in a thread of its own that has moved into a network namespace: membership is a thread's, not a process's."""
    failures: list[OSError] = []

    def body() -> None:
        try:
            _enter(namespace)
            act()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise ToolFailed(f"inside the network of {namespace}: {failures[0]}") from failures[0]


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
