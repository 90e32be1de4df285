"""Things in an account that carry our tags: what they are, what they cost, what may be done with them. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from gpulab.model.market import Market


class Kind(StrEnum):
    """What AWS calls it, in the order in which leftovers are deleted: what uses something goes before what is used."""

    INSTANCE = "instance"
    SPOT_REQUEST = "spot request"
    SCHEDULE = "schedule"
    ADDRESS = "address"
    VOLUME = "volume"
    IMAGE = "image"
    SNAPSHOT = "snapshot"
    SECURITY_GROUP = "security group"
    KEY_PAIR = "key pair"
    KEPT_WORK = "kept work"


@dataclass(frozen=True)
class Tagged:
    """
    One resource that carries our tags.

    Attributes:
        id: AWS's id; of a key pair its name.
        name: From the tag; `""` where it has none.
        launch_id: From the tag; `""` where it has none.
        state: In AWS's words; `""` for kinds without one.
        uses: Id of what it belongs to or is used by: a volume's instance, a schedule's instance.
        created_at: Aware UTC; `None` where AWS does not say.
        expires_at: Of an instance, from its tag.
        usd_per_month: While it stays as it is, 730 hours; `None` when no price is known.
        priced_as: Of an instance, the market whose price that is: a spot instance whose own price is not known is priced on demand.
        bake_id: Of an image with a lab environment and its snapshots: the launch that made it; `""` for everything else.
        is_usable: Whether that image was tested.
    """

    kind: Kind
    id: str
    region: str
    name: str
    launch_id: str
    state: str = ""
    uses: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    usd_per_month: Decimal | None = Decimal(0)
    bake_id: str = ""
    is_usable: bool = False
    priced_as: Market | None = None


@dataclass(frozen=True)
class Leftover:
    """
    A resource and what may be done with it.

    Attributes:
        why: Why it counts as left over, or why it is not touched; a half-sentence.
    """

    resource: Tagged
    why: str
