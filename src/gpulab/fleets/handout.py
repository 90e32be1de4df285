"""
What each student gets to reach their instance, without any rights in the account: a ticket whose key ends with the lab, a page to print,
and a table for a mail merge. Hides making and letting in the keys; the folder is private, since tickets are secrets for an afternoon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from gpulab.errors import NotFound, RemoteError, WrongUsage
from gpulab.fleet.ticket import Ticket, authorized_line, read_ticket, write_ticket
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.acting import folder_name
from gpulab.fleets.members import Member, each, reached
from gpulab.fleets.returning import Returning
from gpulab.launch.context import Context
from gpulab.launch.running import notebooks
from gpulab.launch.running.instances import target
from gpulab.launch.running.lineage import is_owed
from gpulab.model.course import Lab
from gpulab.model.fleet import Outcome
from gpulab.model.instance import Instance
from gpulab.remote import authorized_keys, hostkeys
from gpulab.remote.keys import make_key_pair
from gpulab.store.courses import course_home
from gpulab.store.files import write_atomically

_WITHIN_S = 60.0
_NO_NOTEBOOKS = "Run it again once their repository answers, or with `--no-notebooks`"


def hand_out(
    accounts: Accounts,
    lab: Lab,
    chosen: Sequence[Member],
    folder: Path,
    *,
    with_notebooks: bool,
    take: Callable[[Member, Ticket, str], None],
) -> Iterator[Outcome]:
    """
    Let each student in and write their ticket. Repeatable: the same instance keeps its key.

    Args:
        folder: Made private; a ticket is named after the roster's id.
        with_notebooks: Whether the lab's notebooks are brought to each instance, too.
        take: Given the member, its ticket and the ticket's file name, from a thread.
    """
    write_atomically(folder / ".gitignore", b"*\n")

    returning = Returning(accounts, lab.id)
    returning.look({m.account for m in chosen if _is_owed(accounts, m)})

    def act(context: Context, member: Member, instance: Instance) -> str:
        reached(accounts.account(member.account), instance)
        if member.seat is None:
            raise NotFound("nobody in the roster has it", hint="`gpulab fleet up --prune` ends it")
        ends_at = instance.expires_at or lab.ends_at
        own = member.seat.students[0].public_key if len(member.seat.students) == 1 else ""
        key = _key_file(accounts, instance)
        public = own or make_key_pair(key, environ=context.environment)
        _let_in(context, instance, public, ends_at)
        ticket = _ticket(context, instance, ends_at, "" if own else key.read_text("ascii"))
        name = ticket_name(member)
        write_atomically(folder / name, write_ticket(ticket).encode())
        take(member, ticket, name)
        back = _returned(returning, context, member, instance)
        brought = _brought(context, instance, lab, with_notebooks=with_notebooks)
        return "; ".join(filter(None, (back, brought)))

    return each(accounts, chosen, act)


def ticket_name(member: Member) -> str:
    """Name a student's ticket in the handout's folder."""
    return f"{folder_name(member, is_anonymous=False)}.ticket"


def handed_before(
    members: Iterable[Member], folder: Path, *, now: datetime
) -> Iterator[tuple[Member, Ticket, str]]:
    """
    Find the tickets that lie in a handout's folder and have not ended: its page and table are to hold everybody, whoever is served again.

    Yields:
        The member, its ticket and the ticket's file name.
    """
    for member in members:
        file = folder / ticket_name(member)
        try:
            ticket = read_ticket(file.read_bytes(), file=str(file))
        except (OSError, WrongUsage):
            continue
        if ticket.name == member.name and ticket.ends_at > now:
            yield member, ticket, file.name


def _key_file(accounts: Accounts, instance: Instance) -> Path:
    """One key for one instance: it opens nobody else's."""
    home = course_home(accounts.outside.home, accounts.course.id)
    return (home / "tickets" / instance.id / "id_ed25519").absolute()


def _let_in(context: Context, instance: Instance, public: str, ends_at: datetime) -> None:
    words = public.split()[1]
    line = authorized_line(public, ends_at=ends_at)
    host = context.host(target(context, instance))
    authorized_keys.let_in(host, line, key=words, timeout_s=_WITHIN_S)


def _ticket(context: Context, instance: Instance, ends_at: datetime, private: str) -> Ticket:
    pinned = hostkeys.pinned(context.folder.known_hosts, instance.id)
    return Ticket(
        name=instance.name,
        instance_id=instance.id,
        address=instance.address,
        user=context.profile.login_user,
        host_key=pinned[0].base64,
        private_key=private,
        ends_at=ends_at,
    )


def _is_owed(accounts: Accounts, member: Member) -> bool:
    context = accounts.account(member.account).context
    return member.instance is not None and is_owed(context, member.instance.id)


def _returned(returning: Returning, context: Context, member: Member, instance: Instance) -> str:
    """Bring back, before the notebooks, what `fleet up` could not."""
    act = returning.to(member.account, instance) if is_owed(context, instance.id) else None
    said = act() if act else ""
    if is_owed(context, instance.id):
        raise RemoteError(f"the ticket is written, the kept work did not come: {said}")
    return said


def _brought(context: Context, instance: Instance, lab: Lab, *, with_notebooks: bool) -> str:
    if not with_notebooks or lab.notebooks is None:
        return ""
    try:
        return notebooks.bring(context, instance, lab.notebooks)
    except RemoteError as error:
        raise RemoteError(
            f"the ticket is written, the notebooks did not come: {error.message}",
            hint=_NO_NOTEBOOKS,
        ) from error
