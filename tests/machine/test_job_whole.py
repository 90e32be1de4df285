"""The whole job on machines that boot, through the real command line: up, work in JupyterLab, stop, and the same work in another zone."""

from __future__ import annotations

import json
from urllib.request import urlopen

import pytest

# One without a GPU: its TensorFlow takes 2 GB of this computer's disk instead of 7.
TYPE = "m5.xlarge"

CELLS = [
    "import tensorflow as tf\nprint('TensorFlow', tf.__version__.split('.')[0])",
    "tf.keras.utils.set_random_seed(7)\n"
    "x = tf.random.normal((256, 1))\n"
    "model = tf.keras.Sequential([tf.keras.layers.Dense(1)])\n"
    "model.compile(optimizer=tf.keras.optimizers.SGD(0.1), loss='mse')\n"
    "losses = model.fit(x, 3 * x + 1, epochs=5, verbose=0).history['loss']\n"
    "print('learnt:', losses[-1] < 0.1 * losses[0])",
    "weights = [round(float(w), 1) for w in tf.concat([tf.reshape(v, [-1]) for v in model.weights], 0)]\nweights",
]
OUTPUTS = ["TensorFlow 2", "learnt: True", "[3.0, 1.0]"]


def outputs_of(content) -> list[str]:
    """What a saved notebook shows below its cells."""
    return [
        "".join(out.get("text") or out["data"]["text/plain"] for out in cell["outputs"]).strip()
        for cell in content["cells"]
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tensorflow_notebook_comes_back_with_its_outputs_in_another_zone(
    student, notebook, set_up
):
    """The whole promise, with nothing between the student's commands and a booted machine but a simulated AWS."""
    one = student.up("job", "--type", TYPE, environment="tf2")
    page = urlopen(f"{one.url}?token={one.run('gpulab-agent token')}").read().decode()  # noqa: S310 - this computer
    phases = set_up(one)
    server = notebook.Server.at(one.url, token=one.run("gpulab-agent token"))
    outputs = notebook.run(server, "job.ipynb", CELLS)
    student.gpulab("stop", "job", "--yes")
    student.gpulab("sandbox", "capacity", TYPE, one.zone, "0")

    other = student.up("job", "--type", TYPE, environment="tf2")
    server = notebook.Server.at(other.url, token=other.run("gpulab-agent token"))
    content = server.call("GET", "api/contents/job.ipynb")["content"]
    student.gpulab("sandbox", "capacity", TYPE, one.zone, "any")
    student.gpulab("stop", "job", "--yes")

    assert "TensorFlow 2." in phases["gpu"]["message"]
    assert "<title>JupyterLab</title>" in page
    # TensorFlow greets on standard error first.
    assert OUTPUTS == [output.splitlines()[-1] for output in outputs]
    assert outputs == outputs_of(content)
    assert CELLS == [cell["source"] for cell in content["cells"]]
    assert one.zone != other.zone
    assert {"terminated"} == {student.seen(m)["State"]["Name"] for m in (one, other)}
    assert json.loads(student.kept_file("job", "job.ipynb"))["nbformat"] == 4
