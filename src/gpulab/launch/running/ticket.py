"""Opening the instance a ticket names: no AWS, no account, only its address, its pinned host key and a key that ends with the lab."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.errors import LoginRefused, Refused, RemoteError, Unreachable
from gpulab.fleet.ticket import Ticket
from gpulab.launch.context import Context
from gpulab.launch.running import agent, browser
from gpulab.launch.running.fetching import fetching_by_ticket
from gpulab.remote import hostkeys, ports, tunnel
from gpulab.remote.supervisor import Gone
from gpulab.remote.target import SshTarget
from gpulab.store.files import write_atomically

_CONNECT_WITHIN_S = 60.0
_LOOK_S = 2.0
_ASK_BEFORE = timedelta(seconds=30)
_NO_ANSWER = "It lets in one address range only: is this computer on the campus's network? Your teacher sees whether it runs"
_NEW_TICKET = (
    "Ask your teacher for a new ticket: this one's key does not open the instance any more"
)


def target_of(context: Context, ticket: Ticket) -> SshTarget:
    """
    Say where and as whom a ticket's instance is reached; its keys are put into the profile's folder, readable by its owner only.

    Raises:
        Refused: The ticket has ended.
        HostKeyMismatch: Another ticket named another key for the same instance.
        WrongUsage: The address is none.
    """
    if ticket.ends_at <= context.now():
        raise Refused(
            f"the ticket of {ticket.name} ended at {ticket.ends_at:%Y-%m-%d %H:%M} UTC",
            hint="Ask your teacher for a new one",
        )
    folder = (context.folder.root / "tickets" / ticket.instance_id).absolute()
    key = hostkeys.parse_public_key(ticket.host_key)
    hostkeys.pin(folder / "known_hosts", ticket.instance_id, [key] if key else [])
    return SshTarget(
        instance_id=ticket.instance_id,
        address=ticket.address,
        user=ticket.user,
        key_file=_key_file(context, ticket, folder),
        known_hosts=folder / "known_hosts",
        proxy_command=context.profile.ssh_proxy_command,
    )


def serve(
    context: Context,
    ticket: Ticket,
    *,
    port: int | None = None,
    with_browser: bool = True,
    on_open: Callable[[browser.Opened], None] = lambda opened: None,
    say: Callable[[str], None] = lambda text: None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """
    Keep a tunnel to a ticket's instance in this process until it is interrupted or the instance ends, which a teacher may have moved.

    Args:
        say: Told what comes to this computer meanwhile, where the instance keeps nothing by itself.

    Raises:
        Refused, WrongUsage: As `target_of`.
        Unreachable: It did not come up, or the ticket has ended.
        HostKeyMismatch, LoginRefused: Waiting does not mend it.
    """
    reached = target_of(context, ticket)
    sockets = ports.listen(ticket.name, (browser.JUPYTER_PORT,), local_port=port)

    ends_at = ticket.ends_at

    def refresh(known: SshTarget) -> SshTarget | Gone:
        is_over = ends_at <= context.now()
        return Gone("the lab is over", is_final=True) if is_over else known

    with tunnel.running(reached, sockets, refresh=refresh) as running:
        try:
            running.wait_connected(_CONNECT_WITHIN_S)
        except Unreachable as error:
            raise Unreachable(
                f"{ticket.name} does not answer: {error.message}", hint=_NO_ANSWER
            ) from error
        except LoginRefused as error:
            raise error.reworded(error.message, hint=_NEW_TICKET) from error
        local = running.ports[browser.JUPYTER_PORT]
        opened = browser.Opened(ticket.name, f"http://127.0.0.1:{local}/lab", local, is_new=True)
        if with_browser:
            token = agent.token(context.host(reached))
            browser.lead(context.folder.tunnels, opened, token)
        on_open(opened)
        with fetching_by_ticket(context, ticket.name, reached, say=say):
            while ends_at > context.now():
                wait(_LOOK_S)
                if ends_at - _ASK_BEFORE <= context.now():
                    ends_at = end_now(context, reached, ends_at)
    raise Unreachable("the lab is over, and with it the ticket")


def end_now(context: Context, reached: SshTarget, known: datetime) -> datetime:
    """Ask the instance when it ends: the lecture may run late."""
    try:
        return agent.status(context.host(reached)).deadline or known
    except RemoteError:
        return known


def _key_file(context: Context, ticket: Ticket, folder: Path) -> Path:
    if not ticket.private_key:
        return context.folder.key.absolute()
    file = folder / "id_ed25519"
    write_atomically(file, ticket.private_key.encode("ascii"))
    return file
