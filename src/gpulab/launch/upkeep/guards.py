"""
The account's own guards: the budget with its e-mails, the policy that forbids launches when it is spent, the scheduled ends.

Arms what the account allows, and believes only what it reads back. "Not allowed" is an answer, not a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from gpulab.aws import budgets, denying
from gpulab.aws.accounts import Identity, identity
from gpulab.errors import CredentialsInvalid, GpulabError, NotAllowed, WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.protocol import scheduled_end
from gpulab.launch.running import instances
from gpulab.model.budget import LEVELS
from gpulab.model.guard import AccountBudget, BudgetAction, GuardCheck, Principals
from gpulab.model.instance import Instance

# A role that was made moments ago cannot be assumed for some seconds.
_ROLE_WAITS_S = (5.0, 10.0)
_FULL = 100
# Only Identity Center itself may change these. https://docs.aws.amazon.com/singlesignon/latest/userguide/permissionsetsconcept.html
_IDENTITY_CENTER = "AWSReservedSSO_"
_ARM = "`gpulab guard arm` arms it"
_RIGHTS = (
    "Whoever administers the account allows `docs/iam/guard.json`, and `gpulab guard arm` again"
)

DELAY = "AWS counts cost 8 to 12 h late or more: the budget forbids the next launch, it does not end what runs"


def checks(context: Context) -> tuple[GuardCheck, ...]:
    """
    Read what is armed; changes nothing.

    Raises:
        CredentialsInvalid, ClockSkewed: AWS does not accept the credentials.
    """
    return _read(context, identity(context.cloud), {})


def arm(
    context: Context, *, limit_usd: Decimal, email: str, targets: Principals
) -> tuple[GuardCheck, ...]:
    """
    Arm everything the account allows, and read it back.

    Args:
        targets: Whose launches are forbidden; nobody: whose credentials these are.

    Returns:
        What is armed now; where something is not, why.

    Raises:
        CredentialsInvalid, ClockSkewed: AWS does not accept the credentials.
    """
    who = identity(context.cloud)
    name, failed = budget_name(context), dict[str, GpulabError]()
    cloud, account = context.cloud, who.account_id
    _try(failed, "budget", lambda: budgets.put_budget(cloud, account, name, limit_usd))
    if "budget" not in failed:
        _try(
            failed,
            "e-mail",
            lambda: budgets.put_alerts(cloud, account, name, levels=LEVELS, email=email),
        )
        whom = targets or caller(who)
        _try(failed, "no launches", lambda: _arm_action(context, who, whom, email))
    for instance in _running(context):
        scheduled_end.ensure(context, instance)
    return _read(context, who, failed)


def disarm(context: Context) -> tuple[str, ...]:
    """
    Allow launches again and remove budget, policy and role. The scheduled ends of what runs stay.

    Returns:
        What was done and what was not, a sentence each.

    Raises:
        CredentialsInvalid, ClockSkewed: AWS does not accept the credentials.
    """
    who = identity(context.cloud)
    said: list[str] = []
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("launches are allowed", lambda: _drop_actions(context, who)),
        (
            "policy and role are removed",
            lambda: denying.remove(context.cloud, who.account_id, context.owner),
        ),
        (
            "the budget is removed",
            lambda: budgets.delete_budget(context.cloud, who.account_id, budget_name(context)),
        ),
    )
    for done, step in steps:
        try:
            step()
        except CredentialsInvalid:
            raise
        except GpulabError as error:
            said.append(f"not done: {error.message}")
        else:
            said.append(done)
    return tuple(said)


def budget_name(context: Context) -> str:
    """Name our budget in the account."""
    return f"gpulab-{context.owner}"


def caller(who: Identity) -> Principals:
    """
    Say to whom a policy must be attached to bind these credentials.

    Returns:
        Nobody where no policy can be attached: the root user, a federated one, a role of IAM Identity Center.
    """
    kind, _, rest = who.name.partition("/")
    if kind == "user":
        return Principals(users=(rest.rpartition("/")[2],))
    if kind == "assumed-role" and not rest.startswith(_IDENTITY_CENTER):
        return Principals(roles=(rest.split("/")[0],))
    return Principals()


def _try(failed: dict[str, GpulabError], name: str, step: Callable[[], object]) -> None:
    try:
        step()
    except CredentialsInvalid:
        raise
    except GpulabError as error:
        failed[name] = error


def _arm_action(context: Context, who: Identity, whom: Principals, email: str) -> None:
    """Have the budget forbid launches; one that does so already for the same people is left as it is."""
    if not whom:
        raise WrongUsage(
            f"no policy can be attached to {who.name}",
            hint="Name an IAM user with `--user` or a role with `--role`, and work as that",
        )
    cloud, account, owner = context.cloud, who.account_id, context.owner
    name = budget_name(context)
    policy = denying.ensure_policy(cloud, account, owner)
    role, is_new = denying.ensure_role(cloud, account, owner, whom)
    if _is_current(context, who, whom):
        return
    _drop_actions(context, who)
    waits = list(_ROLE_WAITS_S) if is_new else []
    while True:
        try:
            budgets.create_action(
                cloud, account, name, policy_arn=policy, role_arn=role, targets=whom, email=email
            )
        except NotAllowed:
            if not waits:
                raise
            context.sleep(waits.pop(0))
        else:
            return


def _is_current(context: Context, who: Identity, whom: Principals) -> bool:
    cloud, account, name = context.cloud, who.account_id, budget_name(context)
    budget = budgets.read_budget(cloud, account, name)
    spent = budget is not None and budget.spent_usd >= budget.limit_usd
    kept = {"STANDBY", "EXECUTION_SUCCESS"} if spent else {"STANDBY"}
    return any(
        a.targets == whom and a.status in kept and not _why_unfit(a, context, who)
        for a in budgets.read_actions(cloud, account, name)
    )


def _drop_actions(context: Context, who: Identity) -> None:
    """Delete the budget's actions, and take off what they have attached."""
    cloud, account, name = context.cloud, who.account_id, budget_name(context)
    for action in budgets.read_actions(cloud, account, name):
        budgets.delete_action(cloud, account, name, action.id)
        denying.lift(cloud, account, context.owner, action.targets)


