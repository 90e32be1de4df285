"""What an instance is born with: small enough, the same each time, valid for cloud-init, and deaf to hostile values."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest
import yaml

from gpulab.bootstrap import (
    InstanceSpec,
    Keep,
    cloud_config,
    environment_names,
    load_environment,
    user_data,
)
from gpulab.bootstrap.checking import fits_alone
from gpulab.bootstrap.shipping import shipped_agent, small_source
from gpulab.errors import InvalidRequest
from gpulab.model.course import DataSet, Notebooks

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
_PACKAGED = "/usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"
SCHEMA = Path(os.environ.get("CLOUDINIT_SCHEMA", _PACKAGED))
# Each broke a tool that put values into YAML or shell by hand.
HOSTILE = [
    '"; poweroff; "',
    "$(reboot)",
    "`id`",
    "a\nruncmd:\n- [touch, /root/pwned]",
    "{{ ds.meta_data }}",
    "## template: jinja",
    "': !!python/object/apply:os.system [id]",
    "\u2028\u0000\U0001f600",
    "*alias &anchor !tag",
]


def a_spec(**changes) -> InstanceSpec:
    spec = InstanceSpec(
        launch="01JD3V5K8Q2W9XG7H4R6T0ABCD",
        name="week4",
        owner="7f3a9c21b0",
        user="ubuntu",
        made_at=NOW,
        deadline=NOW + timedelta(hours=4),
        idle_minutes=60,
        usd_per_hour=Decimal("0.2158"),
        environment=load_environment("tf2-small"),
        has_gpu=False,
        budget_usd=Decimal("2.10"),
        course="cs101-2026",
        lab="week4",
        keep=Keep(
            "gpulab-123456789012-us-east-1",
            "7f3a9c21b0/week4/",
            "us-east-1",
            "https://s3.us-east-1.amazonaws.com",
        ),
    )
    return replace(spec, **changes)


def a_keep(environment) -> Keep:
    """A bucket in which the locks of an environment travel."""
    return replace(a_spec().keep, locks=environment.locks)


def kernel_of(data: bytes) -> dict:
    spec = json.loads(file_of(unpacked(data), "/etc/gpulab/spec.json"))
    return spec["environment"]["kernel"]


def unpacked(data: bytes) -> dict:
    first, _, rest = gzip.decompress(data).partition(b"\n")
    assert first == b"#cloud-config"
    return json.loads(rest)


def file_of(config: dict, path: str) -> str:
    (content,) = (file["content"] for file in config["write_files"] if file["path"] == path)
    return content


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("name", environment_names())
def test_every_shipped_environment_fits_without_a_bucket(name, has_gpu):
    """EC2 refuses more than 16384 bytes; a kilobyte of them is for a course's own packages and for the next renewal of a lock."""
    spec = a_spec(environment=load_environment(name), has_gpu=has_gpu, keep=None)

    assert len(user_data(spec)) <= 16384 - 1024


def test_what_fits_without_a_bucket_is_known_before_anybody_launches():
    """A TA whose students' accounts allow no bucket reads it in `env show`, not in thirty messages of students."""
    environment = load_environment("tf2")
    pins = tuple(
        replace(pin, name=f"{pin.name}-more", hashes=tuple(h[::-1] for h in pin.hashes))
        for pin in environment.gpu.pins
    )
    large = replace(environment, gpu=replace(environment.gpu, pins=(*environment.gpu.pins, *pins)))

    assert (True, False) == (fits_alone(environment), fits_alone(large))
    with pytest.raises(InvalidRequest):
        user_data(a_spec(environment=large, has_gpu=True, keep=None))


def test_with_a_bucket_the_number_of_packages_does_not_matter():
    """A course of biologists wants 400 more; its locks travel beside the agent, and user data has their digests."""
    environment = load_environment("tf2")
    pins = tuple(
        replace(pin, name=f"{pin.name}-{n}", hashes=(f"{hash((pin.name, n)) & (2**256 - 1):064x}",))
        for pin in environment.gpu.pins
        for n in range(4)
    )
    large = replace(environment, gpu=replace(environment.gpu, pins=pins))

    data = user_data(a_spec(environment=large, has_gpu=True, keep=a_keep(large)))

    assert len(data) < 14500
    assert {"python": ">=3.11,<3.13", "sha256": large.gpu.sha256} == kernel_of(data)


