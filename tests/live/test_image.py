"""Images in a real account: made of a running builder, booted, filled at a rate; and Packer's way."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.live.account import COURSE, Account
from tests.live.prices import PLAIN

from gpulab.bootstrap import load_environment
from gpulab.bootstrap.packer import template
from gpulab.launch import bake
from gpulab.launch.account import images
from gpulab.launch.events import ImageMade
from gpulab.model.setup import BakedImage

_ENVIRONMENT = "tf2-small"


@pytest.fixture(scope="module")
def image(account: Account) -> Iterator[BakedImage]:
    """An image of our own; it goes with the tests."""
    if account.machines:
        pytest.skip("a sandbox's builder is this computer, or a container of it: nothing to clean")
    wish = account.wish("image", environment=_ENVIRONMENT)
    made = None
    for event in bake.bake(account.context, wish, confirm=lambda _: True):
        if isinstance(event, ImageMade):
            made = event.image
    assert made is not None
    try:
        yield made
    finally:
        images.delete(account.context, made)


@pytest.mark.costs("image")
def test_an_image_of_a_running_builder_boots(account, image, record_property):
    """It is made without a reboot, so what the builder had not written yet would be missing."""
    wish = account.wish("baked", environment=_ENVIRONMENT, image_id=image.image.id)

    launched = account.launched(wish)

    record_property("seen", f"{image.image.id}: JupyterLab after {launched.seconds['Ready']} s")
    assert launched.instance.image_id == image.image.id


@pytest.mark.costs("image")
def test_the_initialization_rate_makes_an_image_start_faster(account, image, record_property):
    """`VolumeInitializationRate` is billed by the GiB; it must be worth it."""
    seconds = {}
    for rate in (0, 300):
        context = replace(
            account.context, profile=replace(account.context.profile, image_rate_mib_s=rate)
        )
        name = f"rate{rate}"
        wish = account.wish(name, environment=_ENVIRONMENT, image_id=image.image.id)
        seconds[rate] = replace(account, context=context).launched(wish).seconds["Ready"]

    record_property("seen", f"{seconds[0]} s without, {seconds[300]} s with 300 MiB/s")
    assert seconds[300] < seconds[0]


@pytest.mark.costs("packer")
def test_packer_builds_the_template(account, tmp_path: Path, record_property):
    """Who bakes with Packer gets a template from us, which so far only a parser has read."""
    packer = shutil.which("packer")
    if packer is None or account.machines:
        pytest.skip("Packer is not installed, or there is nothing to build on")
    text = template(
        load_environment(_ENVIRONMENT),
        region=account.region,
        instance_type=PLAIN,
        owner=account.context.owner,
        course=COURSE,
        now=account.context.now(),
    )
    (tmp_path / "gpulab.pkr.hcl").write_text(text, encoding="utf-8")

    for words in (["init", "."], ["validate", "."], ["build", "."]):
        done = subprocess.run(
            [packer, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        record_property("seen", f"packer {words[0]}: {done.returncode}")
        assert 0 == done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
