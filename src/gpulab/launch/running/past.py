"""What became of a name that has no instance any more: how the last one ended, and where its work is. Never raises: it is told beside an error."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from gpulab.aws import instances as ec2
from gpulab.bootstrap import environment_names
from gpulab.errors import GpulabError, NotFound, WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.running import keep
from gpulab.model.fact import FactKind
from gpulab.model.instance import Instance
from gpulab.store.journal import Made

# The timer on the instance and the schedule in the account end it about then.
_ABOUT = timedelta(minutes=3)


@dataclass(frozen=True)
class Past:
    """
    A name that had an instance.

    Attributes:
        ended: How and when the last one ended, `AWS took it back at 2026-11-23 08:40 UTC`.
        kept: Where its work is; `""` where none was found.
        unseen: Why nobody could look where its work is; `""` where somebody did.
    """

    name: str
    ended: str
    kept: str
    unseen: str = ""

    @property
    def hint(self) -> str:
        """What brings it back."""
        if self.kept:
            return f"Its work is kept in {self.kept}: `gpulab up {self.name}` brings it back"
        if self.unseen:
            return f"Whether its work is kept could not be looked up ({self.unseen}); `gpulab pull {self.name} --kept` looks again"
        return f"`gpulab up {self.name}` starts it again; no kept work of it was found"


def past_of(context: Context, name: str | None) -> Past | None:
    """
    Say what became of a name's last instance; `None` when nobody here knows the name.

    Args:
        name: `None` for the instance launched last.
    """
    try:
        made = [m for m in context.journal.read().made if name in (None, m.name, m.instance_id)]
    except GpulabError:
        made = []
    known = made[-1].name if made else name
    kept, unseen = _kept(context, known) if known else ("", "")
    if known is None or not (made or kept):
        return None
    return Past(known, _ended(context, made[-1]) if made else "has ended", kept, unseen)


def last_environment(context: Context, name: str) -> str:
    """
    Say which lab environment a name had last, so that it comes back with its own: by this computer's journal, or by the kept work where
    another computer launched it.

    Returns:
        `""` for a name that was never up, and where that environment is not here any more.
    """
    try:
        made = reversed(context.journal.read().made)
        last = next((m.environment for m in made if m.name == name), None)
        if last is None:
            last = keep.environment(context, name)
    except GpulabError:
        return ""
    return last if last in environment_names(context.profile.environment_folders) else ""


def _kept(context: Context, name: str) -> tuple[str, str]:
    """Say where the work of a name is kept, or why nobody can tell."""
    try:
        return keep.find(context, name).where, ""
    except WrongUsage:  # there is none
        return "", ""
    except GpulabError as error:
        return "", error.message


def _ended(context: Context, made: Made) -> str:
    try:
        return _as_ec2_says(ec2.read(context.cloud, made.region, made.instance_id))
    except NotFound:
        # EC2 forgets within the hour; what the ledger was told then stays.
        return _as_written_down(context, made)
    except GpulabError:
        return "was not found"


def _as_ec2_says(instance: Instance) -> str:
    at, reason = instance.ended_at, instance.state_reason
    if not instance.state.is_over:
        return f"is {instance.state}, and EC2 did not list it"
    if reason.startswith("Server."):
        return f"was taken back by AWS{_at(at)}"
    if at and instance.expires_at and abs(at - instance.expires_at) < _ABOUT:
        return f"ended at its deadline{_at(at)}"
    if reason == "Client.InstanceInitiatedShutdown":
        return f"ended itself{_at(at)}"
    return f"was stopped{_at(at)}"


def _as_written_down(context: Context, made: Made) -> str:
    try:
        facts = context.ledger.facts(FactKind.ENDED)
    except GpulabError:
        facts = ()
    found = [one for one in facts if one.subject == made.instance_id]
    if not found:
        return "has ended"
    last = max(found, key=lambda one: one.at)
    how = "was taken back by AWS" if last.details.get("by") == "aws" else "has ended"
    return f"{how}{_at(last.at)}"


def _at(moment: datetime | None) -> str:
    return f" at {moment:%Y-%m-%d %H:%M} UTC" if moment else ""
