"""
The instance metadata service (IMDS): hides its tree, its sessions and its HTTP; refuses what AWS refuses, with AWS's status codes.

A `Guest` is what one machine may read, answered without any network; a `MetadataService` puts guests behind a listening socket.
Source: the EC2 User Guide, "Use the Instance Metadata Service" and "Instance metadata categories", read in 2026.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from gpulab.sandbox.machines import Birth, LiveMetadata

MAX_TOKEN_SECONDS = 21600
"""The longest life of a session token (six hours)."""

# What EC2 lists at `/`; every version shows the same tree here. cloud-init asks for 2021-03-23, 2018-09-24, 2016-09-02, 2009-04-04.
VERSIONS = (
    *("1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01"),
    *("2008-09-01", "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25"),
    *("2014-11-05", "2015-10-20", "2016-04-19", "2016-06-30", "2016-09-02", "2018-03-28"),
    *("2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03", "2021-03-23"),
    *("2021-07-15", "2022-09-24", "2024-04-11", "latest"),
)

_TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105 - the name of a header
_DEFAULT_TTL = 64
_LARGEST_BODY = 65536

Leaf = str | bytes
Tree = Mapping[str, "Leaf | Tree"]


@dataclass(frozen=True)
class Answer:
    """
    One answer of the service.

    Attributes:
        ttl: The IP time to live its packets leave with; an answer to `PUT` has the instance's hop limit.
    """

    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)
    ttl: int = _DEFAULT_TTL


class Guest:
    """
    The metadata of one machine, and the session tokens given to it.

    A token holds only for the guest that gave it, as on EC2. May be used from several threads.

    Args:
        subnet: CIDR block shown as the subnet and the VPC; empty means the /16 around the private address.
        clock: Seconds that never run backwards; decides when a token has expired.
        new_token: Makes a fresh session token.
    """

    def __init__(
        self,
        birth: Birth,
        *,
        subnet: str = "",
        clock: Callable[[], float] = time.monotonic,
        new_token: Callable[[], str] = lambda: secrets.token_urlsafe(40),
    ) -> None:
        self._birth = birth
        self._subnet = subnet or _subnet_around(birth.private_address)
        self._live = LiveMetadata(tags=dict(birth.tags))
        self._clock = clock
        self._new_token = new_token
        self._expiry_of: dict[str, float] = {}
        self._lock = threading.Lock()

    def publish(self, live: LiveMetadata) -> None:
        """Replace the changing part: tags, notice, rebalance recommendation, credentials."""
        self._live = live

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """
        Answer one request.

        Args:
            target: The request target, such as `/latest/meta-data/instance-id`; a query is ignored.
            headers: With lower-case names.

        Returns:
            200 with the value or the listing; 400 for a wrong time to live, 401 without a valid token, 403 when the
            endpoint is disabled or the token request was forwarded, 404 for what is not there, 405 for other methods.
        """
        if not self._birth.http_endpoint:
            return _refusal(403, "Forbidden")
        path = urlsplit(target).path
        if method == "PUT":
            return self._open_session(path, headers)
        if method not in ("GET", "HEAD"):
            return _refusal(405, "Method Not Allowed")
        if not self._may_read(headers):
            return _refusal(401, "Unauthorized")
        return _read(_tree(self._birth, self._live, self._subnet), path)

    def _open_session(self, path: str, headers: Mapping[str, str]) -> Answer:
        hop_limit = self._birth.hop_limit
        if path.rstrip("/") != "/latest/api/token":
            return _refusal(404, "Not Found", ttl=hop_limit)
        if "x-forwarded-for" in headers:
            return _refusal(403, "Forbidden", ttl=hop_limit)
        seconds = headers.get(_TTL_HEADER, "")
        if not (seconds.isascii() and seconds.isdigit() and 1 <= int(seconds) <= MAX_TOKEN_SECONDS):
            return _refusal(400, "Bad Request", ttl=hop_limit)
        token = self._new_token()
        with self._lock:
            self._forget_expired()
            self._expiry_of[token] = self._clock() + int(seconds)
        return Answer(200, token.encode(), headers={_TTL_HEADER: seconds}, ttl=hop_limit)

    def _may_read(self, headers: Mapping[str, str]) -> bool:
        token = headers.get(_TOKEN_HEADER)
        if token is None:
            return self._birth.http_tokens != "required"
        with self._lock:
            return self._expiry_of.get(token, float("-inf")) > self._clock()

    def _forget_expired(self) -> None:
        now = self._clock()
        self._expiry_of = {t: expiry for t, expiry in self._expiry_of.items() if expiry > now}


class MetadataService:
    """
    Guests behind a listening TCP socket, served by threads until `close`.

    Args:
        listener: A bound socket; where it was made decides who reaches it (a network namespace, a port of localhost).
            The service listens on it and closes it.
        guest_at: The guest with this source address, or `None` for a stranger, who reads 404.
            A service of one machine ignores the address: `lambda address: guest`.
    """

    def __init__(self, listener: socket.socket, guest_at: Callable[[str], Guest | None]) -> None:
        self._address = listener.getsockname()[:2]
        self._server = _Server(listener, guest_at)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            name="metadata",
            daemon=True,
            kwargs={"poll_interval": 5},
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end: `http://127.0.0.1:40123`."""
        host, port = self._address
        return f"http://{host}:{port}"

    def close(self) -> None:
        """Stop answering and free the port; harmless the second time."""
        self._server.close_now()


