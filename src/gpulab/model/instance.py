"""Instances as gpulab sees them: what was asked, what runs, what it carries in its tags. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from gpulab.model.budget import TermBudget
from gpulab.model.course import Notebooks
from gpulab.model.market import Market, Offer, Place

TAG_NAME = "gpulab:name"
TAG_OWNER = "gpulab:owner"
TAG_COURSE = "gpulab:course"
TAG_LAB = "gpulab:lab"
TAG_LAUNCH = "gpulab:launch"
TAG_EXPIRES = "gpulab:expires"
# Whole minutes; only where `extend --idle` has changed the limit.
TAG_IDLE = "gpulab:idle"
TAG_ENVIRONMENT = "gpulab:env"
# GiB of the root disk: once it has ended, EC2 has forgotten the disk, and this is what remains of it.
TAG_DISK = "gpulab:disk"
# On images, their snapshots, and the instances that make and test them.
TAG_BAKE = "gpulab:bake"
TAG_LOCK = "gpulab:lock"
TAG_BASE = "gpulab:base"
TAG_BASE_NAME = "gpulab:base-name"
TAG_USABLE = "gpulab:usable"
# What the names of builders of images and of their test instances begin with.
BAKE_NAME = "bake-"


class State(StrEnum):
    """An instance's state in EC2's words."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"

    @property
    def is_alive(self) -> bool:
        """Whether it runs or is about to."""
        return self in (State.PENDING, State.RUNNING)

    @property
    def is_off(self) -> bool:
        """Whether it does not run but can be started again, with its disk as it was."""
        return self in (State.STOPPING, State.STOPPED)

    @property
    def is_over(self) -> bool:
        """Whether it is ending or has ended; there is no way back."""
        return self in (State.SHUTTING_DOWN, State.TERMINATED)


@dataclass(frozen=True)
class Instance:
    """
    One instance of ours.

    Attributes:
        name: The user's name for it, from the tag; `""` if untagged.
        state_reason: EC2's `StateReason.Code`; empty when it gave none.
        address: Public address; `""` until EC2 has given one.
        launched_at: EC2's `LaunchTime` (of the current run); aware UTC.
        expires_at: From the tag; `None` if absent or unreadable.
        launch_id: From the tag; which journal entry made it.
        ended_at: When AWS stopped charging for its last run; `None` while it runs, and where AWS does not say.
        disk_gib: Its root disk's size, from the tag; `None` if absent or unreadable.
        has_run_before: It was stopped and started again, so that its disk may hold work before it runs.
        token: Client token of the call that made it; `""` if EC2 does not say.
    """

    id: str
    name: str
    owner: str
    place: Place
    state: State
    state_reason: str
    address: str
    private_address: str
    launched_at: datetime
    expires_at: datetime | None
    launch_id: str
    environment: str = ""
    course: str = ""
    lab: str = ""
    image_id: str = ""
    volume_ids: tuple[str, ...] = ()
    ended_at: datetime | None = None
    disk_gib: int | None = None
    has_run_before: bool = False
    token: str = ""

    @property
    def market(self) -> Market:
        """Spot or on demand."""
        return self.place.market


@dataclass(frozen=True)
class LaunchRequest:
    """
    What the user asks for, before anything was looked up.

    Attributes:
        name: What to call it.
        gpu: `T4`, `A10G`, ...; `None` when a type is named or any GPU will do.
        instance_type: An exact type, or `None`.
        duration: How long it may live from now on.
        max_usd_per_hour: Cap on the instance price; `None` for AWS's default (the on-demand price).
        regions: In order of preference; never empty.
        markets: Which markets may be tried without asking again, in order; never empty.
        spot_only: Nothing is bought on demand, also where somebody could be asked; `markets` is spot alone.
        environment: Name of the lab environment, `tf2`.
        disk_gib: Root volume; raised to the image's snapshot where that is larger.
        idle_minutes: Ends the instance after so long without activity.
        notebooks: What is brought into the work folder; `None` for nothing.
        image_id: Boot from this image of ours, tested or not; `""` to choose.
        is_bake: It becomes an image or tests one: everything is on the root volume, no work is kept, and without `image_id` it boots
            from the publisher's.
        budget_usd: The instance ends itself when it has cost so much; `None` for no limit beside the term's.
    """

    name: str
    gpu: str | None
    instance_type: str | None
    duration: timedelta
    max_usd_per_hour: Decimal | None
    regions: tuple[str, ...]
    markets: tuple[Market, ...]
    environment: str
    disk_gib: int = 60
    idle_minutes: int = 60
    budget_usd: Decimal | None = None
    course: str = ""
    lab: str = ""
    notebooks: Notebooks | None = None
    image_id: str = ""
    is_bake: bool = False
    spot_only: bool = False


@dataclass(frozen=True)
class LaunchPlan:
    """
    What will be tried, in order, and what it costs at most.

    Attributes:
        attempts: Offers in the order of trying; never empty.
        on_demand: Offers to put to the user if every attempt is full; may be empty.
        ends_at: When the instance ends itself; aware UTC.
        disk_usd_per_hour: The root volume.
        address_usd_per_hour: The public IPv4 address.
        at_most_usd: Worst case: the dearest attempt for the whole duration, with disk and address; a spot price counts as
            its cap (the user's, or AWS's own: the on-demand price), since it may rise that far.
        expected_usd: The first attempt at today's price for the whole duration, with disk and address.
        credit_left_usd: What remains before this launch; `None` when no source knows.
        warnings: Sentences the user should read before confirming.
        later_regions: Looked at only if every attempt here is full.
        term_budget: The user's budget before this launch; `None` when there is none. `request.budget_usd` is at most what it has left.
    """

    request: LaunchRequest
    attempts: tuple[Offer, ...]
    on_demand: tuple[Offer, ...]
    ends_at: datetime
    disk_gib: int
    disk_usd_per_hour: Decimal
    address_usd_per_hour: Decimal
    at_most_usd: Decimal
    expected_usd: Decimal = Decimal(0)
    credit_left_usd: Decimal | None = None
    warnings: tuple[str, ...] = field(default=())
    later_regions: tuple[str, ...] = ()
    term_budget: TermBudget | None = None
