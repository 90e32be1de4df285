"""`gpulab doctor`: everything a launch needs, looked at for nothing. Each check answers alone; one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta

from gpulab.aws import accounts, images, market, network
from gpulab.aws.errors import SKEW_LIMIT
from gpulab.aws.instances import RegionInstances, in_region
from gpulab.errors import CredentialsInvalid, GpulabError, NotAllowed
from gpulab.launch.account import setup
from gpulab.launch.account.setup import public_key
from gpulab.launch.context import Context
from gpulab.launch.protocol import resuming
from gpulab.model.check import Check
from gpulab.model.instance import TAG_OWNER
from gpulab.model.market import Market, Quota
from gpulab.planning import quotas
from gpulab.planning.catalogue import instance_types
from gpulab.planning.quotas import CODES
from gpulab.remote.openssh import find_ssh

OK, WARNING, FAILED = "ok", "warning", "failed"
_SOON = timedelta(hours=1)


def checks(context: Context) -> Iterator[Check]:
    """
    Look at everything, one check after the other; nothing is made or changed.

    Yields:
        At least one check; without usable credentials, none that needs AWS.
    """
    yield from _computer(context)
    try:
        who = accounts.identity(context.cloud)
    except GpulabError as error:
        yield Check("credentials", FAILED, error.message, error.hint)
        return
    yield _credentials(context, who)
    for look in (_clock, _plan, _spot_role, _open_launches, _kept_work, _scheduled_end):
        yield from _alone(look.__name__.strip("_").replace("_", " "), look, context)
    asked: set[str] = set()
    for region in context.profile.regions:
        for check in _region(context, region):
            yield _asked_once(check, asked, region)


def _asked_once(check: Check, asked: set[str], region: str) -> Check:
    """Say a quota request in full for the first region only: one region with a quota is enough to work."""
    quota = f"{region} quota "
    if not check.hint or not check.name.startswith(quota):
        return check
    which = check.name.removeprefix(quota)
    if which in asked:
        return replace(check, hint=f"One region is enough; or the same request in {region}")
    asked.add(which)
    return check


def _alone(
    name: str, look: Callable[[Context], Iterable[Check]], context: Context
) -> Iterator[Check]:
    try:
        yield from look(context)
    except GpulabError as error:
        yield Check(name, WARNING, error.message, error.hint)


def _computer(context: Context) -> Iterator[Check]:
    program = find_ssh()
    if program:
        yield Check("ssh", OK, f"this computer has {program}")
    else:
        yield Check(
            "ssh",
            WARNING,
            "this computer has no `ssh`; the slower built-in client is used",
            "Install OpenSSH; on Windows: Settings, Optional features, OpenSSH client",
        )
    try:
        yield Check("own address", OK, f"port 22 will be open to {context.own_cidr()} only")
    except GpulabError as error:
        yield Check("own address", FAILED, error.message, error.hint)


def _credentials(context: Context, who: accounts.Identity) -> Check:
    shown = f"account {who.account_id}, {who.name}"
    if who.is_academy:
        return Check(
            "credentials",
            FAILED,
            f"{shown}: an AWS Academy Learner Lab has neither GPUs nor spot",
            "Use an account of your own with course credits",
        )
    ends = context.cloud.credentials_expire_at()
    if ends is None:
        return Check("credentials", OK, shown)
    left = ends - context.now()
    text = f"{shown}, until {ends:%Y-%m-%d %H:%M} UTC"
    if left < _SOON:
        hint = "Refresh them before a launch; a running instance ends by itself without them"
        return Check("credentials", WARNING, text, hint)
    return Check("credentials", OK, text)


def _clock(context: Context) -> Iterator[Check]:
    ahead = accounts.clock_ahead(context.cloud)
    if ahead is None:
        yield Check("clock", OK, "not compared: AWS's answer does not say the time")
        return
    minutes = round(abs(ahead).total_seconds() / 60)
    way = "ahead of" if ahead > timedelta(0) else "behind"
    if abs(ahead) > SKEW_LIMIT:
        yield Check(
            "clock",
            FAILED,
            f"this computer's clock is {minutes} min {way} AWS's",
            "Switch on automatic time in the system's settings",
        )
    else:
        yield Check("clock", OK, "this computer's clock agrees with AWS's")


def _plan(context: Context) -> Iterator[Check]:
    plan = accounts.plan_type(context.cloud)
    if plan == "FREE":
        yield Check(
            "account plan",
            FAILED,
            "an account on the Free plan cannot start a GPU",
            "Upgrade to the paid plan at https://console.aws.amazon.com/billing/home#/freetier; the credits stay",
        )
    elif plan:
        yield Check("account plan", OK, "paid")
    else:
        yield Check("account plan", OK, "AWS does not say; older accounts have none")


def _spot_role(context: Context) -> Iterator[Check]:
    exists = accounts.spot_role_exists(context.cloud)
    if exists:
        yield Check("spot role", OK, "there")
    elif exists is None:
        yield Check(
            "spot role",
            OK,
            "these credentials may not look; AWS makes it at the first spot launch where it may",
        )
    else:
        yield Check(
            "spot role",
            WARNING,
            "not there yet; AWS makes it at the first spot launch where it may",
            "One made a moment ago shows within a minute; to be sure: `gpulab init`, or `aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`",
        )


def _open_launches(context: Context) -> Iterator[Check]:
    for intent in resuming.look_back(context):
        yield Check(
            "open launch",
            WARNING,
            f"nobody wrote down what came of launching {intent.name} in {intent.region}",
            f"`gpulab up {intent.name}` settles it",
        )


def _kept_work(context: Context) -> Iterator[Check]:
    profile = context.profile
    if profile.keep_bucket and profile.instance_role:
        yield Check("kept work", OK, f"s3://{profile.keep_bucket}")
    else:
        yield Check(
            "kept work",
            WARNING,
            "kept on this computer, so only `gpulab stop` from here saves it",
            "`gpulab init` makes a private bucket where the account allows it",
        )


def _scheduled_end(context: Context) -> Iterator[Check]:
    if context.profile.scheduler_role:
        yield Check("scheduled end", OK, "the account ends instances on schedule")
    else:
        yield Check(
            "scheduled end",
            WARNING,
            "none in the account; the timer on the instance ends it",
            "`gpulab init` makes the role for it where the account allows it",
        )


def _region(context: Context, region: str) -> Iterator[Check]:
    """Look at one region: its quotas, its image, and whether a launch would be permitted."""
    try:
        running = in_region(context.cloud, region, owner=context.owner)
    except GpulabError as error:
        yield Check(region, FAILED, error.message, error.hint)
        return
    yield from _quotas(context, region, running)
    yield _other_quotas(context, region, running)
    yield from _alone(f"{region} permissions", lambda c: _permissions(c, region), context)
    yield from _alone(f"{region} port 22", lambda c: _open_ports(c, region), context)


def _quotas(context: Context, region: str, running: RegionInstances) -> Iterator[Check]:
    """Look at the two quotas that the profile's GPU counts against."""
    family = _family(context)
    for sold in Market:
        name = f"{region} quota {family} {sold}"
        try:
            yield _quota(name, _read_quota(context, region, running, (family, sold)))
        except GpulabError as error:
            yield Check(name, WARNING, error.message, error.hint)


