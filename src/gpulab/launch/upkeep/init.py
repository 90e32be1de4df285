"""What `gpulab init` does: the profile in the configuration, the ssh key, and what the account gives for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from gpulab.aws.accounts import Identity, identity
from gpulab.aws.regions import check_region
from gpulab.aws.session import check_aws_profile
from gpulab.launch.context import Context
from gpulab.launch.upkeep.prepare import prepare
from gpulab.remote import keys
from gpulab.store.config import Profile, change_profile
from gpulab.store.credentials import parse_pasted, write_credentials
from gpulab.store.home import Home


@dataclass(frozen=True)
class SetUp:
    """
    What was set up.

    Attributes:
        lines: One sentence a thing, for people.
        notes: What the account does not allow, and what is done instead.
    """

    lines: tuple[str, ...]
    notes: tuple[str, ...]


def profile_changes(
    home: Home,
    name: str,
    *,
    aws_profile: str | None,
    pasted: str | None,
    regions: Sequence[str],
    credit_usd: Decimal | None,
    budget_usd: Decimal | None,
    course: str | None,
) -> Mapping[str, Any]:
    """
    Write what the user named to the configuration.

    Returns:
        The changed keys; no secret among them.

    Raises:
        WrongUsage: There is no such AWS profile or region, or the pasted text holds no usable credentials; nothing was written.
    """
    changes: dict[str, Any] = {}
    file = home.folder(name).root / "aws" / "credentials"
    for region in regions:
        check_region(region)
    if aws_profile is not None:
        changes |= _leading_to(aws_profile, home.config().profiles.get(name), pasted_file=file)
    if pasted is not None:
        found = parse_pasted(pasted, profile=home.config().option(name))
        write_credentials(file, found, profile="gpulab")
        changes |= {"aws_profile": "gpulab", "aws_credentials_file": str(file)}
    if regions:
        changes["regions"] = list(regions)
    if credit_usd is not None:
        changes["credit_usd"] = str(credit_usd)
    if budget_usd is not None:
        changes["budget_usd"] = str(budget_usd)
    if course is not None:
        changes["course"] = course
    change_profile(home.config_file, name, changes)
    return changes


def _leading_to(
    aws_profile: str, former: Profile | None, *, pasted_file: Path
) -> Mapping[str, Any]:
    """Say what to write so that an AWS profile is used, also where pasted credentials were used before."""
    former = former or Profile(name="")
    was_pasted = former.aws_credentials_file == pasted_file
    check_aws_profile(
        aws_profile,
        config_file=former.aws_config_file,
        credentials_file=None if was_pasted else former.aws_credentials_file,
    )
    changes: dict[str, Any] = {"aws_profile": aws_profile}
    return changes | {"aws_credentials_file": None} if was_pasted else changes


def who(context: Context) -> Identity:
    """
    Ask AWS whose credentials these are.

    Raises:
        CredentialsInvalid, ClockSkewed: They are not accepted.
    """
    return identity(context.cloud)


def set_up(context: Context, home: Home, *, with_resources: bool) -> SetUp:
    """
    Make the ssh key and, where allowed, what the account gives for good; write it to the profile. Repeatable.

    Raises:
        StoreError: The key or the configuration cannot be written.
        CredentialsInvalid: AWS does not accept the credentials.
    """
    keys.make_key_pair(context.folder.key, environ=context.environment)
    lines = [f"ssh key      {context.folder.key}"]
    if not with_resources:
        lines.append("account      nothing was created; the work is kept on this computer")
        return SetUp(tuple(lines), ())
    made = prepare(context)
    change_profile(
        home.config_file,
        context.profile.name,
        {
            "owner": made.owner,
            "keep_bucket": made.keep_bucket or None,
            "keep_region": None,
            "instance_role": made.instance_role or None,
            "scheduler_role": made.scheduler_role or None,
        },
    )
    lines += [
        f"owner        {made.owner}, the opaque id on everything of yours",
        f"kept work    {'s3://' + made.keep_bucket if made.keep_bucket else 'on this computer'}",
        f"save role    {made.instance_role or 'none; the work is saved over ssh'}",
        f"end role     {made.scheduler_role or 'none; the timer on the instance ends it'}",
        f"spot role    {'there' if made.has_spot_role else 'missing'}",
    ]
    return SetUp((*lines, *(f"note         {note}" for note in made.notes)), made.notes)
