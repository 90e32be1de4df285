"""Check the small environment: imports, a product, a plot, the disk. A table for a student."""

import shutil
import sys


def main() -> int:
    """Print a line for each check; exit 1 if one failed."""
    results = [_line(check) for check in (_numpy, _matplotlib, _disk)]
    return 0 if all(results) else 1


def _line(check) -> bool:
    try:
        said, ok = check(), True
    except Exception as error:  # a check that fails is a line, not a traceback
        said, ok = f"{type(error).__name__}: {error}".splitlines()[0], False
    print(f"{'ok' if ok else 'FAILED':7}{check.__name__.strip('_'):12}{said}")  # noqa: T201
    return ok


def _numpy() -> str:
    import numpy as np

    if (np.ones((300, 300)) @ np.ones((300, 300)))[0, 0] != 300:
        raise RuntimeError("a matrix product is wrong")
    return f"{np.__version__}, a matrix product is right"


def _matplotlib() -> str:
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture = io.BytesIO()
    pyplot.plot([1, 2, 3])
    pyplot.savefig(picture)
    return f"{matplotlib.__version__}, a plot has {len(picture.getvalue())} bytes"


def _disk() -> str:
    return f"{shutil.disk_usage('/').free / 2**30:.0f} GiB free"


if __name__ == "__main__":
    sys.exit(main())
