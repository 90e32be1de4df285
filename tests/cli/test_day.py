"""A student's day on the command line: what is typed twice, too late or without its dashes ends well and says so."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest

from gpulab.cli.main import run
from gpulab.remote import detached
from gpulab.remote.born import born
from gpulab.remote.copying import CopyReport
from gpulab.remote.manifest import read_local
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.sandbox.rules import Delays, Rules
from gpulab.store.config import change_profile
from gpulab.store.home import Home

_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A ready account whose instances have no machines behind them."""
    with Sandbox() as opened:
        yield opened


@pytest.fixture
def up(sandbox: Sandbox) -> Callable[[str], str]:
    """Have an instance of mine, running, of a name."""

    def launch(name: str) -> str:
        made = _an_instance(name)
        sandbox.advance(20)
        return made

    return launch


def _an_instance(name: str) -> str:
    """Launch an instance of mine as any client would."""
    image = boto3.client("ssm").get_parameter(Name=_UBUNTU)["Parameter"]["Value"]
    tags = [
        {"Key": f"gpulab:{k}", "Value": v}
        for k, v in (("name", name), ("owner", "me"), ("launch", name))
    ]
    made: Any = boto3.client("ec2").run_instances(
        ImageId=image,
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return str(made["Instances"][0]["InstanceId"])


def test_stopping_what_has_ended_already_is_done(sandbox, capsys):
    """`gpulab stop` at the end of the lab, typed twice or after the deadline, must not read as a failure."""
    codes = [run(["stop"]), run(["stop", "lab"]), run(["stop", "--all"])]

    said = capsys.readouterr()
    assert [0, 0, 0] == codes
    assert (
        "Nothing of yours runs; nothing was ended\nlab is not up; nothing was ended\n" in said.err
    )
    assert "" == said.out


@pytest.mark.parametrize("names", [[], ["week4"]])
def test_stopping_all_says_that_a_region_did_not_answer(names, capsys):
    """Exit 0 would read as "nothing costs any more", and a GPU may run in the region that was not read."""
    none = timedelta(0)
    at_once = Rules(delays=Delays(boot=none, terminate=none, consistency=none, role=none))
    with Sandbox(clock=RunningClock(), rules=at_once) as world:
        for name in names:
            _an_instance(name)
        world.refuse("DescribeInstances", "InternalError", region="us-east-2", times=None)

        code = run(["stop", "--all", "--no-save", "--yes"])

        left = world.instances("pending", "running")
    said = capsys.readouterr().err
    assert (4, []) == (code, left)
    assert "error: not everything could be looked at: us-east-2" in said
    assert "hint: What runs there was not ended; stop again once it answers" in said


@pytest.mark.parametrize(
    ("is_ready", "code", "last"),
    [
        (True, 0, "Nothing stands in the way: `gpulab up`"),
        (False, 5, "hint: The failed lines say what to do"),
    ],
)
def test_doctor_fails_when_something_stands_in_the_way(is_ready, code, last, capsys):
    """`gpulab doctor && gpulab up` must end at the quota of 0, which the doctor has just shown."""
    profile = {"cidr": "203.0.113.7/32", "regions": ["us-east-1"]}
    change_profile(Home.of(os.environ).config_file, "default", profile)

    with Sandbox(clock=RunningClock(), ready=is_ready):
        found = run(["doctor"])

    said = capsys.readouterr()
    assert (code, last) == (found, said.err.splitlines()[-1])
    assert is_ready == ("failed   us-east-1 quota G spot: 0 of 0 vCPUs" not in said.out)
    assert is_ready == (" checks failed: us-east-1 quota G spot\n" not in said.err)


def test_stopping_nothing_still_answers_in_json(sandbox, capsys):
    """A script that stops at night parses the answer either way."""
    code = run(["stop", "--json"])

    assert (0, {"events": []}) == (code, json.loads(capsys.readouterr().out))


def the_agent_says(monkeypatch, *lines: str) -> None:
    """Answer for the agent, whose instance has no machine here."""
    monkeypatch.setattr("gpulab.launch.running.instances.host", lambda context, instance: None)
    monkeypatch.setattr("gpulab.launch.running.agent.log", lambda host, follow: iter(lines))


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ([], "armed\njupyter \ufffd[2J up\n"),
        (["--follow"], "armed\njupyter \ufffd[2J up\n"),
        (["--raw"], "armed\njupyter \x1b[2J up\n"),
        (["--follow", "--json"], '{"line": "armed"}\n{"line": "jupyter \\u001b[2J up"}\n'),
    ],
)
def test_the_log_of_an_instance_drives_no_terminal_unasked(
    up, monkeypatch, capsys, options, printed
):
    """What runs on the instance may write anything; programs get it whole, people get it harmless."""
    up("week4")
    the_agent_says(monkeypatch, "armed", "jupyter \x1b[2J up")

    code = run(["logs", "week4", *options])

    assert (0, printed) == (code, capsys.readouterr().out)


