"""A lab's environment on a booted machine, through the real command line: notebooks, TensorFlow, plots, TensorBoard, the check."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from gpulab.bootstrap.shipping import lab_program

# What a lab of today does: train, keep the model and its log, draw the curve.
CELLS = [
    "import tensorflow as tf, numpy as np, matplotlib.pyplot as plt\ntf.keras.utils.set_random_seed(7)",
    "x = np.linspace(-1, 1, 200, dtype='float32')[:, None]\n"
    "model = tf.keras.Sequential([tf.keras.layers.Dense(16, 'tanh'), tf.keras.layers.Dense(1)])\n"
    "model.compile('adam', 'mse')\n"
    "log = tf.keras.callbacks.TensorBoard('logs')\n"
    "history = model.fit(x, x**2, epochs=20, verbose=0, callbacks=[log]).history['loss']\n"
    "print('better:', history[-1] < history[0])",
    "model.save('model.keras')\n"
    "again = tf.keras.models.load_model('model.keras')\n"
    "print('same:', bool(np.allclose(model.predict(x, verbose=0), again.predict(x, verbose=0))))",
    "plt.plot(history); plt.xlabel('epoch'); plt.ylabel('loss');",
]


EXTENSIONS = {
    "jupyter-lsp-jupyterlab-lsp",
    "jupyter-server-resource-usage",
    "jupyterlab-code-formatter",
    "jupyterlab-execute-time",
    "jupyterlab-git",
    "jupyterlab-jupytext",
    "nbdime-jupyterlab",
}
# As the language server does it: by the server's Python, with what JupyterLab was started with, in the kernel's packages.
COMPLETED = """
server=$(systemctl show -P MainPID gpulab-jupyter@ubuntu.service)
export $(sudo cat /proc/$server/environ | tr '\\0' '\\n' | grep ^VIRTUAL_ENV=)
/opt/gpulab/server/bin/python -c "
import jedi
print(jedi.Script('import gymnasium; gymnasium.make_v').complete()[0].name)"
"""

# An instance without a GPU takes 2 GB of this computer's disk instead of 7; of the lock for a GPU it is asked
# whether the index has every file by its hash.
GPU_LOCK = Path(__file__).resolve().parents[2] / "ami/environments/tf2/gpu.lock"
ASK_FOR_GPU_LOCK = (
    "cat > /tmp/gpu.lock && sudo HOME=/root /opt/gpulab/uv/bin/uv pip install --dry-run --no-deps --require-hashes"
    " --only-binary :all: --python /opt/gpulab/kernel/bin/python --target /tmp/none -r /tmp/gpu.lock 2>&1"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lab_is_done_from_the_notebook_to_tensorboard(student, notebook, set_up):
    """The afternoon as the course plans it; JupyterLab is there first, and nobody waits for TensorFlow to open a notebook."""
    one = student.up("lab", "--type", "m5.xlarge", environment="tf2")
    at_first = {phase["name"]: phase["state"] for phase in one.status()["phases"]}
    set_up(one)
    checks = json.loads(student.gpulab("check", "lab", "--json"))["checks"]
    server = notebook.Server.at(one.url, token=one.run("gpulab-agent token"))

    extensions = server.call("GET", "lab/api/extensions")
    completed = one.run(COMPLETED)
    for_gpu = one.run(ASK_FOR_GPU_LOCK, given=GPU_LOCK.read_bytes())
    outputs = notebook.run(server, "lab.ipynb", CELLS)
    plots = server.call("GET", "api/contents/lab.ipynb")["content"]["cells"][-1]["outputs"]
    said = student.gpulab(
        "open",
        "lab",
        "--tensorboard",
        "--logdir",
        "work/logs",
        "--detach",
        "--no-browser",
        "--json",
    )
    board = json.loads(said)
    path = one.run("cat .cache/gpulab-tensorboard/path").lstrip("/")
    words = one.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    runs = json.loads(got(f"{board['tensorboard_url']}{path}/data/runs"))
    with pytest.raises(HTTPError, match="404"):
        got(f"{board['tensorboard_url']}data/runs")
    page = got(f"{board['url']}?token={server.token}").decode()
    student.gpulab("stop", "lab", "--yes", "--no-save")

    assert "done" == at_first["jupyter"]
    assert {
        "driver": "skipped",
        "gpu memory": "skipped",
        "disk": "ok",
        "tensorflow": "ok",
        "gpu": "skipped",
        "matrix product": "ok",
        "convolution": "ok",
    } == {check["name"]: check["state"] for check in checks}
    assert EXTENSIONS <= {e["name"] for e in extensions if e["enabled"] and e["status"] == "ok"}
    assert "make_vec" == completed
    assert GPU_LOCK.read_text().count("==") == for_gpu.count("==")
    assert "better: True" in outputs[1].splitlines()
    assert "same: True" in outputs[2].splitlines()
    assert any("image/png" in output.get("data", {}) for output in plots)
    assert ["train"] == runs
    assert "--logdir" in words
    assert path not in words
    assert "JupyterLab" in page


@pytest.mark.slow
def test_notebooks_come_to_a_machine_that_has_no_git(student):
    """An image without git, a corrected exercise, a student who has begun: as root over ssh, owned by the student."""
    one = student.up("books", "--no-open")
    nowhere = lab(one, {"repository": "file:///srv/books"})
    one.run(
        "sudo install -d -o ubuntu /srv/books && cd /srv/books && git init -q -b main . && mkdir one && echo first > one/a.py && "
        "echo help > helper.py && git add -A && git -c user.name=t -c user.email=t@t commit -qm x"
    )
    first = lab(one, {"repository": "file:///srv/books", "folder": "one"})
    one.run("echo mine > work/books/one/a.py")
    one.run(
        "cd /srv/books && echo second > one/a.py && echo better > helper.py && git -c user.name=t -c user.email=t@t commit -qam y"
    )
    second = lab(one, {"repository": "file:///srv/books", "folder": "one"})
    files = one.run("cd work/books && cat helper.py one/a.py one/a.new-*.py")
    owners = set(one.run("stat -c %U work/books work/books/one/a.py work/.gpulab").split())
    student.gpulab("stop", "books", "--yes", "--no-save")

    assert "does not appear to be a git repository" in nowhere
    assert ": 2 new" in first
    assert ": 0 new, 1 renewed, 1 you changed stay yours" in second
    assert ["better", "mine", "second"] == files.splitlines()
    assert {"ubuntu"} == owners


def got(url: str) -> bytes:
    """Fetch a page through the tunnel, as the browser does."""
    with urlopen(url, timeout=60) as answer:  # noqa: S310 - http, to this computer
        return bytes(answer.read())


def lab(machine, asked: dict[str, str]) -> str:
    """Bring notebooks as `gpulab up` does without a bucket; what was said on either stream."""
    words = shlex.join(["sudo", "-n", "python3", "-", "lab", json.dumps(asked)])
    done = machine.ssh(words, given=lab_program())
    return (done.stdout + done.stderr).decode()


# What the notebooks of 2017 are made of: placeholders, a session, contrib, gym of that year, the blank in `% matplotlib`.
CELLS_OF_2017 = [
    "% matplotlib inline\nimport gym, numpy as np, tensorflow as tf, matplotlib.pyplot as plt\nprint(tf.__version__)",
    "x = tf.placeholder(tf.float32, [None, 4])\n"
    "hidden = tf.contrib.layers.fully_connected(x, 8)\n"
    "actions = tf.nn.softmax(tf.contrib.layers.fully_connected(hidden, 2, activation_fn=None))\n"
    "session = tf.Session()\nsession.run(tf.global_variables_initializer())",
    "env = gym.make('CartPole-v0')\nobservation, steps = env.reset(), 0\n"
    "for steps in range(1, env.spec.timestep_limit + 1):\n"
    "    chances = session.run(actions, {x: [observation]})[0]\n"
    "    observation, reward, is_done, _ = env.step(int(np.argmax(chances)))\n"
    "    if is_done:\n        break\n"
    "print(gym.__version__, 0 < steps < 200, round(float(chances.sum()), 3))",
    "saved = tf.train.Saver().save(session, '/tmp/model.ckpt')\nprint(saved)",
    "plt.plot(observation);",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_notebook_of_2017_runs_unchanged(student, notebook, set_up):
    """The course's own notebooks are older than most of its students; TensorFlow 1 runs them beside today's JupyterLab."""
    python = a_python_3_7()
    one = student.up("old", "--type", "m5.xlarge", environment="tf1-legacy")
    without = one.status()["phases"]
    one.run("sudo mkdir -p /opt/python3.7 && sudo tar -xzC /opt/python3.7", given=python)
    one.run("sudo ln -sf /opt/python3.7/bin/python3.7 /usr/local/bin/python3.7")
    one.run("echo /opt/python3.7/lib | sudo tee /etc/ld.so.conf.d/python3.7.conf && sudo ldconfig")
    one.run("sudo rm /run/gpulab/phases.json")  # they failed without that Python
    one.run("sudo systemctl restart --no-block gpulab-environment")
    set_up(one)
    server = notebook.Server.at(one.url, token=one.run("gpulab-agent token"))

    outputs = notebook.run(server, "old.ipynb", CELLS_OF_2017)
    plots = server.call("GET", "api/contents/old.ipynb")["content"]["cells"][-1]["outputs"]
    checks = json.loads(student.gpulab("check", "old", "--json"))["checks"]
    student.gpulab("stop", "old", "--yes", "--no-save")

    assert "done" == next(p["state"] for p in without if p["name"] == "jupyter")
    assert "1.15.5" in outputs[0].splitlines()
    assert "0.9.4 True 1.0" in outputs[2].splitlines()
    assert "/tmp/model.ckpt" in outputs[3].splitlines()
    assert any("image/png" in output.get("data", {}) for output in plots)
    assert ["ok"] * 3 == [c["state"] for c in checks if c["name"] in ("session", "contrib", "gym")]


def a_python_3_7() -> bytes:
    """This computer's Python 3.7 as an archive; nobody offers one for download any more."""
    places = [*Path("/root/.pyenv/versions").glob("3.7.*"), *Path("/opt").glob("python3.7*")]
    found = next((place for place in places if (place / "bin/python3.7").exists()), None)
    if found is None:
        pytest.skip("needs Python 3.7 on this computer, which is not offered any more")
    left_out = [f"--exclude={name}" for name in ("__pycache__", "test", "*.a", "idlelib")]
    words = ["tar", "-cz", *left_out, "-C", str(found), "bin", "lib"]
    return subprocess.run(words, capture_output=True, check=True).stdout
