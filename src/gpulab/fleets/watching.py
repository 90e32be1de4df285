"""What runs of a lab, read in one paginated call for each account and region that has something pending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from gpulab.aws import instances
from gpulab.errors import GpulabError
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.pacing import LOOK
from gpulab.model.fleet import AccountRef
from gpulab.model.instance import TAG_COURSE, TAG_LAB, Instance

_AT_ONCE = 16
Where = tuple[str, str]
Said = Mapping[Where, Mapping[str, Instance] | GpulabError]


def poll(
    accounts: Accounts, where: Mapping[Where, AccountRef], *, course_id: str, lab_id: str
) -> Said:
    """
    Read a lab's instances, ended ones too while EC2 remembers them.

    Args:
        where: Account by (account key, region).

    Returns:
        By (account key, region): the instances by id, or why they could not be read.
    """
    filters = {f"tag:{TAG_COURSE}": [course_id], f"tag:{TAG_LAB}": [lab_id]}

    def ask(place: Where) -> Mapping[str, Instance] | GpulabError:
        account = accounts.account(where[place])
        account.pace.bucket(place[1], LOOK).take()
        try:
            found = instances.find(account.context.cloud, place[1], filters=filters)
        except GpulabError as error:
            return error
        return {i.id: i for i in found}

    places = list(where)
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(places)))) as pool:
        return dict(zip(places, pool.map(ask, places), strict=True))


def places_of(found: Iterable[tuple[AccountRef, Instance]]) -> dict[Where, AccountRef]:
    """Name the accounts and regions that some instances are in."""
    return {(ref.key, instance.place.region): ref for ref, instance in found}
