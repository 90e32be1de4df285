"""
Runs the whole job on a simulated AWS: set up, start an instance, work in JupyterLab, stop, see what it cost.

    python3 scripts/demo.py               # opens JupyterLab in the browser; Ctrl-C stops everything
    python3 scripts/demo.py --headless    # no browser: executes a notebook through the tunnel, and ends

Standard library only. Nothing reaches a real account: credentials of this computer are not even read. What is simulated: AWS, its
prices and its money. What is real: gpulab, the ssh server, the tunnel, JupyterLab and the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import notebook
from environment import CHECKOUT

FOLDER = CHECKOUT / ".demo"
NAME = "demo"
NOTEBOOK = "demo.ipynb"
_CELLS = [
    "import platform, sys\nprint('Python', platform.python_version(), 'behind the tunnel')",
    "total = sum(n * n for n in range(1_000))\ntotal",
]
_ANSWER = str(sum(n * n for n in range(1_000)))


class Failed(Exception):
    """A step did not do what it must; the text says which, in words."""


@dataclass(frozen=True)
class Demo:
    """
    The installed gpulab, with a folder and a profile of its own.

    Attributes:
        gpulab: The program.
        surroundings: Environment variables without any of this computer's AWS settings.
    """

    gpulab: Path
    surroundings: dict[str, str]

    def show(self, *words: str) -> None:
        """Run a command in front of the reader."""
        self._say(words)
        code = subprocess.call(self._command(words), env=self.surroundings, cwd=FOLDER)
        if code:
            raise Failed(f"`gpulab {' '.join(words)}` ended with {code}")

    def read(self, *words: str) -> str:
        """Run a command and give what it printed; its progress stays visible."""
        self._say(words)
        ended = subprocess.run(
            self._command(words),
            env=self.surroundings,
            cwd=FOLDER,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise Failed(f"`gpulab {' '.join(words)}` ended with {ended.returncode}")
        return ended.stdout.strip()

    def ask(self, *words: str) -> Any:
        """Run a command that answers in JSON."""
        return json.loads(self.read(*words))

    def _command(self, words: Sequence[str]) -> list[str | Path]:
        return [self.gpulab, *words]

    def _say(self, words: Sequence[str]) -> None:
        print(f"\n$ gpulab {' '.join(words)}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the job; 0 when every step did what it must, 1 otherwise, 130 after Ctrl-C in --headless."""
    parser = argparse.ArgumentParser(description="The whole job on a simulated AWS.")
    parser.add_argument(
        "--headless", action="store_true", help="no browser: execute a notebook, stop, and end"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder .demo for a look at it"
    )
    options = parser.parse_args(arguments)
    print(
        "It takes about 2 minutes the first time, 1 minute later, and 0.6 GB of disk, all inside this checkout (.demo, .cache).\n"
        "No account is needed and no money is spent: AWS is simulated, JupyterLab is real.",
        flush=True,
    )
    demo = _step("making the environment", _prepare)
    try:
        _job(demo, is_headless=options.headless)
    finally:
        subprocess.call([demo.gpulab, "sandbox", "stop"], env=demo.surroundings, cwd=FOLDER)
        if not options.keep:
            shutil.rmtree(FOLDER / "home", ignore_errors=True)
            shutil.rmtree(FOLDER / "work", ignore_errors=True)
    return 0


def _step(text: str, work: Callable[[], Any]) -> Any:
    started = time.monotonic()
    print(f"\n{text} ...", flush=True)
    result = work()
    print(f"{text}: done, {time.monotonic() - started:.1f} s", flush=True)
    return result


def _prepare() -> Demo:
    made = environment.prepare(FOLDER / "environment", "demo", editable=True)
    for name in ("home", "work"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    surroundings = environment.surroundings()
    for name in [n for n in surroundings if n.startswith(("AWS_", "GPULAB_", "BOTO_"))]:
        del surroundings[name]
    surroundings |= {
        "GPULAB_HOME": str(FOLDER / "home"),
        "GPULAB_PROFILE": "sandbox",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(made.python.parent), surroundings.get("PATH", "")]),
    }
    return Demo(made.program("gpulab"), surroundings)


def _job(demo: Demo, *, is_headless: bool) -> None:
    demo.show("sandbox", "start")
    demo.show("init", "--yes")
    start = ("up", NAME, "--env", "tf2-small", "--hours", "1", "--yes")
    if is_headless:
        url = demo.ask(*start, "--json")["url"]
        print(f"\nJupyterLab: {url}", flush=True)
        _work(notebook.Server.at(url, token=demo.read("ssh", NAME, "--", "gpulab-agent", "token")))
    else:
        demo.show(*start)
        _wait_for_the_reader()
    demo.show("ls")
    demo.show("stop", NAME)
    _check_kept(demo, is_headless=is_headless)
    demo.show("report")


def _work(server: notebook.Server) -> None:
    status = server.call("GET", "api/status")
    print(f"/api/status answered through the tunnel: up since {status['started']}", flush=True)
    started = time.monotonic()
    outputs = notebook.run(server, NOTEBOOK, _CELLS)
    print(f"\n{NOTEBOOK}, executed in {time.monotonic() - started:.1f} s:", flush=True)
    for output in outputs:
        print(f"  {output}", flush=True)
    if outputs[-1] != _ANSWER:
        raise Failed(f"the notebook computed {outputs[-1]} instead of {_ANSWER}")


def _wait_for_the_reader() -> None:
    print("\nWork in the browser. Press Ctrl-C here to stop and see what it cost.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def _check_kept(demo: Demo, *, is_headless: bool) -> None:
    """The instance is gone; its work must not be."""
    demo.show("pull", NAME, str(FOLDER / "work"))
    if is_headless:
        kept = json.loads((FOLDER / "work" / NOTEBOOK).read_text(encoding="utf-8"))
        if _ANSWER not in json.dumps(kept["cells"][-1]["outputs"]):
            raise Failed(f"the kept {NOTEBOOK} has lost its outputs")
        print(f"the kept {NOTEBOOK} has its outputs", flush=True)


if __name__ == "__main__":
    environment.require_python()
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failed, notebook.NotebookFailed, environment.CannotPrepare) as reason:
        sys.exit(f"error: {reason}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"error: `{Path(failure.cmd[0]).name}` ended with {failure.returncode}")
    except KeyboardInterrupt:
        sys.exit(130)
