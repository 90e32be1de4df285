"""
The sandbox's own entry points, for programs and not for people: `serve` (the daemon) and `connect` (an ssh ProxyCommand).

People use `gpulab sandbox`; this door exists because an ssh client starts it for every connection and it must start fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run one entry point; returns its exit code."""
    if arguments[:1] == ["connect"] and len(arguments) == 3 and arguments[2].isdigit():
        from gpulab.sandbox.connect import connect

        return connect(arguments[1], int(arguments[2]), os.environ)
    if arguments[:1] == ["serve"]:
        from gpulab.sandbox.server import main as serve

        return serve(arguments[1:], os.environ)
    sys.stderr.write("usage: python -m gpulab.sandbox connect HOST PORT\n")
    return 2


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Not `sys.exit`: the thread that reads from a client that never ends would keep the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
