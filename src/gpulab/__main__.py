"""The door: `gpulab` and `python -m gpulab`. Answers `--version` before anything is imported."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from gpulab import __version__

        sys.stdout.write(f"gpulab {__version__}\n")
        return 0
    from gpulab.cli.main import run

    _leave_no_core()
    return run(sys.argv[1:])


def _leave_no_core() -> None:
    """Keep keys and tokens out of core files: neither this process nor what it starts writes one."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


if __name__ == "__main__":
    sys.exit(main())
