"""Images: baked, tested, used, copied, pruned; and nothing is left of a bake that failed, was interrupted or was killed at any call."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import botocore.client
import pytest
from tests.aws.conftest import a_client
from tests.aws.launch.conftest import Student

from gpulab.aws import baking
from gpulab.bootstrap import load_environment
from gpulab.errors import AwsError, CommandFailed, GpulabError
from gpulab.launch import bake
from gpulab.launch.account import images
from gpulab.launch.events import (
    Declined,
    ImageChosen,
    ImageCopied,
    ImageMade,
    PhaseChanged,
    Running,
    WaitingFor,
)
from gpulab.launch.upkeep import sweep
from gpulab.model.fact import FactKind
from gpulab.model.leftover import Kind
from gpulab.remote.process import Completed
from gpulab.sandbox import Sandbox

# `GPULAB_EVERY_CALL=1 python -m pytest -k killed_after tests/aws/launch/test_launch_bake.py` dies after those that only look, too: 2 min.
EVERY_CALL = bool(os.environ.get("GPULAB_EVERY_CALL"))
PHASES = ("armed", "host-keys", "ssh", "work", "jupyter", "environment", "gpu")


class Host:
    """An instance that is set up, passes its check and lets itself be cleaned, unless a test says otherwise."""

    def __init__(self):
        self.failed_phase = ""
        self.check = {"name": "gpu", "state": "ok", "text": "T4", "seconds": 1.0}
        self.left: list[str] = []
        self.ran: list[str] = []

    def run(self, command, *, given=b"", **_more):
        if command[-1:] == ["-"]:
            is_clean = command[0] == "sudo"
            self.ran.append("clean" if is_clean else "check")
            said = {"removed": 9, "left": self.left} if is_clean else self.check
            return Completed(1 if is_clean and self.left else 0, json.dumps(said).encode(), "")
        if command[-1:] != ["status"]:
            return Completed(0, b"{}", "")
        rows = [
            {
                "name": n,
                "state": "failed" if n == self.failed_phase else "done",
                "seconds": 1,
                "message": "m",
            }
            for n in PHASES
        ]
        said = {
            "version": 1,
            "at": "2026-11-23T12:00:00Z",
            "phases": rows,
            "jupyter": {"port": 8888, "ready": True},
        }
        return Completed(0, json.dumps(said).encode(), "")


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


@pytest.fixture
def baker(student):
    """A student's computer whose instances answer as `baker.host` says."""
    return with_host(student)


def with_host(student: Student) -> Student:
    student.host = Host()
    student.context = replace(student.context, connect=lambda target: student.host)
    return student


def baked(baker, **changes) -> list:
    request = baker.request(**changes)
    return list(bake.bake(baker.context, request, confirm=lambda question: True))


def listed(baker, region="us-east-1"):
    return baking.baked(baker.context.cloud, region)


def left_over(sandbox) -> dict[str, list[str]]:
    """Everything of ours that an account still holds, as the simulated EC2 itself knows it."""
    ec2 = a_client("ec2")
    return {
        "instances": [i["InstanceId"] for i in sandbox.instances("pending", "running", "stopped")],
        "images": [i["ImageId"] for i in ec2.describe_images(Owners=["self"])["Images"]],
        "snapshots": [
            s["SnapshotId"] for s in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
        ],
        "volumes": [v["VolumeId"] for v in ec2.describe_volumes()["Volumes"]],
        "keys": [k["KeyName"] for k in ec2.describe_key_pairs()["KeyPairs"]],
        "groups": [
            g["GroupName"]
            for g in ec2.describe_security_groups()["SecurityGroups"]
            if g["GroupName"] != "default"
        ],
    }


def swept(sandbox, baker) -> dict[str, list[str]]:
    """What is left after `sweep --apply`, some hours later, on the same computer in a new process."""
    again = baker.again()
    sandbox.advance(seconds=4 * 3600)
    for _ in range(3):
        list(sweep.apply(again.context, sweep.look(again.context).found))
        sandbox.advance(seconds=900)
    return {kind: found for kind, found in left_over(sandbox).items() if found}


