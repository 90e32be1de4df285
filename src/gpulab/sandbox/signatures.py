"""R20: whether a request was signed with the secret that belongs to its key (AWS Signature Version 4)."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import parse_qsl, quote, urlsplit

from gpulab.sandbox.calls import Call

_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^/]+/(\d{8})/([^/]+)/([^/]+)/aws4_request,\s*"
    r"SignedHeaders=([^,]+),\s*Signature=([0-9a-f]+)"
)


def is_signed_with(call: Call, secret: str) -> bool:
    """
    Whether a secret made the signature of a call.

    Only calls to `/` are checked, which is every call but those of S3 and the REST services, whose paths clients escape in ways of
    their own; a call without a signature in its headers passes too.

    Source:
        https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
    """
    found = _SIGNED.match(call.headers.get("authorization", ""))
    if found is None or (urlsplit(call.url).path or "/") != "/" or call.service == "s3":
        return True
    day, region, service, names, signature = found.groups()
    scope = f"{day}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(_canonical(call, names).encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", call.headers.get("x-amz-date", ""), scope, digest])
    key = f"AWS4{secret}".encode()
    for word in (day, region, service, "aws4_request"):
        key = _hmac(key, word)
    return hmac.compare_digest(_hmac(key, text).hex(), signature)


def _canonical(call: Call, names: str) -> str:
    parts = urlsplit(call.url)
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(parse_qsl(parts.query, keep_blank_values=True))
    )
    # A client leaves its Host header to the HTTP library; it is signed all the same.
    known = {"host": parts.netloc, **call.headers}
    headers = "".join(
        f"{name}:{' '.join(known.get(name, '').split())}\n" for name in names.split(";")
    )
    payload = call.headers.get("x-amz-content-sha256") or hashlib.sha256(call.body).hexdigest()
    return "\n".join([call.method, "/", query, headers, names, payload])


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
