"""
The simulated AWS: state, rules and clock in one place, in front of moto. Serves the in-process `Sandbox` and the server alike.

Every call passes `World.handle`, in this order: latency, a lost request, credentials, throttling, faults, the layer's own answer
or moto's, a fault after the effect, a lost reply, the log.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from gpulab.sandbox import (
    catalogue,
    consistency,
    describing,
    interruptions,
    lifecycle,
    moto_bridge,
    operations,
    quotas,
    stacks,
)
from gpulab.sandbox.books import Bill, Books
from gpulab.sandbox.calls import (
    Answer,
    Call,
    CallLog,
    ConnectionLost,
    Forward,
    LoggedCall,
    Refusal,
    from_inside,
)
from gpulab.sandbox.capacity import Capacity, no_capacity
from gpulab.sandbox.clock import Clock, ManualClock
from gpulab.sandbox.credentials import DEFAULT_ACCOUNT, Credentials, Denial, Key
from gpulab.sandbox.faults import Fault, Faults
from gpulab.sandbox.images import Images
from gpulab.sandbox.instances import SimInstance
from gpulab.sandbox.launching import zone_in
from gpulab.sandbox.machines import MachineKind
from gpulab.sandbox.money import READY_CREDIT_USD, Credit, Money
from gpulab.sandbox.permissions import Permissions, Policies, Restriction
from gpulab.sandbox.prices import SpotPrices
from gpulab.sandbox.quotas import Quotas
from gpulab.sandbox.rules import Rules
from gpulab.sandbox.spot_requests import SpotRequest
from gpulab.sandbox.throttle import Throttle
from gpulab.sandbox.timekeeping import Timekeeper
from gpulab.sandbox.tokens import Tokens
from gpulab.sandbox.wire import error_code, write_refusal


class World:
    """
    One simulated AWS.

    Args:
        seed: Prices, ids and choices repeat with it.
        clock: Stands still until `advance` when not given.
        rules: Which behaviours are on; all of them when not given.
        machines: What stands behind instances; nothing boots when not given.
        ready: Accounts have usable quotas, the spot role and a paid plan; without it they are as on their first day, with
            GPU quotas of 0.
        endpoint_for_machines: URL at which machines reach this AWS.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        rules: Rules | None = None,
        machines: MachineKind | None = None,
        ready: bool = True,
        endpoint_for_machines: str = "",
    ) -> None:
        self.seed = seed
        self.clock = clock or ManualClock()
        self.rules = rules or Rules()
        self.machines = machines
        self.is_ready = ready
        self.endpoint_for_machines = endpoint_for_machines
        self.lock = threading.RLock()
        self._time = Timekeeper(self.clock, self.lock)
        self.calls = CallLog()
        self.faults = Faults()
        self.throttle = Throttle()
        self.tokens = Tokens()
        self.capacity = Capacity()
        self.quotas = Quotas(ready=ready)
        self.prices = SpotPrices(seed)
        self.images = Images()
        self.images_in_work: list[tuple[Any, datetime]] = []
        self.image_copies: dict[tuple[str, str, str], str] = {}
        self.consistency = consistency.Consistency(self.now)
        self.credentials = Credentials(self.new_id)
        self.permissions = Permissions()
        self.boot_failures = interruptions.BootFailures()
        self.books = Books(self)
        self.began_at = self.clock.now()
        self.money = Money(self._credit("1000000001", READY_CREDIT_USD) if ready else None)
        self.fleets: dict[str, dict[str, Any]] = {}
        self.instances_by_id: dict[str, SimInstance] = {}
        self.spot_requests: dict[str, SpotRequest] = {}
        self.forward: Forward = _nothing_behind
        self._random = random.Random(seed)  # noqa: S311 - ids repeat with the seed on purpose
        self._opened: set[tuple[str, str]] = set()

    # -- the life of a world ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take possession of moto in this process: its clock, its ids, its empty state."""
        moto_bridge.follow_clock(self.now)
        moto_bridge.seed_ids(self.seed)
        self.credentials.account(DEFAULT_ACCOUNT)

    def close(self) -> None:
        """End every machine and give moto back."""
        self._time.close()
        if self.machines is not None:
            self.machines.close()
        moto_bridge.follow_clock(None)

    def start_ticking(self) -> None:
        """Let a running clock fire what is due by itself, on a thread that ends with `close`."""
        self._time.start()

    def handle(self, call: Call, forward: Forward) -> Answer:
        """
        Answer one call.

        Args:
            forward: Carries a call to moto.

        Raises:
            ConnectionLost: A fault breaks the connection; the caller breaks it in its own way.
        """
        call = call.of_account(self._account_of(call))
        self.forward = forward
        self._delay(self.faults.latency_of(call))
        with self.lock:
            self._time.tick()
            entry = self.calls.begin(call, self.now())
            try:
                answer = self._answer(call, forward)
                entry.outcome = "ok" if answer.ok else error_code(answer)
            except Refusal as refusal:
                entry.outcome = refusal.code
                answer = write_refusal(call, refusal)
            except ConnectionLost as lost:
                entry.outcome = str(lost)
                raise
            finally:
                entry.outcome = entry.outcome or "the sandbox failed"
            self._time.tick()
        date = self.now().strftime("%a, %d %b %Y %H:%M:%S GMT")
        return Answer(answer.status, {**answer.headers, "Date": date}, answer.body)

    def act(
        self, account: str, region: str, service: str, operation: str, params: Mapping[str, Any]
    ) -> Answer:
        """Do something inside the world as AWS itself does for an account, such as a schedule's target; logged like any call."""
        call = from_inside(account, region, service, operation, params)
        return self.handle(call, self.forward)

    # -- time ------------------------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The simulated moment; aware UTC."""
        return self.clock.now()

    @property
    def speed(self) -> float:
        """Simulated seconds for each real one; 1 for a clock that is moved by hand."""
        return self._time.speed

    @property
    def due_at(self) -> datetime | None:
        """When the next thing happens by itself; `None` when nothing is planned."""
        return self._time.due_at

    def advance(self, seconds: float) -> None:
        """Move the clock; everything that falls due on the way happens at its own moment."""
        self._time.advance(seconds)

    def sleep(self, seconds: float) -> None:
        """`advance` under the name that a `sleep` argument wants."""
        self._time.advance(seconds)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen later."""
        self._time.at(self.now() + timedelta(seconds=seconds), action)

    def at(self, moment: datetime, action: Callable[[], None]) -> None:
        """Let something happen at a moment; one that has passed is now."""
        self._time.at(moment, action)

    # -- what tests and `gpulab sandbox` turn ----------------------------------------------------------------------------------

    def refuse(
        self,
        operation: str,
        code: str,
        *,
        zone: str | None = None,
        region: str | None = None,
        account: str | None = None,
        contains: str | None = None,
        skip: int = 0,
        times: int | None = None,
        message: str = "",
        status: int | None = None,
    ) -> Fault:
        """Refuse calls with an error code; nothing takes effect. See `Fault` for the conditions."""
        return self.faults.add(
            Fault(
                operation,
                "refuse",
                "before",
                code,
                message,
                status,
                zone,
                region,
                account,
                contains,
                skip,
                times,
            )
        )

    def fail_after_effect(
        self,
        operation: str,
        code: str = "InternalError",
        *,
        times: int | None = 1,
        status: int | None = None,
        **where: Any,
    ) -> Fault:
        """Carry the call out and answer with an error all the same."""
        return self.faults.add(
            Fault(operation, "refuse", "after", code, "", status, times=times, **where)
        )

    def lose_reply(self, operation: str, times: int | None = 1, **where: Any) -> Fault:
        """Carry the call out and break the connection instead of answering."""
        return self.faults.add(Fault(operation, "lose", "after", times=times, **where))

    def drop_request(self, operation: str, times: int | None = 1, **where: Any) -> Fault:
        """Break the connection before the call takes effect."""
        return self.faults.add(Fault(operation, "lose", "before", times=times, **where))

    def set_latency(self, operation: str, seconds: float) -> None:
        """Let calls take time: simulated time under a manual clock, real time under a running one."""
        self.faults.set_latency(operation, seconds)

    def set_capacity(self, instance_type: str, zone: str, slots: int | None) -> None:
        """Say how many more instances of a type fit into a zone; `None` for as many as wanted."""
        self.capacity.set_slots(instance_type, zone, slots)

    def set_quota(self, code: str, region: str, vcpus: int, *, account: str = "*") -> None:
        """Set a quota of all accounts, or of one."""
        self.quotas.set_limit(code, region, vcpus, account)

    def decide_quota(
        self, code: str, status: str = "APPROVED", *, account: str | None = None
    ) -> None:
        """Decide open requests for a larger quota: APPROVED, DENIED, CASE_OPENED or CASE_CLOSED."""
        quotas.decide(self, code, status, account=account)

    def set_price(self, instance_type: str, zone: str, usd: Decimal | str) -> None:
        """Set the spot price of a place, USD per hour, from now on."""
        self.prices.set_price(instance_type, zone, Decimal(usd), self.now())

    def set_plan(self, plan: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Set an account's plan, `FREE` or `PAID`; a free account launches no GPU."""
        self.money.plans[account] = plan

    def set_credit(
        self,
        *usd: Decimal | str,
        account: str = DEFAULT_ACCOUNT,
        ends_at: datetime | None = None,
        products: tuple[str, ...] = (),
    ) -> list[Credit]:
        """Give an account credits of these amounts in USD, instead of any it had; none at all without an amount."""
        given = [
            self._credit(str(1000000001 + n), Decimal(amount), ends_at, products)
            for n, amount in enumerate(usd)
        ]
        self.money.set_credits(account, given)
        return given

    def interrupt(
        self,
        instance_id: str,
        *,
        in_seconds: float = 120,
        action: str = "terminate",
        rebalance_first: bool = False,
    ) -> None:
        """Interrupt a spot instance: notice now, `terminate` or `stop` after so many seconds (R16)."""
        with self.lock:
            interruptions.interrupt(
                self,
                instance_id,
                in_seconds=in_seconds,
                action=action,
                rebalance_first=rebalance_first,
            )

    def fail_boot(
        self,
        code: str = "Server.InsufficientInstanceCapacity",
        *,
        zone: str | None = None,
        times: int = 1,
    ) -> None:
        """Let the next pending instances end in `terminated` with this state reason instead of running."""
        self.boot_failures.add(code, zone, times)

    def impair(self, instance_id: str, *, impaired: bool = True) -> None:
        """Let an instance fail its status checks."""
        self.instances_by_id[instance_id].is_impaired = impaired

    def expire_credentials(self, access_key: str | None = None, *, in_seconds: float = 0) -> None:
        """Let keys expire: one, or all of them."""
        at = self.now() + timedelta(seconds=in_seconds)
        self.credentials.expire(access_key, at)

    def deny(self, action: str, *, account: str | None = None, arn: str | None = None) -> Denial:
        """Take a permission away, `ec2:RunInstances` or `billing:*`, from everyone or from whose ARN matches."""
        denial = Denial(action, account, arn)
        self.credentials.denials.append(denial)
        return denial

    def allow(self, action: str) -> None:
        """Give a permission back that was denied under the same words."""
        self.credentials.denials = [d for d in self.credentials.denials if d.action != action]

    def restrict(
        self, arn: str, policies: Policies, *, tags: Mapping[str, str] | None = None
    ) -> None:
        """Let the users whose ARN matches do only what policies allow; `tags` are the user's own, for `aws:PrincipalTag`."""
        self.permissions.restrict(Restriction(arn, policies, tags or {}))

    def apply_template(self, text: str, *, account: str = "") -> tuple[str, ...]:
        """Let the owner of an account upload a template; return the ARNs of its roles, see `stacks.apply`."""
        with self.lock:
            return stacks.apply(self, text, account=account)

    def key_of(self, account: str = DEFAULT_ACCOUNT, *, user: str = "student") -> Key:
        """A long-lived key of an account."""
        return self.credentials.account(account, user=user)

    def session_of(
        self, account: str = DEFAULT_ACCOUNT, *, lasts_seconds: float = 3600, user: str = "student"
    ) -> Key:
        """A temporary key of an account."""
        expires_at = self.now() + timedelta(seconds=lasts_seconds)
        return self.credentials.session(account, user=user, expires_at=expires_at)

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Every instance of every account and Region as DescribeInstances shows it, oldest first; only these states, if any are named."""
        with self.lock:
            return [
                describing.describe(self, instance)
                for instance in self.instances_by_id.values()
                if not states or instance.state in states
            ]

    def bill(self, as_of: datetime | None = None) -> Bill:
        """What everything has cost, exactly, from this world's own history."""
        with self.lock:
            return self.books.bill(as_of or self.now())

    # -- what the rules ask ----------------------------------------------------------------------------------------------------

    def plan_of(self, account: str) -> str:
        """`FREE` or `PAID`."""
        return self.money.plans.get(account, "PAID")

    def on_demand_price(self, instance_type: str, region: str) -> Decimal:
        """The simulated on-demand price, USD per hour."""
        return catalogue.on_demand_price(instance_type, region)

    def new_id(self, prefix: str, length: int) -> str:
        """A new id, repeatable with the seed."""
        return prefix + "".join(self._random.choices("0123456789abcdef", k=length))

    def note_refused(
        self,
        account: str,
        region: str,
        service: str,
        operation: str,
        params: Mapping[str, Any],
        code: str,
    ) -> None:
        """Log what AWS itself tried to do for an account and could not."""
        call = from_inside(account, region, service, operation, params)
        self.calls.begin(call, self.now()).outcome = code

    def machine_exited(self, instance_id: str) -> None:
        """A machine is off; called by the machines, from any thread."""
        with self.lock:
            lifecycle.went_off(self, instance_id)

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def _answer(self, call: Call, forward: Forward) -> Answer:
        zone = self._zone_of(call)
        self._strike(call, "before", zone)
        if self.rules.credentials:
            self.credentials.admit(call, self.now())
        if self.rules.throttling and call.access_key:
            self.throttle.admit(call, self.now())
        if call.service == "ec2":
            if not moto_bridge.zones(call.region):
                # There is no such host, so no connection either.
                raise ConnectionLost(took_effect=False)
            self._open_region(call.account, call.region)
        if self.rules.credentials:
            self.permissions.admit(self, call)
        answer = operations.answer(self, call, forward)
        self._strike(call, "after", zone)
        return answer

    def _strike(self, call: Call, when: Any, zone: str) -> None:
        fault = self.faults.due(call, when, zone)
        if fault is None:
            return
        message = ""
        if fault.code == "InsufficientInstanceCapacity":
            type_ = str(call.params.get("InstanceType", ""))
            message = no_capacity(
                type_, zone, self.capacity.others(type_, zone, call.region)
            ).message
        raise fault.as_error(message)

    def _zone_of(self, call: Call) -> str:
        if call.service != "ec2" or not moto_bridge.zones(call.region):
            return ""
        ids = call.params.get("InstanceIds") or [call.params.get("InstanceId")]
        instance = self.instances_by_id.get(str(ids[0]))
        return (
            instance.zone
            if instance
            else zone_in(moto_bridge.ec2(call.account, call.region), call.params)
        )

    def _open_region(self, account: str, region: str) -> None:
        if (account, region) in self._opened:
            return
        self._opened.add((account, region))
        operations.furnish(self, account, region)
        self.books.observe(account, region)

    def _credit(
        self,
        id_: str,
        usd: Decimal,
        ends_at: datetime | None = None,
        products: tuple[str, ...] = (),
    ) -> Credit:
        began, year = self.began_at - timedelta(days=30), timedelta(days=365)
        return Credit(id_, usd, began, ends_at or began + year, products)

    def _account_of(self, call: Call) -> str:
        if call.account:
            return call.account
        return self.credentials.account_of(call.access_key) or DEFAULT_ACCOUNT

    def _delay(self, seconds: float) -> None:
        if seconds <= 0:
            return
        if isinstance(self.clock, ManualClock):
            self.advance(seconds)
        else:
            time.sleep(seconds)


def _nothing_behind(call: Call) -> Answer:
    raise Refusal(
        "NotSimulated", "The world has not been called yet, so it does not know its way to moto."
    )


__all__ = ["LoggedCall", "World"]
