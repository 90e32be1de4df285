"""The door: `gpulab` and `python -m gpulab`. Answers `--version` before anything is imported."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from gpulab import __version__

        sys.stdout.write(f"gpulab {__version__}\n")
        return 0
    from gpulab.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