def mac_of(private_address: str) -> str:
    """Return the hardware address of the machine at an IPv4 address; `02:00:00:00:00:00` for any other text."""
    try:
        packed = ipaddress.IPv4Address(private_address).packed
    except ValueError:
        packed = bytes(4)
    return "02:00:" + ":".join(f"{byte:02x}" for byte in packed)


def _subnet_around(address: str) -> str:
    try:
        return str(ipaddress.ip_network(f"{address}/16", strict=False))
    except ValueError:
        return ""


def _refusal(status: int, reason: str, *, ttl: int = _DEFAULT_TTL) -> Answer:
    return Answer(status, f"{status} - {reason}\n".encode(), ttl=ttl)


def _read(tree: Tree, path: str) -> Answer:
    """Find a path in the tree of one version; a folder answers with its listing, with or without a slash at the end."""
    parts = [unquote(part) for part in path.split("/") if part]
    if not parts:
        return Answer(200, "\n".join(VERSIONS).encode())
    if parts[0] not in VERSIONS:
        return _refusal(404, "Not Found")
    node: Leaf | Tree = tree
    for part in parts[1:]:
        if isinstance(node, str | bytes) or part not in node:
            return _refusal(404, "Not Found")
        node = node[part]
    if isinstance(node, bytes):
        return Answer(200, node, "application/octet-stream")
    if isinstance(node, str):
        return Answer(200, node.encode())
    return Answer(200, _listing(node, has_slashes=len(parts) > 1).encode())


def _listing(folder: Tree, *, has_slashes: bool) -> str:
    if "" in folder:  # a folder whose listing is not its keys: `0=my-key`
        return str(folder[""])
    names = sorted(folder)
    return "\n".join(
        n + "/" if has_slashes and isinstance(folder[n], Mapping) else n for n in names
    )


def _tree(birth: Birth, live: LiveMetadata, subnet: str) -> Tree:
    document = json.dumps(_identity_document(birth), indent=2)
    tree: dict[str, Leaf | Tree] = {
        "meta-data": _meta_data(birth, live, subnet),
        "dynamic": {
            "fws": {"instance-monitoring": "disabled"},
            "instance-identity": {"document": document},
        },
    }
    if birth.user_data:
        tree["user-data"] = birth.user_data
    return tree


def _meta_data(birth: Birth, live: LiveMetadata, subnet: str) -> Tree:
    host = _host_name(birth)
    mac = mac_of(birth.private_address)
    tree: dict[str, Leaf | Tree] = {
        "ami-id": birth.image_id,
        "ami-launch-index": "0",
        "ami-manifest-path": "(unknown)",
        "block-device-mapping": _block_devices(birth),
        "events": _events(live),
        "hostname": host,
        "instance-action": "none",
        "instance-id": birth.instance_id,
        "instance-life-cycle": birth.market,
        "instance-type": birth.instance_type,
        "local-hostname": host,
        "local-ipv4": birth.private_address,
        "mac": mac,
        "network": {"interfaces": {"macs": {mac: _interface(birth, mac, subnet)}}},
        "placement": {"availability-zone": birth.zone, "region": birth.region},
        "profile": "default-hvm",
        "reservation-id": "r-" + birth.instance_id.removeprefix("i-"),
        "security-groups": "\n".join(birth.security_groups),
        "services": {"domain": "amazonaws.com", "partition": "aws"},
    }
    return tree | _present_only_sometimes(birth, live)


def _present_only_sometimes(birth: Birth, live: LiveMetadata) -> dict[str, Leaf | Tree]:
    """Categories that answer 404 until there is something to say; programs rely on that (a spot notice, an absent role)."""
    tree: dict[str, Leaf | Tree] = {}
    if birth.public_address:
        tree["public-ipv4"] = birth.public_address
    if birth.public_key:
        name = (birth.public_key.split(maxsplit=2)[2:] or ["key"])[0]
        tree["public-keys"] = {"": f"0={name}", "0": {"openssh-key": birth.public_key}}
    if birth.role:
        tree["iam"] = _iam(birth, live)
    if birth.tags_in_metadata and live.tags:
        tree["tags"] = {"instance": dict(live.tags)}
    if live.notice is not None:
        tree["spot"] = _spot(live.notice)
    return tree


