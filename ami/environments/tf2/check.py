"""Checks TensorFlow 2 in its kernel: the version and its CUDA, the GPU, one matrix product and one convolution on it."""


def _tensorflow():
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    cuda = build.get("cuda_version")
    libraries = f"for CUDA {cuda}, cuDNN {build.get('cudnn_version')}" if cuda else "without CUDA"
    return f"{tf.__version__}, built {libraries}"


def _gpu():
    import shutil

    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return f"TensorFlow sees {len(gpus)}: {details.get('device_name', 'unnamed')}"
    if shutil.which("nvidia-smi"):
        raise RuntimeError("TensorFlow does not see the GPU")
    raise Skipped("this machine has no GPU; everything runs on the CPU")  # noqa: F821


def _matrix_product():
    import tensorflow as tf

    size = 1000
    product = tf.linalg.matmul(tf.ones((size, size)), tf.ones((size, size)))
    if float(product[0, 0]) != size:
        raise RuntimeError(f"wrong: {float(product[0, 0])} instead of {size}")
    return f"{size} x {size} on the {_where(product)}, right"


def _convolution():
    import tensorflow as tf

    answer = tf.nn.conv2d(tf.ones((1, 64, 64, 3)), tf.ones((3, 3, 3, 8)), 1, "VALID")
    if float(answer[0, 0, 0, 0]) != 27:
        raise RuntimeError(f"wrong: {float(answer[0, 0, 0, 0])} instead of 27")
    return f"3 x 3 over 64 x 64 on the {_where(answer)}, right"


def _where(tensor):
    return tensor.device.rsplit("device:", 1)[-1].split(":")[0]


CHECKS = (_tensorflow, _gpu, _matrix_product, _convolution)