def _read(
    context: Context, who: Identity, failed: dict[str, GpulabError]
) -> tuple[GuardCheck, ...]:
    cloud, name = context.cloud, budget_name(context)
    budget: AccountBudget | None = None
    try:
        budget = budgets.read_budget(cloud, who.account_id, name)
        found = [_budget_check(name, budget), _mail_check(budget)]
        found.append(_deny_check(context, who))
    except CredentialsInvalid:
        raise
    except GpulabError as error:
        found = [_not_armed(n, error) for n in ("budget", "e-mail", "no launches")]
        if budget is not None:
            found[:2] = [_budget_check(name, budget), _mail_check(budget)]
    told = [
        _not_armed(check.name, failed[check.name]) if check.name in failed else check
        for check in found
    ]
    return (*told, *_ends(context))


def _not_armed(name: str, error: GpulabError) -> GuardCheck:
    hint = _RIGHTS if isinstance(error, NotAllowed) else error.hint or _ARM
    return GuardCheck(name, is_armed=False, text=error.message, hint=hint)


def _budget_check(name: str, budget: AccountBudget | None) -> GuardCheck:
    if budget is None:
        return GuardCheck("budget", is_armed=False, text=f"there is no budget {name}", hint=_ARM)
    if not budget.counts_gross:
        text = f"{name} counts credits and refunds, so it does not move while credit pays"
        return GuardCheck("budget", is_armed=False, text=text, hint=_ARM)
    text = (
        f"${budget.limit_usd:.2f} for the account's calendar year before credits,"
        f" ${budget.spent_usd:.2f} of it spent as far as AWS knows"
    )
    return GuardCheck("budget", is_armed=True, text=text)


def _mail_check(budget: AccountBudget | None) -> GuardCheck:
    alerts = budget.alerts if budget else {}
    missing = [level for level in LEVELS if not alerts.get(level)]
    if missing:
        text = f"nobody is told at {', '.join(map(str, missing))} %"
        return GuardCheck("e-mail", is_armed=False, text=text, hint=_ARM)
    whom = sorted({address for level in LEVELS for address in alerts[level]})
    return GuardCheck("e-mail", is_armed=True, text=f"{', '.join(whom)} at 50, 80 and 100 %")


def _deny_check(context: Context, who: Identity) -> GuardCheck:
    found = budgets.read_actions(context.cloud, who.account_id, budget_name(context))
    fit = [a for a in found if not _why_unfit(a, context, who)]
    if not fit:
        why = _why_unfit(found[0], context, who) if found else "the budget forbids nothing"
        return GuardCheck("no launches", is_armed=False, text=why, hint=_ARM)
    action = fit[0]
    why = denying.why_powerless(context.cloud, who.account_id, context.owner, action.targets)
    if why:
        return GuardCheck("no launches", is_armed=False, text=why, hint=_ARM)
    if action.status == "EXECUTION_SUCCESS":
        text = f"the budget is spent: {action.targets} may start nothing"
    else:
        text = f"at 100 % {action.targets} may start nothing more"
    return GuardCheck("no launches", is_armed=True, text=text)


def _why_unfit(action: BudgetAction, context: Context, who: Identity) -> str:
    if action.policy_arn != denying.policy_arn(who.account_id, context.owner):
        return "the budget attaches another policy than ours"
    if action.percent != _FULL or not action.is_automatic:
        return "the budget does not act by itself at 100 %"
    if action.status not in ("STANDBY", "EXECUTION_IN_PROGRESS", "EXECUTION_SUCCESS"):
        return f"what the budget does is in state {action.status}"
    return ""


def _running(context: Context) -> tuple[Instance, ...]:
    return tuple(i for i in instances.mine(context) if i.state.is_alive)


def _ends(context: Context) -> tuple[GuardCheck, ...]:
    try:
        running = _running(context)
    except CredentialsInvalid:
        raise
    except GpulabError as error:
        return (_not_armed("scheduled ends", error),)
    if running:
        return tuple(_end_check(context, instance) for instance in running)
    if context.profile.scheduler_role:
        text = "nothing runs; each launch gets one"
        return (GuardCheck("scheduled ends", is_armed=True, text=text),)
    text = "nothing runs, and a launch would get none: the account has no role for it"
    return (GuardCheck("scheduled ends", is_armed=False, text=text, hint="`gpulab init` makes it"),)


def _end_check(context: Context, instance: Instance) -> GuardCheck:
    armed, name = scheduled_end.read(context, instance), f"end of {instance.name or instance.id}"
    if armed.until is not None:
        text = f"the account ends it at {armed.until:%Y-%m-%d %H:%M} UTC"
        return GuardCheck(name, is_armed=True, text=text)
    hint = _ARM if context.profile.scheduler_role else "`gpulab init`, then `gpulab guard arm`"
    return GuardCheck(name, is_armed=False, text=armed.why_not, hint=hint)
