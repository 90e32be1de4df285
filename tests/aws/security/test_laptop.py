"""Another user of the same computer, its core files, its process list, and reports that are mailed around: no secret is in any of them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from tests.aws.fleets.instances_that_keep import Machines
from tests.aws.launch.conftest import Student

from gpulab.cli.main import COMMANDS, group, run
from gpulab.launch.context import Context
from gpulab.launch.running import booting, browser, extend, instances, stop
from gpulab.model.instance import Instance
from gpulab.remote import copying, detached, hostkeys
from gpulab.remote.keys import make_key_pair
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.rules import Delays, Rules
from gpulab.store.home import Home
from gpulab.view.secrets import without_secrets

posix = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: files have no modes")
#: In the time of this computer, by which the commands go.
AT_ONCE = Rules(
    delays=Delays(
        boot=timedelta(0), terminate=timedelta(0), consistency=timedelta(0), role=timedelta(0)
    )
)
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzE" + "a1" * 60
PASTED = f"[default]\naws_access_key_id=ASIAIOSFODNN7EXAMPLE\naws_secret_access_key={SECRET}\naws_session_token={TOKEN}\n"


@pytest.fixture
def careless() -> Iterator[None]:
    """A umask that keeps nothing from anybody, as some shared computers have."""
    before = os.umask(0)
    yield
    os.umask(before)


def readable_by_others(root: Path) -> list[str]:
    """What another user could open: a folder that is closed keeps what is in it, whatever its own mode."""
    found = []
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077:
                found.append(str(path.relative_to(root)))
    return sorted(found)


@posix
def test_nothing_in_the_users_folder_is_anybody_elses(sandbox, careless, monkeypatch, capsys):
    """A shared computer in the lab room: `cat ~ann/.gpulab/keys/id_ed25519` must not be an exercise."""
    home = Home.of(os.environ)
    weak = home.root.with_name("weak")
    (weak / "keys").mkdir(parents=True)
    (weak / "keys" / "id").write_text("a private key")
    monkeypatch.setattr("sys.stdin", _Given(PASTED))

    codes = [
        run(["init", "--yes"]),
        run(["--profile", "pasted", "init", "--paste", "--no-resources"]),
        run(["ledger", "export", str(home.root / "facts.jsonl")]),
    ]
    folder = home.folder("default")
    student = Student(sandbox, folder.root)
    student.context = replace(student.context, profile=home.config().profile("default"))
    launched = student.up()
    key = hostkeys.parse_public_key(make_key_pair(folder.root / "a-host-key").split()[1])
    hostkeys.pin(folder.known_hosts, "i-0123456789abcdef0", [key])
    detached.announce(
        folder.tunnels,
        name="week4",
        instance_id="i-0123456789abcdef0",
        ports={8888: 8888},
        log_file=folder.tunnels / "week4.log",
    )

    # The pasted key is none of this world's, so its account is not reached.
    assert 0 == codes[0]
    assert 0 == codes[2]
    assert launched.instance is not None
    assert ["keys", "keys/id"] == readable_by_others(weak)
    assert 0o700 == stat.S_IMODE(home.root.stat().st_mode)
    assert [] == [p for p in readable_by_others(home.root) if not p.endswith((".pub",))]
    assert 12 < len(list(home.root.rglob("*")))


class Day:
    """A student's computer, and what is readable by others there after each thing that was done."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.home, self.mine = Home.of(os.environ), folder / "mine"
        self.mine.mkdir(mode=0o700)
        self.loose: dict[str, list[str]] = {}
        self.codes: dict[str, int] = {}
        self.machines = Machines(sandbox, folder / "machines")
        self.student = Student(sandbox, self.home.folder("default").root)

    @property
    def context(self) -> Context:
        profile = self.home.config().profile("default")
        return replace(self.student.context, profile=profile, connect=self.machines.connect)

    def look(self, done: str) -> None:
        found = [path for root in (self.home.root, self.mine) for path in readable_by_others(root)]
        self.loose[done] = [path for path in found if not path.endswith(".pub")]

    def type(self, *command: str) -> None:
        self.codes[" ".join(command[:2])] = run([*command])
        self.look(" ".join(command[:2]))

    def up(self) -> Instance:
        self.student.context = self.context
        launched = self.student.up()
        assert launched.instance is not None, launched.error
        instance = launched.instance
        self.machines.boot(instance.id).write("week4.ipynb", b"{}")
        hostkeys.pin(self.context.folder.known_hosts, instance.id, [hostkeys.HostKey(bytes(32))])
        list(booting.bring_back(self.context, instance))
        self.look("up")
        return instance

    def open(self, instance: Instance) -> None:
        """All that stays on the computer of a tunnel, and of the browser that is led to it."""
        tunnels = self.context.folder.tunnels
        detached.announce(
            tunnels,
            name=instance.name,
            instance_id=instance.id,
            ports={8888: 8888},
            log_file=tunnels / "week4.log",
        )
        opened = browser.Opened(instance.name, "http://127.0.0.1:8888/lab", 8888, is_new=True)
        browser.lead(tunnels, opened, "secret")
        self.look("open")