def test_a_program_reads_log_and_console_as_one_document(up, monkeypatch, capsys):
    """A TA's script that collects logs must tell the two apart."""
    made = up("week4")
    the_agent_says(monkeypatch, "armed", "jupyter up")

    codes = [run(["logs", "--json"]), run(["logs", "--json", "--raw"])]
    agent = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(
        "gpulab.launch.running.instances.console", lambda context, instance: "boot\nkeys\n"
    )
    codes.append(run(["logs", "--console", "--json"]))
    console = json.loads(capsys.readouterr().out)

    assert [0, 2, 0] == codes
    assert {"id": made, "from": "agent", "lines": ["armed", "jupyter up"]} == agent
    assert {"id": made, "from": "console", "lines": ["boot", "keys"]} == console


def test_a_slip_of_the_finger_does_not_read_as_stopped(up, capsys):
    """`gpulab stop wek4` while week4 runs on costs money all night."""
    up("week4")

    code = run(["stop", "wek4"])

    assert 2 == code
    assert (
        "error: no instance is called `wek4`\n\nhint: There is week4\n" == capsys.readouterr().err
    )


def test_a_name_mistyped_for_a_copy_names_what_is_up(up, capsys):
    """Nothing of that name is kept; whoever hears only of kept work does not see the slip."""
    up("week4")

    code = run(["pull", "wek4"])

    said = "error: no work of `wek4` is kept\n\nhint: Did you mean `week4`?\n"
    assert (2, said) == (code, capsys.readouterr().err)


@pytest.mark.parametrize(
    "typed", [["extend", "week4", "1h"], ["fleet", "extend", "week4", "30m"], ["up", "week4", "3"]]
)
def test_a_length_of_time_without_its_option_names_the_option(capsys, typed):
    """`gpulab extend week4 1h` is what everybody types first."""
    code = run(typed)

    command = " ".join(["gpulab", *typed[:-2]])
    hint = f"hint: A length of time is an option, as in `{command} --hours 1`\n"
    assert 2 == code
    assert capsys.readouterr().err.endswith(hint)


