"""The instance metadata service: what a machine reads, what it is refused, and with which packets it is answered."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gpulab.sandbox.machines import Birth, Disk, LiveMetadata
from gpulab.sandbox.machines.metadata import Guest, MetadataService, mac_of

LAUNCHED_AT = datetime(2026, 10, 1, 8, 30, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFake week4"


def a_birth(**changes: object) -> Birth:
    birth = Birth(
        instance_id="i-0123456789abcdef0",
        account="123456789012",
        region="us-west-2",
        zone="us-west-2b",
        instance_type="g4dn.xlarge",
        image_id="ami-0debian",
        market="spot",
        private_address="10.77.2.1",
        public_address="203.0.113.7",
        public_key=KEY,
        user_data=b"\x1f\x8bgzip",
        tags={"gpulab:name": "week4"},
        launched_at=LAUNCHED_AT,
        disks=(
            Disk("vol-1", "/dev/sda1", 30, is_root=True, delete_on_termination=True),
            Disk("vol-2", "/dev/sdf", 5, is_root=False, delete_on_termination=False),
        ),
        security_groups=("gpulab-week4",),
    )
    return replace(birth, **changes)  # type: ignore[arg-type]


class Clock:
    """Seconds a test moves by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def a_token(guest: Guest, seconds: str = "300") -> str:
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": seconds}
    return guest.answer("PUT", "/latest/api/token", headers).body.decode()


def status_of(guest: Guest, path: str, token: str | None = None) -> int:
    headers = {} if token is None else {"x-aws-ec2-metadata-token": token}
    return guest.answer("GET", path, headers).status


def read(guest: Guest, path: str) -> str:
    answer = guest.answer("GET", path, {"x-aws-ec2-metadata-token": a_token(guest)})
    assert answer.status == 200, (path, answer)
    return answer.body.decode()


def test_a_read_without_a_token_is_refused_where_tokens_are_required():
    """This is what keeps a web page fetched by a notebook from reading the role's credentials."""
    guest = Guest(a_birth(http_tokens="required"))

    statuses = [status_of(guest, "/latest/meta-data/", token) for token in (None, "made-up", "")]

    assert statuses == [401, 401, 401]


def test_optional_tokens_still_refuse_a_wrong_one():
    """A caller that uses sessions must learn that its session is over, not silently fall back."""
    guest = Guest(a_birth(http_tokens="optional"))

    statuses = [status_of(guest, "/latest/meta-data/", token) for token in (None, "made-up")]

    assert statuses == [200, 401]


@pytest.mark.parametrize(
    ("seconds", "status"),
    [("1", 200), ("21600", 200), ("0", 400), ("21601", 400), ("", 400), ("1.5", 400), ("²", 400)],
)
def test_a_token_lives_between_one_second_and_six_hours(seconds, status):
    """A program with a wrong lifetime must fail here as it would on EC2."""
    guest = Guest(a_birth())
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": seconds}

    answer = guest.answer("PUT", "/latest/api/token", headers)

    assert status == answer.status


def test_a_token_request_without_a_lifetime_is_a_bad_request():
    """EC2 has no default lifetime."""
    guest = Guest(a_birth())

    answer = guest.answer("PUT", "/latest/api/token", {})

    assert answer.status == 400


def test_a_token_ends_with_its_lifetime():
    """An agent that runs for hours has to renew its token; with tokens that never end nobody would notice that it does not."""
    clock = Clock()
    guest = Guest(a_birth(), clock=clock)
    token = a_token(guest, "300")

    clock.seconds += 299.5
    before = status_of(guest, "/latest/meta-data/", token)
    clock.seconds += 1
    after = status_of(guest, "/latest/meta-data/", token)

    assert (before, after) == (200, 401)


def test_a_token_of_another_machine_is_worthless():
    """Tokens are bound to the instance they were given to."""
    mine, other = Guest(a_birth()), Guest(a_birth(private_address="10.77.2.2"))

    status = status_of(mine, "/latest/meta-data/", a_token(other))

    assert status == 401


def test_a_forwarded_token_request_is_refused():
    """An open proxy on the instance must not be a way to the credentials."""
    guest = Guest(a_birth())
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": "60", "x-forwarded-for": "198.51.100.1"}

    answer = guest.answer("PUT", "/latest/api/token", headers)

    assert answer.status == 403


def test_a_disabled_endpoint_refuses_everything():
    """`HttpEndpoint=disabled` turns off tokens and reads alike."""
    guest = Guest(a_birth(http_endpoint=False, http_tokens="optional"))
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": "60"}

    token = guest.answer("PUT", "/latest/api/token", headers).status
    value = status_of(guest, "/latest/meta-data/instance-id")

    assert (token, value) == (403, 403)