def test_the_instance_finds_its_locks_in_the_agent_that_its_user_data_names(tmp_path):
    """What the bucket holds is checked by one hash, so the locks in it are those of this launch, and an old object serves no new lock."""
    environment = load_environment("tf2")
    keep, whole = a_keep(environment), tmp_path / "agent.py"
    whole.write_bytes(keep.agent_body)
    (tmp_path / "etc/gpulab").mkdir(parents=True)
    spec = a_spec(environment=environment, has_gpu=True, keep=keep).as_json()
    (tmp_path / "etc/gpulab/spec.json").write_text(json.dumps(spec))

    command = [sys.executable, whole, "--root", tmp_path, "locks"]
    locks = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    named = [spec["environment"][which] for which in ("server", "kernel")]
    wanted = [environment.server, environment.gpu]
    assert [lock.requirements() for lock in wanted] == [locks[lock["sha256"]] for lock in named]
    assert hashlib.sha256(keep.agent_body).hexdigest() == spec["keep"]["agent"]
    assert keep.agent_key != replace(keep, locks=(environment.server,)).agent_key


@pytest.mark.parametrize("has_bucket", [True, False])
def test_jupyterlabs_extensions_come_where_there_is_room_for_them(has_bucket):
    """User data alone has none for thirty more packages: JupyterLab without its extensions is better than no launch."""
    environment = load_environment("tf2")
    keep = a_keep(environment) if has_bucket else None

    server = a_spec(environment=environment, keep=keep).as_json()["environment"]["server"]

    names = {pin.name for pin in environment.server.pins}
    wanted = environment.server if has_bucket else environment.core_server
    assert (wanted.sha256, not has_bucket) == (server["sha256"], "pins" in server)
    assert {"jupyterlab-git", "jupyterlab-lsp", "jupytext", "nbdime"} <= names
    assert {pin.name for pin in environment.core_server.pins} < names


def test_a_labs_notebooks_fit_beside_the_largest_environment():
    """A course with a bucket lets instances fetch them alone; three data sets more must not break the launch."""
    data = tuple(
        DataSet(f"https://example.org/data/set-{n}.zip", f"{n:064x}")
        for n in (10**76, 3**150, 7**80)
    )
    source = "https://github.com/DeepLearningDTU/02456-deep-learning"
    notebooks = Notebooks(
        source, "7518e19ad8e9dcc5509e44d275e370c49c553178", "notebooks/lab1", data
    )
    environment = load_environment("tf2")
    keep = a_keep(environment)
    spec = a_spec(environment=environment, has_gpu=True, notebooks=notebooks, keep=keep)

    read = json.loads(file_of(unpacked(user_data(spec)), "/etc/gpulab/spec.json"))["notebooks"]

    assert ("notebooks/lab1", source, 3) == (read["folder"], read["repository"], len(read["data"]))


def test_without_a_bucket_the_notebooks_are_not_in_user_data():
    """The laptop brings them over ssh then; an instance that tried would have no program for it."""
    spec = a_spec(keep=None, notebooks=Notebooks("https://example.org/x"))

    assert "notebooks" not in json.loads(
        file_of(unpacked(user_data(spec)), "/etc/gpulab/spec.json")
    )


def test_one_specification_gives_one_text():
    """A launch that is asked again with its client token must send the same bytes, or EC2 refuses it."""
    assert user_data(a_spec()) == user_data(a_spec())


def test_an_environment_that_is_too_large_is_refused_with_its_size():
    """A course with 400 packages must hear it before the launch, with what to do."""
    spec = a_spec(keep=None)
    pins = tuple(
        replace(pin, name=f"{pin.name}-{n}", hashes=(f"{hash((pin.name, n)) & (2**256 - 1):064x}",))
        for pin in spec.environment.cpu.pins
        for n in range(40)
    )
    large = replace(spec.environment, cpu=replace(spec.environment.cpu, pins=pins))

    with pytest.raises(
        InvalidRequest, match=r"the user data has \d+ bytes, \d+ over EC2's limit"
    ) as refused:
        user_data(replace(spec, environment=large))

    assert (
        "Make the environment tf2-small smaller; with a bucket (`gpulab init`) its size does not matter"
        == refused.value.hint
    )


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_stays_a_value(value):
    """A course file names labs; whoever writes it must not become root on every student's instance."""
    plain, hostile = (
        cloud_config(a_spec()),
        unpacked(user_data(a_spec(name=value, lab=value, course=value, owner=value))),
    )
    spec = json.loads(file_of(hostile, "/etc/gpulab/spec.json"))

    assert [value] * 4 == [spec[key] for key in ("name", "lab", "course", "owner")]
    assert (plain["bootcmd"], plain["runcmd"]) == (hostile["bootcmd"], hostile["runcmd"])


