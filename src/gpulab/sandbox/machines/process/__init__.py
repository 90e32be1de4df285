"""Machines of kind `process`: an ssh server, a private folder and the agent on this computer, without root; nothing here boots."""

from gpulab.sandbox.machines.process.kind import ProcessKind

__all__ = ["ProcessKind"]
