"""R23: images of one's own take their time, are as large as their disk, have unique names and tagged snapshots that are held while in use."""

from __future__ import annotations

import pytest

TAGS = [{"Key": "gpulab:bake", "Value": "b1"}]
SPECIFICATIONS = [{"ResourceType": kind, "Tags": TAGS} for kind in ("image", "snapshot")]


@pytest.fixture
def make(ec2, running):
    """Makes an image of an instance with a root of 40 GiB."""

    def make(name="mine", **changes):
        root = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 40, "Encrypted": True}}
        instance = running(BlockDeviceMappings=[root])
        asked = {"Name": name, "TagSpecifications": SPECIFICATIONS, **changes}
        return ec2.create_image(InstanceId=instance, **asked)["ImageId"]

    return make


def seen(ec2, image_id):
    return ec2.describe_images(ImageIds=[image_id])["Images"][0]


def test_an_image_is_pending_before_it_is_available(sandbox, ec2, make):
    """A tool that launches at once gets a refusal on AWS, so it must here."""
    image_id = make()
    at_first = seen(ec2, image_id)["State"]

    sandbox.advance(seconds=300)

    assert ("pending", "available") == (at_first, seen(ec2, image_id)["State"])


def test_it_is_as_large_and_as_encrypted_as_the_disk_it_was_made_of(ec2, make):
    """What it costs a month hangs on it; moto says 15 GB of everything."""
    disk = seen(ec2, make())["BlockDeviceMappings"][0]["Ebs"]

    assert (40, True) == (disk["VolumeSize"], disk["Encrypted"])


def test_its_snapshot_carries_the_tags_of_the_same_call(ec2, make):
    """Otherwise a process that dies here leaves a snapshot nobody can attribute."""
    disk = seen(ec2, make())["BlockDeviceMappings"][0]["Ebs"]

    (snapshot,) = ec2.describe_snapshots(SnapshotIds=[disk["SnapshotId"]])["Snapshots"]
    assert TAGS == snapshot["Tags"] == seen(ec2, snapshot["Description"].split()[-1])["Tags"]


def test_a_name_is_used_once(make, code_of):
    """It is what makes CreateImage, which knows no client token, safe to look up."""
    make("mine")

    assert "InvalidAMIName.Duplicate" == code_of(make, name="mine")


def test_a_snapshot_is_held_by_its_image_and_outlives_it(ec2, make, code_of):
    """Deregistering alone leaves the part that costs."""
    image_id = make()
    snapshot_id = seen(ec2, image_id)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]

    held = code_of(ec2.delete_snapshot, SnapshotId=snapshot_id)
    ec2.deregister_image(ImageId=image_id)
    free = code_of(ec2.delete_snapshot, SnapshotId=snapshot_id)

    assert ("InvalidSnapshot.InUse", "ok") == (held, free)


def test_a_copy_needs_an_available_image_and_one_token_is_one_copy(sandbox, client, make):
    """A repeated call must not cost twice."""
    image_id, there = make(), client("ec2", region_name="eu-west-1")
    asked = {
        "SourceImageId": image_id,
        "SourceRegion": "us-east-1",
        "Name": "copy",
        "ClientToken": "t1",
        "Encrypted": True,
        "CopyImageTags": True,
    }
    with pytest.raises(there.exceptions.ClientError, match=r"InvalidAMIID\.Unavailable"):
        there.copy_image(**asked)
    sandbox.advance(seconds=300)

    first, second = (there.copy_image(**asked)["ImageId"] for _ in range(2))

    copied = seen(there, first)
    assert first == second
    assert (40, TAGS) == (copied["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"], copied["Tags"])


def test_an_instance_that_is_gone_cannot_be_imaged(ec2, running, code_of):
    """The builder was interrupted a moment before."""
    instance = running()
    ec2.terminate_instances(InstanceIds=[instance])

    assert "IncorrectInstanceState" == code_of(ec2.create_image, InstanceId=instance, Name="late")
