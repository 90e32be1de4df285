"""Checks TensorFlow 1 in its kernel: the GPU, a product, a convolution, contrib, gym. For Python 3.7."""

# What TensorFlow 1.15 opens before it registers a GPU, as it says itself where one is missing.
_CUDA_10 = ("cudart", "cublas", "cufft", "curand", "cusolver", "cusparse")
_LIBRARIES = (*(f"lib{name}.so.10.0" for name in _CUDA_10), "libcudnn.so.7")


def _gpu():
    import os
    import shutil

    if shutil.which("nvidia-smi") is None:
        raise Skipped("this machine has no GPU; everything runs on the CPU")  # noqa: F821
    compute = _compute_capability()
    if compute >= 8:
        # It would be found, and a session would hang while it is compiled for: the other checks run on the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        raise RuntimeError(
            f"CUDA 10.0 does not know this GPU (compute capability {compute}): a session hangs or fails; take a T4"
        )
    missing = [name for name in _LIBRARIES if not _opens(name)]
    if missing:
        raise RuntimeError(f"TensorFlow does not see the GPU: it misses {', '.join(missing)}")
    if not _sees_gpu():
        raise RuntimeError("TensorFlow does not see the GPU")
    return f"TensorFlow sees it (compute capability {compute})"


def _session():
    import tensorflow as tf

    x = tf.placeholder(tf.float32, [2, 2])
    with tf.device(_device()), tf.Session() as session:
        product = session.run(tf.matmul(x, x), {x: [[1, 1], [1, 1]]})
    if product.tolist() != [[2, 2], [2, 2]]:
        raise RuntimeError("a matrix product is wrong")
    return f"TensorFlow {tf.__version__}, a matrix product on the {_device()[1:4]}, right"


def _convolution():
    import tensorflow as tf

    with tf.device(_device()), tf.Session() as session:
        answer = session.run(
            tf.nn.conv2d(tf.ones((1, 64, 64, 3)), tf.ones((3, 3, 3, 8)), [1, 1, 1, 1], "VALID")
        )
    if float(answer[0, 0, 0, 0]) != 27:
        raise RuntimeError(f"wrong: {answer[0, 0, 0, 0]} instead of 27")
    return f"3 x 3 over 64 x 64 on the {_device()[1:4]}, right"


def _contrib():
    from tensorflow.contrib import layers

    return f"{len(dir(layers))} names in tensorflow.contrib.layers"


def _gym():
    import gym

    env = gym.make("CartPole-v0")
    return f"gym {gym.__version__}, CartPole has {env.spec.timestep_limit} steps"


def _compute_capability():
    import subprocess

    asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    return float(subprocess.check_output(asked, timeout=60).split()[0])


def _opens(library):
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _sees_gpu():
    import tensorflow as tf

    return bool(tf.config.experimental.list_physical_devices("GPU"))


def _device():
    return "/GPU:0" if _sees_gpu() else "/CPU:0"


CHECKS = (_gpu, _session, _convolution, _contrib, _gym)
