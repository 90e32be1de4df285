"""Check an instance for TensorFlow: driver, GPU, one matrix product and one convolution, memory, disk. A table for a student."""

import shutil
import subprocess
import sys
import time


def main() -> int:
    """Print a line for each check; exit 1 if one failed."""
    checks = (_driver, _tensorflow, _matrix_product, _convolution, _memory, _disk)
    results = [_line(check) for check in checks]
    return 0 if all(results) else 1


def _line(check) -> bool:
    started = time.monotonic()
    name = check.__name__.strip("_").replace("_", " ")
    try:
        said, ok = check(), True
    except Exception as error:  # a check that fails is a line, not a traceback
        said, ok = f"{type(error).__name__}: {error}".splitlines()[0], False
    print(f"{'ok' if ok else 'FAILED':7}{name:16}{said}  ({time.monotonic() - started:.1f} s)")  # noqa: T201
    return ok


def _nvidia_smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no GPU on this instance"
    return _nvidia_smi("name,driver_version")


def _tensorflow() -> str:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if shutil.which("nvidia-smi") and not gpus:
        raise RuntimeError(f"TensorFlow {tf.__version__} does not see the GPU")
    build = tf.sysconfig.get_build_info()
    return f"TensorFlow {tf.__version__}, {len(gpus)} GPU, CUDA {build.get('cuda_version', 'none')}"


def _matrix_product() -> str:
    import tensorflow as tf

    size = 1000
    product = tf.linalg.matmul(tf.ones((size, size)), tf.ones((size, size)))
    if float(product[0, 0]) != size:
        raise RuntimeError(f"wrong: {float(product[0, 0])} instead of {size}")
    return f"{size} x {size}, right"


def _convolution() -> str:
    import tensorflow as tf

    image = tf.ones((1, 64, 64, 3))
    answer = float(tf.nn.conv2d(image, tf.ones((3, 3, 3, 8)), 1, "VALID")[0, 0, 0, 0])
    if answer != 27:
        raise RuntimeError(f"wrong: {answer} instead of 27")
    return "3 x 3 on 64 x 64, right"


def _memory() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no GPU memory"
    used = _nvidia_smi("memory.used,memory.total")
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    kernels = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    held = "; ".join(f"process {line}" for line in kernels if line)
    return f"{used} ({held or 'no process holds any'})"


def _disk() -> str:
    free = shutil.disk_usage("/").free / 2**30
    if free < 2:
        raise RuntimeError(f"{free:.1f} GiB free")
    return f"{free:.0f} GiB free"


if __name__ == "__main__":
    sys.exit(main())
