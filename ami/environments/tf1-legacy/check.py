"""Checks TensorFlow 1 in its kernel: a session, contrib, Keras, gym. For Python 3.7."""


def _session():
    import tensorflow as tf

    x = tf.placeholder(tf.float32, [2, 2])
    with tf.Session() as session:
        product = session.run(tf.matmul(x, x), {x: [[1, 1], [1, 1]]})
    if product.tolist() != [[2, 2], [2, 2]]:
        raise RuntimeError("a matrix product is wrong")
    return f"TensorFlow {tf.__version__}, a session ran"


def _contrib():
    from tensorflow.contrib import layers

    return f"{len(dir(layers))} names in tensorflow.contrib.layers"


def _gym():
    import gym

    env = gym.make("CartPole-v0")
    return f"gym {gym.__version__}, CartPole has {env.spec.timestep_limit} steps"


CHECKS = (_session, _contrib, _gym)
