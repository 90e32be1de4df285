"""
AWS's wire formats: an HTTP request becomes a `Call`, a result or a refusal becomes an `Answer`.

Uses moto's parsers and serialisers, which follow botocore's service models, so it also speaks for services moto does not have.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit
from xml.sax.saxutils import escape

from botocore.exceptions import UnknownServiceError
from botocore.serialize import create_serializer
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request
from moto.core.routing import get_service_router
from moto.core.serialize import get_serializer_class
from moto.core.utils import get_service_model
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from gpulab.sandbox.calls import Answer, Call, Refusal

#: Signing names that differ from botocore's names of the services.
_SIGNED_AS = {"servicequotas": "service-quotas", "tagging": "resourcegroupstaggingapi"}

_SCOPE = re.compile(r"Credential=([^/,\s]+)/\d+/([^/]+)/([^/]+)/aws4_request")


def read_call(
    method: str, url: str, headers: Mapping[str, str], body: bytes, *, operation: str = ""
) -> Call:
    """
    Understand a request.

    The service, the region and the access key come from the credential scope of the signature, because behind an endpoint URL
    the host says nothing; an unsigned call is known by its host.

    Args:
        operation: What the caller knows of it; otherwise it is read from the request.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    access_key, region, service = _scope_of(url, lower)
    if not operation:
        operation = _operation_of(service, method, url, lower, body)
    params = _params_of(service, operation, method, url, lower, body)
    return Call(method, url, lower, body, service, region, operation, access_key, "", params)


def with_params(call: Call, params: Mapping[str, Any]) -> Call:
    """The same EC2 call with other parameters, encoded anew."""
    model = get_service_model("ec2")
    serializer = create_serializer(model.metadata["protocol"], include_validation=False)
    request = serializer.serialize_to_request(dict(params), model.operation_model(call.operation))
    body = urlencode(request["body"]).encode()
    headers = {**call.headers, "content-length": str(len(body))}
    return Call(
        call.method,
        call.url,
        headers,
        body,
        call.service,
        call.region,
        call.operation,
        call.access_key,
        call.account,
        params,
    )


def write_result(call: Call, result: Mapping[str, Any]) -> Answer:
    """The answer to a call that succeeded, in its service's format."""
    model = get_service_model(call.service)
    serializer = get_serializer_class(call.service, model.protocol)(
        operation_model=model.operation_model(call.operation)
    )
    written = serializer.serialize(result)
    body = written["body"]
    return _answer(
        written["status_code"],
        body.encode() if isinstance(body, str) else body,
        written["headers"].get("Content-Type", "text/xml"),
    )


def write_refusal(call: Call, refusal: Refusal) -> Answer:
    """The answer to a call that was refused, in its service's format."""
    code, message = refusal.code, refusal.message
    protocol = _protocol_of(call.service)
    if protocol in ("json", "rest-json"):
        text = json.dumps({"__type": code, "message": message, "Message": message})
        answer = _answer(refusal.status, text.encode(), "application/x-amz-json-1.1")
        return Answer(answer.status, {**answer.headers, "x-amzn-ErrorType": code}, answer.body)
    request_id = uuid.uuid4()
    error = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    if call.service == "s3":
        text = f"<Error>{error}<RequestId>{request_id}</RequestId></Error>"
        body = b"" if call.method == "HEAD" else text.encode()
        return _answer(refusal.status, body, "application/xml")
    if protocol == "ec2":
        text = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>{request_id}</RequestID></Response>"
    else:
        text = (
            f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error>"
            f"<RequestId>{request_id}</RequestId></ErrorResponse>"
        )
    return _answer(refusal.status, text.encode(), "text/xml")


def error_code(answer: Answer) -> str:
    """The error code in an answer that failed; its HTTP status as text when it has none."""
    for name, value in answer.headers.items():
        if name.lower() == "x-amzn-errortype":
            return value.split(":")[0]
    found = re.search(rb'<Code>([^<]+)</Code>|"__type":\s*"(?:[^"]*#)?([^"]+)"', answer.body)
    return (found[1] or found[2]).decode() if found else str(answer.status)


def _answer(status: int, body: bytes, content_type: str) -> Answer:
    headers = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "x-amzn-RequestId": str(uuid.uuid4()),
    }
    return Answer(status, headers, body)


def _scope_of(url: str, headers: Mapping[str, str]) -> tuple[str, str, str]:
    found = _SCOPE.search(headers.get("authorization", ""))
    if found is None:
        query = parse_qs(urlsplit(url).query)
        credential = query.get("X-Amz-Credential", [""])[0]
        found = _SCOPE.search(f"Credential={credential}")
    if found is None:
        return "", "us-east-1", _service_of_host(urlsplit(url).hostname or "")
    return found[1], found[2], _SIGNED_AS.get(found[3], found[3])


def _service_of_host(host: str) -> str:
    if ".s3." in f".{host}" or host.startswith("s3"):
        return "s3"
    first = host.split(".")[0]
    return _SIGNED_AS.get(first, first if _protocol_of(first) else "s3")


def _protocol_of(service: str) -> str:
    try:
        return str(get_service_model(service).protocol) if service else ""
    except UnknownServiceError:
        return ""


def _operation_of(
    service: str, method: str, url: str, headers: Mapping[str, str], body: bytes
) -> str:
    if target := headers.get("x-amz-target"):
        return target.rsplit(".", 1)[-1]
    protocol = _protocol_of(service)
    if protocol in ("ec2", "query"):
        form = parse_qs(body.decode("utf-8", "replace")) or parse_qs(urlsplit(url).query)
        return form.get("Action", [""])[0]
    operation, _ = _route(service, method, url, headers)
    return operation


def _route(
    service: str, method: str, url: str, headers: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    try:
        request = Request.from_primitives(method, url, dict(headers), b"")
        operation, path_params = get_service_router(service).match(request)
    except (HTTPException, UnknownServiceError, KeyError):
        return "", {}
    return str(operation.name), dict(path_params)


def _params_of(
    service: str, operation: str, method: str, url: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    protocol = _protocol_of(service)
    if not operation or not protocol:
        return {}
    if protocol in ("ec2", "query"):
        return _form_params(service, operation, url, body)
    if protocol == "rest-xml":
        return _route(service, method, url, headers)[1]
    params = _route(service, method, url, headers)[1] if protocol == "rest-json" else {}
    try:
        inside = json.loads(body) if body else {}
    except ValueError:
        inside = {}
    return {**params, **inside} if isinstance(inside, dict) else params


def _form_params(service: str, operation: str, url: str, body: bytes) -> dict[str, Any]:
    model = get_service_model(service)
    if operation not in model.operation_names:
        return {}
    text = body.decode("utf-8", "replace") or urlsplit(url).query
    values = MultiDict(parse_qsl(text, keep_blank_values=True))
    parser = PROTOCOL_PARSERS[model.protocol](model.operation_model(operation))
    request = {"body": body, "headers": {}, "method": "POST", "url_params": {}, "url_path": "/"}
    try:
        parsed = parser.parse({**request, "values": values})
    except ValueError as error:
        # Blobs and numbers that cannot be read are left to the service itself.
        return {"unreadable": str(error)}
    return dict(parsed)
