"""`Sandbox`: the simulated AWS inside this process, for tests. Real boto3 clients reach it; nothing reaches the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError, UnknownServiceError
from botocore.loaders import Loader
from moto import mock_aws
from moto.core.botocore_stubber import MockRawResponse

from gpulab.sandbox import moto_bridge
from gpulab.sandbox.calls import Answer, Call, ConnectionLost, Refusal
from gpulab.sandbox.credentials import DEFAULT_ACCOUNT
from gpulab.sandbox.network_guard import closed_network
from gpulab.sandbox.rules import Rules
from gpulab.sandbox.wire import read_call
from gpulab.sandbox.world import World

_FORGOTTEN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_SECURITY_TOKEN")


class Sandbox(World):
    """
    A world for a test, as context manager.

        with Sandbox() as sandbox:
            sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", zone="us-east-1a")
            ...

    While it is open, every boto3 client of this process talks to it, `AWS_*` variables name a fake key of account
    123456789012 in us-east-1, and no socket leaves this machine. Its clock stands still until `advance`.

    Args:
        without: Rules to switch off, by name, see `Rules`.
        arguments: As for `World`.
    """

    def __init__(
        self, *, without: tuple[str, ...] = (), rules: Rules | None = None, **arguments: Any
    ) -> None:
        super().__init__(rules=(rules or Rules()).without(*without), **arguments)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(mock_aws())
            stack.enter_context(patch.dict(os.environ, self._environment()))
            for name in _FORGOTTEN:
                os.environ.pop(name, None)
            self.open()
            stack.callback(self.close)
            stack.enter_context(_in_front_of_moto(self))
            if self.rules.network:
                stack.enter_context(closed_network())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @contextmanager
    def old_botocore(self, service: str, operation: str = "") -> Iterator[None]:
        """
        Let clients that are made meanwhile not know an operation, or a whole service, as an older botocore does not.

        Use a `boto3.Session` that has not loaded the service yet.
        """
        load = Loader.load_service_model

        def load_older(
            loader: Loader, name: str, type_name: str, api_version: str | None = None
        ) -> Any:
            if name == service and not operation:
                raise UnknownServiceError(service_name=name, known_service_names="")
            model = load(loader, name, type_name, api_version)
            if name == service and type_name == "service-2":
                kept = {o: shape for o, shape in model["operations"].items() if o != operation}
                return {**model, "operations": kept}
            return model

        with patch.object(Loader, "load_service_model", load_older):
            yield

    def _environment(self) -> dict[str, str]:
        return {
            **self.key_of(DEFAULT_ACCOUNT).environment(),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def _in_front_of_moto(world: World) -> Any:
    def answer(
        stubber: Any, event_name: str, request: AWSPreparedRequest, **_: Any
    ) -> AWSResponse | None:
        if not stubber.enabled:
            return None
        operation = event_name.rsplit(".", 1)[-1]
        body = _body_of(request)
        headers = {name: _text(value) for name, value in request.headers.items()}
        call = read_call(request.method, request.url, headers, body, operation=operation)
        try:
            found = world.handle(call, _forward)
        except ConnectionLost as lost:
            raise _broken(lost, request.url) from lost
        return AWSResponse(
            request.url, found.status, _headers(found.headers), MockRawResponse(found.body)
        )

    # Recipe: the class, because Python looks `__call__` up there; never a second `before-send` handler, since botocore
    # calls them all and moto would carry out what was refused.
    return patch.object(moto_bridge.StubberClass, "__call__", answer)


def _forward(call: Call) -> Answer:
    request = AWSPreparedRequest(
        call.method, call.url, _headers(call.headers), call.body, stream_output=False
    )
    found = moto_bridge.process(request)
    if found is None or (found[0] == 404 and found[2] == "Not yet implemented"):
        raise Refusal(
            "NotSimulated", f"The sandbox does not simulate {call.service}:{call.operation}."
        )
    status, headers, body = found
    return Answer(status, headers, body.encode() if isinstance(body, str) else body)


def _body_of(request: AWSPreparedRequest) -> bytes:
    body: Any = request.body
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    read: Callable[[], bytes] = body.read
    return read()


def _broken(lost: ConnectionLost, url: str) -> Exception:
    if lost.took_effect:
        return ReadTimeoutError(endpoint_url=url)
    return ConnectionClosedError(endpoint_url=url)


def _headers(plain: Mapping[str, str]) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in plain.items():
        headers[name] = str(value)
    return headers


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
