"""The whole job on machines that boot, through the real command line: up, work in JupyterLab, stop, and the same work in another zone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote
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


def holding(folder: Path, secret: str) -> set[str]:
    """Name the files on the student's computer that hold a secret, plain or written in another way; the sandbox's own are AWS's."""
    plain = secret.encode()
    forms = {plain, base64.b64encode(plain), quote(secret, safe="").encode()}
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {
        p.relative_to(folder).as_posix()
        for p in files
        if p.relative_to(folder).parts[0] != "sandbox"
        and any(form in p.read_bytes() for form in forms)
    }


def key_of(folder: Path) -> str:
    """A line from the middle of the private key with which the student reaches every instance."""
    return (folder / "profiles/sandbox/keys/id_ed25519").read_text().splitlines()[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tensorflow_notebook_comes_back_with_its_outputs_in_another_zone(
    student, notebook, set_up
):
    """The whole promise, with nothing between the student's commands and a booted machine but a simulated AWS."""
    one = student.up("job", "--type", TYPE, environment="tf2")
    page = urlopen(f"{one.url}?token={one.run('gpulab-agent token')}").read().decode()  # noqa: S310 - this computer
    phases = set_up(one)
    token = one.run("gpulab-agent token")
    server = notebook.Server.at(one.url, token=token)
    outputs = notebook.run(server, "job.ipynb", CELLS)
    said = student.gpulab("ls", "--json") + student.gpulab("show", "job", "--json")
    written = holding(student.folder, token)
    (student.folder / "careless.log").write_text(f"?token={quote(token, safe='')}")
    careless = holding(student.folder, token) - written
    (student.folder / "careless.log").unlink()
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
    # A log that somebody sends to a teacher lets nobody in: only the page that leads the browser there has the token, for seconds.
    assert {"careless.log"} == careless
    assert {"profiles/sandbox/tunnels"} >= {name.rpartition("/open-")[0] for name in written}
    assert token not in said
    assert {"profiles/sandbox/keys/id_ed25519"} == holding(student.folder, key_of(student.folder))
