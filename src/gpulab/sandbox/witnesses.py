"""Who looks at every permission that is asked for, in whichever world: for proofs over whole test runs. Sees, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from gpulab.sandbox.calls import Call
from gpulab.sandbox.iam_policies import Asked

Witness = Callable[[Call, list[Asked]], None]

#: Of every world of this process, while it is in the list.
EVERYWHERE: list[Witness] = []
