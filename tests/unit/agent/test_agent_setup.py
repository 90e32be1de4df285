"""The phases from first second to GPU: in order, each with its seconds, and a failed one with its reason and advice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpulab.agent import agent
from gpulab.agent.agent import Problem, Setup, read_json
from gpulab.bootstrap.shipping import shipped_agent, whole_agent


@pytest.fixture
def setup(here, metadata, monkeypatch):
    """A setup whose installing steps are replaced by what a test says."""
    monkeypatch.setattr(agent, "arm", lambda *_: "deadline 2026-11-23T17:00:00Z")
    ready = Setup(here, metadata)
    ready._jupyter = lambda: "96 packages"  # type: ignore[method-assign]
    ready._environment = lambda: "117 packages"  # type: ignore[method-assign]
    return ready


def phases(here) -> dict[str, tuple[str, str]]:
    listed = read_json(here.path("run/gpulab/phases.json"))["phases"]
    return {phase["name"]: (phase["state"], phase["message"]) for phase in listed}


def test_every_phase_is_done_in_order(here, setup):
    """`up` shows these lines live; they are the student's only view of three minutes of waiting."""
    done = setup.all()

    assert done
    assert {
        "armed": ("done", "deadline 2026-11-23T17:00:00Z"),
        "host-keys": ("done", "no host keys here"),
        "ssh": ("done", "the machine's own"),
        "work": ("done", "the work is brought over ssh"),
        "jupyter": ("done", "96 packages"),
        "environment": ("done", "117 packages"),
        "gpu": ("done", "no GPU on this instance"),
    } == phases(here)


def test_a_failed_phase_keeps_its_reason_and_the_next_ones_go_on(here, setup):
    """Without TensorFlow the student still has JupyterLab and the work, and a sentence to send to the TA."""

    def fail() -> str:
        raise Problem("uv failed with exit code 2\nerror: no space left on device")

    setup._environment = fail

    done = setup.all()

    assert not done
    assert ("failed", "uv failed with exit code 2\nerror: no space left on device") == phases(here)[
        "environment"
    ]
    assert "done" == phases(here)["gpu"][0]


def test_a_labs_notebooks_come_after_jupyter_and_before_tensorflow(a_here, metadata, monkeypatch):
    """JupyterLab waits for nobody, and a student reads the exercise while TensorFlow is installed; data comes last."""
    monkeypatch.setattr(agent, "run", lambda here, argv, **_: f"did {argv[-1]}\n")
    monkeypatch.setattr(agent, "arm", lambda *_: "")
    here = a_here(notebooks={"repository": "https://x/y"}, keep={"bucket": "b"})
    setup = Setup(here, metadata)
    setup._jupyter = setup._environment = lambda: ""  # type: ignore[method-assign]

    setup.all()

    assert ["work", "jupyter", "notebooks", "environment", "gpu", "data"] == list(phases(here))[3:]
    assert [("done", "did restore"), ("done", "did lab"), ("done", "did data")] == [
        phases(here)[name] for name in ("work", "notebooks", "data")
    ]


def test_the_agent_in_the_bucket_brings_the_notebooks(a_here, tmp_path):
    """User data has no room for it; the program must really be inside what lies in the bucket."""
    whole, labs = tmp_path / "agent.py", tmp_path / "labs"
    whole.write_bytes(whole_agent())
    labs.mkdir()
    (labs / "a.ipynb").write_text("{}")
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", labs, *words], check=True)
    here = a_here(notebooks={"repository": labs.as_uri()})

    done = subprocess.run(
        [sys.executable, whole, "--root", here.root, "lab"], capture_output=True, text=True
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.endswith(": 1 new\n")
    assert "{}" == (here.work / "labs/a.ipynb").read_text()


@pytest.mark.parametrize(
    ("check", "row", "code"),
    [
        ("def _sum():\n    return 'two'\n", "ok      sum             two", 0),
        ("def _sum():\n    return 1 / 0\n", "FAILED  sum             ZeroDivisionError: ", 5),
    ],
)
def test_the_agent_in_the_bucket_checks_the_instance(a_here, tmp_path, check, row, code):
    """A student in JupyterLab's terminal has no gpulab; the table is the same as the laptop's."""
    whole = tmp_path / "agent.py"
    whole.write_bytes(whole_agent(check=check + "CHECKS = (_sum,)\n"))
    here = a_here()
    kernel = here.path("opt/gpulab/kernel")
    (kernel / "bin").mkdir(parents=True)
    (kernel / "bin/python").symlink_to(sys.executable)
    (kernel / ".gpulab-lock").touch()
    spec = here.path("opt/gpulab/server/share/jupyter/kernels/python3/kernel.json")
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(kernel / "bin/python")], "display_name": "Lab"}))

    done = subprocess.run(
        [sys.executable, whole, "--root", here.root, "check"], capture_output=True, text=True
    )

    rows = done.stdout.splitlines()
    assert code == done.returncode
    assert ["driver", "gpu memory", "disk", "sum"] == [r[8:24].strip() for r in rows]
    assert rows[3].startswith(row)


