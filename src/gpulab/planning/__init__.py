"""
Decides what to launch, in which order, and every refusal. Pure: values in, values out.

    wishes      which instance types meet a request
    quotas      AWS's limits: codes, what they leave room for, the request to raise one
    plan        request + snapshot -> plan, or the one refusal that stands in the way
    failover    an error of AWS -> what to try next
    catalogue   instance types and prices as shipped
"""

from gpulab.planning.plan import plan_launch
from gpulab.planning.snapshot import Limits, Snapshot

__all__ = ["Limits", "Snapshot", "plan_launch"]