@posix
def test_after_a_students_day_no_file_is_anybody_elses(tmp_path, careless, monkeypatch, capsys):
    """What was fetched, what it cost, and the way in: on a computer that many share, each command writes files of its own."""
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    with Sandbox(clock=RunningClock(), rules=AT_ONCE) as sandbox:
        day = Day(sandbox, tmp_path)
        day.type("init", "--no-resources")
        day.type("doctor")
        instance = day.up()
        day.open(instance)
        host = instances.host(day.context, instance)
        (day.mine / "data.csv").write_text("mine")
        (day.mine / "data.csv").chmod(0o600)
        copying.push(host, day.mine, "work")
        day.look("push")
        copying.pull(host, "work", day.mine / "pulled")
        day.look("pull")
        until = datetime.now(UTC) + timedelta(hours=6)
        extend.extend_within_budget(day.context, instance, until)
        day.look("extend")
        day.type("ls", "--json")
        list(stop.stop(day.context, instance))
        day.look("stop")
        day.type("pull", "week4", str(day.mine / "kept"), "--kept")
        day.type("credit")
        day.type("report", "--html", str(day.mine / "report.html"))
        day.type("ledger", "export", str(day.mine / "facts.jsonl"))
        kept = {path.name for path in day.context.folder.work.rglob("*")}
        fetched = sorted(p.relative_to(day.mine).as_posix() for p in day.mine.rglob("*.*"))
        day.type("sweep", "--yes")
        day.type("rm", "week4", "--yes")
    shown, loose = capsys.readouterr(), dict(day.loose)
    day.context.folder.known_hosts.chmod(0o644)
    day.look("a loosened file")

    assert {done: [] for done in loose} == loose
    assert ["profiles/default/known_hosts"] == day.loose["a loosened file"]
    # Nothing keeps the work in this account, and `doctor` says so.
    assert [] == [c for c, code in day.codes.items() if code and c != "doctor"], shown.err
    assert {"week4.ipynb", "data.csv"} <= kept
    assert [
        "data.csv",
        "facts.jsonl",
        "kept/data.csv",
        "kept/week4.ipynb",
        "pulled/data.csv",
        "pulled/week4.ipynb",
        "report.html",
    ] == fetched


@posix
def test_a_new_roster_is_its_teachers_alone(tmp_path, careless, capsys):
    """Names and addresses of a class are personal data from the first line on."""
    code = run(["course", "new", str(tmp_path / "course")])

    assert (0, 0o600) == (code, stat.S_IMODE((tmp_path / "course" / "roster.csv").stat().st_mode))


