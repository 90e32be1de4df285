"""The policies in docs/iam allow every call gpulab makes, and no more kinds of calls than it makes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.aws.launch.conftest import Student

from gpulab.launch.offers import prices
from gpulab.launch.running import extend, keep, stop
from gpulab.launch.upkeep import doctor, sweep
from gpulab.launch.upkeep.prepare import prepare

POLICIES = Path(__file__).parents[3] / "docs/iam"
# Where IAM's name of a right differs from the operation's.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
RIGHTS = {
    "service-quotas:GetServiceQuota": "servicequotas:GetServiceQuota",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:DeleteObjects": "s3:DeleteObjectVersion",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
}


def rights_in(*names):
    found = set()
    for name in names:
        policy = json.loads((POLICIES / name).read_text(encoding="utf-8"))
        for statement in policy["Statement"]:
            actions = statement["Action"]
            found |= {actions} if isinstance(actions, str) else set(actions)
    return found


def called(sandbox, since=0):
    names = {f"{c.service}:{c.operation}" for c in list(sandbox.calls)[since:]}
    return {RIGHTS.get(n, n) for n in names}


@pytest.mark.parametrize("policy", ["own-account.json", "course-account.json"])
def test_a_policy_fits_into_iam(policy):
    """A managed policy has at most 6,144 characters without white space."""
    whole = json.loads((POLICIES / policy).read_text(encoding="utf-8"))

    assert len(json.dumps(whole, separators=(",", ":"))) <= 6144


def test_setting_up_needs_what_setup_json_allows(sandbox, tmp_path):
    """The teacher pastes the policy once; a missing line would be found by the first student."""
    prepare(Student(sandbox, tmp_path).context)

    assert set() == called(sandbox) - rights_in("setup.json", "own-account.json")


@pytest.mark.parametrize("policy", ["own-account.json", "course-account.json"])
def test_a_whole_day_needs_what_the_students_policy_allows(sandbox, tmp_path, policy):
    """Launch, extend, stop, fetch, forget, sweep, check: each call has its line."""
    made = prepare(Student(sandbox, tmp_path).context)
    student = Student(
        sandbox,
        tmp_path,
        owner=made.owner,
        keep_bucket=made.keep_bucket,
        instance_role=made.instance_role,
        scheduler_role=made.scheduler_role,
    )
    before, context = len(sandbox.calls), student.context

    list(doctor.checks(context))
    prices.offers(context, gpu="T4", instance_type=None, regions=("eu-west-1",))
    instance = student.up().instance
    moved = replace(context, cidr="198.51.100.9/32")
    student.context = moved
    other = student.up("other").instance
    _extend_by_tag(moved, instance, sandbox)
    for one in (instance, other):
        list(stop.stop(moved, one, save=False))
    sandbox.advance(seconds=900)
    list(sweep.apply(moved, sweep.look(moved).found))
    keep.kept(moved)

    assert set() == called(sandbox, before) - rights_in(policy)


def _extend_by_tag(context, instance, sandbox):
    class Silent:
        def run(self, *_words, **_more):
            from gpulab.errors import Unreachable

            raise Unreachable("no answer")

    until = sandbox.now() + timedelta(hours=6)
    extend.extend(replace(context, connect=lambda target: Silent()), instance, until)
