"""The Packer template: valid HCL, from the same data as our own images, deaf to what HCL would take for a template."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime

import hcl2

from gpulab.bootstrap import load_environment
from gpulab.bootstrap.packer import _quoted, template

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)


def parsed(**changes):
    """The template as a parser reads it, quotes taken off."""
    asked = {
        "region": "eu-north-1",
        "instance_type": "g4dn.xlarge",
        "owner": "7f3a",
        "now": NOW,
        **changes,
    }
    environment = asked.pop("environment", load_environment("tf2"))
    return unquoted(hcl2.loads(template(environment, **asked)))


def unquoted(value):
    if isinstance(value, dict):
        return {unquoted(k): unquoted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [unquoted(v) for v in value]
    return value[1:-1] if isinstance(value, str) and value.startswith('"') else value


def test_it_is_valid_hcl_with_the_tags_that_up_looks_for():
    """A template that Packer cannot read is found out by a teacher, a day before the course."""
    read = parsed()

    (local,) = read["locals"]
    environment = load_environment("tf2")
    assert environment.image_key(has_gpu=True, has_bucket=False) == local["tags"]["gpulab:lock"]
    assert ("tf2", "7f3a") == (local["tags"]["gpulab:env"], local["tags"]["gpulab:owner"])


def test_the_base_is_the_publishers_parameter_and_owner():
    """Never by a name: anyone may publish an image of any name."""
    parameter, image = parsed()["data"]

    assert parameter["amazon-parameterstore"]["base"]["name"].endswith(
        "single-cuda-ubuntu-24.04/latest/ami-id"
    )
    assert ["amazon", "099720109477"] == image["amazon-ami"]["base"]["owners"]


def test_the_builder_and_its_image_carry_the_course():
    """Who cleans up after a course finds its things by that tag; where there is no course there is no such tag."""
    tagged, bare = ({**parsed(course=c)["locals"][0]["tags"]} for c in ("ml-2026", ""))

    assert "ml-2026" == {unquoted(key): value for key, value in tagged.items()}["gpulab:course"]
    assert "gpulab:course" not in {unquoted(key) for key in bare}


def test_the_user_data_is_that_of_a_builder():
    """The same bytes that `gpulab image bake` would send install the same lock."""
    (source,) = parsed()["source"]
    data = base64.b64decode(source["amazon-ebs"]["builder"]["user_data"])

    config = json.loads(gzip.decompress(data).partition(b"\n")[2])
    (spec,) = (
        json.loads(f["content"]) for f in config["write_files"] if f["path"].endswith("spec.json")
    )
    assert (True, "bake-tf2", "2026-11-23T15:00:00Z") == (
        spec["bake"],
        spec["name"],
        spec["deadline"],
    )


def test_the_builder_is_waited_for_and_cleaned():
    """An image with the builder's keys would be worse than none."""
    (build,) = parsed()["build"]

    wait, clean = build["provisioner"][0]["shell"]["inline"]
    program = base64.b64decode(clean.split()[1]).decode()
    assert "gpulab-agent status" in wait
    assert "Takes everything of one owner and one machine off a builder" in program


def test_an_instance_without_a_gpu_gets_the_plain_image():
    """An image with a driver and no GPU is 27 GiB for nothing."""
    read = parsed(instance_type="t3.large")

    assert "/canonical/ubuntu/" in read["data"][0]["amazon-parameterstore"]["base"]["name"]
    assert "-cpu-" in read["source"][0]["amazon-ebs"]["builder"]["ami_name"]


def test_texts_cannot_begin_a_template():
    """`${...}` in a title would be computed by Packer."""
    assert '"$${path.root} \\" %%{ if }"' == _quoted('${path.root} " %{ if }')


def test_another_lock_is_another_name():
    """Names of images are unique; two builds of different locks must not collide."""
    environment = load_environment("tf2")
    other = replace(environment, gpu=environment.cpu)
    names = {
        parsed(environment=e)["source"][0]["amazon-ebs"]["builder"]["ami_name"]
        for e in (environment, other)
    }

    assert 2 == len(names)