@pytest.fixture
def hears_ctrl_c():
    """A run in the background inherits a deaf ear for SIGINT; a terminal does not."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_watching_ends_with_ctrl_c_without_an_error(sandbox, capsys):
    """Ctrl-C is how one leaves `ls -w`; it is not a mistake."""
    seen = len(sandbox.calls)

    def press() -> None:
        while len(sandbox.calls) == seen:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()

    code = run(["ls", "-w", "--quick"])

    said = capsys.readouterr()
    assert 130 == code
    assert "error" not in said.err


def test_a_tunnel_closes_although_the_instance_is_gone(capsys):
    """AWS took the instance back and the network may be down: closing needs neither."""
    folder = Home.of(os.environ).folder("default").tunnels
    child = _a_process()
    try:
        _announce_for(folder, "week4", child.pid)

        codes = [run(["open", "week4", "--close"]), run(["open", "week4", "--close"])]
    finally:
        child.kill()
        child.wait()

    said = capsys.readouterr()
    assert ([0, 0], "") == (codes, said.out)
    assert "The tunnel to week4 is closed\nThere was no tunnel\n" == said.err


def test_a_tunnel_in_the_terminal_takes_the_place_of_the_one_in_the_background(
    up, monkeypatch, capsys
):
    """`gpulab up` has left one there; a second beside it would listen where no browser's tab looks."""
    up("week4")
    folder = Home.of(os.environ).folder("default").tunnels
    beside: list[object] = []

    def serve(*what, **how):
        beside.append(detached.find(folder, "week4"))
        raise KeyboardInterrupt

    monkeypatch.setattr("gpulab.launch.running.browser.serve", serve)
    child = _a_process()
    try:
        _announce_for(folder, "week4", child.pid)

        code = run(["open", "week4"])
    finally:
        child.kill()
        child.wait()

    said = capsys.readouterr().err
    assert (130, [None]) == (code, beside)
    assert (
        "This tunnel takes the place of the one in the background\n\nThe tunnel is closed; week4 goes on\n"
        == said
    )


def _a_process() -> Any:
    import subprocess
    import sys

    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def _announce_for(folder: Any, name: str, pid: int) -> None:
    """Write the file of a tunnel that another process keeps."""
    detached.announce(
        folder, name=name, instance_id="i-1", ports={8888: 30001}, log_file=folder / "x.log"
    )
    file = folder / f"{name}.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record.update(pid=pid, born=born(pid))
    file.write_text(json.dumps(record), encoding="utf-8")


def test_a_forgotten_double_dash_is_shown_where_it_belongs(capsys):
    """`ssh HOST COMMAND` is in everybody's fingers."""
    code = run(["ssh", "week4", "df", "-h"])

    said = capsys.readouterr().err
    assert 2 == code
    assert "the command to run there stands behind `--`" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push", "a", "b", "c"], "`c` is one word too many"),
        (["push", "nowhere"], "`nowhere` does not exist here"),
        (["push", "Bad Name", "."], "`Bad Name` cannot be a name"),
    ],
)
def test_push_says_which_of_its_words_is_wrong(words, said, capsys, tmp_path, monkeypatch):
    """NAME may be left out, so the words must be told apart by what they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()

    code = run(words)

    assert 2 == code
    assert f"error: {said}\n" in capsys.readouterr().err


def test_push_takes_a_single_file(up, capsys, tmp_path, monkeypatch):
    """One data set, one notebook: its neighbours in the download folder stay at home."""
    up("week4")
    (tmp_path / "mnist.npz").write_bytes(b"1")
    (tmp_path / "private.txt").write_bytes(b"2")
    asked = []

    def copied(_host, source, _destination, *, only, **_more):
        asked.append((source, sorted(read_local(source, only=only).entries)))
        return CopyReport(1, 1, 0, (), (), 1, "", "tar")

    monkeypatch.setattr("gpulab.remote.copying.push", copied)
    code = run(["push", str(tmp_path / "mnist.npz")])

    assert (0, [(tmp_path, ["mnist.npz"])]) == (code, asked)
    assert "1 file copied (1 B)" in capsys.readouterr().out


@pytest.fixture
def labs_folder(monkeypatch) -> None:
    """The instances have the notebooks of a lab."""
    monkeypatch.setattr(
        "gpulab.launch.running.lab_folder.of_instance", lambda *_: "course/labs/one"
    )


def test_push_takes_a_solution_into_the_labs_folder(up, labs_folder, capsys, tmp_path, monkeypatch):
    """Nobody remembers `work/02456-deep-learning/notebooks/lab1_Introduction`."""
    up("week4")
    (tmp_path / "solution.ipynb").write_bytes(b"{}")
    asked = []

    def copied(_host, _source, destination, **_more):
        asked.append(destination)
        return CopyReport(1, 2, 0, (), (), 1, "", "tar")

    monkeypatch.setattr("gpulab.remote.copying.push", copied)
    code = run(["push", str(tmp_path / "solution.ipynb"), "--lab"])

    assert (0, ["work/course/labs/one"]) == (code, asked)
    assert "to week4:work/course/labs/one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "into"), [(["pull", "--lab"], "one"), (["pull", "week4", "mine", "--lab"], "mine")]
)
def test_pull_fetches_the_labs_folder_alone(up, labs_folder, monkeypatch, words, into):
    """It becomes a folder of the lab's own name here, so that two labs do not run into one another."""
    up("week4")
    asked = []

    def copied(_host, source, destination, **_more):
        asked.append((source, str(destination)))
        return CopyReport(1, 2, 0, (), (), 1, "", "tar")

    monkeypatch.setattr("gpulab.remote.copying.pull", copied)
    code = run(words)

    assert (0, [("work/course/labs/one", into)]) == (code, asked)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull", "--lab", "--from", "x"], "`--lab` and `--from` exclude each other"),
        (["push", ".", "--lab", "--to", "x"], "`--lab` and `--to` exclude each other"),
    ],
)
def test_one_folder_is_named_in_one_way(words, said, capsys):
    """Of two folders one would be left out without a word."""
    assert (2, True) == (run(words), f"error: {said}\n" in capsys.readouterr().err)