def test_no_option_takes_a_secret():
    """What is typed on a command line stands in the shell's history and in everybody's process list."""
    careless = click.Command("login", params=[click.Option(["--secret-key"])])
    ours = [
        f"{name} {option}"
        for name in COMMANDS
        for command in _all(group.get_command(click.Context(group), name))
        for option in _telling(command)
    ]

    assert ["--secret-key"] == _telling(careless)
    assert [] == ours


def _telling(command):
    """Name the options of a command that ask for a secret."""
    words = ("secret", "token", "password", "key-id")
    options = (option for parameter in command.params for option in parameter.opts)
    return [option for option in options if any(word in option for word in words)]


def test_pasted_keys_are_in_no_file_but_the_credentials(sandbox, monkeypatch, capsys):
    """The block of a class page goes into one private file; configuration, journal and errors never see it."""
    monkeypatch.setattr("sys.stdin", _Given(PASTED))

    run(["init", "--paste", "--no-resources", "--json"])

    shown = capsys.readouterr()
    root = Home.of(os.environ).root
    holding = _holding(root)
    (root / "careless.toml").write_text(f'secret = "{SECRET}"\n')

    assert ["credentials"] == holding
    assert ["careless.toml", "credentials"] == _holding(root)
    assert SECRET not in shown.out + shown.err


def _holding(root):
    """Name the files below a folder that hold the pasted secret."""
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(path.name for path in files if SECRET.encode() in path.read_bytes())


def test_the_report_of_an_unexpected_failure_holds_no_secret(sandbox, monkeypatch, capsys):
    """Students mail this file to a teacher; an exception's text may carry what it failed on."""
    said = (
        f"cannot use {PASTED} at https://s3/x?X-Amz-Signature=abcdef0123&X-Amz-Credential=ASIA1/x"
    )
    monkeypatch.setattr("sys.stdin", _Broken(said))

    code = run(["init", "--paste"])

    (report,) = Home.of(os.environ).errors.iterdir()
    text = report.read_text(encoding="utf-8")
    assert (1, 0o600) == (code, stat.S_IMODE(report.stat().st_mode))
    assert "RuntimeError: cannot use" in text
    assert [] == [s for s in (SECRET, TOKEN, "ASIAIOSFODNN7EXAMPLE", "abcdef0123") if s in text]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key AKIAIOSFODNN7EXAMPLE is", "key <hidden> is"),
        (f"{{'SecretAccessKey': '{SECRET}'}}", "{'SecretAccessKey': '<hidden>'}"),
        (
            "http://127.0.0.1:8888/lab?token=0123456789abcdef01",
            "http://127.0.0.1:8888/lab?token=<hidden>",
        ),
        ("Authorization: token 0123456789abcdef01", "Authorization: <hidden>"),
        (
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnN\n-----END OPENSSH PRIVATE KEY-----",
            "<hidden>",
        ),
        ("a token bucket of 5, password-free, i-0123456789abcdef0", None),
    ],
)
def test_secrets_are_known_by_their_shape_and_their_name(text, shown):
    """Hiding too much makes a report useless, too little makes it dangerous."""
    assert (text if shown is None else shown) == without_secrets(text)


@posix
def test_a_crash_leaves_no_core_with_the_keys_in_it():
    """A core file is the memory of a process that held AWS keys, and may lie about for years."""
    look = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    ours = f"import sys; sys.argv[1:] = ['--help']; import gpulab.__main__ as m; m.main(); {look}"

    def soft_limit(program):
        words = ["sh", "-c", 'ulimit -c unlimited 2>/dev/null; exec "$@"', "sh"]
        said = subprocess.run(
            [*words, sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return said.stdout.splitlines()[-1]

    assert "0" == soft_limit(ours)
    assert soft_limit(look) != "0"


def _all(command: click.Command) -> list[click.Command]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(deeper for one in inner for deeper in _all(one))]


class _Given:
    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, size: int = -1) -> str:
        return self._text

    def isatty(self) -> bool:
        return False


class _Broken(_Given):
    def read(self, size: int = -1) -> str:
        raise RuntimeError(self._text)
