"""The cost timeline's worked cases: each file of `cases/cost` is a document and its whole answer, or its refusal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpulab.errors import WrongUsage
from gpulab.model.timeline import PriceRule
from gpulab.spending.charging import cost_of
from gpulab.spending.document import read_document, render

CASES = sorted((Path(__file__).parent / "cases" / "cost").glob("*.json"))
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def answer_to(document: object, price_rule: str = "hour-start", now: datetime = NOW) -> object:
    read = read_document(json.dumps(document).encode())
    costs = cost_of(read.timeline, as_of=read.as_of or now, price_rule=PriceRule(price_rule))
    return render(costs, credit_usd=read.credit_usd)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_answer_is_equal_to_ten_decimals(path):
    """Each rule of AWS's bill is pinned by a case that a person worked out."""
    case = json.loads(path.read_text())

    if "error" in case:
        with pytest.raises(WrongUsage) as refusal:
            answer_to(case["document"], case["price_rule"])
        assert case["error"] == refusal.value.message
    else:
        assert case["answer"] == answer_to(case["document"], case["price_rule"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is not JSON: Expecting value at line 1, column 1"),
        (b"[]", "$ is an array, not an object"),
        (b"\xff{}", "the file is not UTF-8 at byte 0"),
        (b'{"credit": NaN}', "the file has NaN, which is not JSON"),
        (
            b'{"instances": [], "instances": []}',
            "the file has the key `instances` twice in one object",
        ),
        (b"[" * 100_000, "the file is nested too deeply"),
        (
            b'{"as_of": ' + b"9" * 5000 + b"}",
            "the file has a number with too many digits, 99999999999999999999...",
        ),
        (
            b'{"as_of": "2026-13-01T00:00:00Z"}',
            "$.as_of is `2026-13-01T00:00:00Z`, not a time such as 2026-10-23T16:10:00Z",
        ),
        (
            b'{"as_of": "9999-12-31T23:59:59-14:00"}',
            "$.as_of is `9999-12-31T23:59:59-14:00`, not a time such as 2026-10-23T16:10:00Z",
        ),
        (b'{"credit": {}}', "$.credit has no `amount`"),
        (b'{"credit": {"amount": "1_0"}}', "$.credit.amount is `1_0`, not an amount of at least 0"),
        (b'{"instances": 3}', "$.instances is `3`, not an array"),
    ],
)
def test_a_malformed_file_is_named_not_guessed(content, message):
    """A student's file from an editor or a half download gets one sentence, never a traceback or a wrong sum."""
    with pytest.raises(WrongUsage) as refusal:
        read_document(content)

    assert message == refusal.value.message


def test_a_misspelt_key_gets_its_neighbour_as_hint():
    """The nearest key is nearly always the one that was meant."""
    with pytest.raises(WrongUsage) as refusal:
        read_document(b'{"volumnes": []}')

    assert "Did you mean `volumes`?" == refusal.value.hint


def test_an_empty_document_costs_nothing():
    """A class that ran nothing gets zeros, not an error."""
    zero = "0.0000000000"

    answer = answer_to({"credit": {"amount": "100.00"}})

    assert {
        "price_rule": "hour-start",
        "instance": zero,
        "ebs": zero,
        "ipv4": zero,
        "total": zero,
        "total_cents": 0,
        "billed_instance_seconds": 0,
        "credit_used": zero,
        "credit_left": "100.0000000000",
        "out_of_pocket": zero,
        "exhausted_at": None,
    } == answer


def test_a_byte_order_mark_is_no_error():
    """Windows editors write one."""
    assert () == read_document(b"\xef\xbb\xbf{}").timeline.instances


def test_without_as_of_an_open_run_is_billed_up_to_now():
    """The same file asked an hour later costs an hour more."""
    document = {
        "on_demand": {"g5.xlarge": "1.006"},
        "instances": [
            {
                "id": "i-1",
                "instance_type": "g5.xlarge",
                "market": "on-demand",
                "events": [{"at": "2026-10-31T23:00:00Z", "type": "launch"}],
            }
        ],
    }

    answer = answer_to(document)

    assert "1.0060000000" == answer["total"]