# Runs a program whose waits are over at once: it asks the bucket for a minute and a half, and another test counts them.
_AT_ONCE = """
import runpy, sys, time
time.sleep = lambda seconds: None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("has_bucket", "codes"), [(True, (1, "error: ")), (False, (2, "usage: "))])
def test_without_a_bucket_an_instance_has_no_check_of_its_own(a_here, tmp_path, has_bucket, codes):
    """Its program has no room in user data: the word is unknown then, where `{}` would read as if all were well."""
    program = tmp_path / "gpulab-agent"
    program.write_text(shipped_agent(has_bucket=has_bucket))
    keep = {
        "bucket": "b",
        "prefix": "p/",
        "region": "r",
        "endpoint": "nowhere://",
        "agent": "0" * 64,
    }
    here = a_here(keep=keep if has_bucket else None)

    done = subprocess.run(
        [sys.executable, "-c", _AT_ONCE, program, "--root", here.root, "check"],
        env=os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )

    code, begin = codes
    assert (code, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(begin)


def test_a_bug_of_ours_fails_one_phase_only(here, setup):
    """An exception nobody thought of must not leave the later phases waiting for ever."""
    setup._jupyter = lambda: {}["missing"]

    setup.all()

    assert ("failed", "'missing'") == phases(here)["jupyter"]
    assert "done" == phases(here)["environment"][0]


def test_a_command_that_fails_shows_its_last_lines(here):
    """`exit code 1` alone sends a student to the TA; the last lines often do not."""
    script = "for n in 1 2 3 4 5 6 7 8 9 10; do echo line $n >&2; done; exit 3"

    with pytest.raises(Problem) as failed:
        agent.run(here, ["/bin/sh", "-c", script])

    assert ["sh failed with exit code 3", *(f"line {n}" for n in range(3, 11))] == str(
        failed.value
    ).splitlines()


def test_a_reason_holds_no_line_of_somebody_else(here):
    """JupyterLab and the watcher write into the same log; their lines before the reason send people to the wrong place."""
    log = here.path("var/log/gpulab/agent.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    script = f"echo JupyterLab says hello >> {log}; echo no such host >&2; exit 1"

    with pytest.raises(Problem) as failed:
        agent.run(here, ["/bin/sh", "-c", script])

    assert "sh failed with exit code 1\nno such host" == str(failed.value)
    assert ["JupyterLab says hello", "no such host"] == log.read_text().splitlines()[1:]


def test_host_keys_are_printed_before_anything_slow(here, setup):
    """cloud-init prints them at the very end of the boot; the laptop waits for them to make the first connection safe."""
    key = here.path("etc/ssh/ssh_host_ed25519_key.pub")
    key.parent.mkdir(parents=True)
    key.write_text("ssh-ed25519 AAAAC3 root@ip-10-0-0-1\n")
    here.path("dev").mkdir(exist_ok=True)
    here.path("dev/console").touch()

    setup.all()
    shown = here.path("dev/console").read_text().split()

    assert (
        "-----BEGIN SSH HOST KEY KEYS----- ssh-ed25519 AAAAC3 root@ip-10-0-0-1 -----END SSH HOST KEY KEYS-----"
        == " ".join(shown)
    )


def test_the_token_file_has_no_newline_and_is_the_users_alone(here, monkeypatch):
    """jupyter-server compares the file as it is: a newline turns every request into 403."""
    monkeypatch.setattr(agent, "jupyter_answers", lambda _: True)

    agent.start_jupyter(here)
    token = here.path("run/gpulab/token")

    assert (64, 0o600) == (len(token.read_text().strip()), token.stat().st_mode & 0o777)
    assert token.read_text() == token.read_text().strip()


def test_a_second_start_keeps_the_token(here, monkeypatch):
    """An open tab holds the old one; a service restart must not log the student out."""
    monkeypatch.setattr(agent, "jupyter_answers", lambda _: True)
    agent.start_jupyter(here)
    before = here.path("run/gpulab/token").read_text()

    agent.start_jupyter(here)

    assert before == here.path("run/gpulab/token").read_text()


def test_an_installed_environment_is_not_installed_again(here):
    """A baked image and a second boot must not need the index."""
    marker = here.path("opt/gpulab/server/.gpulab-lock")
    marker.parent.mkdir(parents=True)
    marker.write_text("abc")
    marker.with_name("requirements.txt").write_text("a==1 --hash=x\nb==2 --hash=y\n")

    said = agent.install(here, "server", {"pins": "a==1 aaaa;b==2 bbbb", "sha256": "abc"})

    assert "2 packages were already there" == said


def test_a_lock_from_the_bucket_is_installed_without_asking_the_index_for_hashes(here, monkeypatch):
    """It has the full hashes already; asking for two hundred releases costs seconds of everybody's start."""
    full, ran = "a" * 64, []
    digest = hashlib.sha256(f"numpy==2.4.6 sha256:{full}".encode()).hexdigest()
    offered = {digest: f"numpy==2.4.6 \\\n    --hash=sha256:{full}\n"}

    def run(_, argv, **__):
        ran.append(next(word for word in argv if word in ("venv", "locks", "compile", "sync")))
        if "venv" in argv:
            Path(argv[-1]).mkdir(parents=True)
        return json.dumps(offered) if argv[-1] == "locks" else ""

    monkeypatch.setattr(agent, "run", run)

    said = agent.install(here, "kernel", {"python": ">=3.11", "sha256": digest})

    place = here.path("opt/gpulab/kernel")
    assert ("1 packages", ["venv", "locks", "sync"]) == (said, ran)
    assert f"numpy==2.4.6 --hash=sha256:{full}\n" == (place / "requirements.txt").read_text()
    assert digest == (place / ".gpulab-lock").read_text()