def _other_quotas(context: Context, region: str, running: RegionInstances) -> Check:
    """Show the quotas of the GPUs that the profile does not ask for, in one line: they stop nothing."""
    family = "P" if _family(context) == "G" else "G"
    name = f"{region} quota {family}"
    try:
        read = [_read_quota(context, region, running, (family, sold)) for sold in Market]
    except GpulabError as error:
        return Check(name, OK, f"not read: {error.message}")
    figures = [f"{q.market} {q.used_vcpus or 0} of {_limit(q)} vCPUs ({q.code})" for q in read]
    gpus = "A100, H100 and the like" if family == "P" else "T4, A10G, L4 and the like"
    return Check(name, OK, f"{', '.join(figures)}; only {gpus} count against it")


def _family(context: Context) -> str:
    """Return the quota family of the GPU that `gpulab up` asks for; a GPU nobody knows is told by `gpulab up`."""
    wanted = context.profile.gpu.casefold()
    fitting = [t for t in instance_types() if t.gpus == 1 and t.gpu_name.casefold() == wanted]
    return fitting[0].quota_family if fitting else "G"


def _limit(quota: Quota) -> str:
    return "?" if quota.limit_vcpus is None else str(quota.limit_vcpus)


def _read_quota(
    context: Context, region: str, running: RegionInstances, counted: tuple[str, Market]
) -> Quota:
    family, sold = counted
    code = CODES[counted]
    limit = market.quota_limit(context.cloud, region, family, sold)
    # What a launch remembers must not be older than what the doctor has just read.
    context.cache.drop(f"{context.account}/quota/{region}/{code.code}")
    used = running.used_vcpus.get(counted, 0)
    return Quota(code.code, code.name, region, family, sold, limit, used)


