"""What a launch in a real account does: its calls, its refusals, its seconds, and what stands on the instance."""

from __future__ import annotations

import http.client
import json
import platform
import time
from contextlib import closing
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from tests.live.account import Account
from tests.live.prices import EXTENDED_BY, SCARCE, launch

from gpulab.aws.errors import from_code
from gpulab.launch.running import browser, checking, notebooks
from gpulab.launch.running.extend import extend
from gpulab.launch.running.instances import host
from gpulab.model.instance import Instance
from gpulab.remote import ports
from gpulab.remote.tunnel import running

_CHECKOUT = Path(__file__).resolve().parents[2]
_ORDER = (
    "DescribeSpotPriceHistory",
    "RunInstances",
    "CreateSchedule",
    "DescribeInstances",
    "GetConsoleOutput",
)
_HOST_KEYS_WITHIN_S = 120
_JUPYTER_WITHIN_S = 300
_SAVED_WITHIN_S = 110


@pytest.mark.costs("lab")
def test_the_calls_of_a_launch_and_their_order(account, lab, record_property):
    """The sandbox saw these calls in this order; a refusal among them would be a right that the policies lack."""
    made = [operation for operation, _ in lab.calls]
    positions = [made.index(operation) for operation in _ORDER if operation in made]
    refused = sorted({f"{op} {status}" for op, status in lab.calls if status in (401, 403)})

    record_property("seen", f"{len(made)} calls: {', '.join(dict.fromkeys(made))}")
    has_end_role = bool(account.context.profile.scheduler_role)
    expected = [op for op in _ORDER if has_end_role or op != "CreateSchedule"]
    assert expected == [op for op in _ORDER if op in made]
    assert sorted(positions[:3]) == positions[:3]
    assert [] == refused


@pytest.mark.costs("refused")
def test_how_aws_words_its_refusals(account, record_property):
    """A code that is worded otherwise would be explained to a student as nothing at all."""
    cases = {
        "SpotMaxPriceTooLow": {
            "InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": {"MaxPrice": "0.0011"}}
        },
        "InvalidAMIID.NotFound": {"ImageId": "ami-00000000000000000"},
        "InvalidGroup.NotFound": {"SecurityGroupIds": ["sg-00000000000000000"]},
    }
    seen = {}
    for code, changes in cases.items():
        with pytest.raises(ClientError) as refused:
            account.small("refused", **changes)
        status = refused.value.response["ResponseMetadata"]["HTTPStatusCode"]
        seen[code] = (refused.value.response["Error"]["Code"], status)

    record_property("seen", ", ".join(f"{said} {status}" for said, status in seen.values()))
    assert list(cases) == [said for said, _ in seen.values()]
    assert "GpulabError" not in {type(from_code(code, "", "launch")).__name__ for code in cases}


@pytest.mark.costs("refused")
def test_the_status_of_a_capacity_refusal(account, record_property):
    """Botocore repeats server errors by itself; the launch client must not, if a full zone is one (HTTP 500)."""
    places = account.ec2.describe_instance_type_offerings(
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": [SCARCE]}],
    )["InstanceTypeOfferings"]
    for zone in sorted(place["Location"] for place in places)[: launch("full")[1].times]:
        try:
            made = account.small("full", Placement={"AvailabilityZone": zone})
        except ClientError as error:
            code = error.response["Error"]["Code"]
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code == "InsufficientInstanceCapacity":
                record_property("seen", f"{zone}: {code} with HTTP {status}")
                assert 500 == status
                return
        else:
            account.end(made)
    pytest.skip("the zones asked had capacity, or the quota is 0: no refusal was to be had")


@pytest.mark.costs("lab")
def test_the_host_keys_are_in_the_console_in_time(lab, record_property):
    """Nothing connects before they are there; GetConsoleOutput may lag behind the machine."""
    seconds = lab.seconds["HostKeyPinned"] - lab.seconds["Running"]

    record_property("seen", f"{seconds:.0f} s after `running`")
    assert seconds <= _HOST_KEYS_WITHIN_S