def test_an_image_is_usable_only_after_an_instance_of_it_was_tested(sandbox, baker):
    """An image nobody has booted is a class of thirty that does not start."""
    events = baked(baker)

    (image,) = listed(baker)
    environment = load_environment("tf2-small")
    assert ["check", "clean", "check"] == baker.host.ran
    assert ImageMade is type(events[-1])
    assert (True, "available", environment.image_key(has_gpu=True, has_bucket=False)) == (
        image.is_usable,
        image.state,
        image.lock,
    )
    assert image.base_name.startswith("Deep Learning Base AMI with Single CUDA")
    assert [] == baker.live()


def test_each_step_of_builder_and_test_instance_is_told_once(baker):
    """A line that comes twice reads as if the environment had been installed twice."""
    steps = [e.name for e in baked(baker) if isinstance(e, PhaseChanged) and e.state == "done"]

    assert {2} == set(Counter(steps).values())
    assert {"environment", "gpu"} <= set(steps)


def test_the_picture_is_taken_of_a_cleaned_builder_before_it_ends(sandbox, baker):
    """Keys and tokens of whoever baked must not travel to thirty students."""
    baked(baker)

    done = [
        c.operation
        for c in sandbox.calls
        if c.operation in ("RunInstances", "CreateImage", "TerminateInstances", "CreateTags")
    ]
    assert [
        "RunInstances",
        "CreateImage",
        "TerminateInstances",
        "RunInstances",
        "TerminateInstances",
        "CreateTags",
    ] == done


def test_the_test_instance_boots_from_the_image(sandbox, baker):
    """Testing another image would prove nothing."""
    baked(baker)

    (image,) = listed(baker)
    first, second = (c for c in sandbox.calls if c.operation == "RunInstances")
    assert image.image.id == second.params["ImageId"]
    assert first.params["ImageId"] == image.base_id


def test_nothing_is_left_beside_the_image_and_its_snapshot(sandbox, baker):
    """The rest would cost for ever and nobody would know what it is."""
    baked(baker)

    left = left_over(sandbox)
    assert (1, 1, []) == (len(left["images"]), len(left["snapshots"]), left["volumes"])


def test_up_boots_from_the_tested_image_of_the_right_lock_and_says_so(sandbox, baker):
    """That is what the image is for; a student wonders why it is fast today."""
    baked(baker)

    run = baker.up()

    (image,) = listed(baker)
    (said,) = run.of(ImageChosen)
    assert image.image.id == run.instance.image_id
    assert f"It boots from {image.image.name}, which has tf2-small as it is locked now" in said.why


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (
            "lock",
            "It installs tf2-small: image {image.name} has an older lock; `gpulab image bake --env tf2-small` makes a new one",
        ),
        (
            "test",
            "It installs tf2-small: image {image.name} was not tested yet (`gpulab image test {image.id}`)",
        ),
    ],
)
def test_up_ignores_an_image_of_another_lock_or_without_a_test_and_says_why(
    sandbox, baker, which, said
):
    """An old numpy under a new name, or an image that never booted, is worse than a minute of installing; who baked it wonders, though."""
    baked(baker)
    (image,) = listed(baker)
    ec2 = a_client("ec2")
    tags = {"lock": {"gpulab:lock": "0" * 16}, "test": {"gpulab:usable": "no"}}[which]
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    ec2.create_tags(Resources=[image.image.id], Tags=pairs)

    first, second = baker.up("first"), baker.up("second")

    named = said.format(image=image.image)
    assert [named, named] == [run.of(ImageChosen)[0].why for run in (first, second)]
    assert image.image.id not in (first.instance.image_id, second.instance.image_id)


def test_an_account_without_images_hears_nothing_about_them(sandbox, baker):
    """Most students never have one."""
    assert [] == baker.up().of(ImageChosen)


def test_an_image_that_a_ta_made_elsewhere_is_used_at_once(sandbox, baker, tmp_path):
    """A TA bakes in the morning of the lab; a student who was up five minutes before must not install for another hour."""
    student = Student(sandbox, tmp_path / "student", "other", owner="7f3a")
    student.up("before")
    baked(baker)
    before = len(sandbox.calls)

    run = student.up("after")

    asked = student.operations(before)
    assert listed(baker)[0].image.id == run.instance.image_id
    assert [
        "DescribeImages",
        "DescribeInstances",
        "DescribeInstances",
        "DescribeSpotPriceHistory",
        "RunInstances",
    ] == sorted(asked)


