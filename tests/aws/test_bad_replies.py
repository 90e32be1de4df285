"""Answers of AWS that lack members or hold odd ones end in a clean error: every reader, and a whole launch, which never loses an instance."""

from __future__ import annotations

import random
from pathlib import Path

import botocore.session
import pytest
from tests.fuzzing.aws import PLACES, place_inputs, recorded
from tests.fuzzing.oracle import judge
from tests.fuzzing.targets import ROOMS, targets_of

from gpulab.aws.errors import explained
from gpulab.aws.replies import check_reply
from gpulab.errors import Ambiguous, AwsError

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.fixture(scope="module", autouse=True)
def answers():
    """Record the answers before a test begins: its readers ask for all of them in one name, which nobody has the rights for."""
    recorded()


@pytest.mark.parametrize(("name", "count"), [("replies", 200), ("launch", 40)])
def test_changed_answers_end_in_a_clean_error_or_success(name, count):
    """Answers of the sandbox, each with up to eight values removed, swapped or spoilt; the same ones each time."""
    target, chance = targets_of("aws")[name], random.Random(5)
    kept = [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]
    edits = [chance.randbytes(chance.randrange(2, 40)) for _ in range(count)]

    found = [judge(target, given) for given in (*target.seeds, *kept, *edits)]

    assert [] == [finding for finding in found if finding is not None]


def test_a_value_that_is_missing_of_another_type_or_of_10_mb_is_told_by_its_place():
    """Five places of what each reader asks for, one after the other; the error says what was asked and what is wrong where."""
    inputs = place_inputs(random.Random(11), each=5)

    found = [judge(PLACES, given) for given in inputs]

    assert len(inputs) > 200
    assert [] == [finding for finding in found if finding is not None]


def test_every_kept_input_has_a_target_that_reads_it():
    """A renamed target would leave its inputs lying there, unread and green."""
    names = {name for room in ROOMS for name in targets_of(room)}

    assert set() == {folder.name for folder in CORPUS.iterdir()} - names


def test_an_unreadable_answer_to_a_change_may_hide_that_it_took_effect():
    """A launch whose answer names no instance is asked again with its token; another place would double it."""
    with pytest.raises(Ambiguous) as launched, explained("launch an instance"):
        raise KeyError("Instances")
    with pytest.raises(AwsError) as looked, explained("list the instances"):
        raise KeyError("Reservations")

    assert (
        "could not launch an instance: AWS's answer cannot be read (KeyError: 'Instances')"
        == str(launched.value)
    )
    assert AwsError is type(looked.value)


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        ({"InstanceId": 3}, "InstanceId is of the type int, not string"),
        ({"LaunchTime": "today"}, "LaunchTime is of the type str, not timestamp"),
        ({"AmiLaunchIndex": True}, "AmiLaunchIndex is of the type bool, not integer"),
        ({"Tags": {"a": "b"}}, "Tags is of the type dict, not list"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_place(instance, said):
    """It would travel on and break something far away, hours later."""
    model = botocore.session.Session().get_service_model("ec2").operation_model("DescribeInstances")

    with pytest.raises(ValueError, match=r"Reservations\[0\]\.Instances\[0\]") as caught:
        check_reply({"Reservations": [{"Instances": [instance]}]}, model)

    assert str(caught.value).endswith(said)