@pytest.mark.costs("lab")
def test_the_times_to_jupyter_on_g4dn(lab, record_property):
    """The README promises minutes; only AWS has EBS and its images."""
    lab.reached()

    record_property("seen", ", ".join(f"{what} {s} s" for what, s in lab.seconds.items()))
    assert lab.seconds["Ready"] <= _JUPYTER_WITHIN_S


@pytest.mark.costs("lab")
def test_tensorflow_finds_the_gpu(account, lab, record_property):
    """What the course is for; `gpulab check` also counts the memory by notebook and computes on the GPU."""
    instance = lab.reached()
    _needs_a_gpu(account, instance)
    until = time.monotonic() + 1800
    while (
        account.run(
            instance, 'gpulab-agent status | grep -c \'"environment", "state": "done"\' || true'
        )
        == "0"
    ):
        assert time.monotonic() < until, "the environment was not installed within 30 min"
        time.sleep(10)

    found = checking.check(account.context, instance)

    record_property("seen", "; ".join(f"{f.name} {f.state}: {f.text}" for f in found))
    assert [] == [f.name for f in found if f.state == "failed"]
    assert [] == [f.name for f in found if f.state == "skipped"]


@pytest.mark.costs("lab")
def test_gpu_memory_is_told_by_notebook(account, lab, record_property):
    """`gpulab check` names the notebook that holds the memory; so far only a made-up `nvidia-smi` did."""
    instance = lab.reached()
    _needs_a_gpu(account, instance)

    found = {f.name: f for f in checking.check(account.context, instance)}

    record_property("seen", "; ".join(f"{f.name}: {f.text}" for f in found.values()))
    assert any("MiB" in f.text or "GiB" in f.text for f in found.values())


@pytest.mark.costs("lab")
def test_what_stands_under_the_agent(account, lab, record_property):
    """Kernel, driver, DMI and NVMe names: a container shares its host's, so the sandbox shows none of them."""
    instance = lab.reached()
    lines = {
        "vendor": "cat /sys/devices/virtual/dmi/id/sys_vendor",
        "kernel": "uname -r",
        "disks": "lsblk -dno NAME,SIZE | tr '\\n' ' '",
        "driver": "cat /proc/driver/nvidia/version 2>/dev/null | head -1",
    }
    seen = {
        name: account.run(instance, f"({line}) 2>/dev/null || true") for name, line in lines.items()
    }
    if seen["vendor"] != "Amazon EC2":
        pytest.skip("the machine is not EC2's")

    record_property("seen", ", ".join(f"{name} {said}" for name, said in seen.items()))
    assert "nvme" in seen["disks"]
    assert "NVRM" in seen["driver"]


@pytest.mark.costs("lab")
def test_cloud_init_of_the_image_is_content(account, lab, record_property):
    """Ubuntu's cloud-init is newer than Debian 12's, where the user data was booted."""
    instance = lab.reached()
    if account.run(instance, "command -v cloud-init || true") == "":
        pytest.skip("the machine has no cloud-init")

    said = json.loads(account.run(instance, "cloud-init status --format json || true"))

    record_property("seen", f"{said['status']}, {account.run(instance, 'cloud-init --version')}")
    assert "done" == said["status"]
    assert [] == said["errors"]
    assert {} == said.get("recoverable_errors", {})