def _quota(name: str, quota: Quota) -> Check:
    if quota.limit_vcpus is None:
        return Check(name, WARNING, "these credentials may not read it", "A launch will tell")
    text = f"{quota.used_vcpus} of {quota.limit_vcpus} vCPUs in use ({quota.code})"
    free = quotas.free_vcpus(quota)
    if free is not None and free >= 4:
        return Check(name, OK, text)
    # Only the spot quota stops the usual launch.
    state = FAILED if quota.market is Market.SPOT else WARNING
    return Check(name, state, text, quotas.raise_hint(quota, needed_vcpus=4))


def _permissions(context: Context, region: str) -> Iterator[Check]:
    name = f"{region} permissions"
    image = images.find_image(context.cloud, region, has_gpu=True)
    subnets = network.find_subnets(context.cloud, region)
    tags, vpc_id = {TAG_OWNER: context.owner}, subnets[0].vpc_id
    parameters = accounts.dry_launch(image, subnets[0], _usual_type(context), tags)
    denied = [
        error
        for error in (
            accounts.may_launch(context.cloud, region, parameters),
            accounts.may_make_group(context.cloud, region, vpc_id=vpc_id, tags=tags),
            accounts.may_import_key(context.cloud, region, public_key(context), tags=tags),
        )
        if error is not None
    ]
    for error in denied:
        state = FAILED if isinstance(error, NotAllowed | CredentialsInvalid) else WARNING
        yield Check(name, state, error.message, error.hint)
    if not denied:
        yield Check(
            name, OK, f"launch, security group and key pair are allowed; image {image.name}"
        )


def _usual_type(context: Context) -> str:
    """Return the smallest instance type with the profile's GPU; a T4's where nobody knows that GPU."""
    wanted = context.profile.gpu.casefold()
    fitting = [t for t in instance_types() if t.gpus == 1 and t.gpu_name.casefold() == wanted]
    return min(fitting, key=lambda t: (t.vcpus, t.name)).name if fitting else "g4dn.xlarge"


def _open_ports(context: Context, region: str) -> Iterator[Check]:
    """Look for rules of our group that are wider than one address: only an audit finds those."""
    group_id = setup.known_group(context, region)
    if not group_id:
        return
    rules = network.ingress(context.cloud, region, group_id)
    wide = [source for _, source, _, _ in rules if source.endswith("/0")]
    if wide:
        yield Check(
            f"{region} port 22",
            FAILED,
            f"{setup.group_name(context)} is open to {', '.join(wide)}",
            "`gpulab open` closes it again; or remove the rule in the console",
        )
