"""
What can go wrong, as classes that say what the caller may do next. Raises nothing itself.

    GpulabError                     1   the outside failed
    ├── WrongUsage                  2   a flag, a file or pasted text is wrong; names the place
    ├── Refused                     3   one of our limits says no, before any money
    │   ├── CreditTooLow            3   the worst case does not fit the credit or budget
    │   └── QuotaTooLow             3   AWS's own limit on vCPUs
    ├── AwsError                    1   AWS said no
    │   ├── NoCapacity              1   this place is full: try another place
    │   ├── SpotPriceAboveCap       1   the spot price is over the cap: try another place
    │   ├── NotOffered              1   this zone does not have the type: never try it again
    │   ├── NotAllowed              1   permission denied: stop
    │   ├── CredentialsInvalid      1   expired, wrong or missing: stop, refresh, resume
    │   ├── ClockSkewed             1   this computer's clock is off: stop
    │   ├── AccountNotReady         1   plan, verification, opt-in or role: stop
    │   ├── SetupMissing            1   image, key pair, group or subnet is gone: repair once
    │   ├── Throttled               1   too many calls: the same call again, later
    │   ├── Ambiguous               1   nobody knows whether it took effect: the same call, same token
    │   ├── NotFound                1   it is not (or not yet) there
    │   └── InvalidRequest          1   AWS does not accept a value: stop
    ├── RemoteError                 1   the instance, reached over ssh
    │   ├── HostKeyMismatch         1   not the machine we pinned: stop, never retry
    │   ├── LoginRefused            1   the key is not accepted: stop
    │   ├── Unreachable             1   no answer: ask AWS for the state first
    │   ├── CommandFailed           1   the command ran and failed
    │   └── UnsafeArchive           1   a member of an archive may not be unpacked
    ├── StoreError                  1   the user's own folder: full, locked, unreadable
    │   └── StateDamaged            2   a file of ours does not hold what we wrote; names it
    ├── SomeFailed                  4   part of a fleet failed
    ├── ProblemsFound               5   a check found problems
    └── Interrupted               130   Ctrl-C
"""

from __future__ import annotations

import errno
from typing import Self


class GpulabError(Exception):
    """
    Anything gpulab can explain.

    Attributes:
        message: What failed, one sentence without a full stop.
        hint: What to do about it; empty when there is nothing useful to say.
        code: The error code of AWS, kept as AWS wrote it; empty when AWS did not speak.
        detail: AWS's own words, for whoever looks closer; from outside, so printed through the filter only.
        exit_code: What the process returns, see `docs/exit-codes.md`.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", code: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.detail = detail

    def reworded(self, message: str, *, hint: str = "") -> Self:
        """Return it under another sentence; the class, AWS's code and AWS's words stay, and the hint where none is given."""
        return type(self)(message, hint=hint or self.hint, code=self.code, detail=self.detail)


class WrongUsage(GpulabError):
    """A flag, a file or pasted text is wrong; the message names the place."""

    exit_code = 2


class Refused(GpulabError):
    """One of our limits says no, before any money is spent."""

    exit_code = 3


class CreditTooLow(Refused):
    """The worst case does not fit into the credit or the budget."""


class QuotaTooLow(Refused):
    """AWS's limit on running vCPUs is too low; it is one per region and family."""


class AwsError(GpulabError):
    """AWS refused a call."""


class NoCapacity(AwsError):
    """The place (type, zone, market) has no free instance; another place may."""


class SpotPriceAboveCap(AwsError):
    """The spot price is over the user's cap; another place may be cheaper."""


class NotOffered(AwsError):
    """The zone does not have the instance type; that does not change by waiting."""


class NotAllowed(AwsError):
    """A permission is missing; no other place will help."""


class CredentialsInvalid(AwsError):
    """Credentials are missing, wrong or expired."""


class ClockSkewed(AwsError):
    """This computer's clock is too far from AWS's for a signature to be accepted."""


class AccountNotReady(AwsError):
    """The account's plan, verification, opt-in or spot role stands in the way."""


class SetupMissing(AwsError):
    """An image, key pair, security group or subnet we rely on is gone."""


class Throttled(AwsError):
    """Too many calls, or AWS has a bad minute; the same call again, later."""


class Ambiguous(AwsError):
    """The answer was lost: the call may have taken effect. Ask again with the same token."""


class NotFound(AwsError):
    """AWS does not know the thing, or does not know it yet."""


class InvalidRequest(AwsError):
    """AWS does not accept a value we sent."""


class RemoteError(GpulabError):
    """Something went wrong between here and the instance."""


class HostKeyMismatch(RemoteError):
    """The machine that answered is not the one whose key was pinned."""


class LoginRefused(RemoteError):
    """The instance does not accept our key."""


class Unreachable(RemoteError):
    """No answer from the instance."""


class CommandFailed(RemoteError):
    """A command ran on the instance and failed."""


class UnsafeArchive(RemoteError):
    """An archive has a member that may not be unpacked here; the message names it."""


class StoreError(GpulabError):
    """The user's own folder is full, locked or unreadable."""


def disk_hint(error: OSError) -> str:
    """Say what to do when this computer's disk refuses something."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space on this computer, then repeat the command"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Check the folder's owner and modes, then repeat the command"
    return "Check this computer's disk and the folder, then repeat the command"


def extra_hint(extra: str) -> str:
    """Say how to install one of gpulab's extras, in whichever way gpulab itself was installed."""
    which = f"'.[{extra}]'"
    return (
        f"Install gpulab again with it, as you did before, in its checkout: `pipx install --force {which}`,"
        f" `uv tool install --force {which}` or `pip install {which}`;"
        " name the other extras that you use there, too"
    )


class StateDamaged(StoreError):
    """A file of gpulab's own does not hold what gpulab wrote; the message names it, nothing was written."""

    exit_code = 2


class SomeFailed(GpulabError):
    """Part of a fleet failed; the outcomes say which."""

    exit_code = 4


class ProblemsFound(GpulabError):
    """A check found problems: `gpulab doctor`, `gpulab check`, or a command with `--check`."""

    exit_code = 5


class Interrupted(GpulabError):
    """The user pressed Ctrl-C."""

    exit_code = 130
