"""The term's budget from the configuration to the instance: refused before a call that costs, carried in the user data."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from decimal import Decimal

import pytest

from gpulab.errors import CreditTooLow
from gpulab.launch.money.facts import record_ends
from gpulab.launch.running import overview


def born_with(student) -> dict:
    """The specification in the user data of the newest launch."""
    intent = [
        json.loads(line)
        for line in student.context.folder.journal.read_text(encoding="utf-8").splitlines()
        if "user_data" in line
    ][-1]
    document = json.loads(gzip.decompress(b64decode(intent["user_data"])).split(b"\n", 1)[1])
    files = {f["path"]: f for f in document["write_files"]}
    return json.loads(files["/etc/gpulab/spec.json"]["content"])


def test_the_instance_is_born_with_what_is_left_of_the_term(make_student):
    """The laptop may never open again; the instance counts for itself."""
    student = make_student(budget_usd=Decimal(3))

    student.up()

    assert "3.00" == born_with(student)["budget_usd"]


def test_a_second_instance_that_does_not_fit_beside_the_first_is_refused(make_student):
    """Nothing is asked of AWS that costs, and the sentence says why."""
    student = make_student(budget_usd=Decimal("2.50"))
    student.up("first")

    run = student.up("second")

    assert isinstance(run.error, CreditTooLow)
    assert "of the term's budget of $2.50 is left beside $" in run.error.message
    assert 1 == student.operations().count("RunInstances")


def test_an_instance_that_ended_while_this_computer_was_off_does_not_block_the_next(make_student):
    """Before a refusal the account is asked what still runs."""
    student = make_student(budget_usd=Decimal("2.50"))
    first = student.up("first").instance
    student.sandbox.advance(seconds=1200)
    student.context.cloud.client("ec2", "us-east-1").terminate_instances(InstanceIds=[first.id])
    student.sandbox.advance(seconds=60)

    run = student.up("second")

    assert (None, run.instance.id) == (run.error, *student.live())


def test_a_dry_run_is_refused_alike(make_student):
    """The plan that is shown is the plan that would be done."""
    from gpulab.launch import up

    student = make_student(budget_usd=Decimal(1))

    with pytest.raises(CreditTooLow, match="up to"):
        up.plan(student.context, student.request())


def test_the_list_knows_how_much_of_the_budget_is_used(make_student):
    """`gpulab ls` is what people look at every day."""
    student = make_student(budget_usd=Decimal(3))
    run = student.up()
    student.sandbox.advance(seconds=3600)
    record_ends(student.context, [run.instance.id], at=student.context.now(), reason="the student")

    budget = overview.look(student.context, ask_instances=False).budget

    assert Decimal("0.15") < budget.spent_usd < Decimal("0.20")
    assert (Decimal(0), budget.usd - budget.spent_usd) == (budget.promised_usd, budget.left_usd)
