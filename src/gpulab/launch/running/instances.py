"""Finding my instances and reaching them. Refuses to guess between several."""

from __future__ import annotations

from dataclasses import dataclass

from gpulab.aws import instances as ec2
from gpulab.aws import network
from gpulab.aws.end_schedule import EndSchedule
from gpulab.aws.regions import ask_each
from gpulab.errors import GpulabError, Unreachable, WrongUsage
from gpulab.launch.account import setup
from gpulab.launch.context import Context
from gpulab.launch.protocol import resuming, scheduled_end
from gpulab.launch.running import agent
from gpulab.launch.running.past import past_of
from gpulab.model.instance import TAG_OWNER, Instance
from gpulab.model.status import AgentStatus
from gpulab.remote.host import Host
from gpulab.remote.target import SshTarget
from gpulab.store.journal import Intent
from gpulab.store.names import remember_names


@dataclass(frozen=True)
class Details:
    """
    Everything about one instance.

    Attributes:
        end_schedule: The end scheduled in the account.
        status: What its agent says; `None` when it does not answer.
        silence: Why there is no status; empty when there is one.
    """

    instance: Instance
    end_schedule: EndSchedule
    status: AgentStatus | None
    silence: str = ""


@dataclass(frozen=True)
class Listing:
    """
    My instances, as far as AWS could be asked.

    Attributes:
        instances: Newest first.
        unread: Sentences about regions that did not answer.
        still_open: Launches that nobody can tell the result of yet.
    """

    instances: tuple[Instance, ...]
    unread: tuple[str, ...] = ()
    still_open: tuple[Intent, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what could not be read or is still open."""
        return (*self.unread, *map(_still_open, self.still_open))


@dataclass(frozen=True)
class Sought:
    """
    The live instance of a name.

    Attributes:
        instance: `None` where none was seen.
        doubts: Sentences about why one may be up that was not seen; without any, `None` is sure.
        others: The names of what else is up.
    """

    instance: Instance | None
    doubts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """What fits a name among all that is not over, and what could not be read."""

    fitting: tuple[Instance, ...]
    live: tuple[Instance, ...]
    seen: Listing


def mine(context: Context) -> tuple[Instance, ...]:
    """
    List my instances that have not ended, newest first, in the profile's regions and in those where the journal knows a launch.

    Raises:
        GpulabError: No region answered.
    """
    return listing(context).instances


def listing(context: Context, *, with_ended: bool = False) -> Listing:
    """List my instances, with what could not be read; see `mine`. Ended ones too if told, as long as EC2 remembers them."""
    still_open = resuming.look_back(context)
    known = [m.region for m in context.journal.read().made]
    asked = dict.fromkeys((*context.profile.regions, *known))
    answers = ask_each(
        asked,
        lambda region: ec2.in_region(
            context.cloud, region, owner=context.owner, with_ended=with_ended
        ),
    )
    said = answers.or_raise()
    found = [i for one in said.values() for i in one.mine]
    found += resuming.unlisted(context, {i.id for i in found}, regions=said)
    remember_names(context.folder.cache, (i.name for i in found if i.name and not i.state.is_over))
    return Listing(
        instances=tuple(sorted(found, key=lambda i: (i.launched_at, i.id), reverse=True)),
        unread=tuple(f"{region} was not read: {e.message}" for region, e in answers.failed.items()),
        still_open=still_open,
    )


def find(context: Context, name: str | None) -> Instance:
    """
    Find one live instance of mine.

    Args:
        name: A name or an instance id; `None` for the only one there is.

    Raises:
        WrongUsage: There is none, or more than one fits.
    """
    found = _found(context, name)
    if len(found.fitting) == 1:
        return found.fitting[0]
    raise _none_or_many(context, name, found)


def find_alive(context: Context, name: str | None) -> Sought:
    """
    Find one live instance of mine, where there is one of that name (or any at all).

    Raises:
        WrongUsage: More than one fits.
    """
    found = _found(context, name)
    if len(found.fitting) > 1:
        raise _none_or_many(context, name, found)
    if found.fitting:
        return Sought(found.fitting[0])
    still_open = (i for i in found.seen.still_open if name in (None, i.name))
    others = tuple(sorted(i.name for i in found.live if i.name))
    return Sought(None, (*found.seen.unread, *map(_still_open, still_open)), others)


def target(context: Context, instance: Instance) -> SshTarget:
    """
    Say where and as whom an instance is reached.

    Raises:
        Unreachable: It has no address yet, or not any more.
    """
    if not instance.address:
        raise Unreachable(
            f"{instance.name or instance.id} has no address: it is {instance.state}",
            hint="`gpulab ls -w` follows it",
        )
    return SshTarget(
        instance_id=instance.id,
        address=instance.address,
        user=context.profile.login_user,
        key_file=context.folder.key.absolute(),
        known_hosts=context.folder.known_hosts.absolute(),
        proxy_command=context.profile.ssh_proxy_command,
    )


def host(context: Context, instance: Instance) -> Host:
    """
    Open an instance over ssh; nothing is sent yet.

    Raises:
        Unreachable: It has no address yet, or not any more.
    """
    return context.host(target(context, instance))


def status(context: Context, instance: Instance, *, timeout_s: float = 20) -> AgentStatus:
    """
    Ask the agent on an instance for its status.

    Raises:
        RemoteError: It does not answer, or what it says cannot be read.
    """
    return agent.status(host(context, instance), timeout_s=timeout_s)


def console(context: Context, instance: Instance) -> str:
    """
    Read what an instance wrote to its console; works without ssh.

    Raises:
        AwsError: AWS does not give it.
    """
    return ec2.console_output(context.cloud, instance.place.region, instance.id)


def details(context: Context, instance: Instance) -> Details:
    """Read everything about an instance; what does not answer is said, not raised."""
    armed = scheduled_end.read(context, instance)
    try:
        return Details(instance, armed, status(context, instance, timeout_s=10))
    except GpulabError as error:
        return Details(instance, armed, None, error.message)


def admit_here(context: Context, instance: Instance) -> bool:
    """
    Open port 22 of an instance's security group to this computer's address of the moment, closing it to the former one.

    Call it when a connection times out: laptops change networks.

    Returns:
        Whether the rules had to be changed.

    Raises:
        GpulabError: AWS refuses, or the address cannot be found.
    """
    region, cidr = instance.place.region, context.own_cidr()
    group_id = setup.group_of(context, instance)
    rules = network.ingress(context.cloud, region, group_id)
    if [source for _, source, _, _ in rules] == [cidr]:
        return False
    tags = {TAG_OWNER: context.owner}
    network.admit(context.cloud, region, group_id, cidr, tags=tags, is_new=False)
    setup.forget_network(context, region)
    return True


def _found(context: Context, name: str | None) -> _Found:
    seen = listing(context)
    live = tuple(i for i in seen.instances if not i.state.is_over)
    return _Found(tuple(i for i in live if name in (None, i.name, i.id)), live, seen)


def _still_open(intent: Intent) -> str:
    return f"a launch of {intent.name} in {intent.region} is still open; `gpulab up {intent.name}` settles it"


def _none_or_many(context: Context, name: str | None, found: _Found) -> WrongUsage:
    if found.fitting:
        shown = ", ".join(i.id if name else i.name or i.id for i in found.fitting)
        count = len(found.fitting)
        what = f"{count} instances are called `{name}`" if name else f"{count} instances are up"
        return WrongUsage(f"{what}: {shown}", hint="Name one of them")
    unread = "".join(f"; {note}" for note in found.seen.notes)
    former = past_of(context, name) if name or not found.live else None
    if former is not None:
        beside = "" if name else "no instance is up; "
        return WrongUsage(f"{beside}{former.name} {former.ended}{unread}", hint=former.hint)
    if name is None or not found.live:
        return WrongUsage(f"no instance is up{unread}", hint="`gpulab up` starts one")
    names = ", ".join(sorted(i.name or i.id for i in found.live))
    return WrongUsage(f"no instance is called `{name}`{unread}", hint=f"There is {names}")
