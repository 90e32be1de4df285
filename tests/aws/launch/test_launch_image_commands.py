"""`gpulab image` and `gpulab up` with images, as typed: words, JSON keys, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace

import boto3
import pytest
from tests.aws.launch.test_launch_bake import baked, listed, with_host

from gpulab.cli.main import run
from gpulab.errors import AwsError
from gpulab.launch.account import images


@pytest.fixture
def baker(student, monkeypatch):
    """A student's computer with one image, and the command line on it."""
    baker = with_host(student)
    baked(baker)
    monkeypatch.setattr("gpulab.cli.context.Context.launch", baker.context)
    monkeypatch.setattr("gpulab.cli.context.Context.profile", baker.context.profile)
    monkeypatch.setattr("gpulab.cli.context.Context.now", staticmethod(baker.sandbox.now))
    return baker


def test_ls_shows_age_size_cost_and_state(baker, capsys):
    """The three questions about an image are what it costs, whether it is old, and whether it works."""
    baker.sandbox.advance(seconds=3 * 86400)

    code = run(["image", "ls"])

    (image,) = listed(baker)
    lines = capsys.readouterr().out.splitlines()
    assert 0 == code
    assert lines[1].split() == [
        image.image.id,
        "tf2-small",
        image.lock[:8],
        "us-east-1",
        "3",
        "d",
        "60",
        "GiB",
        "$3.00",
        "usable",
    ]
    assert "1 image, at most $3.00 a month" == lines[-1]


def test_ls_json_has_these_keys(baker, capsys):
    """Scripts rely on them."""
    run(["image", "ls", "--json"])

    told = json.loads(capsys.readouterr().out)
    assert ["images", "unread"] == list(told)
    assert [
        "id",
        "name",
        "region",
        "environment",
        "lock",
        "base",
        "made_at",
        "size_gib",
        "usd_per_month",
        "state",
        "is_usable",
        "has_moved_on",
    ] == list(told["images"][0])


def test_prune_asks_before_it_deletes(baker, capsys):
    """Nothing is deleted that was not named; a script says `--yes`."""
    code = run(["image", "prune", "--keep", "0"])
    asked = capsys.readouterr().err

    again = run(["image", "prune", "--keep", "0", "--yes"])

    assert (2, 0) == (code, again)
    assert "nobody is there to answer" in asked
    assert () == listed(baker)


def test_prune_dry_run_names_and_keeps(baker, capsys):
    """Look first."""
    run(["image", "prune", "--keep", "0", "--dry-run", "--json"])

    told = json.loads(capsys.readouterr().out)
    assert (False, 1) == (told["is_deleted"], len(told["images"]))
    assert 1 == len(listed(baker))


def test_a_copy_to_several_regions_tells_each_and_exits_with_4(baker, monkeypatch, capsys):
    """One region without the right must not cost the others."""
    real = images.copy

    def copy(context, image, region):
        if region == "eu-north-1":
            raise AwsError("eu-north-1 says no")
        return real(context, image, region)

    monkeypatch.setattr(images, "copy", copy)

    code = run(["image", "copy", "tf2-small", "eu-north-1", "eu-west-1"])

    said = capsys.readouterr().err
    assert 4 == code
    assert "eu-north-1: eu-north-1 says no" in said
    assert "not finished" not in said
    assert "note: the profile does not name eu-west-1; `gpulab image ls --region eu-west-1`" in said
    assert 1 == len(listed(baker, "eu-west-1"))


def test_a_copy_goes_to_the_profiles_other_regions(baker, monkeypatch, capsys):
    """They are the course's; a region that is forgotten installs for the whole term."""
    regions = ("us-east-1", "eu-north-1", "eu-west-1")
    several = replace(baker.context.profile, regions=regions)
    monkeypatch.setattr("gpulab.cli.context.Context.profile", several)

    code = run(["image", "copy", "tf2-small"])

    assert (0, 1, 1, 1) == (code, *(len(listed(baker, region)) for region in regions))
    assert "note:" not in capsys.readouterr().err


def test_a_copy_of_a_profile_with_one_region_asks_where_to(baker, capsys):
    """A command that does nothing and says nothing reads as done."""
    assert 2 == run(["image", "copy", "tf2-small"])
    assert "the profile has no other region than us-east-1" in capsys.readouterr().err


def test_an_unknown_image_is_wrong_usage(baker, capsys):
    """A typing mistake."""
    assert 2 == run(["image", "test", "ami-nope", "--yes"])
    assert "there is no image `ami-nope`" in capsys.readouterr().err


def test_an_image_that_nobody_has_tested_is_not_missing(baker, capsys):
    """`gpulab image ls` shows it; "there is none" would have it baked again."""
    (image,) = listed(baker)
    no = [{"Key": "gpulab:usable", "Value": "no"}]
    boto3.client("ec2").create_tags(Resources=[image.image.id], Tags=no)

    assert 2 == run(["image", "copy", "tf2-small", "eu-north-1"])
    said = capsys.readouterr().err
    assert "no image of tf2-small has been tested yet" in said
    assert f"hint: `gpulab image test {image.image.id}` does it" in said


def test_bake_prints_the_images_id_and_tells_the_steps(baker, capsys):
    """Stdout is for scripts, the story for people."""
    code = run(["image", "bake", "--env", "tf2-small", "--yes"])

    captured = capsys.readouterr()
    newest = listed(baker)[0]
    assert (0, newest.image.id) == (code, captured.out.strip())
    assert "bake-tf2-small is clean; AWS makes an image of it" in captured.err
    assert "was tested; `gpulab up --env tf2-small` uses it in us-east-1" in captured.err


def test_without_an_image_the_list_says_how_to_get_one(baker, capsys):
    """An empty table explains nothing."""
    for image in listed(baker):
        images.delete(baker.context, image)

    run(["image", "ls"])

    assert "There is no image; `gpulab image bake` makes one\n" == capsys.readouterr().out


def test_packer_prints_a_template(baker, capsys):
    """Into a file it goes by `>`."""
    code = run(["image", "packer", "--env", "tf2-small"])

    assert 0 == code
    assert 'source "amazon-ebs" "builder"' in capsys.readouterr().out


def test_gpu_and_type_exclude_each_other(baker, capsys):
    """As in `up`."""
    assert 2 == run(["image", "bake", "--gpu", "T4", "--type", "g4dn.xlarge"])
    assert "exclude each other" in capsys.readouterr().err