@pytest.mark.parametrize(
    "user", ["-oProxyCommand=x", "root; id", "../etc", "", "Ubuntu", "a" * 33, "x\n"]
)
def test_a_login_user_that_could_be_an_option_or_a_path_is_refused(user):
    """The name becomes part of a unit's name and a path."""
    with pytest.raises(InvalidRequest, match="is not a login user"):
        a_spec(user=user)


@pytest.mark.parametrize("value", HOSTILE)
def test_yaml_reads_it_as_json_does(value):
    """cloud-init reads YAML; an escape that YAML reads otherwise would change a value, or end the boot."""
    text = gzip.decompress(user_data(a_spec(name=value))).decode()

    assert json.loads(text.partition("\n")[2]) == yaml.safe_load(text)


def test_the_power_off_is_armed_before_anything_else():
    """Bootcmd runs before any file is written: a broken agent, index or lock still costs no more than planned."""
    (command,) = cloud_config(a_spec())["bootcmd"]

    assert ["systemd-run", "systemctl", "poweroff"] == [command[0], *command[-2:]]
    assert "--on-active=14400" in command
    assert "--no-block" in command


def test_runcmd_waits_for_nothing():
    """Runcmd runs inside a unit itself: waiting for another one from there can deadlock the boot."""
    last = cloud_config(a_spec())["runcmd"][-1]

    assert ["systemctl", "start", "--no-block"] == last[:3]


def test_nothing_in_it_is_secret():
    """Every process on the instance and anyone with DescribeInstanceAttribute can read it."""
    config = cloud_config(a_spec())
    spec = a_spec().as_json() | {"environment": None}
    files = [f for f in config["write_files"] if "/systemd/" in f["path"]]
    text = json.dumps([spec, files])

    assert not re.search(r"AKIA|ASIA|PRIVATE KEY|password|secret|token", text, re.IGNORECASE)


def test_it_is_valid_for_cloud_init():
    """An older cloud-init ignores a key it does not know, so a typing mistake shows as an instance without sshd settings."""
    schema = _schema()
    validator = jsonschema.Draft4Validator(schema)
    mistake = {**cloud_config(a_spec()), "runcmds": []}

    assert [] == [error.message for error in validator.iter_errors(cloud_config(a_spec()))]
    assert ["runcmds"] == [
        word
        for error in validator.iter_errors(mistake)
        for word in re.findall(r"'(\w+)' was", error.message)
    ]


def _schema() -> dict:
    if not SCHEMA.exists():
        pytest.skip(
            "no cloud-init here: install it, or name its schema-cloud-config-v1.json in CLOUDINIT_SCHEMA"
        )
    schema = json.loads(SCHEMA.read_text())
    if schema.get("additionalProperties") is not False:
        pytest.skip(
            f"the cloud-init of {SCHEMA} is too old to know unknown keys: 23.1 or newer is wanted"
        )
    return schema


def test_the_units_keep_their_promises():
    """Each line was a lost server somewhere: a killed kernel, a crashed agent, a slow stop inside the two-minute notice."""
    config = cloud_config(a_spec())
    jupyter = file_of(config, "/etc/systemd/system/gpulab-jupyter@.service").splitlines()
    agent = file_of(config, "/etc/systemd/system/gpulab-agent.service").splitlines()

    assert {
        "User=%i",
        "Restart=always",
        "RestartSec=2",
        "OOMPolicy=continue",
        "KillMode=mixed",
        "TimeoutStopSec=20",
    } <= {*jupyter}
    assert "RuntimeDirectoryMode=0700" in jupyter
    assert {"Restart=always", "OOMScoreAdjust=-900", "StartLimitIntervalSec=0"} <= {*agent}
    assert not [
        line for line in jupyter if line.startswith(("NoNewPrivileges", "Protect", "Private"))
    ]


def test_sshd_takes_keys_only():
    """An instance has a public address: passwords, root and forwarded agents are doors nobody needs."""
    lines = file_of(cloud_config(a_spec()), "/etc/ssh/sshd_config.d/10-gpulab.conf").splitlines()

    assert {
        "PasswordAuthentication no",
        "PermitRootLogin no",
        "AllowAgentForwarding no",
        "AllowTcpForwarding local",
        "PermitOpen 127.0.0.1:* localhost:* [::1]:*",
    } <= {*lines}


