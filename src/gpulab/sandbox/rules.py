"""The switches of the realism layer: every rule on by default, each with its figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta


@dataclass(frozen=True)
class Delays:
    """How long things take in the simulated world."""

    boot: timedelta = timedelta(seconds=8)
    stop: timedelta = timedelta(seconds=20)
    terminate: timedelta = timedelta(seconds=30)
    status_checks: timedelta = timedelta(seconds=120)
    forget: timedelta = timedelta(hours=1)
    forget_request: timedelta = timedelta(hours=4)
    consistency: timedelta = timedelta(seconds=1.5)
    role: timedelta = timedelta(seconds=10)
    quota_release: timedelta = timedelta(seconds=60)
    relaunch: timedelta = timedelta(seconds=60)
    first_console: timedelta = timedelta(seconds=20)
    console_snapshot: timedelta = timedelta(seconds=60)
    image: timedelta = timedelta(minutes=4)


@dataclass(frozen=True)
class Rules:
    """
    Which behaviours of AWS the world adds to moto; a rule that is off leaves moto's own behaviour.

    Attributes:
        tokens: R1, a client token makes a launch once.
        spot_requests: R2 and R3, spot request objects and their life.
        spot_stop: R4, a one-time spot instance refuses to stop.
        relaunch: R5, a persistent request brings a new instance.
        prices: R6, spot price history.
        capacity: R7, places that are full or do not have a type.
        quotas: R8, limits on vCPUs.
        user_data: R9, at most 16,384 bytes.
        throttling: R10, token buckets.
        consistency: R11, what was created is not seen at once, and a new role not assumed.
        validation: R12 and R3b, values and combinations that EC2 refuses.
        forgetting: R13, terminated instances vanish, and later their spot requests.
        transitions: R14, states change with time.
        console: R15, console output with host keys.
        money: R17, billing, free tier, cost explorer, price list.
        images: R18, current images and their public parameters; R23, images of one's own.
        vpc: R19, gateways, groups in use, volume checks.
        credentials: R20, unknown, expired and denied credentials; R24, roles that trust the caller; R25, what policies
            allow to roles, and to users once somebody restricts them.
        network: R22, nothing leaves this machine.

    R16 (interruption) and R21 (faults) have no switch: they happen when asked for.
    """

    tokens: bool = True
    spot_requests: bool = True
    spot_stop: bool = True
    relaunch: bool = True
    prices: bool = True
    capacity: bool = True
    quotas: bool = True
    user_data: bool = True
    throttling: bool = True
    consistency: bool = True
    validation: bool = True
    forgetting: bool = True
    transitions: bool = True
    console: bool = True
    money: bool = True
    images: bool = True
    vpc: bool = True
    credentials: bool = True
    network: bool = True
    delays: Delays = field(default_factory=Delays)

    def without(self, *names: str) -> Rules:
        """
        The same rules with some switched off.

        Raises:
            TypeError: A name is not a rule.
        """
        return replace(self, **dict.fromkeys(names, False))  # type: ignore[arg-type]
