"""The same world behind HTTP: what the sandbox's server is made of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import make_server

from gpulab.sandbox import World
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.wsgi import wsgi_app

ONE_ATTEMPT = Config(retries={"total_max_attempts": 1, "mode": "standard"})


class Quiet(MotoRequestHandler):
    """Prints no line for each request."""

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's name
        """Say nothing."""


@pytest.fixture
def world() -> Iterator[World]:
    """A world of its own, clock in hand."""
    made = World()
    made.open()
    yield made
    made.close()


@pytest.fixture
def url(world: World) -> Iterator[str]:
    """Where the world answers."""
    server = make_server("127.0.0.1", 0, wsgi_app(world), threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def at(world: World, url: str):
    """Make a client of the server, for an account."""
    session = boto3.Session()

    def make(service, account="123456789012", **arguments):
        key = world.key_of(account)
        return session.client(
            service,
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=key.access_key,
            aws_secret_access_key=key.secret,
            config=ONE_ATTEMPT,
            **arguments,
        )

    return make


def a_launch(world, **changes):
    """One g4dn.xlarge spot instance."""
    image = next(iter(world.images.parameters("us-east-1").values()))[0]
    return {
        "ImageId": image,
        "InstanceType": "g4dn.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceMarketOptions": {"MarketType": "spot"},
        **changes,
    }


def test_a_launch_over_http_is_the_same_launch(world, at):
    """One layer serves both, so a test in process speaks for the server."""
    launched = at("ec2").run_instances(**a_launch(world))["Instances"][0]
    world.advance(10)

    found = at("ec2").describe_instances()["Reservations"][0]["Instances"][0]

    assert ("pending", "running", launched["SpotInstanceRequestId"]) == (
        launched["State"]["Name"],
        found["State"]["Name"],
        found["SpotInstanceRequestId"],
    )


def test_the_account_comes_from_the_key(world, at):
    """Two students, one server."""
    at("ec2", "222222222222").run_instances(**a_launch(world))
    world.advance(10)

    assert [] == at("ec2").describe_instances()["Reservations"]
    assert "222222222222" == at("sts", "222222222222").get_caller_identity()["Account"]


def test_a_connection_breaks_for_real(world, at):
    """A reset, from which botocore makes its own error; the instance is there all the same."""
    world.lose_reply("RunInstances")

    with pytest.raises(ConnectionClosedError):
        at("ec2").run_instances(**a_launch(world))

    assert 1 == len(world.instances())


@pytest.mark.parametrize(
    ("service", "method", "arguments"),
    [
        ("billing", "get_credits", {"accountId": "123456789012", "startDate": "2026-11-01"}),
        ("freetier", "get_account_plan_state", {}),
        ("pricing", "get_products", {"ServiceCode": "AmazonEC2"}),
        ("service-quotas", "list_service_quotas", {"ServiceCode": "ec2"}),
        ("scheduler", "list_schedules", {}),
        (
            "ssm",
            "get_parameters_by_path",
            {"Path": "/aws/service/canonical/ubuntu", "Recursive": True},
        ),
        ("iam", "list_roles", {}),
    ],
)
def test_services_are_found_by_the_signature(world, at, service, method, arguments):
    """Behind an endpoint URL the host says nothing."""
    answer = getattr(at(service), method)(**arguments)

    assert 200 == answer["ResponseMetadata"]["HTTPStatusCode"]
    assert "ok" == world.calls[-1].outcome
    assert method.replace("_", "") == world.calls[-1].operation.lower()


def test_an_object_comes_back_as_it_was_put(at):
    """Names with spaces, plus signs and letters of other languages, and bodies in chunks."""
    s3 = at("s3")
    s3.create_bucket(Bucket="kept-work")
    body = bytes(range(256)) * 4000

    s3.put_object(Bucket="kept-work", Key="uge 4/øvelse +1.ipynb", Body=body)

    listed = s3.list_objects_v2(Bucket="kept-work")["Contents"]
    assert body == s3.get_object(Bucket="kept-work", Key="uge 4/øvelse +1.ipynb")["Body"].read()
    assert ["uge 4/øvelse +1.ipynb"] == [entry["Key"] for entry in listed]


def test_many_students_at_once(world, at):
    """Threads of the server share one world; nobody is lost and nobody is double."""
    accounts = [f"{n:012d}" for n in range(100, 112)]
    clients = [at("ec2", account) for account in accounts]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda ec2: ec2.run_instances(**a_launch(world, ClientToken="t")), clients))
        list(pool.map(lambda ec2: ec2.run_instances(**a_launch(world, ClientToken="t")), clients))

    assert accounts == sorted(i["NetworkInterfaces"][0]["OwnerId"] for i in world.instances())


def test_a_wrong_key_is_refused(url, at):
    """The profile of another sandbox does not open this one."""
    ec2 = boto3.client(
        "ec2",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="AKIANOBODYSKEY000000",
        aws_secret_access_key="x",
        config=ONE_ATTEMPT,
    )

    with pytest.raises(ClientError, match="AuthFailure"):
        ec2.describe_instances()


def test_an_answer_says_the_time_once(at):
    """`gpulab doctor` compares the clocks by it; with two dates in an answer it could not, and said nothing."""
    reply = at("sts").get_caller_identity()

    said = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
    assert timedelta(minutes=1) > abs(datetime.now(UTC) - said)


def test_a_running_clock_goes_faster_by_its_speed():
    """`--speed 60`: an hour in a minute, with the transitions at their own moments."""
    seconds = iter([0.0, 1.0, 2.5])
    clock = RunningClock(speed=60, monotonic=lambda: next(seconds))

    first, second = clock.now(), clock.now()

    assert 90.0 == (second - first).total_seconds()
