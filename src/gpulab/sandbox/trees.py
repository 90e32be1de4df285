"""Edits of XML answers that moto has written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

from gpulab.sandbox.calls import Answer


def drop_items(
    answer: Answer, set_name: str, unwanted: Callable[[ElementTree.Element], bool]
) -> Answer:
    """The answer without some items of one of its sets."""
    root = ElementTree.fromstring(answer.body)  # noqa: S314 - written by moto in this process
    for set_ in root.iter():
        if set_.tag.rsplit("}", 1)[-1] == set_name:
            for item in [item for item in set_ if unwanted(item)]:
                set_.remove(item)
    namespace = root.tag[1:].split("}")[0] if root.tag.startswith("{") else ""
    ElementTree.register_namespace("", namespace)
    body = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    headers = {k: v for k, v in answer.headers.items() if k.lower() != "content-length"}
    return replace(answer, body=body, headers={**headers, "Content-Length": str(len(body))})