def test_without_a_bake_images_are_looked_for_once_an_hour(sandbox, baker):
    """Nearly every account has none, and every launch would ask for it."""
    baker.up("first")
    before = len(sandbox.calls)

    baker.up("second")
    sandbox.advance(seconds=3600)
    within = baker.operations(before).count("DescribeImages")
    baker.up("third")

    assert (0, 1) == (within, baker.operations(before).count("DescribeImages"))


@pytest.mark.parametrize("looks", [False, True], ids=["untested", "copied"])
def test_one_that_becomes_usable_without_a_bake_here_is_not_missed(sandbox, baker, looks):
    """A copy has no builder in its region: `gpulab image ls` looks, and what was seen unfinished is never remembered as none."""
    baked(baker)
    (image,) = listed(baker)
    ec2 = a_client("ec2")
    ec2.create_tags(Resources=[image.image.id], Tags=[{"Key": "gpulab:usable", "Value": "no"}])
    if looks:
        hidden = {"Key": "gpulab:lock", "Value": "0" * 16}
        ec2.create_tags(Resources=[image.image.id], Tags=[hidden])
    sandbox.advance(seconds=2 * 3600)
    baker.up("before")

    baking.mark_usable(baker.context.cloud, image)
    shown = {"Key": "gpulab:lock", "Value": image.lock}
    ec2.create_tags(Resources=[image.image.id], Tags=[shown])
    if looks:
        images.listing(baker.context)

    assert image.image.id == baker.up("after").instance.image_id


def test_an_image_that_was_deleted_elsewhere_costs_one_refused_call(sandbox, baker):
    """What is remembered may be wrong; the launch repairs itself and goes on with the publisher's image."""
    baked(baker)
    baker.up("first")
    (image,) = listed(baker)
    baking.delete(baker.context.cloud, image)
    sandbox.advance(seconds=3600)

    run = baker.up("second")

    assert run.instance.image_id not in ("", image.image.id)


def test_the_ledger_has_the_disk_that_the_image_needs_not_the_smaller_one_that_was_planned(
    sandbox, baker
):
    """AWS bills the disk there is; an image's own is never made smaller."""
    baked(baker)

    run = baker.up("small", disk_gib=40)

    (made,) = a_client("ec2").describe_volumes(VolumeIds=list(run.instance.volume_ids))["Volumes"]
    (disk,) = [
        told
        for told in baker.context.ledger.facts(FactKind.VOLUME)
        if told.subject == made["VolumeId"]
    ]
    assert made["Size"] > 40
    assert str(made["Size"]) == disk.details["size_gb"]


def test_the_disk_is_filled_at_a_rate_only_where_the_profile_pays_for_it(sandbox, baker):
    """It costs about as much as half an hour of the GPU, so nobody gets it unasked; its price is said."""
    baked(baker)
    baker.up("slow")
    profile = replace(baker.context.profile, image_rate_mib_s=300)
    baker.context = replace(baker.context, profile=profile)

    run = baker.up("fast")

    disks = [
        c.params["BlockDeviceMappings"][0]["Ebs"]
        for c in sandbox.calls
        if c.operation == "RunInstances"
    ]
    assert [None, 300] == [disk.get("VolumeInitializationRate") for disk in disks[-2:]]
    assert run.of(ImageChosen)[0].why.endswith("filled at 300 MiB/s, $0.22 once, beside the plan")


def test_a_declined_plan_makes_nothing(sandbox, baker):
    """No is no."""
    events = list(bake.bake(baker.context, baker.request(), confirm=lambda question: False))

    assert Declined is type(events[-1])
    assert [] == baker.live() == left_over(sandbox)["images"]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda h: setattr(h, "failed_phase", "gpu"), "step gpu failed on the builder: m"),
        (lambda h: h.check.update(state="failed"), "bake-tf2-small failed its check: gpu: T4"),
        (lambda h: h.left.append("/root/.ssh/id"), "could not be cleaned of /root/.ssh/id"),
    ],
)
def test_a_builder_that_is_not_right_becomes_no_image(sandbox, baker, break_it, said):
    """An image with a broken GPU or somebody's key in it is copied thirty times before anybody looks."""
    break_it(baker.host)

    with pytest.raises(CommandFailed, match=said):
        baked(baker)

    left = left_over(sandbox)
    assert ([], [], [], []) == (
        left["instances"],
        left["images"],
        left["snapshots"],
        left["volumes"],
    )