def test_cells_reach_their_own_environment(here):
    """`! pip install` and `! tensorboard` in a cell must not reach the server's Python."""
    agent.register_kernel(here, Path("/opt/gpulab/kernel"), "TensorFlow 2")

    kernel = read_json(here.path("opt/gpulab/server/share/jupyter/kernels/python3/kernel.json"))

    assert ("TensorFlow 2", "/opt/gpulab/kernel/bin/python") == (
        kernel["display_name"],
        kernel["argv"][0],
    )
    assert {
        "PATH": "/opt/gpulab/kernel/bin:${PATH}",
        "VIRTUAL_ENV": "/opt/gpulab/kernel",
    } == kernel["env"]


@pytest.mark.parametrize("user", ["root; reboot", "../etc", "-x", "", "Ubuntu"])
def test_a_user_that_could_be_a_path_is_refused_on_the_instance_too(a_here, user):
    """The specification lies in user data, which an account's other users may be able to change."""
    with pytest.raises(Problem, match="is not a user name"):
        _ = a_here(user=user).work


def test_a_machine_without_a_specification_says_so(tmp_path):
    """Somebody runs the agent on a laptop: one line, and nothing is powered off."""
    with pytest.raises(Problem, match=r"etc/gpulab/spec\.json is missing or not version 1"):
        agent.Here(str(tmp_path))


def test_notebooks_are_saved_twice_a_minute(here):
    """JupyterLab's own 120 s are the whole spot notice; and short cells show by the notebook that is saved."""
    agent._settings(here)

    settings = read_json(here.path("opt/gpulab/server/share/jupyter/lab/settings/overrides.json"))

    assert {"autosaveInterval": 30} == settings["@jupyterlab/docmanager-extension:plugin"]


def test_the_notice_reaches_an_open_jupyterlab(here, tmp_path):
    """The one place a student looks at is the notebook; a file beside the extension is shown within five seconds."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, and nothing else runs JavaScript here")
    agent._settings(here)
    agent.tell(here, "ends in 10 minutes")
    extension = agent._notice_folder(here)
    package = read_json(extension / "package.json")
    browser = tmp_path / "browser.js"
    browser.write_text(_BROWSER)

    shown = subprocess.run(
        [node, browser, extension / "static"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert {"load": "static/remoteEntry.js", "extension": "./extension"} == package["jupyterlab"][
        "_build"
    ]
    assert {
        "id": "gpulab-notice:plugin",
        "asked": "http://127.0.0.1:8888/lab/extensions/gpulab-notice/static/notice.json",
        "command": "apputils:notify",
        "message": "ends in 10 minutes",
        "times": 1,
    } == json.loads(shown.stdout)


# JupyterLab as far as a prebuilt extension sees it: the script's address, its container, an application with commands.
_BROWSER = r"""
const fs = require("fs"), folder = process.argv[2], said = [], asked = [], ticks = [];
global.window = {};
global.document = {currentScript: {src: "http://127.0.0.1:8888/lab/extensions/gpulab-notice/static/remoteEntry.js?v=1"}};
global.setInterval = tick => ticks.push(tick);
global.fetch = async url => {
  asked.push(url.split("?")[0]);
  return {ok: true, json: async () => JSON.parse(fs.readFileSync(folder + "/notice.json"))};
};
eval(fs.readFileSync(folder + "/remoteEntry.js", "utf8"));
(async () => {
  const container = window._JUPYTERLAB["gpulab-notice"];
  await container.init({});
  const plugin = (await container.get("./extension"))().default;
  plugin.activate({commands: {execute: (id, args) => said.push([id, args])}});
  await new Promise(resolve => setImmediate(resolve));
  await ticks[0]();
  console.log(JSON.stringify({id: plugin.id, asked: asked[0], command: said[0][0], message: said[0][1].message, times: said.length}));
})();
"""
