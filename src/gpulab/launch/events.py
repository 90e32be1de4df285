"""What happens while a plan is carried out, as values; `view/` turns them into words. Each says when it happened (`at`, aware UTC)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gpulab.errors import GpulabError
from gpulab.model.instance import Instance, LaunchPlan
from gpulab.model.market import Offer
from gpulab.model.setup import BakedImage, Image
from gpulab.model.status import AgentStatus
from gpulab.planning.failover import Next


@dataclass(frozen=True)
class Resumed:
    """A launch that was interrupted earlier is found again; nothing new is started."""

    at: datetime
    instance: Instance


@dataclass(frozen=True)
class AlreadyUp:
    """An instance of that name is up; nothing new is started."""

    at: datetime
    instance: Instance


@dataclass(frozen=True)
class Planned:
    """The plan, before any money."""

    at: datetime
    plan: LaunchPlan


@dataclass(frozen=True)
class Declined:
    """The user said no; nothing runs."""

    at: datetime


@dataclass(frozen=True)
class Attempting:
    """
    A place is about to be asked.

    Attributes:
        number: From 1.
    """

    at: datetime
    offer: Offer
    number: int


@dataclass(frozen=True)
class PlaceRefused:
    """A place came to nothing; `then` says what follows."""

    at: datetime
    offer: Offer
    error: GpulabError
    then: Next


@dataclass(frozen=True)
class Repeating:
    """The same call is made again after a pause, with the same token."""

    at: datetime
    error: GpulabError
    wait_seconds: float


@dataclass(frozen=True)
class Launched:
    """AWS took the launch; from here on it costs."""

    at: datetime
    instance: Instance
    offer: Offer


@dataclass(frozen=True)
class Guarded:
    """The account itself ends the instance at that moment, whatever happens to it or to this computer."""

    at: datetime
    until: datetime


@dataclass(frozen=True)
class Unguarded:
    """
    No scheduled end in the account; the timer on the instance is the only one.

    Attributes:
        is_asked_again: Whether the scheduler is asked again once the instance runs, as a role made moments ago cannot be used yet.
    """

    at: datetime
    why: str
    is_asked_again: bool = False


@dataclass(frozen=True)
class Running:
    """EC2 says `running`."""

    at: datetime
    instance: Instance


@dataclass(frozen=True)
class WaitingFor:
    """
    Something is not there yet.

    Attributes:
        what: `running`, `host key`, `ssh`, `jupyter`.
    """

    at: datetime
    what: str
    detail: str = ""


@dataclass(frozen=True)
class HostKeyPinned:
    """The instance's key, vouched for by AWS, is known from now on."""

    at: datetime
    fingerprint: str


@dataclass(frozen=True)
class LoggedIn:
    """The instance answers over ssh."""

    at: datetime


@dataclass(frozen=True)
class PhaseChanged:
    """A step of the instance's own start began, passed or failed; `message` is from outside."""

    at: datetime
    name: str
    state: str
    seconds: float
    message: str


@dataclass(frozen=True)
class Restored:
    """Work kept on this computer is back on the instance, compared by hash; work in a bucket comes back by itself."""

    at: datetime
    files: int
    size_bytes: int


@dataclass(frozen=True)
class NotebooksBrought:
    """The lab's notebooks are in the work folder; `text` is from outside."""

    at: datetime
    text: str


@dataclass(frozen=True)
class ImageChosen:
    """The instance boots from an image of ours, or from the publisher's although there are some of ours; `why` is a sentence."""

    at: datetime
    image: Image
    why: str


@dataclass(frozen=True)
class ImageChecked:
    """The builder or test instance passed its checks."""

    at: datetime
    instance: Instance
    passed: int
    checks: int


@dataclass(frozen=True)
class ImageMaking:
    """The builder is clean, and AWS is about to make an image of it."""

    at: datetime
    instance: Instance


@dataclass(frozen=True)
class ImageMade:
    """The image was tested and can be launched."""

    at: datetime
    image: BakedImage


@dataclass(frozen=True)
class ImageCopied:
    """The copy can be launched in its region."""

    at: datetime
    image: Image


@dataclass(frozen=True)
class Warned:
    """Something the user should know; the action goes on."""

    at: datetime
    text: str


@dataclass(frozen=True)
class Ready:
    """JupyterLab answers on the instance."""

    at: datetime
    instance: Instance
    status: AgentStatus
    is_new: bool


@dataclass(frozen=True)
class Saving:
    """The work is being kept; `where` is a bucket or a folder."""

    at: datetime
    where: str


@dataclass(frozen=True)
class Saved:
    """The work is kept and the copy was compared, file by file."""

    at: datetime
    where: str
    files: int
    size_bytes: int


@dataclass(frozen=True)
class Ending:
    """AWS was asked to end the instance."""

    at: datetime
    instance: Instance


@dataclass(frozen=True)
class Ended:
    """EC2 says `terminated`: it costs nothing more."""

    at: datetime
    instance: Instance


Event = (
    Resumed
    | AlreadyUp
    | Planned
    | Declined
    | Attempting
    | PlaceRefused
    | Repeating
    | Launched
    | Guarded
    | Unguarded
    | Running
    | WaitingFor
    | HostKeyPinned
    | LoggedIn
    | PhaseChanged
    | Restored
    | NotebooksBrought
    | ImageChosen
    | ImageChecked
    | ImageMaking
    | ImageMade
    | ImageCopied
    | Warned
    | Ready
    | Saving
    | Saved
    | Ending
    | Ended
)


@dataclass(frozen=True)
class StartPlan:
    """Question: carry this plan out?"""

    plan: LaunchPlan


@dataclass(frozen=True)
class BuyOnDemand:
    """
    Question: no spot place had one; buy on demand?

    Attributes:
        extra_usd_per_hour: More than the first spot attempt would have cost.
        causes: Why not, one for each place that was asked.
    """

    plan: LaunchPlan
    offer: Offer
    extra_usd_per_hour: Decimal
    causes: tuple[GpulabError, ...] = ()


Question = StartPlan | BuyOnDemand