@pytest.mark.parametrize("how", ["no capacity", "a failed check", "ctrl-c"])
def test_a_bake_that_fails_leaves_the_images_of_others(sandbox, baker, how):
    """Another TA's image waits for its test, or a copy is under way: an hour of building would be gone with a bake that made nothing."""
    baked(baker)
    (image,) = listed(baker)
    pairs = [{"Key": "gpulab:usable", "Value": "no"}]
    a_client("ec2").create_tags(Resources=[image.image.id], Tags=pairs)
    if how == "no capacity":
        sandbox.refuse("RunInstances", "InsufficientInstanceCapacity")
    if how == "a failed check":
        baker.host.check.update(state="failed")

    def confirm(_question):
        if how == "ctrl-c":
            raise KeyboardInterrupt
        return True

    with contextlib.suppress(GpulabError, KeyboardInterrupt):
        list(bake.bake(baker.context, baker.request(), confirm=confirm))

    assert [image.image.id] == [one.image.id for one in listed(baker)]
    assert [] == baker.live()


def test_an_image_whose_test_fails_is_deleted(sandbox, baker, monkeypatch):
    """It exists for some minutes; then it must not."""
    calls = []
    real = bake.checking.check

    def second_fails(context, instance):
        calls.append(instance.name)
        if len(calls) == 2:
            baker.host.check["state"] = "failed"
        return real(context, instance)

    monkeypatch.setattr(bake.checking, "check", second_fails)

    with pytest.raises(CommandFailed, match="bake-test-tf2-small failed its check"):
        baked(baker)

    left = left_over(sandbox)
    assert ([], [], []) == (left["instances"], left["images"], left["snapshots"])


def test_an_image_whose_answer_was_lost_is_found_and_used(sandbox, baker):
    """It was made; a second one would cost twice, giving up would leave the first."""
    sandbox.lose_reply("CreateImage")

    events = baked(baker)

    assert ImageMade is type(events[-1])
    assert 1 == len(listed(baker))


def test_an_image_that_aws_cannot_make_leaves_nothing(sandbox, baker):
    """A full quota of images says no after an hour of building."""
    sandbox.refuse("CreateImage", "ResourceLimitExceeded")

    with pytest.raises(GpulabError):
        baked(baker)

    assert [] == baker.live()


def test_ctrl_c_while_the_builder_works_ends_it(sandbox, baker):
    """The TA closes the laptop in the middle; the builder must not run until its deadline."""
    steps = bake.bake(baker.context, baker.request(), confirm=lambda question: True)
    for event in steps:
        if type(event) is Running:
            break

    steps.close()

    assert [] == baker.live()


def test_the_next_bake_ends_the_builder_of_one_that_was_killed(sandbox, baker):
    """Nobody remembers to sweep."""
    baker.up("bake-tf2-small")

    baked(baker)

    assert [] == baker.live()


def with_bucket(sandbox, folder) -> Student:
    """A computer after `gpulab init`: bucket and roles are there."""
    return with_host(Student.after_init(sandbox, folder))


