"""
What must not stand in a file that people send to each other: keys, tokens, passwords. Recognised by their shape or by their name.

Sources:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html (beginnings of access key ids)
    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html (parts of a presigned address)
"""

from __future__ import annotations

import re

_HIDDEN = "<hidden>"
_NAMES = r"aws_secret_access_key|aws_session_token|secret_?access_?key|session_?token|security-token|password|external_?id"
_SHAPES = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.S),
        _HIDDEN,
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _HIDDEN),
    (
        re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s'\"]+", re.I),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"(Authorization['\"]?\s*[:=]\s*['\"]?)[^'\"\r\n]+", re.I), rf"\1{_HIDDEN}"),
    (re.compile(rf"((?:{_NAMES})['\"]?\s*[:=]\s*['\"]?)[^'\"\s,}}]+", re.I), rf"\1{_HIDDEN}"),
    (re.compile(r"([?&\s]token[= ])[\w.~+/-]{16,}=*", re.I), rf"\1{_HIDDEN}"),
)


def without_secrets(text: str) -> str:
    """Replace what looks like a secret; the rest stays as it is."""
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text
