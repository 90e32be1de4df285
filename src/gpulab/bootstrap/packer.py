"""An HCL template for Packer, made from the same data as our own images. Hides HCL; refuses nothing, since nothing in it comes from outside."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import gpulab
from gpulab.bootstrap.environments import Environment
from gpulab.bootstrap.resources import shipped
from gpulab.bootstrap.spec import InstanceSpec
from gpulab.bootstrap.userdata import user_data
from gpulab.model import instance as tags_of
from gpulab.model.setup import GPU_IMAGE, PLAIN_IMAGE

_BUILD = timedelta(hours=2)


def template(
    environment: Environment,
    *,
    region: str,
    instance_type: str,
    owner: str,
    now: datetime,
    course: str = "",
) -> str:
    """
    Write the template: base image by its public parameter and its owner, the same user data, the same clean-up, the same tags.

    Args:
        now: When it is written; the builder's own end is in its user data, two hours after it boots.

    Raises:
        InvalidRequest: The environment does not fit into user data.
    """
    has_gpu = not instance_type.startswith(("t3", "t4", "m", "c", "r"))
    base64_data = _base64(_user_data(environment, owner=owner, has_gpu=has_gpu, now=now))
    folder = shipped("ami") / "images"
    cleaner = _base64((Path(gpulab.__file__).parent / "agent" / "clean.py").read_bytes())
    lock = environment.image_key(has_gpu=has_gpu, has_bucket=False)
    tags = {
        tags_of.TAG_OWNER: owner,
        **({tags_of.TAG_COURSE: course} if course else {}),
        tags_of.TAG_ENVIRONMENT: environment.name,
        tags_of.TAG_LOCK: lock,
        tags_of.TAG_BAKE: f"packer-{now:%Y%m%d%H%M%S}",
    }
    name = f"gpulab-{environment.name}-{'gpu' if has_gpu else 'cpu'}-{lock[:8]}-{now:%Y%m%d-%H%M%S}"
    values = {
        "NAME": name,
        "REGION": region,
        "TYPE": instance_type,
        "BASE": GPU_IMAGE if has_gpu else PLAIN_IMAGE,
        "USER_DATA": base64_data,
        "WAIT": (folder / "packer-wait.sh").read_text("utf-8"),
        "CLEAN": f"echo {cleaner} | base64 -d | sudo python3 -",
    }
    text = (folder / "gpulab.pkr.hcl.in").read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", _quoted(value))
    return text.replace("@TAGS@", _map(tags))


def _user_data(environment: Environment, *, owner: str, has_gpu: bool, now: datetime) -> bytes:
    return user_data(
        InstanceSpec(
            launch=f"packer-{now:%Y%m%d%H%M%S}",
            name=f"bake-{environment.name}",
            owner=owner,
            user="ubuntu",
            made_at=now,
            deadline=now + _BUILD,
            idle_minutes=0,
            usd_per_hour=Decimal(0),
            environment=environment,
            has_gpu=has_gpu,
            is_bake=True,
        )
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _quoted(text: str) -> str:
    """A text in HCL: JSON's escapes, and no template begins in it."""
    return json.dumps(text).replace("${", "$${").replace("%{", "%%{")


def _map(tags: dict[str, str]) -> str:
    width = max(len(_quoted(key)) for key in tags)  # as `packer fmt` lays it out
    lines = (f"    {_quoted(k):<{width}} = {_quoted(v)}\n" for k, v in tags.items())
    return "{\n" + "".join(lines) + "  }"