def in_the_bucket(baker) -> list[str]:
    bucket = baker.context.profile.keep_bucket
    return [o["Key"] for o in a_client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_with_a_bucket_the_image_has_jupyterlabs_extensions_and_nothing_stays_there(
    sandbox, tmp_path
):
    """Whoever boots from it must not install JupyterLab again, nor find `bake-tf2` among the kept work."""
    baker = with_bucket(sandbox, tmp_path)

    baked(baker, environment="tf2")
    run = baker.up(environment="tf2")

    (image,) = listed(baker)
    environment = load_environment("tf2")
    keys = [environment.image_key(has_gpu=True, has_bucket=b) for b in (True, False)]
    first, second = [c for c in sandbox.calls if c.operation == "PutObject"][:2]
    assert (keys[0], image.image.id) == (image.lock, run.instance.image_id)
    assert keys[0] != keys[1]
    assert first.params["Key"] == second.params["Key"]
    assert f"{baker.context.owner}/.bake/tf2/" in first.params["Key"]
    assert [f"{baker.context.owner}/week4/"] == [
        key.rpartition("agent-")[0] for key in in_the_bucket(baker)
    ]


def test_an_image_without_extensions_is_better_than_none(sandbox, tmp_path):
    """Packer's images have none; TensorFlow is in them all the same, and that is the hour of an installation."""
    baker = with_bucket(sandbox, tmp_path)
    alone = baker.again()
    profile = replace(baker.context.profile, keep_bucket="", instance_role="")
    alone.context = replace(baker.context, profile=profile)
    baked(alone, environment="tf2")

    run = baker.up(environment="tf2")

    (image,) = listed(baker)
    assert image.image.id == run.instance.image_id
    assert () == images.listing(baker.context)[0][0].has_moved_on


def calls_to_die_at(tmp_path) -> list[int]:
    """The numbers of the calls of a bake after which AWS holds something else than before; looking changes nothing."""
    with Sandbox() as sandbox:
        baker = with_bucket(sandbox, tmp_path / "count")
        before = len(sandbox.calls)
        baked(baker)
        names = [call.operation for call in list(sandbox.calls)[before:]]
        looks = () if EVERY_CALL else ("Describe", "Get", "List")
        return [n for n, name in enumerate(names, 1) if not name.startswith(looks)]


@pytest.mark.slow
def test_a_bake_killed_after_any_change_leaves_nothing_after_a_sweep(tmp_path, monkeypatch):
    """Snapshots of 60 GiB cost $3 a month, silently, for ever: the one thing a tool must never do to a teacher."""
    monkeypatch.setattr(sweep, "_regions", lambda context: ("us-east-1",))
    numbers, left = calls_to_die_at(tmp_path), {}
    for number in numbers:
        with Sandbox() as sandbox:
            baker = with_bucket(sandbox, tmp_path / str(number))
            last, tested = killed_after(number, baker, monkeypatch)
            found = swept(sandbox, baker)
            if tested:  # the last call of all: the image is done and stays
                found = {k: v for k, v in found.items() if k not in ("images", "snapshots")}
            kept = [key for key in in_the_bucket(baker) if "/.bake/" not in key]
            if found or kept:  # the locks of a killed bake are some kB that the next one takes away
                left[f"{number} {last}"] = (found, kept)

    assert {} == left
    assert len(numbers) >= 9


def killed_after(number, baker, monkeypatch) -> tuple[str, bool]:
    """Run a bake whose process dies after a call took effect; says which call, and whether the image was done."""
    seen = []
    real = botocore.client.BaseClient._make_api_call

    def die(self, operation, params):
        seen.append(operation)
        if len(seen) > number:
            raise Killed
        answer = real(self, operation, params)
        if len(seen) == number:
            raise Killed
        return answer

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(botocore.client.BaseClient, "_make_api_call", die)
        baked(baker)
    return seen[number - 1], any(image.is_usable for image in listed(baker))


def test_a_sweep_leaves_tested_images_and_a_bake_that_is_under_way(sandbox, baker):
    """Deleting what a course boots from tomorrow would be the other disaster."""
    baked(baker)
    (tested,) = listed(baker)
    sandbox.advance(seconds=3600)
    found = sweep.look(baker.context)
    stays = {item.resource.id: item.why for item in found.untouchable}

    assert "`gpulab image prune` deletes old ones" == stays[tested.image.id]
    assert "`gpulab image prune` deletes old ones" == stays[tested.snapshot_ids[0]]
    assert [] == [i for i in found.found if i.resource.kind in (Kind.IMAGE, Kind.SNAPSHOT)]


def test_a_copy_is_encrypted_tagged_and_usable_in_its_region(sandbox, baker):
    """The course's students are in three regions; an image is in one."""
    baked(baker)
    (image,) = listed(baker)

    list(images.copy(baker.context, image, "eu-west-1"))

    (copied,) = listed(baker, "eu-west-1")
    (call,) = (c for c in sandbox.calls if c.operation == "CopyImage")
    assert True is call.params["Encrypted"]
    assert (True, image.lock, image.base_name) == (copied.is_usable, copied.lock, copied.base_name)


def test_copying_again_to_a_region_that_has_it_is_done_at_once(sandbox, baker):
    """After a lost connection the same command is typed again; it must not end as if something had failed, nor copy twice."""
    baked(baker)
    (image,) = listed(baker)
    list(images.copy(baker.context, image, "eu-west-1"))

    events = list(images.copy(baker.context, image, "eu-west-1"))

    assert ["ImageCopied"] == [type(event).__name__ for event in events]
    assert 1 == sum(call.operation == "CopyImage" for call in sandbox.calls)


def test_an_interrupted_copy_goes_on_when_it_is_repeated(sandbox, baker):
    """AWS answers the same token with the same copy: undone, it would be waited for and never come."""
    baked(baker)
    (image,) = listed(baker)
    begun = images.copy(baker.context, image, "eu-west-1")
    first = next(begun)
    with pytest.raises(KeyboardInterrupt):
        begun.throw(KeyboardInterrupt())

    events = list(images.copy(baker.context, image, "eu-west-1"))

    assert isinstance(first, WaitingFor)
    assert isinstance(events[-1], ImageCopied)
    assert 1 == len(listed(baker, "eu-west-1"))


def test_a_copy_that_fails_leaves_nothing_there(sandbox, baker, monkeypatch):
    """Half a copy costs like a whole one."""
    baked(baker)
    (image,) = listed(baker)

    def fail(*_):
        raise AwsError("no", code="ImageFailed")
        yield

    monkeypatch.setattr(images, "until_available", fail)

    with pytest.raises(AwsError):
        list(images.copy(baker.context, image, "eu-west-1"))

    assert () == listed(baker, "eu-west-1")
    assert (
        []
        == a_client("ec2", region_name="eu-west-1").describe_snapshots(OwnerIds=["self"])[
            "Snapshots"
        ]
    )


def test_the_list_says_cost_and_what_has_moved_on(sandbox, baker):
    """Nobody pays for an image that nothing boots from any more, if somebody tells."""
    baked(baker)
    (image,) = listed(baker)

    (row,), unread = images.listing(baker.context)
    ec2 = a_client("ec2")
    old = [
        {"Key": "gpulab:lock", "Value": "x"},
        {"Key": "gpulab:base-name", "Value": "last year's"},
    ]
    ec2.create_tags(Resources=[image.image.id], Tags=old)
    (moved,), _ = images.listing(baker.context)

    assert ((), Decimal("0.05") * image.image.root_gib, {}) == (
        row.has_moved_on,
        row.usd_per_month,
        unread,
    )
    assert ("lock", "base") == moved.has_moved_on
    assert image.image.root_gib >= 60


def test_prune_keeps_the_newest_tested_ones_of_each_environment(sandbox, baker):
    """One to boot from and one to go back to."""
    for _ in range(3):
        baked(baker)
        sandbox.advance(seconds=3600)

    rows, _ = images.listing(baker.context)
    gone = images.outdated(rows, keep=2, now=sandbox.now())
    for image in gone:
        images.delete(baker.context, image)

    assert [rows[2].baked.image.id] == [i.image.id for i in gone]
    assert 2 == len(listed(baker)) == len(left_over(sandbox)["snapshots"])


@pytest.mark.parametrize(("hours", "goes"), [(2, False), (4, True)])
def test_prune_leaves_a_bake_that_is_under_way(sandbox, baker, hours, goes):
    """Two TAs on one morning: one cleans up while the other's image is being tested."""
    baked(baker)
    (image,) = listed(baker)
    untested = replace(image, is_usable=False)
    sandbox.advance(seconds=hours * 3600)

    gone = images.outdated(
        [images.Listed(untested, (), images.monthly(image))], keep=0, now=sandbox.now()
    )

    assert ((untested,) if goes else ()) == gone


def test_an_image_can_be_tested_again(sandbox, baker):
    """After a driver update of the publisher, or before an exam."""
    baked(baker)
    (image,) = listed(baker)

    events = list(bake.test(baker.context, image, baker.request(), confirm=lambda question: True))

    assert ImageMade is type(events[-1])
    assert [] == baker.live()


def test_a_builder_ends_itself_within_two_hours(sandbox, baker):
    """Whatever happens to the laptop."""
    baked(baker)

    (call, _) = (c for c in sandbox.calls if c.operation == "RunInstances")
    tags = {t["Key"]: t["Value"] for t in call.params["TagSpecifications"][0]["Tags"]}
    assert timedelta(hours=2) == bake.BUILD
    assert "gpulab:expires" in tags