@pytest.mark.parametrize(
    ("typed", "stdin", "stdout", "flag"),
    [
        ((), True, True, "-tt"),
        ((), False, True, "-T"),
        (("--", "nvidia-smi"), True, True, "-tt"),
        (("--", "nvidia-smi"), False, True, "-T"),
        (("--", "cat", "scores.csv"), True, False, "-T"),
    ],
)
def test_ssh_asks_for_a_terminal_only_where_there_is_one(
    up, monkeypatch, typed, stdin, stdout, flag
):
    """`gpulab ssh week4 </dev/null` in a script would wait for ever, and `> scores.csv` would get carriage returns."""
    up("week4")
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda argv, **_: started.append(argv) or 0)
    monkeypatch.setattr(sys, "stdin", _Stream(is_terminal=stdin))
    monkeypatch.setattr(sys, "stdout", _Stream(is_terminal=stdout))

    code = run(["ssh", "week4", *typed])

    assert (0, 1) == (code, len(started))
    assert flag == next(word for word in started[0] if word in ("-T", "-tt"))


class _Stream(io.StringIO):
    """An input or output that is a terminal or none."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def test_push_without_a_name_takes_the_only_instance(up, capsys, tmp_path):
    """The name is only asked for where there is a choice."""
    up("week4")
    up("week5")

    code = run(["push", str(tmp_path)])

    assert 2 == code
    assert "2 instances are up: week5, week4\n\nhint: Name one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--env", "nope"], "there is no environment 'nope'"),
        (["up", "--region", "us-nowhere-1"], "AWS has no region `us-nowhere-1`"),
        (["up", "--cidr", "0.0.0.0/0"], "would open ssh to the whole internet"),
        (["up", "--dry-run", "--cidr", "home"], "`home` is not an address range"),
        (["up", "--type", "nope.large"], "gpulab knows no instance type `nope.large`"),
        (["prices", "--region", "us-east-11"], "AWS has no region `us-east-11`"),
    ],
)
def test_what_this_computer_can_see_to_be_wrong_never_reaches_aws(words, said, sandbox, capsys):
    """A slip found after the plan was agreed to, or dressed up as a broken network, wastes a student's evening."""
    code = run(words)

    assert 2 == code
    assert said in capsys.readouterr().err
    assert [] == [c.operation for c in sandbox.calls]


