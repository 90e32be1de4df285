"""Check the TensorFlow 1 environment: versions, a session, contrib, gym. A table for a student; Python 3.7."""

import sys


def main() -> int:
    """Print a line for each check; exit 1 if one failed."""
    results = [_line(check) for check in (_session, _contrib, _gym)]
    return 0 if all(results) else 1


def _line(check) -> bool:
    try:
        said, ok = check(), True
    except Exception as error:  # a check that fails is a line, not a traceback
        said, ok = f"{type(error).__name__}: {error}".splitlines()[0], False
    print(f"{'ok' if ok else 'FAILED':7}{check.__name__.strip('_'):12}{said}")  # noqa: T201
    return ok


def _session() -> str:
    import tensorflow as tf

    x = tf.placeholder(tf.float32, [2, 2])
    with tf.Session() as session:
        product = session.run(tf.matmul(x, x), {x: [[1, 1], [1, 1]]})
    if product.tolist() != [[2, 2], [2, 2]]:
        raise RuntimeError("a matrix product is wrong")
    return f"TensorFlow {tf.__version__}, a session ran"


def _contrib() -> str:
    from tensorflow.contrib import layers

    return f"{len(dir(layers))} names in tensorflow.contrib.layers"


def _gym() -> str:
    import gym

    env = gym.make("CartPole-v0")
    return f"gym {gym.__version__}, CartPole has {env.spec.timestep_limit} steps"


if __name__ == "__main__":
    sys.exit(main())