def test_only_the_answer_to_a_token_request_has_the_hop_limit():
    """With limit 1 a container on the instance never receives a token; reads are not limited, as on EC2."""
    guest = Guest(a_birth(hop_limit=2, http_tokens="optional"))
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": "60"}

    token = guest.answer("PUT", "/latest/api/token", headers)
    value = guest.answer("GET", "/latest/meta-data/", {})

    assert (token.ttl, value.ttl) == (2, 64)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/latest/meta-data/instance-id", "i-0123456789abcdef0"),
        ("/2021-03-23/meta-data/instance-id", "i-0123456789abcdef0"),
        ("/latest/meta-data/instance-life-cycle", "spot"),
        ("/latest/meta-data/placement/availability-zone", "us-west-2b"),
        ("/latest/meta-data/placement/", "availability-zone\nregion"),
        ("/latest/meta-data/local-hostname", "ip-10-77-2-1.us-west-2.compute.internal"),
        ("/latest/meta-data/public-ipv4", "203.0.113.7"),
        ("/latest/meta-data/public-keys/", "0=week4"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/0/openssh-key", KEY),
        ("/latest/meta-data/block-device-mapping/root", "/dev/sda1"),
        ("/latest/meta-data/block-device-mapping/ebs1", "/dev/sdf"),
        ("/latest/meta-data/mac", "02:00:0a:4d:02:01"),
        (
            "/latest/meta-data/network/interfaces/macs/02:00:0a:4d:02:01/subnet-ipv4-cidr-block",
            "10.77.0.0/16",
        ),
        ("/latest/", "dynamic\nmeta-data\nuser-data"),
        ("/latest/dynamic/instance-identity/", "document"),
    ],
)
def test_the_tree_says_what_the_launch_decided(path, text):
    """cloud-init and the agent read these paths; a misspelt one shows only on a machine."""
    guest = Guest(a_birth())

    value = read(guest, path)

    assert text == value


def test_the_versions_that_cloud_init_asks_for_are_listed():
    """cloud-init takes the newest version it knows that the service answers."""
    guest = Guest(a_birth())

    versions = read(guest, "/").splitlines()

    assert {"2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest"} <= set(versions)
    assert status_of(guest, "/2031-01-01/meta-data/", a_token(guest)) == 404


def test_the_identity_document_names_account_region_and_start():
    """The agent takes its account and region from here."""
    guest = Guest(a_birth())

    document = json.loads(read(guest, "/latest/dynamic/instance-identity/document"))

    assert (
        document["accountId"],
        document["region"],
        document["pendingTime"],
    ) == ("123456789012", "us-west-2", "2026-10-01T08:30:00Z")


def test_user_data_comes_back_byte_for_byte():
    """User data is gzip; one recoded byte and the instance does nothing."""
    guest = Guest(a_birth())

    answer = guest.answer("GET", "/latest/user-data", {"x-aws-ec2-metadata-token": a_token(guest)})

    assert (answer.body, answer.content_type) == (b"\x1f\x8bgzip", "application/octet-stream")


def test_what_the_launch_left_out_is_not_found():
    """Programs ask whether there is a key, a role, a notice by looking at the status."""
    guest = Guest(a_birth(public_key="", user_data=b"", public_address=""))
    token = a_token(guest)
    absent = ["meta-data/public-keys/", "user-data", "meta-data/public-ipv4", "meta-data/iam/info"]
    absent += ["meta-data/tags/instance/", "meta-data/spot/instance-action"]
    absent += ["meta-data/events/recommendations/rebalance", "meta-data/instance-id/deeper"]

    statuses = {path: status_of(guest, f"/latest/{path}", token) for path in absent}

    assert dict.fromkeys(absent, 404) == statuses


def test_tags_are_read_where_the_launch_allows_it_and_change_while_it_runs():
    """`gpulab extend` moves the deadline by a tag; the agent reads it here, with the colon escaped or not."""
    guest = Guest(a_birth(tags_in_metadata=True))

    before = read(guest, "/latest/meta-data/tags/instance/gpulab:name")
    guest.publish(LiveMetadata(tags={"gpulab:expires": "2026-10-01T12:00:00Z"}))
    after = read(guest, "/latest/meta-data/tags/instance/gpulab%3Aexpires")

    assert (before, after) == ("week4", "2026-10-01T12:00:00Z")
    assert read(guest, "/latest/meta-data/tags/instance") == "gpulab:expires"


def test_a_spot_notice_appears_and_goes():
    """The two minutes begin when this path stops being 404."""
    guest = Guest(a_birth())
    token = a_token(guest)
    notice = {"action": "terminate", "time": "2026-10-01T09:00:00Z"}

    guest.publish(LiveMetadata(notice=notice))
    seen = json.loads(read(guest, "/latest/meta-data/spot/instance-action"))
    at = read(guest, "/latest/meta-data/spot/termination-time")
    guest.publish(LiveMetadata())

    assert (notice, "2026-10-01T09:00:00Z") == (seen, at)
    assert status_of(guest, "/latest/meta-data/spot/instance-action", token) == 404


