"""Checks the small environment in its kernel: a product and a plot."""


def _numpy():
    import numpy as np

    if (np.ones((300, 300)) @ np.ones((300, 300)))[0, 0] != 300:
        raise RuntimeError("a matrix product is wrong")
    return f"{np.__version__}, a matrix product is right"


def _matplotlib():
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture = io.BytesIO()
    pyplot.plot([1, 2, 3])
    pyplot.savefig(picture)
    return f"{matplotlib.__version__}, a plot has {len(picture.getvalue())} bytes"


CHECKS = (_numpy, _matplotlib)
