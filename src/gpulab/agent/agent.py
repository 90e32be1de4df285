#!/usr/bin/env python3
"""
gpulab-agent: what lives on an instance. Hides how an instance sets itself up, keeps the work and ends itself.

One file, standard library only, Python 3.10 or newer, because it travels in user data. It refuses to run past its
deadline, its budget or its idle limit, and it decides all three without the network. Its words are at the end of this
file; the files it reads and writes are in docs/formats.md. `--root DIR` puts every path under DIR: no root, no systemd.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import hmac
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

UTC = timezone.utc  # noqa: UP017 - datetime.UTC came with Python 3.11; images of 2022 have 3.10
VERSION = 1
PHASES = ("armed", "host-keys", "ssh", "work", "jupyter", "environment", "gpu")
# The armed timer is the backstop; the watcher ends the instance at the deadline itself, after a last save.
BACKSTOP_GRACE_S = 60
TICK_S = 5.0
# With a look every five seconds and the upload itself, a hard cut costs less than a minute of edits.
SAVE_S = 45
# Also when nothing changes, a save says that the instance lives: after a hard cut its end is known to so many seconds.
BEAT_S = 300
FULL_BYTES = 2**24
WHOLE_BYTES = 2**26


class Problem(Exception):
    """Something failed; the text says what, and what to do."""


# --- places and files ---------------------------------------------------------------------------------------------


class Here:
    """
    Where everything is on this machine.

    Attributes:
        root: Prefix of every path; empty on a real instance.
        spec: The specification the instance was born with.
    """

    def __init__(self, root: str = "") -> None:
        self.root = str(Path(root).resolve()) if root else ""
        self.spec: dict[str, Any] = read_json(self.path("etc/gpulab/spec.json"))
        if self.spec.get("version") != VERSION:
            raise Problem(
                f"{self.path('etc/gpulab/spec.json')} is missing or not version {VERSION}"
            )

    def path(self, name: str) -> Path:
        """Give the place of a file named from the root, such as `run/gpulab/token`."""
        return Path(f"{self.root}/{name}")

    @property
    def user(self) -> str:
        """The login user, checked: it becomes part of unit names and paths."""
        user = str(self.spec["user"])
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
            raise Problem(f"{user!r} is not a user name")
        return user

    @property
    def work(self) -> Path:
        """The work directory."""
        return self.path(f"home/{self.user}/work")

    @property
    def port(self) -> int:
        """The port JupyterLab really listens on."""
        wanted = str(self.spec["jupyter_port"])
        return int(read_json(self.path("run/gpulab/ports.json")).get(wanted, wanted))

    def give(self, path: Path) -> None:
        """Hand a file to the login user; nothing to do without root."""
        if not self.root and os.geteuid() == 0:
            shutil.chown(path, self.user, self.user)

    def log(self, line: str) -> None:
        """Append a line to the agent's log; a full disk never stops the agent."""
        text = f"{iso(time.time())} {line}\n".encode()
        with contextlib.suppress(OSError), self.open_log() as out:
            if out.write(text) == len(text):  # the last bytes of a full disk take a part of a line
                return
        print(line, file=sys.stderr)

    def open_log(self) -> Any:
        """Open the log for appending, for output of commands as well."""
        path = self.path("var/log/gpulab/agent.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)


def iso(seconds: float | None) -> str | None:
    """Write seconds since 1970 as `2026-11-23T04:05:06Z`."""
    if seconds is None:
        return None
    # Not by strftime, whose %Y has no leading zeros: what it wrote could not be read again.
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()[:19] + "Z"


def seconds_of(moment: str) -> float:
    """
    Read an ISO 8601 moment with its zone as seconds since 1970.

    Raises:
        ValueError: It is not a moment, or has no zone.
    """
    at = datetime.fromisoformat(re.sub(r"Z$", "+00:00", moment))
    if at.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return at.timestamp()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent or broken file is an empty one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Replace a JSON file as a whole, so that a reader never sees half of it."""
    write_file(path, json.dumps(value).encode(), mode=mode)


def write_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file as a whole, with its mode from the first moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    out = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(out, "wb") as file:
            file.write(content)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


# --- HTTP ---------------------------------------------------------------------------------------------------------


def fetch(
    address: tuple[str, int],
    path: str,
    *,
    method: str = "GET",
    timeout_s: float = 1.0,
    **headers: str,
) -> tuple[int, Any, bytes]:
    """
    Make one plain HTTP request.

    Args:
        headers: With underscores where the name has dashes.

    Returns:
        Status, headers, body (at most 4 MiB).

    Raises:
        OSError: No answer, or not an HTTP answer.
    """
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read(2**22)
    except http.client.HTTPException as error:
        raise OSError(f"not an HTTP answer: {error}") from error
    finally:
        connection.close()


class Metadata:
    """
    The instance metadata service, IMDSv2.

    Source:
        https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    """

    def __init__(self, base: str = "") -> None:
        host, _, port = base.removeprefix("http://").strip("/").partition(":")
        self.address = (host or "169.254.169.254", int(port or 80))
        self.token = ""
        self.answers = True
        self.skew_s = 0.0

    def get(self, path: str) -> bytes | None:
        """Read `latest/PATH`; `None` when it is not there or nobody answers."""
        try:
            status, body = self._get(path)
            if status == 401:
                self.token = ""
                status, body = self._get(path)
        except (OSError, ValueError):
            self.answers = False
            return None
        self.answers = True
        return body if status == 200 else None

    def _get(self, path: str) -> tuple[int, bytes]:
        if not self.token:
            status, headers, token = fetch(
                self.address,
                "/latest/api/token",
                method="PUT",
                X_aws_ec2_metadata_token_ttl_seconds="21600",  # noqa: S106 - six hours
            )
            if status != 200:
                return status, b""
            self.token = token.decode("ascii", "replace").strip()
            self._compare_clocks(headers)
        status, headers, body = fetch(
            self.address, f"/latest/{path}", X_aws_ec2_metadata_token=self.token
        )
        self._compare_clocks(headers)
        return status, body

    def _compare_clocks(self, headers: Any) -> None:
        # The answer's Date has whole seconds; smaller differences are not a wrong clock.
        try:
            moment = (headers["date"] or "").replace("GMT", "+0000")
            theirs = datetime.strptime(moment, "%a, %d %b %Y %H:%M:%S %z").timestamp()
        except ValueError:
            return
        skew = theirs - time.time()
        self.skew_s = skew if abs(skew) > 30 else 0.0

    def now(self) -> float:
        """Seconds since 1970 by a clock that is not more than 30 s off, as far as the metadata service knows."""
        return time.time() + self.skew_s


# --- commands -----------------------------------------------------------------------------------------------------


def run(
    here: Here, argv: list[str], *, timeout_s: float = 1800, env: dict[str, str] | None = None
) -> str:
    """
    Run a command, its errors into the log.

    Returns:
        What it wrote to standard output.

    Raises:
        Problem: It failed or took too long; the text ends with its last lines.
    """
    # A file of its own first: others write into the log meanwhile, and their lines are not the reason.
    with here.open_log() as log, tempfile.TemporaryFile() as errors:
        log.write(f"{iso(time.time())} $ {' '.join(argv)[:500]}\n".encode())
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=timeout_s,
                env=env,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Problem(f"{Path(argv[0]).name} did not finish within {timeout_s:.0f} s") from None
        finally:
            errors.seek(0)
            said = errors.read()
            log.write(said)
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
    tail = "\n".join(said.decode(errors="replace").strip().splitlines()[-8:])
    raise Problem(f"{Path(argv[0]).name} failed with exit code {done.returncode}\n{tail}")


def has_systemd(here: Here) -> bool:
    """Whether units can be started here."""
    return not here.root and Path("/run/systemd/system").is_dir()


# --- the end ------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """
    When this instance ends.

    Attributes:
        deadline: Seconds since 1970.
        idle_minutes: 0 for never.
        born: When the instance first armed itself; what the budget counts from.
        usd_per_hour, budget_usd: Of the specification; no budget is `None`.
    """

    deadline: float
    idle_minutes: int
    born: float
    usd_per_hour: float
    budget_usd: float | None

    @property
    def budget_end(self) -> float | None:
        """When the budget is spent, seconds since 1970; `None` without a budget or a price."""
        if self.budget_usd is None or self.usd_per_hour <= 0:
            return None
        return self.born + self.budget_usd / self.usd_per_hour * 3600

    @property
    def end(self) -> tuple[str, float]:
        """The earlier of deadline and budget, and which of them it is."""
        spent_at = self.budget_end
        if spent_at is not None and spent_at < self.deadline:
            return "budget", spent_at
        return "deadline", self.deadline


def read_limits(here: Here) -> Limits:
    """Read the limits: the specification, and what `extend` and `idle` changed since."""
    changed = read_json(here.path("var/lib/gpulab/limits.json"))
    spec = {**here.spec, **changed}
    budget = spec.get("budget_usd")
    return Limits(
        deadline=seconds_of(spec["deadline"]),
        idle_minutes=int(spec["idle_minutes"]),
        born=float(spec.get("born") or time.time()),
        usd_per_hour=float(spec["usd_per_hour"]),
        budget_usd=None if budget is None else float(budget),
    )


def change_limits(here: Here, **changes: Any) -> None:
    """Write changed limits down, so that they survive a reboot."""
    path = here.path("var/lib/gpulab/limits.json")
    write_json(path, {**read_json(path), **changes})


def arm(here: Here, metadata: Metadata) -> str:
    """
    Arm the power-off that comes even if the agent is dead.

    The new timer runs before the old one goes, so there is always one. It counts monotonic seconds: a clock that is set
    back does not lengthen a life.

    Returns:
        What was armed, in words.
    """
    if not read_json(here.path("var/lib/gpulab/limits.json")).get("born"):
        instance = metadata.get("meta-data/instance-id") or b""  # compares the clocks as well
        change_limits(here, born=metadata.now(), instance=instance.decode("ascii", "replace"))
    reason, end = read_limits(here).end
    left = max(0.0, end - metadata.now())
    after = max(1, round(left) + BACKSTOP_GRACE_S)
    armed = here.path("run/gpulab/armed.json")
    armed.parent.mkdir(parents=True, exist_ok=True)
    # One at a time: two that arm at once would each take the other's timer away.
    with armed.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if has_systemd(here):
            _arm_systemd(after)
        else:
            _arm_watchdog(here, after)
        write_json(armed, {"end": end, "monotonic": time.monotonic() + left})
    return f"{reason} {iso(end)}"


def _arm_systemd(after_s: int) -> None:
    name = f"gpulab-end-{int(time.monotonic() * 1000)}"
    subprocess.run(
        [
            "systemd-run",
            "--quiet",
            "--timer-property=AccuracySec=1s",
            f"--unit={name}",
            f"--on-active={after_s}",
            "systemctl",
            "poweroff",
        ],
        check=True,
    )
    listed = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--type=timer", "gpulab-end-*"],
        stdout=subprocess.PIPE,
        check=False,
    )
    timers = [line.split()[0] for line in listed.stdout.decode().splitlines() if line.strip()]
    for timer in timers:
        if timer != f"{name}.timer":
            subprocess.run(["systemctl", "stop", timer], check=False)


def _arm_watchdog(here: Here, after_s: int) -> None:
    pid_file = here.path("run/gpulab/end.pid")
    script = 'sleep "$1"; exec "$2"'
    watchdog = subprocess.Popen(
        ["/bin/sh", "-c", script, "gpulab-end", str(after_s), str(_poweroff(here))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "GPULAB_ROOT": here.root},
    )
    old = _pid(pid_file)
    write_file(pid_file, str(watchdog.pid).encode())
    if old:
        _end_group(old)


def _poweroff(here: Here) -> Path:
    return here.path("usr/local/sbin/poweroff")


def power_off(here: Here, reason: str, *, is_late: bool = False) -> None:
    """
    Power this machine off; asked again by the watcher until it is off.

    The reason goes to the console as well: AWS still shows it when the disk is gone.
    """
    here.log(f"power off: {reason}")
    with contextlib.suppress(OSError):
        here.path("dev/console").write_text(f"gpulab: power off: {reason}\r\n")
    argv = ["systemctl", "poweroff"] if has_systemd(here) else [str(_poweroff(here))]
    if is_late and has_systemd(here):
        argv += ["--force", "--force"]
    try:
        subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        here.log(f"power off failed: {error}")


def _pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _end_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGTERM)


# --- setting up ---------------------------------------------------------------------------------------------------


class Setup:
    """The phases from first second to GPU, each with its seconds in `run/gpulab/phases.json`."""

    def __init__(self, here: Here, metadata: Metadata) -> None:
        self.here = here
        self.metadata = metadata
        names = list(PHASES)
        if here.spec.get("notebooks") and here.spec["keep"]:
            names[5:5] = ["notebooks"]  # JupyterLab never waits for them, nor they for TensorFlow
            names.append("data")
        self.phases = [
            {"name": name, "state": "waiting", "seconds": 0.0, "message": ""} for name in names
        ]

    def all(self) -> bool:
        """Go through every phase; one that fails does not stop the later ones. Returns whether all are done."""
        steps: dict[str, Callable[[], str]] = {
            "armed": lambda: arm(self.here, self.metadata),
            "host-keys": self._host_keys,
            "ssh": self._ssh,
            "work": self._work,
            "jupyter": self._jupyter,
            "notebooks": lambda: self._kept("lab"),
            "environment": self._environment,
            "gpu": self._gpu,
            "data": lambda: self._kept("data"),
        }
        for phase in self.phases:
            self._go(phase, steps[str(phase["name"])])
        return all(phase["state"] == "done" for phase in self.phases)

    def _go(self, phase: dict[str, Any], step: Callable[[], str]) -> None:
        started = time.monotonic()
        phase["state"] = "running"
        self._write()
        try:
            phase["message"] = step()
            phase["state"] = "done"
        except Exception as error:  # whatever it was, the later phases must still be tried
            phase["message"] = f"{error}" or type(error).__name__
            phase["state"] = "failed"
        phase["seconds"] = round(time.monotonic() - started, 1)
        self.here.log(f"phase {phase['name']}: {phase['state']} {phase['message']}")
        self._write()

    def _write(self) -> None:
        write_json(self.here.path("run/gpulab/phases.json"), {"phases": self.phases})

    def _host_keys(self) -> str:
        keys = [
            p.read_text().strip()
            for p in sorted(self.here.path("etc/ssh").glob("ssh_host_*_key.pub"))
        ]
        if not keys:
            return "no host keys here"
        # In cloud-init's own form: its keys_to_console module prints the same, but at the very end of the boot.
        lines = ["-----BEGIN SSH HOST KEY KEYS-----", *keys, "-----END SSH HOST KEY KEYS-----"]
        with self.here.path("dev/console").open("w") as console:
            console.write("".join(f"{line}\r\n" for line in ["", *lines]))
        return f"{len(keys)} on the console"

    def _ssh(self) -> str:
        if not has_systemd(self.here):
            return "the machine's own"
        Path("/run/sshd").mkdir(exist_ok=True)  # a socket-activated sshd makes it later
        run(self.here, ["/usr/sbin/sshd", "-t"])
        subprocess.run(["systemctl", "reload", "--no-block", "ssh"], check=False)
        return "keys only, no root"

    def _work(self) -> str:
        work = self.here.work
        work.mkdir(parents=True, exist_ok=True)
        self.here.give(work)
        if self.here.path("var/lib/gpulab/kept.json").exists():
            return "the work is here"
        return self._kept("restore")

    def _kept(self, word: str) -> str:
        """Let the whole agent do a word; without a bucket there is none, and the laptop does it."""
        if self.here.spec["keep"] is None:
            return "the work is brought over ssh"
        return ask_whole(self.here, word).strip()

    def _jupyter(self) -> str:
        environment = self.here.spec["environment"]
        installed = install(self.here, "server", environment["server"])
        _settings(self.here)
        if not (venv(self.here, "kernel") / ".gpulab-lock").exists():
            waiting = " (environment is being installed)" if environment["kernel"] else ""
            register_kernel(self.here, venv(self.here, "server"), f"Python 3{waiting}")
        start_jupyter(self.here)
        return installed

    def _environment(self) -> str:
        environment = self.here.spec["environment"]
        if environment["kernel"] is None:
            return "no kernel of its own"
        installed = install(self.here, "kernel", environment["kernel"])
        register_kernel(
            self.here, venv(self.here, "kernel"), environment.get("title") or environment["name"]
        )
        return installed

    def _gpu(self) -> str:
        gpus = read_gpus(self.here)
        names = ", ".join(f"{gpu['name']} {gpu['memory_total_mib']} MiB" for gpu in gpus)
        said = warm(self.here, names)
        return said if names else f"no GPU on this instance; {said}".removesuffix("; ")


def warm(here: Here, gpus: str) -> str:
    """Import TensorFlow once, so that the student's first import finds its files in memory; say what it sees."""
    if not any(line.startswith("tensorflow") for line in _locked(venv(here, "kernel"))):
        return gpus
    code = (
        "import tensorflow as t; c = t.config; c = getattr(c, 'list_physical_devices', 0) or c.experimental."
        "list_physical_devices; print(t.__version__, len(c('GPU')))"
    )
    python = str(venv(here, "kernel") / "bin/python")
    version, count = run(here, [python, "-c", code], timeout_s=900).split()[-2:]
    if gpus and count == "0":
        raise Problem(
            f"TensorFlow {version} does not see the GPU ({gpus})\nRun `nvidia-smi` and `gpulab check`"
        )
    return f"{gpus}; TensorFlow {version} sees {count} GPU".removeprefix("; ")


# --- installing an environment ------------------------------------------------------------------------------------


def venv(here: Here, name: str) -> Path:
    """Where the environment `server` or `kernel` is; a kernel that is not in the image goes to the fast local disk."""
    own, disk = here.path(f"opt/gpulab/{name}"), here.path("opt/dlami/nvme")
    in_image = (own / ".gpulab-lock").exists() or here.spec.get("bake")
    if name == "kernel" and not in_image and disk.is_mount():
        return disk / "gpulab/kernel"
    return own


_COMPILE = (
    "pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --only-binary :all:"
)
_PIP_INSTALL = "install --quiet --no-deps --require-hashes --only-binary :all:"


def install(here: Here, name: str, lock: dict[str, Any]) -> str:
    """
    Install exactly what a lock says.

    Args:
        lock: Compact, or without its pins: the whole agent has those then, with full hashes, and the index is not asked.

    Returns:
        What was done, in words; an environment that is already there (a baked image, a second boot) is kept.

    Raises:
        Problem: No Python, no index, or the index offers other files than were locked.
    """
    place, marker = venv(here, name), venv(here, name) / ".gpulab-lock"
    if marker.exists() and marker.read_text() == lock["sha256"]:
        return f"{len(_locked(place))} packages were already there"
    uv, env = find_uv(here), _uv_environment(here, place.parent / "cache")
    asked = lock.get("python") or ">=3.11"
    run(here, [uv, "venv", "--quiet", "--clear", "--python", asked, str(place)], env=env)
    python = str(place / "bin/python")
    source = [f"--no-binary={name}" for name in lock.get("build", "").split()]
    if "pins" in lock:
        pins = place / "pins.txt"
        pins.write_text("".join(f"{pin.split()[0]}\n" for pin in _pins(lock)))
        argv = [uv, *_COMPILE.split(), *source, "--python", python, str(pins)]
        offered = run(here, argv, env=env)
    else:
        offered = json.loads(ask_whole(here, "locks"))[lock["sha256"]]
    locked = place / "requirements.txt"
    locked.write_text(expand(lock, offered))
    run(
        here,
        [
            uv,
            "pip",
            "sync",
            "--quiet",
            "--require-hashes",
            *source,
            "--python",
            python,
            str(locked),
        ],
        env=env,
    )
    marker.write_text(lock["sha256"])
    return f"{len(_locked(place))} packages"


def _pins(lock: dict[str, Any]) -> list[str]:
    return str(lock["pins"]).split(";")


def _locked(place: Path) -> list[str]:
    """A line for each package of an environment; none before it was installed."""
    try:
        return (place / "requirements.txt").read_text().splitlines()
    except OSError:
        return []


def expand(lock: dict[str, Any], offered: str) -> str:
    """
    Pick from the hashes an index offers the files that were locked.

    Args:
        lock: Compact: hash prefixes, and one digest over the full hashes. Without pins everything offered is meant.
        offered: A requirements file with all hashes of each pinned version.

    Returns:
        A requirements file with the locked files only.

    Raises:
        Problem: The digest differs: the index does not offer what was locked.
    """
    hashes = {
        entry.split()[0]: re.findall(r"sha256:([0-9a-f]{64})", entry)
        for entry in offered.replace("\\\n", " ").splitlines()
        if "==" in entry
    }
    chosen: list[tuple[str, str]] = []
    wanted = _pins(lock) if "pins" in lock else [" ".join([n, *hs]) for n, hs in hashes.items()]
    for pin in wanted:
        name, *prefixes = pin.split()
        chosen += [(name, h) for h in hashes.get(name, []) if h.startswith(tuple(prefixes))]
    lines = "\n".join(sorted(f"{name} sha256:{h}" for name, h in chosen))
    if hashlib.sha256(lines.encode()).hexdigest() != lock["sha256"]:
        missing = [pin.split()[0] for pin in wanted if pin.split()[0] not in dict(chosen)]
        raise Problem(
            f"the package index does not offer the locked files ({', '.join(missing[:5]) or 'other hashes'})\n"
            "Renew the lock with `gpulab env lock`, or use an index that has these versions"
        )
    return "".join(f"{name} --hash=sha256:{h}\n" for name, h in _grouped(chosen))


def _grouped(chosen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    groups: dict[str, list[str]] = {}
    for name, one in chosen:
        groups.setdefault(name, []).append(one)
    return [(name, " --hash=sha256:".join(hashes)) for name, hashes in groups.items()]


def find_uv(here: Here) -> str:
    """
    Find uv, or install the locked one with the system's pip.

    Raises:
        Problem: There is neither uv nor pip.
    """
    place = here.path("opt/gpulab/uv")
    own = place / "bin/uv"
    if own.exists():
        return str(own)
    if here.root:
        beside = Path(sys.executable).with_name("uv")
        found = str(beside) if beside.exists() else shutil.which("uv")
        if found:
            return found
    place.mkdir(parents=True, exist_ok=True)
    asked = place / "requirements.txt"
    asked.write_text(f"{here.spec['environment']['uv']}\n")
    run(
        here,
        [*_pip(here), *_PIP_INSTALL.split(), "--target", str(place), "-r", str(asked)],
        env=_uv_environment(here, place),
    )
    return str(own)


def _pip(here: Here) -> list[str]:
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run(
        [*pip, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    ).returncode:
        if here.root:
            raise Problem("there is neither uv nor pip\nInstall uv")
        run(here, ["apt-get", "-q", "update"])
        run(
            here,
            [
                "apt-get",
                "-q",
                "install",
                "-y",
                "--no-install-recommends",
                "python3-pip",
                "python3-venv",
            ],
        )
    return pip


def _uv_environment(here: Here, cache: Path) -> dict[str, str]:
    # What the image says in uv.toml wins; otherwise the cache lies beside the environments, so that uv links
    # instead of copying. The system's certificates are used: an institution's proxy signs with its own.
    env = {
        "HOME": "/root",
        "UV_SYSTEM_CERTS": "1",
        "UV_NATIVE_TLS": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        **os.environ,
    }
    env.pop("VIRTUAL_ENV", None)
    if not here.root and not Path("/etc/uv/uv.toml").exists():
        env.setdefault("UV_CACHE_DIR", str(cache))
    return env


# --- JupyterLab ---------------------------------------------------------------------------------------------------

# A notice travels at most 30 s late into a notebook on disk: JupyterLab's own 120 s is the whole spot notice.
_LAB_SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {"autosaveInterval": 30},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def _settings(here: Here) -> None:
    write_json(venv(here, "server") / "share/jupyter/lab/settings/overrides.json", _LAB_SETTINGS)
    write_json(_notice_folder(here) / "package.json", _NOTICE_PACKAGE)
    write_file(_notice_folder(here) / "static/remoteEntry.js", _NOTICE_JS.encode())


def register_kernel(here: Here, environment: Path, title: str) -> None:
    """
    Make an environment the kernel `python3`, the name most notebooks ask for.

    PATH begins with the environment, so that `! pip` and `! tensorboard` in a cell reach it and not the server's.
    """
    kernel = {
        "argv": [
            str(environment / "bin/python"),
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
        ],
        "display_name": title,
        "language": "python",
        "metadata": {"debugger": True},
        "env": {"PATH": f"{environment}/bin:${{PATH}}", "VIRTUAL_ENV": str(environment)},
    }
    write_json(venv(here, "server") / "share/jupyter/kernels/python3/kernel.json", kernel)


def start_jupyter(here: Here) -> None:
    """
    Start JupyterLab and wait until it answers.

    Raises:
        Problem: It did not answer within two minutes.
    """
    token = here.path("run/gpulab/token")
    if not token.exists():
        # No newline: the server compares the file as it is, and every request would be refused.
        write_file(token, os.urandom(32).hex().encode(), mode=0o600)
        here.give(token)
    if has_systemd(here):
        run(
            here, ["systemctl", "enable", "--quiet", "--now", f"gpulab-jupyter@{here.user}.service"]
        )
    elif not jupyter_answers(here):
        spawn_jupyter(here)
    until = time.monotonic() + 120
    while not jupyter_answers(here):
        if time.monotonic() > until:
            said = here.path("var/log/gpulab/agent.log").read_text(errors="replace").splitlines()
            raise Problem(
                "\n".join(["JupyterLab does not answer", *said[-8:], "See `gpulab logs`"])
            )
        time.sleep(0.2)


def jupyter_answers(here: Here) -> bool:
    """Whether JupyterLab answers on its port."""
    try:
        return fetch(("127.0.0.1", here.port), "/api")[0] == 200
    except (OSError, ValueError):
        return False


def spawn_jupyter(here: Here) -> None:
    """Start JupyterLab as a child, on a free port; the way without systemd."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = {str(here.spec["jupyter_port"]): free.getsockname()[1]}
    write_json(here.path("run/gpulab/ports.json"), ports)
    with here.open_log() as log:
        child = subprocess.Popen(
            [sys.executable, __file__, "--root", here.root, "jupyter"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    write_file(here.path("run/gpulab/jupyter.pid"), str(child.pid).encode())


def become_jupyter(here: Here) -> None:
    """Replace this process by JupyterLab, as the login user, on loopback only."""
    server, work = venv(here, "server"), here.work
    runtime = here.path("run/gpulab-jupyter")
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    env = {
        **os.environ,
        "HOME": str(work.parent),
        "JUPYTER_TOKEN_FILE": str(here.path("run/gpulab/token")),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PATH": f"{venv(here, 'kernel')}/bin:{server}/bin:{os.environ.get('PATH', os.defpath)}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "SHELL": "/bin/bash",
        "VIRTUAL_ENV": str(venv(here, "kernel")),  # completion looks into it, from the server's own
    }
    if here.root:
        env["GPULAB_ROOT"] = here.root
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": here.port,
        "ServerApp.port_retries": 0,  # else a second server takes the next port and the tunnel leads to the wrong one
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": work,
        "ServerApp.allow_remote_access": False,  # a foreign Host header is refused: DNS rebinding
        "ServerApp.allow_root": False,
        "PasswordIdentityProvider.allow_password_change": False,
        "ResourceUseDisplay.track_cpu_percent": True,
        "ResourceUseDisplay.disk_path": "/",
    }
    if here.root:
        settings["ServerApp.allow_root"] = (
            True  # whoever runs a sandbox may be root; on an instance it is the login user
        )
    python = str(server / "bin/python")
    os.chdir(work)
    os.execve(  # noqa: S606 - an argument list, no shell
        python, [python, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in settings.items())], env
    )


# --- what the machine is doing ------------------------------------------------------------------------------------


def read_gpus(here: Here) -> list[dict[str, Any]]:
    """Ask nvidia-smi; empty without a GPU."""
    own = here.path("usr/bin/nvidia-smi")
    if not own.exists():
        return []
    fields = "name,utilization.gpu,memory.used,memory.total"
    try:
        said = subprocess.run(
            [str(own), f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return [
        {
            "name": row[0],
            "use_percent": _number(row[1]),
            "memory_used_mib": _number(row[2]),
            "memory_total_mib": _number(row[3]),
        }
        for row in rows
        if len(row) == 4
    ]


def _number(cell: str) -> int:
    return int(cell) if cell.isdigit() else 0  # "[N/A]" on some virtual GPUs


# --- the status ---------------------------------------------------------------------------------------------------


def compose_status(here: Here, *, now: float, live: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Put the status together.

    Args:
        live: What only the watcher knows; without it, what it wrote last.
    """
    known = read_json(here.path("run/gpulab/status.json")) if live is None else live
    limits = read_limits(here)
    phases = read_json(here.path("run/gpulab/phases.json")).get("phases")
    return {
        "version": VERSION,
        "at": iso(now),
        "phases": phases
        or [{"name": n, "state": "waiting", "seconds": 0.0, "message": ""} for n in PHASES],
        "deadline": iso(limits.deadline),
        "idle_minutes": limits.idle_minutes,
        "idle_since": known.get("idle_since"),
        "used": known.get("used"),
        "spent_usd": spent_usd(limits, now),
        "budget_usd": here.spec.get("budget_usd"),
        "gpu": known.get("gpu", []),
        "jupyter": {"port": here.spec["jupyter_port"], "ready": jupyter_answers(here)},
        "saved_at": known.get("saved_at"),
        "keep": known.get("keep"),
        "notice": known.get("notice"),
        "ending": known.get("ending"),
    }


# --- the work: what there is --------------------------------------------------------------------------------------

EXCLUDED = (
    "__pycache__",
    ".gpulab-*",
    ".cache",
    ".Trash-*",
    ".virtual_documents",
    "lost+found",
    "node_modules",
)
_is_excluded = re.compile("|".join(map(fnmatch.translate, EXCLUDED))).match
LARGEST_BYTES = 20 * 2**30
# A file whose time stamp is this young may change again within the same tick of the file system's clock.
RACY_NS = 2_000_000_000


class Scan(NamedTuple):
    """
    What a walk through the work found, without reading any file.

    Attributes:
        files: Path from the work directory to its `lstat`; names that are not UTF-8 hold surrogates.
        folders: Empty folders, each with a slash at its end.
        skipped: What is not kept: `{"path", "reason"}`.
    """

    files: dict[str, os.stat_result]
    folders: dict[str, os.stat_result]
    skipped: list[dict[str, str]]


class Glance(dict[str, os.stat_result]):
    """
    Takes the files of a scan and forgets them: a list of 100,000 would be larger than all of the agent.

    Attributes:
        print: A number that changes when any file does; never 0.
        newest: Latest change of a notebook or script, seconds since 1970; 0 for none.
    """

    print = 1
    newest = 0.0

    def __setitem__(self, path: str, known: os.stat_result) -> None:
        self.print = hash((self.print, path, known.st_size, known.st_mtime_ns, known.st_mode)) or 1
        if path.endswith((".ipynb", ".py", ".md")):
            self.newest = max(self.newest, known.st_mtime)


def scan(work: Path, files: dict[str, os.stat_result] | None = None) -> Scan:
    """
    Walk through the work; what cannot be read is listed, never left out silently.

    Args:
        files: What takes the files, in place of a list.
    """
    found = Scan({} if files is None else files, {}, [])
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(work / folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            found.skipped.append({"path": folder, "reason": error.strerror or "unreadable"})
            continue
        if folder and not entries:
            found.folders[f"{folder}/"] = (work / folder).stat()
        begin = folder and f"{folder}/"
        for entry in entries:
            _sort_in(found, folders, begin + entry.name, entry)
    return found


def _sort_in(found: Scan, folders: list[str], path: str, entry: os.DirEntry[str]) -> None:
    try:
        known = entry.stat(follow_symlinks=False)
    except OSError:
        return  # it went away while we looked
    if _is_excluded(entry.name):
        found.skipped.append({"path": path, "reason": "excluded"})
    elif stat.S_ISDIR(known.st_mode):
        folders.append(path)
    elif not (stat.S_ISREG(known.st_mode) or stat.S_ISLNK(known.st_mode)):
        found.skipped.append({"path": path, "reason": "not a file"})
    elif known.st_size > LARGEST_BYTES:
        found.skipped.append({"path": path, "reason": f"over {LARGEST_BYTES >> 30} GiB"})
    else:
        found.files[path] = known


# --- the whole agent ----------------------------------------------------------------------------------------------

# User data has 16 KB. What follows the line `keeping the work` below does not travel in it: it lies, as the whole of this
# file, in the bucket that the work is kept in, under a key and hash that the specification names. Where there is no bucket,
# what follows the line `reaching the bucket` does not travel either: the locks take its place.
KEEPING: dict[str, Callable[[Here, Metadata], int]] = {}


def keeping(word: str) -> Callable[[Here, Metadata], int]:
    """Find what does `save`, `restore` or `manifest`: here, or in the whole agent."""
    return KEEPING.get(word) or (lambda here, metadata: become_whole(here, metadata, word))


def ask_whole(here: Here, word: str) -> str:
    """Let the whole agent say a word, in a process of its own."""
    root = ["--root", here.root] if here.root else []
    return run(here, [sys.executable, __file__, *root, word])


def become_whole(here: Here, metadata: Metadata, word: str) -> int:
    """
    Replace this process by the whole agent, fetched once; without a bucket there is nothing to do.

    Raises:
        Problem: The bucket does not have it, or it has another hash.
    """
    if here.spec["keep"] is None:
        os.sync()
        print("{}")  # the laptop fetches the work over ssh
        return 0
    return _run_whole(here, metadata, word)


class Laptop:
    """Keeps the work where there is no bucket: it is fetched over ssh, and the watcher has nothing to do for it."""

    def begin(self, watch: Watch) -> None:
        """Begin a save, if none is under way."""

    def collect(self, watch: Watch) -> None:
        """Take in what came of a save, if one has ended."""

    def promise(self, watch: Watch, words: str) -> str:
        """Say what becomes of the work: these words, where they are true."""
        return "An open tunnel or `gpulab pull` keeps the work"


# What the watcher keeps the work with: without a bucket, and with one.
KEEPERS = [Laptop()]


# Every word, and the option that it takes.
OPTIONS = dict.fromkeys(
    ["arm", "setup", "watch", "jupyter", "status", "save", "restore", "manifest", "token"], ""
)
OPTIONS.update(extend="--until", idle="--minutes", log="--follow")


# --- reaching the bucket: in user data where there is one ---------------------------------------------------------

# What the whole agent brings.
OPTIONS.update(lab="", data="", locks="", check="")


def signed(
    keep: dict[str, str], key: dict[str, str], at: float, request: tuple[str, str, str, str]
) -> dict[str, str]:
    """
    Give the headers that sign a request to S3.

    Args:
        key: As the metadata service gives it: `AccessKeyId`, `SecretAccessKey`, `Token`.
        at: Seconds since 1970; S3 refuses a request that is 15 minutes off.
        request: Method, quoted path, sorted query, sha256 of the body.

    Source:
        https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    moment = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{keep['region']}/s3/aws4_request"
    headers = {
        "host": keep["endpoint"].partition("://")[2].rstrip("/"),
        "x-amz-content-sha256": request[3],
        "x-amz-date": moment,
        "x-amz-security-token": key["Token"],
    }
    names = ";".join(headers)
    lines = [f"{name}:{value}" for name, value in headers.items()]
    canonical = "\n".join([*request[:3], *lines, "", names, request[3]])
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    secret = f"AWS4{key['SecretAccessKey']}".encode()
    for word in [*scope.split("/"), text]:
        secret = hmac.digest(secret, word.encode(), "sha256")
    who = f"Credential={key['AccessKeyId']}/{scope},SignedHeaders={names},Signature={secret.hex()}"
    return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {who}"}


def role_key(metadata: Metadata) -> dict[str, str]:
    """
    Give the key of the instance's role.

    Raises:
        Problem: It has none.
    """
    place = "meta-data/iam/security-credentials/"
    role = (metadata.get(place) or b"").decode("ascii", "replace").split("\n")[0]
    said = metadata.get(place + role) if role else None
    if not said:
        raise Problem(
            "this instance has no role, so it cannot reach S3"
            if metadata.answers
            else "the metadata service does not answer"
        )
    try:
        key = json.loads(said)
        return {part: key[part] + "" for part in ("AccessKeyId", "SecretAccessKey", "Token")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Problem(f"the role {role} has no key that can be read ({error!r})") from None


def connect(endpoint: str) -> http.client.HTTPConnection:
    """Connect to S3."""
    scheme, _, host = endpoint.rstrip("/").partition("://")
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    return kind(host, timeout=30)


def s3_path(keep: dict[str, str], key: str) -> str:
    """Give the path of an object, as S3 wants it quoted."""
    return "/" + urllib.parse.quote(f"{keep['bucket']}/{key}", safe="/-_.~")


def _run_whole(here: Here, metadata: Metadata, word: str) -> int:
    keep = here.spec["keep"]
    place = here.path(f"opt/gpulab/agent-{keep['agent'][:16]}.py")
    if not place.exists():
        write_file(place, _fetch_whole(keep, metadata), mode=0o755)
    root = ["--root", here.root] if here.root else []
    return subprocess.run([sys.executable, str(place), *root, word], check=False).returncode


def _fetch_whole(keep: dict[str, str], metadata: Metadata) -> bytes:
    path = s3_path(keep, f"{keep.get('shared', keep['prefix'])}agent-{keep['agent'][:16]}.py")
    request = ("GET", path, "", hashlib.sha256().hexdigest())
    tries = 30  # a role that was made a moment ago is refused for some seconds, and JupyterLab is in there
    while True:
        try:
            connection = connect(keep["endpoint"])
            headers = signed(keep, role_key(metadata), metadata.now(), request)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            source = answer.read()
            if answer.status == 200:
                break
            said = f"{path} in the bucket cannot be read ({answer.status})"
        except (OSError, http.client.HTTPException, Problem) as error:
            said = f"{path} in the bucket cannot be read: {error}"
        tries -= 1
        if not tries:
            raise Problem(said)
        time.sleep(3)
    if hashlib.sha256(source).hexdigest() != keep["agent"]:
        raise Problem(f"{path} in the bucket is not the agent of this launch")
    return source


class InBucket(Laptop):
    """Keeps the work with `save`, in a process of its own."""

    def begin(self, watch: Watch) -> None:
        """Begin one; its errors go into the log."""
        if watch.saving is not None:
            return
        root = ["--root", watch.here.root] if watch.here.root else []
        argv = [sys.executable, __file__, *root, "save"]
        with watch.here.open_log() as log:
            watch.saving = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )

    def collect(self, watch: Watch) -> None:
        """Show in the status what it brought and what it did not, and answer a notice."""
        if watch.saving is None or watch.saving.poll() is None:
            return
        summary = read_json(watch.here.path("run/gpulab/saved.json"))
        is_complete = watch.saving.returncode == 0
        watch.live["saved_at"] = summary.get("saved_at") or watch.live["saved_at"]
        failed = summary.get("failed") or (
            [] if is_complete else [summary.get("error") or "could not be saved"]
        )
        watch.live["keep"] = {
            "files": summary.get("files"),
            "skipped": summary.get("skipped"),
            "failed": failed,
        }
        if not is_complete:
            watch.saved_print = 0  # tried again at the next look
        watch.saving = None
        self._say_what_became(watch)

    def promise(self, watch: Watch, words: str) -> str:
        """Promise nothing that the last save did not hold."""
        failed = watch.failed()
        return f"Not all of the work is saved ({failed[0]}); {_PULL}" if failed else words

    def _say_what_became(self, watch: Watch) -> None:
        """On a notice, say once that the work is safe, or what of it is not."""
        notice, saved_at = watch.live["notice"], watch.live["saved_at"]
        if not notice:
            return
        taken = _TAKEN.format(notice["time"][11:16])
        if watch.failed():
            watch._say("safe", f"{self.promise(watch, '')}. {taken}".rstrip())
        elif saved_at and seconds_of(saved_at) >= int(watch.noticed_at):
            watch._say("safe", f"The work is saved. {taken}{_BACK}.")


_PULL = "`gpulab pull` brings it to the laptop"
KEEPERS.append(InBucket())


# --- is anyone there? ---------------------------------------------------------------------------------------------

GPU_FLOOR_PERCENT = 5
NETWORK_FLOOR_BYTES_PER_S = 200_000


class Sample(NamedTuple):
    """
    What the machine does at one moment.

    Attributes:
        now: Seconds since 1970.
        cpu_cores: Cores busy since the sample before; `None` where nothing counts them (a sandbox without a boot).
        cores: Cores there are.
        gpu_percent: Of the busiest GPU.
        network_bytes_per_s: Received since the sample before.
        kernels: Kernel id to its state, as JupyterLab says.
        input_at: Latest key pressed in a terminal or limit moved by hand; 0 for never.
        saved_at: Latest change of a notebook or script; 0 for never.
        is_setting_up: Whether the phases are still running.
    """

    now: float
    cpu_cores: float | None
    cores: int
    gpu_percent: int
    network_bytes_per_s: float
    kernels: dict[str, str]
    input_at: float
    saved_at: float
    is_setting_up: bool


class Idle:
    """
    Since when nobody and nothing works here.

    Work is a GPU or CPU that burns, a cell that was started or has ended, a key pressed in a terminal, a notebook that was saved.
    Never work: an open tunnel, tab or terminal; a kernel that is busy but burns nothing; a kernel stuck in `starting`;
    what JupyterLab calls the last activity of the server or of a kernel, which an open tab keeps fresh.
    """

    def __init__(self, now: float) -> None:
        self.since = now
        self.busy: set[str] = set()
        self.held: set[str] = set()

    def look(self, sample: Sample) -> float:
        """Take a sample into account; returns since when it is idle, seconds since 1970."""
        # A file from the future, out of an archive or a wrong clock, is no sign of life for ever.
        signs = [at for at in self._signs(sample) if at <= sample.now + 60]
        self.since = min(max([self.since, *signs]), sample.now)
        return self.since

    def _signs(self, sample: Sample) -> Iterator[float]:
        busy = {name for name, state in sample.kernels.items() if state == "busy"}
        # Twice in a row: a tab that shows the memory of kernels makes them busy for a moment, every five seconds.
        held, known = busy & self.busy, self.held
        self.busy, self.held = busy, held
        # A tenth of the machine, but at most half a core: one silent core of 48 is a training.
        cpu = (0.5 if held else 0.0) if sample.cpu_cores is None else sample.cpu_cores
        burns = cpu >= min(0.1 * sample.cores, 0.5) or sample.gpu_percent >= GPU_FLOOR_PERCENT
        loads = bool(held) and sample.network_bytes_per_s >= NETWORK_FLOOR_BYTES_PER_S
        if burns or loads or sample.is_setting_up:
            yield sample.now
        if held != known:
            yield sample.now  # a cell was started, or has ended
        yield sample.input_at
        if not busy:
            # Short cells change their notebook, which is saved twice a minute. With a busy kernel it may be the tab
            # that saves what a flat cell prints.
            yield sample.saved_at


def _phase_states(here: Here, *, within_s: float = 1e12) -> list[str]:
    """The states of the phases in order; none when they were last written longer ago (the setup is dead)."""
    path = here.path("run/gpulab/phases.json")
    phases = read_json(path).get("phases", [])
    is_fresh = bool(phases) and time.time() - path.stat().st_mtime < within_s
    return [phase["state"] for phase in phases] if is_fresh else []


class Sampler:
    """Reads what `Idle` decides by."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.before = (time.monotonic(), self._cpu_seconds(), self._received())

    def sample(self, now: float, *, gpu_percent: int, saved_at: float) -> Sample:
        """Look now, and compare the counters with the sample before."""
        at, cpu, received = time.monotonic(), self._cpu_seconds(), self._received()
        span = max(0.1, at - self.before[0])
        taken = Sample(
            now=now,
            cpu_cores=None if cpu is None else max(0.0, cpu - (self.before[1] or cpu)) / span,
            cores=os.cpu_count() or 1,
            gpu_percent=gpu_percent,
            network_bytes_per_s=max(0.0, received - self.before[2]) / span,
            kernels=self._kernels(),
            input_at=self._input_at(),
            saved_at=saved_at,
            is_setting_up=_phase_states(self.here, within_s=45 * 60).count("running") > 0,
        )
        self.before = (at, cpu, received)
        return taken

    def _cpu_seconds(self) -> float | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            # In a container /proc/stat is the whole host's; its cgroup is its own.
            own = self.here.path("sys/fs/cgroup/cpu.stat").read_text()
            return int(own.split()[1]) / 1e6
        with contextlib.suppress(OSError, ValueError, IndexError):
            ticks = [
                int(field)
                for field in self.here.path("proc/stat").read_text().split("\n")[0].split()[1:9]
            ]
            return (sum(ticks) - ticks[3] - ticks[4]) / 100
        return None

    def _received(self) -> int:
        try:
            lines = self.here.path("proc/net/dev").read_text().splitlines()[2:]
        except OSError:
            return 0
        pairs = (line.split(":") for line in lines if ":" in line)
        return sum(int(rest.split()[0]) for name, rest in pairs if name.strip() != "lo")

    def _kernels(self) -> dict[str, str]:
        try:
            # Without no_track_activity our own question would count as activity.
            token = self.here.path("run/gpulab/token").read_text()
            status, _, body = fetch(
                ("127.0.0.1", self.here.port),
                "/api/kernels?no_track_activity=1",
                timeout_s=5,
                Authorization=f"token {token}",
            )
            kernels = json.loads(body) if status == 200 else []
            return {kernel["id"]: kernel["execution_state"] for kernel in kernels}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _input_at(self) -> float:
        # The access time of a terminal moves when a key is read from it, not when something is printed to it.
        latest = 0.0
        for place in [
            *self.here.path("dev/pts").glob("[0-9]*"),
            self.here.path("var/lib/gpulab/limits.json"),
        ]:
            with contextlib.suppress(OSError):
                known = place.stat()
                latest = max(latest, known.st_mtime if place.suffix else known.st_atime)
        return latest


# --- telling people -----------------------------------------------------------------------------------------------

# A JupyterLab extension without a build: it asks for a file beside itself and shows what it says. A static file is no
# activity to JupyterLab, and `apputils:notify` is its own command, so nothing of it has to be bundled.
_NOTICE_JS = """(()=>{let seen="";const at=document.currentScript.src.replace(/remoteEntry.*/,"notice.json");
const plugin={id:"gpulab-notice:plugin",autoStart:true,activate:app=>{const look=()=>fetch(at+"?"+Date.now(),{cache:"no-store"})
.then(r=>r.ok?r.json():null).then(n=>{if(n&&n.id!==seen){seen=n.id;if(n.text)app.commands.execute("apputils:notify",
{message:n.text,type:n.type,options:{autoClose:false}})}}).catch(()=>{});look();setInterval(look,5000)}};
(window._JUPYTERLAB=window._JUPYTERLAB||{})["gpulab-notice"]={init:()=>{},get:()=>Promise.resolve(()=>({__esModule:true,default:plugin}))}})()
"""
_NOTICE_PACKAGE = {
    "name": "gpulab-notice",
    "version": "1.0.0",
    "jupyterlab": {
        "extension": True,
        "_build": {"load": "static/remoteEntry.js", "extension": "./extension"},
    },
}


def _notice_folder(here: Here) -> Path:
    return venv(here, "server") / "share/jupyter/labextensions/gpulab-notice"


def tell(here: Here, text: str, *, kind: str = "warning") -> None:
    """Say something in every terminal and in JupyterLab; an empty text takes the last one back."""
    here.log(f"told: {text}" if text else "notice taken back")
    with contextlib.suppress(OSError):
        folder = _notice_folder(here) / "static"
        if folder.exists():
            write_json(folder / "notice.json", {"id": str(time.time()), "text": text, "type": kind})
    for wall in (here.path("usr/bin/wall"), here.path("usr/local/sbin/wall")):
        if text and wall.exists():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [str(wall), f"gpulab: {text}"],
                    stdin=subprocess.DEVNULL,
                    timeout=10,
                    check=False,
                )


def fact(here: Here, kind: str, at: str | None, **details: Any) -> None:
    """Write a fact for the ledger beside the work; a full disk never stops the agent."""
    with contextlib.suppress(OSError):
        subject = read_json(here.path("var/lib/gpulab/limits.json")).get("instance") or "unknown"
        path = here.work / f".gpulab/ledger/{subject}.jsonl"
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
            here.give(folder)
        words = {key: str(value) for key, value in details.items()}
        line = {"kind": kind, "subject": subject, "at": at, "source": "agent", "details": words}
        with path.open("a") as out:
            out.write(json.dumps(line) + "\n")
        here.give(path)


# --- watching -----------------------------------------------------------------------------------------------------


_TAKEN = "AWS takes this spot instance back at {} UTC. "
_BACK = "`gpulab up` brings it back on another instance"


class Watch:
    """
    The daemon: looks every five seconds, warns, saves, ends.

    `step` is given the time, so that hours of a life can be played in a test.
    """

    def __init__(self, here: Here, metadata: Metadata) -> None:
        self.here = here
        self.metadata = metadata
        now = metadata.now()
        self.idle = Idle(now)
        self.sampler = Sampler(here)
        self.live: dict[str, Any] = {
            "gpu": [],
            "idle_since": None,
            "saved_at": None,
            "keep": None,
            "notice": None,
            "ending": None,
        }
        self.told: dict[str, str] = {}
        self.ooms: list[str] = []
        self.due: dict[str, float] = {}
        self.keeper = KEEPERS[here.spec["keep"] is not None]
        self.saving: subprocess.Popen[bytes] | None = None
        self.saved_print = 0
        self.newest_source = 0.0
        self.look_s = look_every_s(0)
        self.noticed_at = now
        self.warned: tuple[str, int] = ("", 0)
        self.rebalance = b""
        self.began = now
        self.idle_s = 0.0
        self.is_written = False

    def forever(self) -> None:
        """Step until the machine is off; whatever goes wrong in one step, the next one comes."""
        if self.here.path("run/gpulab/status.json").exists():
            self.here.log("the agent had ended and was started again")
        while True:
            started = time.monotonic()
            try:
                self.step(self.metadata.now())
            except (
                Exception
            ) as error:  # the deadline must be watched even when something else is broken
                self.here.log(f"{type(error).__name__}: {error}")
            time.sleep(max(0.2, TICK_S - (time.monotonic() - started)))

    def step(self, now: float) -> None:
        """Look once."""
        self._look_for_notice(now)
        if self._is_due("arm", now, 15):
            self._keep_armed(now)
        if self._is_due("sample", now, 30):
            self._sample(now)
        if self._is_due("tags", now, 60):
            self._read_tags()
        self.keeper.collect(self)
        self._end(now)
        self._look_for_trouble()
        if self._is_due("beat", now, BEAT_S):
            self.saved_print = self.due["save"] = 0
        if self._is_due("save", now, 10 if self.live["notice"] else self.look_s):
            self._save_if_changed(now)
        if (
            self.here.root
            and _pid(self.here.path("run/gpulab/jupyter.pid"))
            and self._is_due("jupyter", now, 15)
        ):
            self._restart_jupyter()
        write_json(
            self.here.path("run/gpulab/status.json"),
            compose_status(self.here, now=now, live=self.live),
        )

    def _is_due(self, what: str, now: float, every_s: float) -> bool:
        # A clock that was set back must not make anything wait for hours.
        if 0 <= now - self.due.get(what, -1e12) < every_s:
            return False
        self.due[what] = now
        return True

    def _keep_armed(self, now: float) -> None:
        armed = read_json(self.here.path("run/gpulab/armed.json"))
        end = read_limits(self.here).end[1]
        drift = (armed.get("monotonic", 0.0) - time.monotonic()) - (end - now)
        if armed.get("end") != end or abs(drift) > 20:
            arm(self.here, self.metadata)

    def _look_for_notice(self, now: float) -> None:
        if self.live["notice"] is None:
            body = self.metadata.get("meta-data/spot/instance-action")
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                said = json.loads(body or b"{}")
                action, at = said["action"] + "", said["time"] + ""
                try:
                    seconds_of(at)
                except ValueError:
                    at = iso(now + 120) or ""  # what AWS gives us in any case
                self.live["notice"] = {"action": action, "time": at}
                self.live["ending"] = {"reason": "spot interruption", "at": at}
                self._write_down(now, at, by="aws", reason="Server.SpotInstanceTermination")
                tell(
                    self.here,
                    f"{_TAKEN.format(at[11:16])}{self.keeper.promise(self, 'The work is being saved now')}; {_BACK}.",
                    kind="error",
                )
                self.noticed_at = now
                self._start_save()
        if self._is_due("rebalance", now, 5) and not self.live["notice"]:
            body = self.metadata.get("meta-data/events/recommendations/rebalance") or b""
            if body and body != self.rebalance:
                self.rebalance = body
                tell(
                    self.here,
                    f"AWS may take this spot instance back soon. {self.keeper.promise(self, 'The work is being saved now')}.",
                )
                self._start_save()

    def _look_for_trouble(self) -> None:
        off, ooms = self.metadata.skew_s, self.ooms
        with contextlib.suppress(OSError):
            counters = self.here.path("proc/vmstat").read_text()
            self.ooms = re.findall(r"oom_kill (\d+)", counters)
        with contextlib.suppress(OSError):
            is_full = shutil.disk_usage(self.here.work).free < FULL_BYTES
            self._say("disk", "The disk is full: delete files, or nothing can be saved." * is_full)
        if ooms and self.ooms != ooms:
            tell(self.here, "The memory was full, so the system ended a program, likely a kernel.")
        self._say("clock", f"The clock was off by {off:.0f} s; AWS's is used." * (off != 0))
        self._say(
            "metadata",
            "AWS's metadata does not answer: a spot notice would not be seen."
            * (not self.metadata.answers),
        )

    def _say(self, what: str, text: str) -> None:
        """Tell of a trouble once, until it is over."""
        known = self.told.get(what, "")[:9]
        self.told[what] = text
        if text[:9] != known and text:
            tell(self.here, text)

    def _sample(self, now: float) -> None:
        self.live["gpu"] = read_gpus(self.here)
        busiest = max((gpu["use_percent"] for gpu in self.live["gpu"]), default=0)
        sample = self.sampler.sample(now, gpu_percent=busiest, saved_at=self.newest_source)
        since = self.idle.look(sample)
        is_idle = now - since >= 60
        self.live["idle_since"] = iso(since) if is_idle else None
        self.idle_s += 30 if is_idle else 0
        span, idle = round(now - self.began), round(self.idle_s)
        self.live["used"] = {"since": iso(self.began), "seconds": span, "idle_seconds": idle}

    def _read_tags(self) -> None:
        # Only a tag that was changed counts: `extend` over ssh may have moved a limit since the last one.
        known = read_json(self.here.path("var/lib/gpulab/limits.json"))
        tag, idle = self._tag("expires"), self._tag("idle")
        with contextlib.suppress(ValueError):
            seen = known.get("tag") or self.here.spec["deadline"]
            if tag and seconds_of(tag) != seconds_of(seen):
                change_limits(self.here, deadline=iso(seconds_of(tag)), tag=tag)
        if re.fullmatch("[0-9]{1,5}", idle) and idle != known.get("idle_tag"):
            change_limits(self.here, idle_minutes=int(idle), idle_tag=idle)

    def _tag(self, name: str) -> str:
        said = self.metadata.get(f"meta-data/tags/instance/gpulab:{name}") or b""
        return said.decode("ascii", "replace")

    def _restart_jupyter(self) -> None:
        pid = _pid(self.here.path("run/gpulab/jupyter.pid"))
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            os.kill(pid, 0)
        except OSError:
            self.here.log("JupyterLab is gone and is started again")
            spawn_jupyter(self.here)

    # saving

    def _save_if_changed(self, now: float) -> None:
        began = time.process_time()
        seen = Glance()
        scan(self.here.work, seen)
        self.newest_source = seen.newest
        is_here = _phase_states(self.here)[3:4] in (["done"], ["failed"])
        if seen.print != self.saved_print and self.saving is None and is_here:
            self.saved_print = seen.print
            self._start_save()
        self.look_s = look_every_s(time.process_time() - began)

    def _start_save(self) -> None:
        self.keeper.begin(self)

    def failed(self) -> list[str]:
        """What of the work the last save did not bring; none before the first."""
        return (self.live["keep"] or {}).get("failed") or []

    # the end

    def _end(self, now: float) -> None:
        reason, end = self._next_end()
        left = end - now
        if self.live["notice"] is None:
            self.live["ending"] = {"reason": reason, "at": iso(end)} if left <= 600 else None
        for minutes in (2, 10):
            if left <= minutes * 60:
                self._warn(reason, end, minutes)
                break
        else:
            self._calm()
        is_in_time = left > -45
        if left <= 20:
            self._write_down(now, iso(end), by="user", reason=reason)
            # After one that is under way: what was written since that one looked would be lost.
            if is_in_time and self.saving is None and self._is_due("last save", now, 300):
                self._start_save()
        waits = self.saving is not None and is_in_time
        if left <= 0 and not waits and self._is_due("power off", now, 20):
            power_off(self.here, f"{reason}; {self._saved()}", is_late=left < -70)

    def _saved(self) -> str:
        failed = self.failed()
        return f"saved {self.live['saved_at']}" + (f", then not: {failed[0]}" if failed else "")

    def _write_down(self, now: float, at: str | None, *, by: str, reason: str) -> None:
        if not self.is_written:
            self.is_written = True
            span, idle = round(now - self.began), round(self.idle_s)
            fact(self.here, "usage", iso(self.began), seconds=span, idle_seconds=idle)
            fact(self.here, "ended", at, by=by, how="terminated", reason=reason)

    def _next_end(self) -> tuple[str, float]:
        limits = read_limits(self.here)
        reason, end = limits.end
        idle_end = self.idle.since + limits.idle_minutes * 60
        return ("idle", idle_end) if limits.idle_minutes and idle_end < end else (reason, end)

    def _warn(self, reason: str, end: float, minutes: int) -> None:
        if self.warned[0] == reason and self.warned[1] <= minutes:
            return
        self.warned = (reason, minutes)
        cure = (
            "`gpulab extend` gives it longer"
            if reason != "idle"
            else "run a cell to keep it, or `gpulab extend`"
        )
        why = {
            "deadline": "its time is over",
            "budget": "its budget is spent",
            "idle": "nobody uses it",
        }[reason]
        at = (iso(end) or "")[11:16]
        tell(
            self.here,
            f"This instance ends at {at} UTC, within {minutes} minutes: {why}. {self.keeper.promise(self, 'The work is saved first')}; {cure}.",
        )
        self._start_save()

    def _calm(self) -> None:
        self.is_written = False  # the end that was foreseen has not come
        if self.warned[1]:
            self.warned = ("", 0)
            tell(self.here, "")


def look_every_s(took_s: float) -> float:
    """How often to look at the work: at 200,000 files and more less often, so that looking takes 2 % of a core at most."""
    return max(SAVE_S, min(600.0, 50 * took_s))


def spent_usd(limits: Limits, now: float) -> str:
    """Price times time since the instance was born, with four places; an estimate for people."""
    return f"{max(0.0, now - limits.born) / 3600 * limits.usd_per_hour:.4f}"


# --- keeping the work: not in user data ---------------------------------------------------------------------------


def entry_of(
    path: str, known: os.stat_result, *, sha256: str = "", link: str | None = None
) -> dict[str, Any]:
    """Give one line of the manifest."""
    return {
        "path": path,
        "size": 0 if link is not None or path.endswith("/") else known.st_size,
        "mtime_ns": known.st_mtime_ns,
        "mode": stat.S_IMODE(known.st_mode),
        "sha256": sha256,
        "link": link,
    }


def is_current(entry: dict[str, Any] | None, known: os.stat_result) -> bool:
    """Whether a file is as a manifest entry says, by size, time and mode."""
    return entry is not None and (
        (entry["size"] == known.st_size or entry["link"] is not None)
        and entry["mtime_ns"] == known.st_mtime_ns
        and entry["mode"] == stat.S_IMODE(known.st_mode)
    )


def read_parts(path: Path, size: int) -> Iterator[bytes]:
    """
    Read a file as it was when it had `size` bytes: what is appended meanwhile is left for the next time.

    Raises:
        OSError: It was cut shorter while it was read.
    """
    part_size = max(2**25, -(-size // 9000))
    with path.open("rb") as file:
        left = size
        while left:
            part = file.read(min(left, part_size))
            if not part:
                raise OSError(f"{path.name} became shorter while it was read")
            left -= len(part)
            yield part


def manifest(here: Here) -> Iterator[dict[str, Any]]:
    """
    List the work with hashes, one entry a file.

    Hashes are remembered by size and time, so asking again is cheap. A file that changes faster than it can be read is
    listed as it was read, with `"unsettled": true`; one that cannot be read has `"error"` and no hash.
    """
    os.sync()
    cache_file = here.path("var/lib/gpulab/hashes.json")
    cache = read_json(cache_file)
    fresh: dict[str, Any] = {}
    found = scan(here.work)
    for path, known in found.files.items():
        try:
            entry = _hashed(here.work / path, path, known, cache.get(path))
        except OSError as error:
            yield {**entry_of(path, known), "error": error.strerror or "unreadable"}
            continue
        if time.time_ns() - known.st_mtime_ns > RACY_NS and "unsettled" not in entry:
            fresh[path] = entry
        yield entry
    yield from (entry_of(path, known) for path, known in found.folders.items())
    yield from ({**one, "skipped": True} for one in found.skipped)
    with contextlib.suppress(OSError):
        write_json(cache_file, fresh)


def _hashed(
    place: Path, path: str, known: os.stat_result, cached: dict[str, Any] | None
) -> dict[str, Any]:
    if stat.S_ISLNK(known.st_mode):
        return entry_of(path, known, link=str(place.readlink()))
    if cached is not None and is_current(cached, known):
        return cached
    for _ in range(3):
        digest = hashlib.sha256()
        before = place.stat()
        for part in read_parts(place, before.st_size):
            digest.update(part)
        entry = entry_of(path, before, sha256=digest.hexdigest())
        if is_current(entry, place.stat()):
            return entry
    return {**entry, "unsettled": True}


class Bucket:
    """
    The kept copy: plain files under a prefix of a versioned bucket, and a manifest that is written last."""

    def __init__(self, here: Here, metadata: Metadata) -> None:
        self.keep: dict[str, str] = {**here.spec["keep"], "prefix": own_prefix(here, metadata)}
        places = os.pathsep.join(str(here.path(name)) for name in ("usr/local/bin", "usr/bin"))
        self.tool = shutil.which("aws", path=places) or ""
        self.noted = here.path("run/gpulab/role.json")
        self.metadata = metadata
        self.local = threading.local()
        self.lock = threading.Lock()
        self.role_key: dict[str, str] = {}

    def ask(
        self,
        method: str,
        key: str,
        *,
        query: str = "",
        body: bytes = b"",
        span: str = "",
        tries: int = 6,
    ) -> tuple[int, Any, bytes]:
        """
        Make a signed request, again where S3 asks for patience.

        Returns:
            Status (below 300, or 404 where an object is asked for that is not there), headers, body.

        Raises:
            Problem: Refused, no bucket, or no answer after so many tries.
        """
        said = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(min(8.0, 0.25 * 2**attempt))
            try:
                status, headers, answer = self._ask(method, key, query, body, span)
            except (OSError, http.client.HTTPException) as error:
                self.local.connection = None
                said = str(error) or type(error).__name__
                continue
            if status < 300:
                return status, headers, answer
            found = re.search(rb"<Code>(\w+)</Code>", answer)
            said = found[1].decode() if found else f"HTTP {status}"
            # A 404 to what is written: the bucket has gone, or the upload that it is a part of, and it is nowhere.
            if status == 404 and method not in ("PUT", "POST") and said != "NoSuchBucket":
                return status, headers, answer
            if said in ("ExpiredToken", "RequestTimeTooSkewed", "InvalidToken"):
                self.role_key = {}
            elif status < 500 and status != 429:
                break
        raise Problem(f"S3 does not {method} {self.keep['bucket']}/{key}: {said}")

    def _ask(
        self, method: str, key: str, query: str, body: bytes, span: str
    ) -> tuple[int, Any, bytes]:
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = connect(self.keep["endpoint"])
        path = s3_path(self.keep, key)
        request = (method, path, query, hashlib.sha256(body).hexdigest())
        headers = signed(self.keep, self.key(), self.metadata.now(), request)
        if span:
            headers["Range"] = f"bytes={span}"
        connection.request(method, f"{path}?{query}" if query else path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def key(self) -> dict[str, str]:
        """The role's key, asked for once."""
        with self.lock:
            self.role_key = self.role_key or self._role_key()
            return self.role_key

    def _role_key(self) -> dict[str, str]:
        """The role's key, or the last one when the metadata service does not answer: it lives for hours."""
        try:
            fresh = role_key(self.metadata)
        except Problem:
            known = read_json(self.noted)
            if self.metadata.answers or not known:
                raise
            return known
        with contextlib.suppress(OSError):
            write_json(self.noted, fresh, mode=0o600)
        return fresh


def own_prefix(here: Here, metadata: Metadata) -> str:
    """Give the prefix of the kept copy: where many instances have one role, each has one that is named after its id."""
    prefix = str(here.spec["keep"]["prefix"])
    if "{instance}" not in prefix:
        return prefix
    said = (metadata.get("meta-data/instance-id") or b"").decode("ascii", "replace")
    said = said or str(read_json(here.path("var/lib/gpulab/limits.json")).get("instance") or "")
    if not said:
        raise Problem("the metadata service does not say which instance this is")
    return prefix.replace("{instance}", said)


def key_of(bucket: Bucket, path: str) -> str:
    """The object of a file. S3 keys are UTF-8 of at most 1024 bytes; other names are kept under their hash."""
    raw = os.fsencode(path)
    plain = path.isprintable() and len(raw) < 900
    name = path if plain else f"odd-names/{hashlib.sha256(raw).hexdigest()}"
    return f"{bucket.keep['prefix']}work/{name}"


def put_file(bucket: Bucket, place: Path, path: str) -> dict[str, Any]:
    """Upload one file and give its manifest entry; tried again when it changes meanwhile."""
    for _ in range(3):
        known = place.stat()
        sha256, version = _put(bucket, place, known.st_size, key_of(bucket, path))
        entry = {
            **entry_of(path, known, sha256=sha256),
            "key": key_of(bucket, path),
            "version": version,
        }
        if is_current(entry, place.stat()):
            return entry
    return {**entry, "unsettled": True}


def _put(bucket: Bucket, place: Path, size: int, key: str) -> tuple[str, str]:
    if size <= WHOLE_BYTES:
        body = b"".join(read_parts(place, size))
        headers = bucket.ask("PUT", key, body=body)[1]
        return hashlib.sha256(body).hexdigest(), headers.get("x-amz-version-id") or ""
    sent = _put_by_tool(bucket, place, size, key) if bucket.tool else None
    if sent is not None:
        return sent
    answer = bucket.ask("POST", key, query="uploads=")[2]
    upload = re.search(rb"<UploadId>([^<]+)</UploadId>", answer)
    if upload is None:
        raise Problem(f"S3 does not begin an upload of {key}")
    query = f"uploadId={urllib.parse.quote(upload[1].decode(), safe='-_.~')}"
    try:
        return _put_parts(bucket, place, size, key, query)
    except BaseException:
        with contextlib.suppress(Problem):
            bucket.ask("DELETE", key, query=query)  # parts that stay behind would be billed
        raise


def _put_by_tool(bucket: Bucket, place: Path, size: int, key: str) -> tuple[str, str] | None:
    """
    Let the image's AWS CLI send a large file, parts of it side by side. It is given what was hashed, never the file.

    Returns:
        `None` when it failed; our own way is tried then, and says why it fails.
    """
    keep, role = bucket.keep, bucket.key()
    options = {"--expected-size": str(size), "--endpoint-url": keep["endpoint"]}
    options["--region"] = keep["region"]
    env = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": role["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": role["SecretAccessKey"],
        "AWS_SESSION_TOKEN": role["Token"],
        "AWS_CONFIG_FILE": os.devnull,
    }
    argv = [bucket.tool, "s3", "cp", "--only-show-errors", "-", f"s3://{keep['bucket']}/{key}"]
    argv += [word for option in options.items() for word in option]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
    assert process.stdin is not None
    digest = hashlib.sha256()
    try:
        for part in read_parts(place, size):
            digest.update(part)
            process.stdin.write(part)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended; its exit code says the rest
    except BaseException:
        # Before its input ends, or it would take half a file for a whole one. Interrupted, it
        # takes its parts back; what stays, the bucket forgets after a week.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        raise
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if process.wait():
        return None
    _, headers, _ = bucket.ask("HEAD", key)
    if headers["content-length"] != str(size):
        return None
    return digest.hexdigest(), headers.get("x-amz-version-id") or ""


def _put_parts(bucket: Bucket, place: Path, size: int, key: str, query: str) -> tuple[str, str]:
    digest, tags = hashlib.sha256(), []
    for number, part in enumerate(read_parts(place, size), 1):
        digest.update(part)
        headers = bucket.ask("PUT", key, query=f"partNumber={number}&{query}", body=part)[1]
        tags.append(f"<Part><PartNumber>{number}</PartNumber><ETag>{headers['ETag']}</ETag></Part>")
    body = f"<CompleteMultipartUpload>{''.join(tags)}</CompleteMultipartUpload>".encode()
    status, headers, answer = bucket.ask("POST", key, query=query, body=body)
    if status >= 300 or b"<Error>" in answer:  # S3 may answer 200 and fail afterwards
        raise Problem(f"S3 does not finish the upload of {key}")
    return digest.hexdigest(), headers.get("x-amz-version-id") or ""


def get_file(bucket: Bucket, entry: dict[str, Any], place: Path) -> None:
    """
    Download one file beside its place, compare its hash, and move it there.

    Raises:
        Problem: It is not there or is not what the manifest says.
    """
    fresh = place.with_name(f".gpulab-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}")
    digest = hashlib.sha256()
    query = (
        f"versionId={urllib.parse.quote(entry['version'], safe='-_.~')}"
        if entry.get("version")
        else ""
    )
    try:
        with fresh.open("wb") as out:
            for start in range(0, entry["size"], 2**25):
                span = f"{start}-{start + 2**25 - 1}"
                part = bucket.ask("GET", entry["key"], query=query, span=span)[2]
                digest.update(part)
                out.write(part)
        if digest.hexdigest() != entry["sha256"]:
            raise Problem("the kept copy is not what its manifest says")
        fresh.chmod(entry["mode"])
        os.utime(fresh, ns=(entry["mtime_ns"], entry["mtime_ns"]))
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)


def kept_manifest(bucket: Bucket) -> dict[str, Any] | None:
    """Read the manifest of the kept copy; `None` when nothing was ever kept."""
    status, _, body = bucket.ask("GET", f"{bucket.keep['prefix']}manifest.json")
    if status == 404:
        return None
    try:
        found = json.loads(body)
        for entry in found["entries"]:
            _check_entry(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Problem(f"the manifest of the kept copy is damaged ({error!r})") from None
    return dict(found)


def _check_entry(entry: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for what `save` does not write."""
    path, link = entry["path"] + "", entry["link"]
    for name in (path, path if link is None else link + ""):
        if b"\0" in os.fsencode(name):
            raise ValueError(f"{name!r} cannot be a name")
    for word in (entry["sha256"], entry.get("version") or "", entry.get("key", "")):
        (word + "").encode()
    if _is_plain(entry):
        entry["key"] + ""
    for number, most in (
        (entry["size"], 2**63),
        (entry["mtime_ns"], 2**63),
        (entry["mode"], 2**12),
    ):
        if type(number) is not int or not -most < number < most:
            raise ValueError(f"{number!r} cannot be a size, time or mode")


def _is_plain(entry: dict[str, Any]) -> bool:
    """Whether it is what people count as a file: no link, no empty folder."""
    return entry["link"] is None and not entry["path"].endswith("/")


def save(here: Here, metadata: Metadata) -> dict[str, Any]:
    """
    Bring changed files to the kept copy, then its manifest.

    Without a bucket it only makes sure that everything is on the disk: the laptop fetches the work over ssh.

    Returns:
        `{"saved_at", "files", "uploaded", "bytes", "skipped", "failed"}`; `failed` has a line for each file that could
        not be kept as it is now (its last kept version stays), `saved_at` is `None` without a bucket.

    Raises:
        Problem: S3 cannot be reached, or the kept copy was not restored yet and would be replaced by less.
    """
    os.sync()
    found = scan(here.work)
    summary: dict[str, Any] = {
        "saved_at": None,
        "files": sum(stat.S_ISREG(known.st_mode) for known in found.files.values()),
        "uploaded": 0,
        "bytes": 0,
    }
    summary.update(skipped=found.skipped, failed=[])
    if here.spec["keep"] is None or here.spec.get("bake"):
        return summary
    tell_costs(here, metadata)
    bucket = Bucket(here, metadata)
    if not here.path("var/lib/gpulab/kept.json").exists():
        restore(here, metadata)
    known = read_json(here.path("var/lib/gpulab/kept.json"))
    # Asked also when nothing changed: what was kept an hour ago is not saved if the copy has gone since.
    if bucket.ask("GET", f"{bucket.keep['prefix']}manifest.json", span="0-0")[0] == 404:
        known = {}  # all of it is brought again
    old: dict[str, Any] = known.get("entries", {})
    began = metadata.now()
    entries: dict[str, Any] = {}
    # What is not brought yet is listed as it was kept last; what has gone is not, or its place might be another's.
    rest = {path: old[path] for path in found.files if path in old}

    def write_slice() -> None:
        _write_manifest(here, bucket, {**rest, **entries}, summary, began, before=old)

    _bring(here, bucket, found, old, summary, entries, Slices(write_slice))
    # Also when nothing changed: the manifest says which launch vouches for it.
    is_vouched = known.get("launch") == here.spec["launch"] and known.get("complete", True)
    if entries != old or summary["failed"] or not is_vouched:
        _write_manifest(here, bucket, entries, summary, began)
    for path in old.keys() - entries.keys():
        if old[path].get("key"):
            with contextlib.suppress(
                Problem
            ):  # it is not in the manifest any more; its versions stay
                bucket.ask("DELETE", old[path]["key"])
    summary["saved_at"] = iso(began)
    return summary


# What the instance knows of its own costs, in the words of the laptop's ledger.


def tell_costs(here: Here, metadata: Metadata) -> None:
    """
    Put the facts about this instance's costs beside the kept work: a lost laptop loses no money trail.

    One small object, replaced at each save, so it also says until when the instance lived. It is not in the work, which may be
    deleted while the money stays spent. The work is kept whatever fails here; the next save tells it all again.
    """
    if here.spec["keep"] is None:
        return
    with contextlib.suppress(Problem, OSError, ValueError, KeyError, TypeError, RecursionError):
        facts = own_facts(here, metadata)
        if not facts:
            return  # the metadata service has not answered yet
        subject = facts[0]["subject"]
        noted = here.work / f".gpulab/ledger/{subject}.jsonl"
        lines = [json.dumps(one) for one in facts]
        lines += _whole_lines(noted.read_text()) if noted.exists() else []
        bucket = Bucket(here, metadata)
        folder = bucket.keep["prefix"].rstrip("/")
        if folder == here.spec["keep"]["prefix"].rstrip("/"):
            # Beside the names of its owner's work; a builder of images has none. Else its own id's folder is all it may write to.
            folder = folder.rpartition("/")[0].removesuffix("/.bake")
        body = "".join(f"{line}\n" for line in lines).encode()
        bucket.ask("PUT", f"{folder}/.ledger/{subject}.jsonl", body=body, tries=2)


def own_facts(here: Here, metadata: Metadata) -> list[dict[str, Any]]:
    """
    List what this instance costs and how it was used, in all its runs so far.

    Raises:
        ValueError, KeyError, TypeError: The metadata service says what it never says.
    """
    noted = here.path("var/lib/gpulab/facts.json")
    known: dict[str, dict[str, Any]] = read_json(noted).get("facts") or {}
    found = _launch_facts(here, metadata)
    known.update(_stop_between(list(known.values()), found))
    used = read_json(here.path("run/gpulab/status.json")).get("used")
    launched = [one for one in [*known.values(), *found] if one["kind"] == "launched"]
    # While the work is brought back nothing is saved, so a word from then says nothing about when the next one is due.
    if used and launched and here.path("var/lib/gpulab/kept.json").exists():
        span = {"seconds": used["seconds"], "idle_seconds": used["idle_seconds"]}
        found.append(_fact_of("usage", launched[0]["subject"], used["since"], **span))
    known.update({f"{one['kind']} {one['at']}": one for one in found})
    with contextlib.suppress(OSError):
        write_json(noted, {"facts": known})
    return list(known.values())


def _launch_facts(here: Here, metadata: Metadata) -> list[dict[str, Any]]:
    """Say what the launch or start before this boot began to cost; nothing when the metadata service does not answer."""
    said = json.loads(metadata.get("dynamic/instance-identity/document") or b"{}")
    if not said:
        return []
    spec, subject, at = here.spec, said["instanceId"], said["pendingTime"]
    rates = spec.get("facts") or {}
    launched = {"zone": said["availabilityZone"], "instance_type": said["instanceType"]}
    launched["market"] = (metadata.get("meta-data/instance-life-cycle") or b"").decode()
    launched.update(launch_id=spec["launch"], expires_at=spec["deadline"])
    launched.update({word: spec.get(word, "") for word in ("name", "owner", "course", "lab")})
    found = [_fact_of("launched", subject, at, **launched, **rates.get("launched", {}))]
    booted = _booted_at(here, metadata)
    if booted >= at:  # AWS bills from the state running, which is when the machine begins to boot
        found.append(_fact_of("started", subject, booted))
    size = (metadata.get("meta-data/tags/instance/gpulab:disk") or b"").decode()
    if re.fullmatch("[0-9]{1,6}", size):
        disk = {"type": "gp3", "size_gb": size, "instance_id": subject, "owner": spec["owner"]}
        disk.update(ends_with_instance="yes", **rates.get("volume", {}))
        found.append(_fact_of("volume", f"{subject}/root", at, **disk))
    if metadata.get("meta-data/public-ipv4"):
        found.append(_fact_of("address", subject, at, **rates.get("address", {})))
    return found


def _booted_at(here: Here, metadata: Metadata) -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^btime (\d+)$", here.path("proc/stat").read_text(), re.MULTILINE)
        if found:
            return iso(int(found[1]) + metadata.skew_s) or ""
    return ""


def _stop_between(
    known: list[dict[str, Any]], found: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Close the run before this one, which nobody on the instance saw end: it was stopped after its last word."""
    begins = sorted(one["at"] for one in known if one["kind"] == "launched")
    if not begins or not found or found[0]["at"] <= begins[-1]:
        return {}
    words = [one for one in known if one["kind"] == "usage"]
    heard = [seconds_of(one["at"]) + int(one["details"]["seconds"]) for one in words]
    at = iso(max([seconds_of(begins[-1]), *heard])) or ""
    return {f"ended {at}": _fact_of("ended", found[0]["subject"], at, how="stopped")}


def _fact_of(kind: str, subject: str, at: str, **details: Any) -> dict[str, Any]:
    words = {key: str(value) for key, value in details.items() if value != ""}
    return {"kind": kind, "subject": subject, "at": at, "source": "agent", "details": words}


def _whole_lines(text: str) -> list[str]:
    """Leave out half a line, which a full disk may have left."""
    whole = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(line), dict):
                whole.append(line)
    return whole


# While a save goes on, this often a manifest says what has been brought so far.
SLICE_S = 20


class Slices:
    """
    Manifests of a save that goes on: what is in the bucket and in no manifest would not come back after a hard cut.

    Args:
        write: Writes one.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self.write = write
        self.lock = threading.Lock()
        self.due = time.monotonic() + SLICE_S

    def look(self, *, at_once: bool = False) -> None:
        """Write one when it is time, or at once."""
        if not (at_once or time.monotonic() >= self.due) or not self.lock.acquire(blocking=False):
            return  # too early, or another thread is at it
        try:
            began = time.monotonic()
            with contextlib.suppress(Problem):  # the save itself says what is wrong
                self.write()
            # At most a tenth of the time goes into what is soon out of date.
            self.due = began + max(SLICE_S, 10 * (time.monotonic() - began))
        finally:
            self.lock.release()


def _bring(
    here: Here,
    bucket: Bucket,
    found: Scan,
    old: dict[str, Any],
    summary: dict[str, Any],
    entries: dict[str, Any],
    slices: Slices,
) -> None:
    entries.update({path: entry_of(path, known) for path, known in found.folders.items()})
    small: list[str] = []
    large: list[str] = []
    for path, known in found.files.items():
        young = time.time_ns() - known.st_mtime_ns < RACY_NS
        if stat.S_ISLNK(known.st_mode):
            entries[path] = entry_of(path, known, link=str((here.work / path).readlink()))
        elif is_current(old.get(path), known) and not (young or old[path].get("unsettled")):
            entries[path] = old[path]
        else:
            (large if known.st_size > 2**22 else small).append(path)

    def bring(path: str) -> None:
        try:
            entry = put_file(bucket, here.work / path, path)
        except FileNotFoundError:
            return  # it went away while we looked
        except OSError as error:
            summary["failed"].append(f"{path}: {error.strerror or error}")
            if path in old:
                entries[path] = old[path]
            return
        entries[path] = entry
        summary["uploaded"] += 1
        summary["bytes"] += entry["size"]
        slices.look()

    _at_once(bring, small)
    if summary["uploaded"] and sum(found.files[path].st_size for path in large) > 2**28:
        slices.look(at_once=True)  # the next one may take minutes
    for path in large:
        bring(path)


def _at_once(do: Callable[[Any], None], items: Iterable[Any]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(8)
    try:
        list(pool.map(do, items))
    finally:
        pool.shutdown(cancel_futures=True)  # after a refusal the rest would be refused as well


def _write_manifest(
    here: Here,
    bucket: Bucket,
    entries: dict[str, Any],
    summary: dict[str, Any],
    at: float,
    *,
    before: dict[str, Any] | None = None,
) -> None:
    """Write it there and here; `before` says that the save goes on, and what the one before has brought."""
    said: dict[str, Any] = {"version": 1, "at": iso(at), "launch": here.spec["launch"]}
    said["entries"] = [entries[path] for path in sorted(entries)]
    # Tags go with the instance; the next one may be launched from another computer.
    said["environment"] = here.spec["environment"]["name"]
    said.update(skipped=summary["skipped"], failed=summary["failed"])
    noted = {"launch": here.spec["launch"], "entries": {**(before or {}), **entries}}
    if before is not None:
        said["complete"] = noted["complete"] = False
    bucket.ask("PUT", f"{bucket.keep['prefix']}manifest.json", body=json.dumps(said).encode())
    with contextlib.suppress(OSError):  # on a full disk the next save brings some files once more
        write_json(here.path("var/lib/gpulab/kept.json"), noted)


def restore(here: Here, metadata: Metadata) -> str:
    """
    Bring the kept copy back, each file compared with its hash. Nothing that is already here is overwritten.

    Raises:
        Problem: The copy cannot be read or is not what its manifest says; what was right is here all the same.
    """
    if here.spec["keep"] is None:
        return "the work is brought over ssh"
    bucket = Bucket(here, metadata)
    whole = kept_manifest(bucket) or {"entries": []}
    wrong: list[str] = []

    def bring(entry: dict[str, Any]) -> None:
        try:
            _bring_back(here, bucket, entry)
        except (OSError, Problem) as error:
            wrong.append(f"{entry['path']!r}: {error}")

    # Links come last, so that no file is ever written through one.
    _at_once(bring, [entry for entry in whole["entries"] if entry["link"] is None])
    for entry in whole["entries"]:
        if entry["link"] is not None:
            bring(entry)
    if wrong:
        raise Problem(
            f"{len(wrong)} of {len(whole['entries'])} files were not restored; {wrong[0]}"
        )
    entries = {entry["path"]: entry for entry in whole["entries"]}
    write_json(here.path("var/lib/gpulab/kept.json"), {"entries": entries})
    count = sum(_is_plain(entry) for entry in entries.values())
    files = "file" if count == 1 else "files"
    cut = "" if whole.get("complete", True) else "; the last save was cut before its end"
    return f"{count} {files} restored and verified{cut}" if entries else "nothing was kept yet"


def _bring_back(here: Here, bucket: Bucket, entry: dict[str, Any]) -> None:
    place = here.work / entry["path"]
    inside = Path(os.path.normpath(place))
    if here.work not in inside.parents:
        raise Problem("leads out of the work directory")
    missing = [parent for parent in reversed(inside.parents) if not parent.exists()]
    for parent in [*missing, *([inside] if entry["path"].endswith("/") else [])]:
        parent.mkdir(exist_ok=True)
        here.give(parent)
    if entry["path"].endswith("/") or place.is_symlink():
        return
    if entry["link"] is not None:
        if not place.exists():
            place.symlink_to(entry["link"])
        return
    if place.exists():
        if is_current(entry, place.stat()) or _same(place, entry):
            return
        place = place.with_name(f"{place.name}.kept")
    get_file(bucket, entry, place)
    here.give(place)


def _same(place: Path, entry: dict[str, Any]) -> bool:
    digest = hashlib.sha256()
    for part in read_parts(place, place.stat().st_size):
        digest.update(part)
    return bool(digest.hexdigest() == entry["sha256"])


def _say_save(here: Here, metadata: Metadata) -> int:
    try:
        summary = save(here, metadata)
    except (Problem, OSError) as error:
        write_json(here.path("run/gpulab/saved.json"), {"error": str(error)})
        raise
    write_json(here.path("run/gpulab/saved.json"), summary)
    print(json.dumps(summary))
    for line in summary["failed"]:
        print(f"not saved: {line}", file=sys.stderr)
    return 1 if summary["failed"] else 0


def _say_restored(here: Here, metadata: Metadata) -> int:
    tell_costs(here, metadata)
    print(restore(here, metadata))
    return 0


def _say_locks(_: Here, __: Metadata) -> int:
    print(json.dumps(LOCKS))
    return 0


def _say_manifest(here: Here, _: Metadata) -> int:
    for entry in manifest(here):
        print(json.dumps(entry))
    return 0


# The programs in lab.py and check.py, and requirements by their lock's digest; put in here when the agent goes to the bucket.
LAB = ""
CHECK = ""
LOCKS: dict[str, str] = {}


def _lab(word: str) -> Callable[[Here, Metadata], int]:
    def do(here: Here, _: Metadata) -> int:
        root = ["--root", here.root] if here.root else []
        argv = [sys.executable, "-", *root, word]
        return subprocess.run(argv, input=LAB.encode(), check=False).returncode

    return do


def _check(here: Here, _: Metadata) -> int:
    env = {**os.environ, "GPULAB_ROOT": here.root}
    return subprocess.run(
        [sys.executable, "-"], input=CHECK.encode(), env=env, check=False
    ).returncode


KEEPING.update(save=_say_save, restore=_say_restored, manifest=_say_manifest)
KEEPING.update(lab=_lab("lab"), data=_lab("data"), locks=_say_locks, check=_check)


# --- the words ----------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """
    Speak one word.

    arm: arm the power-off. setup: go through the phases. watch: look every five seconds, for ever. jupyter: become
    JupyterLab. status: print the status. extend: move the deadline. idle: change the idle limit, 0 for never. save:
    bring the work to the kept copy. restore: bring it back. manifest: list the work with hashes, a JSON object a line.
    token: print JupyterLab's token. log: print the log. lab, data: bring the lab's notebooks and data sets.
    locks: print the locks that came with the whole agent. check: print a row for what can be computed, exit 5 when something failed.
    """
    root, words = os.environ.get("GPULAB_ROOT", ""), list(argv)
    if words[:1] == ["--root"] and len(words) > 1:
        root, words = words[1], words[2:]
    word, option, value = [*words, "", "", ""][:3]
    if OPTIONS.get(word) != option and not (word == "log" and not option):
        print(
            f"usage: gpulab-agent [--root DIR] {' | '.join(f'{w} {o}'.strip() for w, o in OPTIONS.items())}",
            file=sys.stderr,
        )
        return 2
    if (
        word in ("extend", "idle", "save", "restore", "manifest", "lab", "data")
        and not root
        and os.geteuid()
    ):
        os.execvp("sudo", ["sudo", "-n", sys.executable, __file__, *argv])  # noqa: S606 - a list
    try:
        return speak(root, word, option, value)
    except (Problem, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def speak(root: str, word: str, option: str, value: str) -> int:
    """Do what a word says; returns the exit code."""
    here = Here(root)
    metadata = Metadata(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", ""))
    if word == "arm":
        print(arm(here, metadata))
    elif word == "setup":
        return 0 if Setup(here, metadata).all() else 1
    elif word == "watch":
        Watch(here, metadata).forever()
    elif word == "jupyter":
        become_jupyter(here)
    elif word == "status":
        print(json.dumps(compose_status(here, now=metadata.now())))
    elif word == "extend":
        change_limits(here, deadline=iso(seconds_of(value)))
        print(arm(here, metadata))
    elif word == "idle":
        change_limits(here, idle_minutes=max(0, int(value)))
        print(f"idle limit {int(value)} min" if int(value) > 0 else "no idle limit")
    elif word == "token":
        print(here.path("run/gpulab/token").read_text())
    elif word == "log":
        show_log(here, follow=bool(option))
    else:
        return keeping(word)(here, metadata)
    return 0


def show_log(here: Here, *, follow: bool) -> None:
    """Become `tail`, which prints the log, and with `follow` what is added to it, also after it was replaced."""
    log = str(here.path("var/log/gpulab/agent.log"))
    os.execvp("tail", ["tail", "-n", "+1", *["-F"][: int(follow)], log])  # noqa: S606 - a list


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