@pytest.mark.costs("lab")
def test_a_gigabyte_is_saved_within_the_notice(account, lab, record_property):
    """A checkpoint is the largest thing a student has, and the notice is two minutes. In a sandbox 20 MB: its disk and S3 are this computer's."""
    instance = lab.reached()
    if not account.context.profile.keep_bucket:
        pytest.skip("the profile keeps the work on this computer")
    size = 20_000_000 if account.machines else 1_000_000_000
    account.run(instance, f"head -c {size} /dev/urandom > work/checkpoint.bin")
    began = time.monotonic()

    said = json.loads(account.run(instance, "gpulab-agent save", timeout_s=900))

    seconds = time.monotonic() - began
    record_property("seen", f"{said['bytes'] / 1e6:.0f} MB in {seconds:.0f} s")
    account.run(instance, "rm work/checkpoint.bin")
    assert [] == said["failed"]
    assert said["bytes"] >= size
    assert seconds <= _SAVED_WITHIN_S


@pytest.mark.costs("lab")
def test_the_tunnel_of_this_computer(account, lab, record_property):
    """The same code runs on Windows and macOS, with the system's ssh and with paramiko; each is proved where this is run."""
    target = host(account.context, lab.reached()).target
    with running(target, ports.listen("live", [8888])) as tunnel:
        tunnel.wait_connected(60)
        with closing(http.client.HTTPConnection("127.0.0.1", tunnel.ports[8888])) as asked:
            asked.request("GET", "/api")
            answer = asked.getresponse()
            version = json.loads(answer.read())["version"]

    record_property("seen", f"{platform.platform()}: HTTP {answer.status}, Jupyter {version}")
    assert 200 == answer.status


@pytest.mark.costs("lab")
def test_the_browser_is_led_to_jupyter_here(account, lab, record_property):
    """The detached tunnel, its record and its end have a way of their own on Windows."""
    opened = browser.open_detached(account.context, lab.reached(), with_browser=False)
    is_closed = browser.close(account.context, lab.instance)

    record_property("seen", f"{platform.system()}: {opened.url}")
    assert opened.url.startswith("http://127.0.0.1:")
    assert is_closed


@pytest.mark.costs("tf1")
def test_tf1_legacy_computes_on_a_t4(account, record_property):
    """Courses with notebooks of 2017 need a Python and a CUDA that AWS's image does not have; the page says how to bring both."""
    if account.machines:
        pytest.skip("AWS's image and the network of packages are what is asked about")
    wish = account.wish("tf1", environment="tf1-legacy")
    launched = account.launched(wish)
    page = (_CHECKOUT / "docs/environments.md").read_text(encoding="utf-8")
    lines = page.partition("```bash\n# Python 3.7 and CUDA 10.0\n")[2].partition("```")[0]
    account.run(launched.reached(), f"set -e\n{lines}", timeout_s=1200)

    found = {f.name: f for f in checking.check(account.context, launched.instance)}

    record_property("seen", "; ".join(f"{f.name} {f.state}: {f.text}" for f in found.values()))
    assert [] == [f.name for f in found.values() if f.state == "failed"]
    assert "ok" == found["gpu"].state
    assert "on the GPU" in found["session"].text


@pytest.mark.costs("lab")
def test_notebooks_come_from_the_network_of_aws(account, lab, record_property):
    """The instance fetches a lab's notebooks by itself; a campus mirror is not there."""
    wanted = notebooks.read_notebooks(
        "https://github.com/tensorflow/docs:site/en/tutorials/quickstart", ()
    )
    if account.machines:
        pytest.skip("the network of AWS is what is asked about")

    said = notebooks.bring(account.context, lab.reached(), wanted)

    record_property("seen", said)
    assert "notebook" in said


@pytest.mark.costs("lab")
def test_an_extension_moves_every_end(account, lab, record_property):
    """Timer, schedule and tag move together, or the old end comes under the new one."""
    moved = extend(account.context, lab.reached(), lab.instance.expires_at + EXTENDED_BY)

    record_property("seen", f"agent {moved.agent}, schedule {moved.schedule}, tag {moved.tag}")
    assert (True, True) == (moved.agent, moved.tag)


def _needs_a_gpu(account: Account, instance: Instance) -> None:
    if account.machines and "GPU" not in account.run(instance, "nvidia-smi -L || true"):
        pytest.skip("the machine has no GPU")
