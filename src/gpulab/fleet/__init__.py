"""
Decides what a lab needs against what is there, and every refusal for a whole class. Pure: values in, values out.

    seats       course + roster -> whom each instance serves, and from which account
    lab         when a lab's instances begin and end, and the wish they share
    plan        seats + one snapshot an account -> launch, keep, replace, extra, blocked
"""

from gpulab.fleet.plan import plan_fleet
from gpulab.fleet.seats import seats_of

__all__ = ["plan_fleet", "seats_of"]
