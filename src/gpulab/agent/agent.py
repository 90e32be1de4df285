#!/usr/bin/env python3
"""
gpulab-agent: what lives on an instance. Hides how an instance sets itself up, keeps the work and ends itself.

One file, standard library only, Python 3.10 or newer, because it travels in user data. It refuses to run past its
deadline, its budget or its idle limit, and it decides all three without the network. Its words are at the end of this
file; the files it reads and writes are in ARCHITECTURE.md. `--root DIR` puts every path under DIR: no root, no systemd.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

UTC = timezone.utc  # noqa: UP017 - datetime.UTC came with Python 3.11; images of 2022 have 3.10
VERSION = 1
PHASES = ("armed", "host-keys", "ssh", "work", "jupyter", "environment", "gpu")
# The armed timer is the backstop; the watcher ends the instance at the deadline itself, after a last save.
BACKSTOP_GRACE_S = 60
TICK_S = 5.0


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
        try:
            with self.open_log() as out:
                out.write(f"{iso(time.time())} {line}\n".encode())
        except OSError:
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
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    except (OSError, ValueError):
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


# --- a little HTTP: http.client would load ssl, and with it a third of the agent's memory -------------------------


def fetch(
    address: tuple[str, int],
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    timeout_s: float = 1.0,
) -> tuple[int, dict[str, str], bytes]:
    """
    Make one plain HTTP request.

    Returns:
        Status, headers with lower-case names, body (at most 4 MiB).

    Raises:
        OSError: No answer, or not an HTTP answer.
    """
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if method != "GET":
        lines.append("Content-Length: 0")
    with socket.create_connection(address, timeout_s) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = _drain(connection, time.monotonic() + 4 * timeout_s)
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) < 2 or not words[1].isdigit():
        raise OSError(f"not an HTTP answer: {first[:60]!r}")
    pairs = (line.partition(":") for line in rest)
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "chunked" in fields.get("transfer-encoding", ""):
        body = _unchunked(body)
    return int(words[1]), fields, body


def _drain(connection: socket.socket, until: float) -> bytes:
    parts, size = [], 0
    while size < 2**22:
        part = connection.recv(65536)
        if not part:
            break
        if time.monotonic() > until:
            raise TimeoutError("the answer does not end")
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        if not length:
            break
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


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
        self.skew_s = 0.0

    def get(self, path: str) -> bytes | None:
        """Read `latest/PATH`; `None` when it is not there or nobody answers."""
        try:
            status, body = self._get(path)
            if status == 401:
                self.token = ""
                status, body = self._get(path)
        except (OSError, ValueError):
            return None
        return body if status == 200 else None

    def _get(self, path: str) -> tuple[int, bytes]:
        if not self.token:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            status, fields, token = fetch(
                self.address, "/latest/api/token", method="PUT", headers=lifetime
            )
            if status != 200:
                return status, b""
            self.token = token.decode("ascii", "replace").strip()
            self._compare_clocks(fields)
        asked = {"X-aws-ec2-metadata-token": self.token}
        status, fields, body = fetch(self.address, f"/latest/{path}", headers=asked)
        self._compare_clocks(fields)
        return status, body

    def _compare_clocks(self, fields: dict[str, str]) -> None:
        # The answer's Date has whole seconds; smaller differences are not a wrong clock.
        try:
            moment = fields["date"].replace("GMT", "+0000")
            theirs = datetime.strptime(moment, "%a, %d %b %Y %H:%M:%S %z").timestamp()
        except (KeyError, ValueError):
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
    with here.open_log() as log:
        start = log.seek(0, os.SEEK_END)
        log.write(f"{iso(time.time())} $ {' '.join(argv)[:500]}\n".encode())
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=timeout_s,
                env=env,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Problem(f"{Path(argv[0]).name} did not finish within {timeout_s:.0f} s") from None
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
    said = here.path("var/log/gpulab/agent.log").read_bytes()[start:].decode(errors="replace")
    tail = "\n".join(said.strip().splitlines()[1:][-8:])
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
        metadata.get(
            "meta-data/instance-id"
        )  # compares the clocks before the first moment is written down
        change_limits(here, born=metadata.now())
    reason, end = read_limits(here).end
    left = max(0.0, end - metadata.now())
    after = max(1, round(left) + BACKSTOP_GRACE_S)
    if has_systemd(here):
        _arm_systemd(after)
    else:
        _arm_watchdog(here, after)
    write_json(
        here.path("run/gpulab/armed.json"), {"end": end, "monotonic": time.monotonic() + left}
    )
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


def power_off(here: Here, reason: str) -> None:
    """Power this machine off; asked again by the watcher until it is off."""
    here.log(f"power off: {reason}")
    argv = ["systemctl", "poweroff"] if has_systemd(here) else [str(_poweroff(here))]
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
        self.phases = [
            {"name": name, "state": "waiting", "seconds": 0.0, "message": ""} for name in PHASES
        ]

    def all(self) -> bool:
        """Go through every phase; one that fails does not stop the later ones. Returns whether all are done."""
        steps: tuple[Callable[[], str], ...] = (
            lambda: arm(self.here, self.metadata),
            self._host_keys,
            self._ssh,
            self._work,
            self._jupyter,
            self._environment,
            self._gpu,
        )
        for phase, step in zip(self.phases, steps, strict=True):
            self._go(phase, step)
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
        run(self.here, ["sshd", "-t"] if shutil.which("sshd") else ["/usr/sbin/sshd", "-t"])
        subprocess.run(["systemctl", "reload", "--no-block", "ssh"], check=False)
        return "keys only, no root"

    def _work(self) -> str:
        work = self.here.work
        work.mkdir(parents=True, exist_ok=True)
        self.here.give(work)
        return str(work)

    def _jupyter(self) -> str:
        environment = self.here.spec["environment"]
        installed = install(self.here, "server", environment["server"])
        _settings(self.here)
        if not (self.here.path("opt/gpulab/kernel/.gpulab-lock")).exists():
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
        return warm(self.here, names) if names else "no GPU on this instance" + warm(self.here, "")


def warm(here: Here, gpus: str) -> str:
    """Import TensorFlow once, so that the student's first import finds its files in memory; say what it sees."""
    kernel = here.spec["environment"]["kernel"] or {"pins": []}
    if not any(pin.startswith("tensorflow") for pin in kernel["pins"]):
        return gpus
    code = (
        "import tensorflow as t; print(t.__version__, len(t.config.list_physical_devices('GPU')))"
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
    """Where the environment `server` or `kernel` is."""
    return here.path(f"opt/gpulab/{name}")


_COMPILE = (
    "pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --only-binary :all:"
)
_PIP_INSTALL = "install --quiet --no-deps --require-hashes --only-binary :all:"


def install(here: Here, name: str, lock: dict[str, Any]) -> str:
    """
    Install exactly what a compact lock says.

    Returns:
        What was done, in words; an environment that is already there (a baked image, a second boot) is kept.

    Raises:
        Problem: No Python, no index, or the index offers other files than were locked.
    """
    place, marker = venv(here, name), venv(here, name) / ".gpulab-lock"
    packages = len(lock["pins"])
    if marker.exists() and marker.read_text() == lock["sha256"]:
        return f"{packages} packages were already there"
    uv, env = find_uv(here), _uv_environment(here)
    asked = here.spec["environment"]["python"]
    run(here, [uv, "venv", "--quiet", "--clear", "--python", asked, str(place)], env=env)
    python = str(place / "bin/python")
    pins = place / "pins.txt"
    pins.write_text("".join(f"{pin.split()[0]}\n" for pin in lock["pins"]))
    offered = run(
        here,
        [uv, *_COMPILE.split(), "--python", python, str(pins)],
        env=env,
    )
    locked = place / "requirements.txt"
    locked.write_text(expand(lock, offered))
    run(
        here,
        [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, str(locked)],
        env=env,
    )
    marker.write_text(lock["sha256"])
    return f"{packages} packages"


def expand(lock: dict[str, Any], offered: str) -> str:
    """
    Pick from the hashes an index offers the files that were locked.

    Args:
        lock: Compact: hash prefixes, and one digest over the full hashes.
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
    for pin in lock["pins"]:
        name, *prefixes = pin.split()
        chosen += [(name, h) for h in hashes.get(name, []) if h.startswith(tuple(prefixes))]
    lines = "\n".join(sorted(f"{name} sha256:{h}" for name, h in chosen))
    if hashlib.sha256(lines.encode()).hexdigest() != lock["sha256"]:
        missing = [pin.split()[0] for pin in lock["pins"] if pin.split()[0] not in dict(chosen)]
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
        env=_uv_environment(here),
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


def _uv_environment(here: Here) -> dict[str, str]:
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
        env.setdefault("UV_CACHE_DIR", "/opt/gpulab/cache")
    return env


# --- JupyterLab ---------------------------------------------------------------------------------------------------

# A notice travels at most 30 s late into a notebook on disk: JupyterLab's own 120 s is the whole spot notice.
_LAB_SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {"autosaveInterval": 30},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def _settings(here: Here) -> None:
    write_json(venv(here, "server") / "share/jupyter/lab/settings/overrides.json", _LAB_SETTINGS)


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
            raise Problem("JupyterLab does not answer\nSee `gpulab logs`")
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
        "spent_usd": f"{max(0.0, now - limits.born) / 3600 * limits.usd_per_hour:.4f}",
        "budget_usd": here.spec.get("budget_usd"),
        "gpu": known.get("gpu", []),
        "jupyter": {"port": here.port, "ready": jupyter_answers(here)},
        "saved_at": known.get("saved_at"),
        "notice": known.get("notice"),
        "ending": known.get("ending"),
    }


# --- watching -----------------------------------------------------------------------------------------------------


class Watch:
    """The daemon: looks every five seconds, warns, saves, ends."""

    def __init__(self, here: Here, metadata: Metadata) -> None:
        self.here = here
        self.metadata = metadata
        self.live: dict[str, Any] = {}

    def forever(self) -> None:
        """Step until the machine is off."""
        while True:
            started = time.monotonic()
            self.step()
            time.sleep(max(0.2, TICK_S - (time.monotonic() - started)))

    def step(self) -> None:
        """Look once."""
        now = self.metadata.now()
        reason, end = read_limits(self.here).end
        if now >= end:
            power_off(self.here, reason)
        write_json(
            self.here.path("run/gpulab/status.json"),
            compose_status(self.here, now=now, live=self.live),
        )


# --- the words ----------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Speak one word."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="gpulab-agent", description="What lives on a gpulab instance."
    )
    parser.add_argument("--root", default="", metavar="DIR", help="put every path under DIR")
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    for word, text in WORDS.items():
        words.add_parser(word, help=text)
    words.choices["extend"].add_argument("--until", required=True, metavar="ISO")
    words.choices["idle"].add_argument("--minutes", required=True, type=int)
    words.choices["log"].add_argument("--follow", action="store_true")
    options = parser.parse_args(argv)
    if (
        options.word in ("extend", "idle", "save", "restore", "manifest")
        and not options.root
        and os.geteuid()
    ):
        os.execvp("sudo", ["sudo", "-n", sys.executable, __file__, *argv])  # noqa: S606 - an argument list, no shell
    try:
        return speak(options)
    except (Problem, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


WORDS = {
    "arm": "arm the power-off",
    "setup": "go through the phases",
    "watch": "look every five seconds, for ever",
    "jupyter": "become JupyterLab",
    "status": "print the status",
    "extend": "move the deadline",
    "idle": "change the idle limit; 0 for never",
    "token": "print JupyterLab's token",
    "log": "print the log",
}


def speak(options: Any) -> int:
    """Do what a word says; returns the exit code."""
    here = Here(options.root)
    metadata = Metadata(os.environ.get("GPULAB_METADATA", ""))
    if options.word == "arm":
        print(arm(here, metadata))
    elif options.word == "setup":
        return 0 if Setup(here, metadata).all() else 1
    elif options.word == "watch":
        Watch(here, metadata).forever()
    elif options.word == "jupyter":
        become_jupyter(here)
    elif options.word == "status":
        print(json.dumps(compose_status(here, now=metadata.now())))
    elif options.word == "extend":
        change_limits(here, deadline=iso(seconds_of(options.until)))
        print(arm(here, metadata))
    elif options.word == "idle":
        change_limits(here, idle_minutes=options.minutes)
        print(f"idle limit {options.minutes} min" if options.minutes else "no idle limit")
    elif options.word == "token":
        print(here.path("run/gpulab/token").read_text())
    elif options.word == "log":
        show_log(here, follow=options.follow)
    return 0


def show_log(here: Here, *, follow: bool) -> None:
    """Print the log, and with `follow` what is added to it."""
    with here.path("var/log/gpulab/agent.log").open("rb") as log:
        while True:
            part = log.read(65536)
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            if not part:
                if not follow:
                    return
                time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
