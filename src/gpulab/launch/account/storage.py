"""Where the work of a name is kept: a bucket's prefix, or a folder on this computer."""

from __future__ import annotations

import re
from datetime import timedelta

from gpulab.aws.accounts import identity
from gpulab.aws.workspace import Bucket
from gpulab.launch.context import Context
from gpulab.store.config import Profile


def bucket_region(profile: Profile) -> str:
    """Return the region of a profile's bucket: the one written down, or the one that its name ends in."""
    found = re.search(r"[a-z]{2}(?:-[a-z]+)+-\d+$", profile.keep_bucket)
    return profile.keep_region or (found[0] if found else "us-east-1")


def prefix(context: Context, name: str) -> str:
    """Return the prefix of a name's kept work; ends with a slash."""
    return f"{context.owner}/{name}/"


def baking_prefix(context: Context, environment: str) -> str:
    """Return where a builder of images finds its locks; no name begins with a dot, so nobody's work is there."""
    return f"{context.owner}/.bake/{environment}/"


def has_bucket(context: Context) -> bool:
    """Whether instances of the profile keep their work in a bucket: it takes the bucket and their role."""
    return bool(context.profile.keep_bucket and context.profile.instance_role)


def where(context: Context, name: str) -> str:
    """Say, without asking, where the next `gpulab stop` keeps the work of a name: `s3://BUCKET/PREFIX`, or a folder here."""
    if has_bucket(context):
        return f"s3://{context.profile.keep_bucket}/{prefix(context, name)}"
    return str(context.folder.work / name)


def our_bucket(context: Context) -> Bucket:
    """
    Return the profile's bucket with the account it must belong to.

    Raises:
        GpulabError: AWS does not say whose the credentials are.
    """
    key = f"{context.account}/account"
    account_id = context.cache.get(key)
    if not account_id:
        account_id = identity(context.cloud).account_id
        context.cache.put(key, account_id, lasting=timedelta(days=365))
    profile = context.profile
    return Bucket(profile.keep_bucket, bucket_region(profile), account_id)