def test_a_stop_notice_has_no_termination_time():
    """Programs take `termination-time` for the end of the instance."""
    guest = Guest(a_birth())
    guest.publish(LiveMetadata(notice={"action": "stop", "time": "2026-10-01T09:00:00Z"}))

    status = status_of(guest, "/latest/meta-data/spot/termination-time", a_token(guest))

    assert status == 404


def test_a_rebalance_recommendation_says_when_it_was_made():
    """It comes before the notice, so the agent saves early."""
    guest = Guest(a_birth())
    guest.publish(LiveMetadata(rebalance_at=datetime(2026, 10, 1, 8, 55, tzinfo=UTC)))

    recommendation = read(guest, "/latest/meta-data/events/recommendations/rebalance")

    assert json.loads(recommendation) == {"noticeTime": "2026-10-01T08:55:00Z"}


def test_a_role_is_listed_and_its_credentials_follow():
    """The AWS libraries list the role, then read the body under its name."""
    guest = Guest(a_birth(role="gpulab-work"))
    body = {"Code": "Success", "AccessKeyId": "ASIAEXAMPLE", "Expiration": "2026-10-01T14:00:00Z"}
    guest.publish(LiveMetadata(credentials=body))

    listing = read(guest, "/latest/meta-data/iam/security-credentials/")
    credentials = read(guest, "/latest/meta-data/iam/security-credentials/gpulab-work")
    profile = json.loads(read(guest, "/latest/meta-data/iam/info"))

    assert ("gpulab-work", body) == (listing, json.loads(credentials))
    assert profile["InstanceProfileArn"] == "arn:aws:iam::123456789012:instance-profile/gpulab-work"


def test_addresses_that_are_not_ipv4_do_not_break_the_tree():
    """A simulated EC2 may boot a machine before it has an address."""
    guest = Guest(a_birth(private_address=""))

    assert "02:00:00:00:00:00" == mac_of("") == read(guest, "/latest/meta-data/mac")


@contextmanager
def serving(*guests: tuple[str, Guest]) -> Iterator[http.client.HTTPConnection]:
    table = dict(guests)
    service = MetadataService(socket.create_server(("127.0.0.1", 0)), table.get)
    host, port = service.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        yield connection
    finally:
        connection.close()
        service.close()


def ask(connection: http.client.HTTPConnection, method: str, path: str, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    response = connection.getresponse()
    return response.status, response.read()


def test_the_service_keeps_one_connection_for_the_token_and_the_reads():
    """The agent asks every few seconds; header names come in any case."""
    with serving(("127.0.0.1", Guest(a_birth()))) as connection:
        status, token = ask(
            connection, "PUT", "/latest/api/token", X_AWS_EC2_metadata_token_TTL_seconds="60"
        )
        value = ask(connection, "GET", "/latest/user-data", x_aws_ec2_metadata_token=token.decode())
        refused = ask(connection, "GET", "/latest/user-data")

    assert (status, value) == (200, (200, b"\x1f\x8bgzip"))
    assert refused == (401, b"401 - Unauthorized\n")


def test_the_service_knows_its_callers_by_address():
    """One service stands for a whole network; a stranger learns nothing."""
    with serving(("10.77.2.1", Guest(a_birth()))) as connection:
        answer = ask(
            connection, "PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60"
        )

    assert answer == (404, b"404 - Not Found\n")


class Remembering(socket.socket):
    """A listening socket that keeps what it accepted."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, object]:
        connection, address = super().accept()
        self.accepted.append(connection)
        return connection, address


def test_the_hop_limit_is_set_on_the_packets():
    """The limit works in the network layer; in the answer's text it would protect nobody."""
    listener = Remembering()
    listener.bind(("127.0.0.1", 0))
    guest = Guest(a_birth(hop_limit=3))
    service = MetadataService(listener, lambda address: guest)
    host, port = service.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)

    ask(connection, "PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")
    of_token = listener.accepted[0].getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
    ask(connection, "GET", "/latest/meta-data/")
    of_read = listener.accepted[0].getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
    connection.close()
    service.close()

    assert (of_token, of_read) == (3, 64)


def test_a_closed_service_frees_its_port():
    """A machine that is stopped and started again listens on the same port."""
    service = MetadataService(socket.create_server(("127.0.0.1", 0)), lambda address: None)
    port = int(service.url.rsplit(":", 1)[1])

    service.close()
    service.close()

    socket.create_server(("127.0.0.1", port)).close()
    assert f"http://127.0.0.1:{port}" == service.url