def _host_name(birth: Birth) -> str:
    """Name the instance by its address, as EC2 does: https://docs.aws.amazon.com/vpc/latest/userguide/vpc-dns.html ."""
    domain = "ec2.internal" if birth.region == "us-east-1" else f"{birth.region}.compute.internal"
    return f"ip-{birth.private_address.replace('.', '-')}.{domain}"


def _interface(birth: Birth, mac: str, subnet: str) -> Tree:
    suffix = birth.instance_id.removeprefix("i-")
    interface: dict[str, Leaf | Tree] = {
        "device-number": "0",
        "interface-id": f"eni-{suffix}",
        "local-hostname": _host_name(birth),
        "local-ipv4s": birth.private_address,
        "mac": mac,
        "owner-id": birth.account,
        "security-groups": "\n".join(birth.security_groups),
        "subnet-ipv4-cidr-block": subnet,
        "vpc-ipv4-cidr-block": subnet,
        "vpc-ipv4-cidr-blocks": subnet,
    }
    if birth.public_address:
        interface["public-ipv4s"] = birth.public_address
    return interface


def _block_devices(birth: Birth) -> Tree:
    root = next((disk.device for disk in birth.disks if disk.is_root), "/dev/sda1")
    others = [disk.device for disk in birth.disks if not disk.is_root]
    named = {f"ebs{number}": device for number, device in enumerate(others, 1)}
    return {"ami": root, "root": root} | named


def _events(live: LiveMetadata) -> Tree:
    events: dict[str, Leaf | Tree] = {"maintenance": {"history": "[]", "scheduled": "[]"}}
    if live.rebalance_at is not None:
        notice = json.dumps({"noticeTime": _instant(live.rebalance_at)})
        events["recommendations"] = {"rebalance": notice}
    return events


def _spot(notice: Mapping[str, str]) -> Tree:
    """`termination-time` is there for the action `terminate` only; the document exists for every action."""
    spot: dict[str, Leaf | Tree] = {"instance-action": json.dumps(dict(notice))}
    if notice.get("action") == "terminate" and "time" in notice:
        spot["termination-time"] = notice["time"]
    return spot


def _iam(birth: Birth, live: LiveMetadata) -> Tree:
    profile = {
        "Code": "Success",
        "LastUpdated": _instant(birth.launched_at),
        "InstanceProfileArn": f"arn:aws:iam::{birth.account}:instance-profile/{birth.role}",
        "InstanceProfileId": "AIPA" + birth.instance_id.removeprefix("i-").upper(),
    }
    credentials: dict[str, Leaf | Tree] = {"": birth.role}
    if live.credentials is not None:
        credentials[birth.role] = json.dumps(dict(live.credentials), indent=2)
    return {"info": json.dumps(profile, indent=2), "security-credentials": credentials}


def _identity_document(birth: Birth) -> dict[str, str | None]:
    """The identity document without AWS's signature, which nobody but AWS can make."""
    return {
        "accountId": birth.account,
        "architecture": "x86_64",
        "availabilityZone": birth.zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "marketplaceProductCodes": None,
        "imageId": birth.image_id,
        "instanceId": birth.instance_id,
        "instanceType": birth.instance_type,
        "kernelId": None,
        "pendingTime": _instant(birth.launched_at),
        "privateIp": birth.private_address,
        "ramdiskId": None,
        "region": birth.region,
        "version": "2017-09-30",
    }


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, guest_at: Callable[[str], Guest | None]) -> None:
        super().__init__(listener.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.guest_at = guest_at
        listener.listen(128)  # many machines boot at once and all ask

    def close_now(self) -> None:
        with contextlib.suppress(OSError):  # wakes the accepting thread, where the system allows it
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away in the middle is its own business."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    sys_version = ""
    timeout = 60  # seconds an idle connection is kept
    wbufsize = -1  # an answer leaves as one packet where it fits

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if not (length.isdigit() and int(length) <= _LARGEST_BODY):
            self.close_connection = True
            return self._send(_refusal(400, "Bad Request"))
        self.rfile.read(int(length))
        guest = self.server.guest_at(self.client_address[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = (
            guest.answer(self.command, self.path, headers) if guest else _refusal(404, "Not Found")
        )
        return self._send(answer)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - the standard library's names

    def _send(self, answer: Answer) -> None:
        # Left as it is until the next answer: a packet sent again has to carry the same limit.
        self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, answer.ttl)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: a machine asks every few seconds for as long as it lives."""
