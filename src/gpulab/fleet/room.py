"""How many launches fit into the quotas of one account: region after region, in the order the plan tries them."""

from __future__ import annotations

from collections.abc import Sequence

from gpulab.model.fleet import AccountRef, QuotaNeed
from gpulab.model.market import Offer, Quota
from gpulab.planning import quotas

_Key = tuple[str, str]


class Room:
    """
    The quotas that count the attempts of one plan.

    A seat takes the vCPUs of the first attempt its quota still has room for; that is what a launch does, too.
    """

    def __init__(
        self, account: AccountRef, attempts: Sequence[Offer], known: Sequence[Quota]
    ) -> None:
        self._account = account
        self._attempts = attempts
        self._quotas = {self._key(o): self._quota(o, known) for o in attempts}
        self._left = {key: quotas.free_vcpus(quota) for key, quota in self._quotas.items()}
        self._taken = dict.fromkeys(self._quotas, 0)

    def roomy(self) -> tuple[Offer, ...]:
        """Return the attempts whose quota has room for at least one."""
        return tuple(o for o in self._attempts if self._fits(o))

    def take(self) -> bool:
        """Take the room of one launch; false when no quota has it."""
        offer = next((o for o in self._attempts if self._fits(o)), None)
        if offer is None:
            return False
        key = self._key(offer)
        left = self._left[key]
        self._left[key] = None if left is None else left - offer.type.vcpus
        self._taken[key] += offer.type.vcpus
        return True

    def needs(self, launches: int) -> tuple[QuotaNeed, ...]:
        """Say what each quota is asked for, in order: the first for all launches, the next for what did not fit before."""
        found, rest = [], launches
        for key, quota in self._quotas.items():
            if not rest:
                break
            vcpus = next(o.type.vcpus for o in self._attempts if self._key(o) == key)
            found.append(self._need(quota, rest * vcpus))
            rest -= self._taken[key] // vcpus
        return tuple(found)

    def refusal(self, launches: int) -> tuple[str, str]:
        """Say why a seat does not fit, and the request that makes room for all."""
        quota = next(iter(self._quotas.values()))
        vcpus = self._attempts[0].type.vcpus
        reason = (
            f"the {quota.market} quota in {quota.region} is {quota.limit_vcpus:,} vCPUs ({quota.used_vcpus or 0:,} in use),"
            f" and the lab needs {launches * vcpus:,}"
        )
        return reason, quotas.raise_hint(quota, needed_vcpus=launches * vcpus)

    def _need(self, quota: Quota, needed: int) -> QuotaNeed:
        free = quotas.free_vcpus(quota)
        fits = free is None or needed <= free
        return QuotaNeed(
            account=self._account,
            region=quota.region,
            family=quota.family,
            market=quota.market.value,
            code=quota.code,
            needed_vcpus=needed,
            free_vcpus=free,
            limit_vcpus=quota.limit_vcpus,
            hint="" if fits else quotas.raise_hint(quota, needed_vcpus=needed),
        )

    def _fits(self, offer: Offer) -> bool:
        left = self._left[self._key(offer)]
        return left is None or left >= offer.type.vcpus

    @staticmethod
    def _key(offer: Offer) -> _Key:
        code = quotas.CODES[(offer.type.quota_family, offer.place.market)].code
        return (offer.place.region, code)

    @staticmethod
    def _quota(offer: Offer, known: Sequence[Quota]) -> Quota:
        return quotas.quota_for(offer, known) or quotas.unread(
            offer.type.quota_family, offer.place.market, offer.place.region
        )