@pytest.mark.parametrize("keep", [a_spec().keep, None], ids=["bucket", "no-bucket"])
def test_the_shipped_agent_is_a_program_that_runs(tmp_path, keep):
    """What travels is not the source: it is smaller and renamed, so the shipped form itself is run here."""
    program, root = tmp_path / "gpulab-agent", tmp_path / "root"
    program.write_text(shipped_agent(has_bucket=keep is not None))
    (root / "etc/gpulab").mkdir(parents=True)
    (root / "etc/gpulab/spec.json").write_text(json.dumps(a_spec(keep=keep).as_json()))
    env = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}

    def say(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", program, "--root", root, *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    idle, status, usage = say("idle", "--minutes", "5"), say("status"), say("dance")

    assert "idle limit 5 min\n" == idle.stdout, idle.stderr
    assert (5, "2026-11-23T17:00:00Z") == (
        json.loads(status.stdout)["idle_minutes"],
        json.loads(status.stdout)["deadline"],
    )
    assert (2, True) == (
        usage.returncode,
        usage.stderr.startswith("usage: gpulab-agent [--root DIR] arm | setup"),
    )


@pytest.mark.parametrize("keep", [a_spec().keep, None], ids=["bucket", "no-bucket"])
def test_the_shipped_watcher_gets_through_a_round(tmp_path, keep):
    """A name that was shortened in one place only stops each round where it stands: nothing is saved, and no status is written."""
    now = datetime.now(UTC)
    spec = a_spec(made_at=now, deadline=now + timedelta(hours=4), keep=keep)
    program, root = tmp_path / "gpulab-agent", tmp_path / "root"
    program.write_text(shipped_agent(has_bucket=keep is not None))
    (root / "etc/gpulab").mkdir(parents=True)
    (root / "etc/gpulab/spec.json").write_text(json.dumps(spec.as_json()))
    (root / "home/ubuntu/work").mkdir(parents=True)
    (root / "home/ubuntu/work/a.ipynb").write_text("{}")
    env = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
    log, status = root / "var/log/gpulab/agent.log", root / "run/gpulab/status.json"

    watcher = subprocess.Popen([sys.executable, "-I", program, "--root", root, "watch"], env=env)
    try:
        until = time.monotonic() + 60
        while not status.exists() and "Error" not in said(log) and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        watcher.kill()
        watcher.wait()
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(said(root / "run/gpulab/end.pid")), signal.SIGKILL)

    assert "Error" not in said(log)
    assert spec.as_json()["deadline"] == json.loads(said(status))["deadline"]


def said(path: Path) -> str:
    """What a file says so far."""
    return path.read_text() if path.exists() else ""


def test_without_a_bucket_the_agent_has_nothing_to_reach_one_with_and_says_so(tmp_path):
    """Its watcher saves every minute, bucket or not: the words must be there, do nothing, and not fail."""
    data = user_data(a_spec(keep=None))
    program, root = tmp_path / "gpulab-agent", tmp_path / "root"
    program.write_text(file_of(unpacked(data), "/usr/local/bin/gpulab-agent"))
    (root / "etc/gpulab").mkdir(parents=True)
    (root / "etc/gpulab/spec.json").write_text(file_of(unpacked(data), "/etc/gpulab/spec.json"))
    command = [sys.executable, "-I", program, "--root", root]

    said = [
        subprocess.run([*command, word], capture_output=True, text=True, check=False)
        for word in ("save", "restore")
    ]

    assert [(0, "{}\n", "")] * 2 == [(s.returncode, s.stdout, s.stderr) for s in said]
    assert "AWS4-HMAC-SHA256" not in small_source(has_bucket=False)
    assert "AWS4-HMAC-SHA256" in small_source(has_bucket=True)


@pytest.mark.parametrize("has_bucket", [True, False])
def test_the_shipped_agent_leaves_out_only_what_it_says(has_bucket):
    """The part that keeps the work lies in the bucket; everything that ends an instance must travel."""
    source = small_source(has_bucket=has_bucket)

    assert "partNumber" not in source
    assert "systemd-run" in source
    assert "spot/instance-action" in source
    assert '"""' not in source