def test_the_kept_work_of_what_is_up_is_not_deleted(up, capsys, monkeypatch):
    """Its next save builds on the copy: deleting that would leave `gpulab stop` with nothing to compare."""
    folder = Home.of(os.environ).folder("default").work / "week4"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    up("week4")

    code = run(["rm", "week4", "--yes"])

    assert 2 == code
    assert "hint: `gpulab stop week4` first" in capsys.readouterr().err
    assert ["notes.txt"] == [f.name for f in folder.iterdir()]


@pytest.fixture
def unread_region(sandbox):
    """Kept work of a name, and a region that does not answer."""
    folder = Home.of(os.environ).folder("default").work / "week4"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    sandbox.refuse("DescribeInstances", "InternalError", region="us-east-2", times=None)
    return folder


def test_the_kept_work_of_what_may_be_up_is_not_deleted(unread_region, capsys):
    """An instance in the region that did not answer would save beside a copy that is gone."""
    code = run(["rm", "week4", "--yes"])

    said = capsys.readouterr().err
    assert 1 == code
    assert "error: week4 may be up, and what it saves belongs to the kept work: us-east-2" in said
    assert ["notes.txt"] == [f.name for f in unread_region.iterdir()]


def test_pull_says_that_a_newer_copy_may_run(unread_region, capsys, tmp_path):
    """Yesterday's notebook over this morning's must not read as all there is."""
    code = run(["pull", "week4", str(tmp_path / "here")])

    said = capsys.readouterr().err
    assert 0 == code
    assert "What comes is the kept copy, and a newer one may run: us-east-2 was not read" in said
    assert "mine" == (tmp_path / "here" / "notes.txt").read_text()


def test_the_plan_says_where_the_work_is(sandbox, capsys):
    """Where yesterday's notebook is, and whether it comes back, is asked before every start."""
    code = run(["up", "week4", "--dry-run", "--hours", "2"])

    said = capsys.readouterr().out
    folder = Home.of(os.environ).folder("default").work / "week4"
    assert 0 == code
    assert f"  work      kept in {folder}; what is there comes back\n" in said
    assert ", in 2 h, or after 60 min without activity" in said


def test_a_region_that_is_named_twice_is_tried_once(sandbox, capsys):
    """A plan that goes from a full region to the same region promises what it cannot keep."""
    region = ["--region", "us-east-1"]

    code = run(["up", "week4", "--dry-run", *region, *region, "--region", "us-west-2"])

    assert 0 == code
    assert "note      if all of these are full, us-west-2 is tried\n" in capsys.readouterr().out


def test_init_without_credentials_says_how_to_give_them(monkeypatch, capsys):
    """`gpulab init` must not answer: run `gpulab init`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    code = run(["init", "--yes"])

    said = capsys.readouterr().err
    assert 1 == code
    assert "hint: `gpulab init --paste` takes the credentials of a class page" in said


def test_what_is_up_before_init_is_still_mine_after_it(sandbox, capsys):
    """`gpulab up` works without `gpulab init`; the instance of that evening must not vanish from the list and cost on."""
    sandbox.refuse("DescribeSubnets", "UnauthorizedOperation")

    run(["up", "week4", "--yes", "--no-open", "--cidr", "203.0.113.7/32", "--env", "tf2-small"])
    before = Home.of(os.environ).config().profile(None).owner
    run(["init", "--yes"])
    after = Home.of(os.environ).config().profile(None).owner

    assert 10 == len(before)
    assert before == after


def test_a_damaged_ledger_hides_what_things_cost_but_not_that_they_run(up, capsys):
    """The one question that must always be answered is: does something of mine still run?"""
    up("week4")
    ledger = Home.of(os.environ).folder("default").ledger
    ledger.write_bytes(b"not a ledger" * 100)

    codes = [run(["ls", "--quick"]), run(["report"])]

    said = capsys.readouterr()
    assert [0, 2] == codes
    assert "week4  running" in said.out
    assert f"note: what it costs is not known: could not read the ledger {ledger}" in said.err
    assert b"not a ledger" == ledger.read_bytes()[:12]
