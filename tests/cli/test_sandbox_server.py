"""`gpulab sandbox` end to end: a server in the background, its words, its exit codes, and any AWS client that reaches it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError

from gpulab.cli.main import run
from gpulab.sandbox.control import find
from gpulab.sandbox.machines.process import trees

_PATIENCE_S = 60.0
_SERVER = "L-3819A6DF"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A user's folder whose configuration has something of the user's own, and a sandbox that runs."""
    home = tmp_path_factory.mktemp("gpulab-home")
    (home / "config.toml").write_text('# my own words\n[profiles.default]\nowner = "s1"  # me\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPULAB_HOME", str(home))
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a real secret")
        assert 0 == run(["sandbox", "start", "--machines", "none", "--seed", "7"])
        yield home
        assert 0 == run(["sandbox", "stop"])


@pytest.fixture(autouse=True)
def _use(home, monkeypatch) -> None:
    monkeypatch.setenv("GPULAB_HOME", str(home))


@pytest.fixture
def ask(capsys) -> Callable[..., Any]:
    """Run a command with `--json` and return its document."""

    def ask(*words: str) -> Any:
        capsys.readouterr()
        assert 0 == run(["sandbox", *words, "--json"])
        return json.loads(capsys.readouterr().out)

    return ask


def client(service: str = "ec2", region: str = "us-east-1") -> Any:
    """A client as any program makes one: from an AWS profile and nothing else."""
    profile = tomllib.loads((Path(os.environ["GPULAB_HOME"]) / "config.toml").read_text())
    mine = profile["profiles"]["sandbox"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", mine["aws_config_file"])
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", mine["aws_credentials_file"])
        session = boto3.Session(profile_name=mine["aws_profile"])
        once = Config(retries={"total_max_attempts": 1})
        return session.client(service, region_name=region, config=once)


def launch(ec2: Any, **changes: Any) -> str:
    image = ec2.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"]
    order = {
        "ImageId": image,
        "InstanceType": "g4dn.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceMarketOptions": {"MarketType": "spot"},
        "Placement": {"AvailabilityZone": "us-east-1a"},
    }
    found = ec2.run_instances(**{**order, **changes})
    instance = str(found["Instances"][0]["InstanceId"])
    assert _until(lambda: _is_known(ec2, instance))
    return instance


def test_the_profile_is_written_and_the_rest_of_the_file_kept(home):
    """`start` must not cost a student their own configuration."""
    text = (home / "config.toml").read_text()

    assert text.startswith('# my own words\n[profiles.default]\nowner = "s1"  # me\n')
    assert (
        str(home / "sandbox/aws/config")
        == (tomllib.loads(text)["profiles"]["sandbox"]["aws_config_file"])
    )


def test_secrets_are_readable_by_their_owner_only(home):
    """The control API can end everything; on a shared computer nobody else may."""
    modes = {
        name: stat.S_IMODE((home / "sandbox" / name).stat().st_mode)
        for name in ("control.json", "aws/credentials", "")
    }

    assert {"control.json": 0o600, "aws/credentials": 0o600, "": 0o700} == modes


def test_the_control_api_wants_its_secret(home):
    """Every program on this computer, and every web page in its browser, can reach the port."""
    url = find(home / "sandbox").url
    connection = http.client.HTTPConnection(url.removeprefix("http://"))

    connection.request("POST", "/_gpulab/stop", "{}", {"Authorization": "Bearer guessed"})

    answer = connection.getresponse()
    expected = {"error": "the secret of the control API is missing or wrong"}
    assert (403, expected) == (answer.status, json.loads(answer.read()))
    connection.close()


def test_any_aws_client_reaches_it_by_the_profile(home):
    """The product has no special case for the sandbox: an ordinary profile with an endpoint is all."""
    identity = client("sts").get_caller_identity()

    assert ("123456789012", "arn:aws:iam::123456789012:user/student") == (
        identity["Account"],
        identity["Arn"],
    )


def test_env_leads_another_program_here(home, capsys):
    """`eval "$(gpulab sandbox env)"` is how the AWS CLI or any script joins in."""
    run(["sandbox", "env", "--shell", "sh"])
    lines = capsys.readouterr().out
    program = "import boto3; print(boto3.client('sts').get_caller_identity()['Account'])"

    done = subprocess.run(
        ["/bin/sh", "-c", f"{lines}\nexec '{sys.executable}' -c \"{program}\""],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ("123456789012\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("shell", "lines"),
    [
        ("sh", ["export AWS_REGION=us-east-1", "unset AWS_PROFILE"]),
        ("fish", ["set -gx AWS_REGION us-east-1", "set -e AWS_PROFILE"]),
        (
            "powershell",
            [
                "$Env:AWS_REGION = 'us-east-1'",
                "Remove-Item Env:AWS_PROFILE -ErrorAction SilentlyContinue",
            ],
        ),
    ],
)
def test_env_speaks_the_language_of_the_shell(capsys, shell, lines):
    """A line that the shell does not understand leaves the real account in force."""
    run(["sandbox", "env", "--shell", shell])

    assert set(lines) <= set(capsys.readouterr().out.splitlines())


def test_start_again_is_nothing_to_do(home, capsys):
    """Typing it twice must not make a second world."""
    before = find(home / "sandbox")

    code = run(["sandbox", "start", "--machines", "none"])

    assert (0, before) == (code, find(home / "sandbox"))
    assert before.url in capsys.readouterr().err


def test_another_sandbox_beside_it_is_refused(capsys):
    """Two worlds under one profile would be mixed up; the way out is named."""
    code = run(["sandbox", "start", "--machines", "process", "--speed", "60"])

    err = capsys.readouterr().err
    assert 1 == code
    assert "a sandbox already runs at http://127.0.0.1:" in err
    assert "hint: End it and its machines with `gpulab sandbox stop`" in err


def test_the_log_has_every_call_and_no_secret(ask):
    """What gpulab asked AWS is the best explanation there is; user data may hold what nobody should read."""
    ec2 = client()
    instance = launch(ec2, UserData="#cloud-config\nhush: 1\n")

    calls = ask("log")

    last = next(call for call in reversed(calls) if call["operation"] == "RunInstances")
    assert {
        "account": "123456789012",
        "region": "us-east-1",
        "service": "ec2",
        "operation": "RunInstances",
        "outcome": "ok",
    } == {k: v for k, v in last.items() if k not in ("time", "parameters")}
    assert "hush" not in json.dumps(calls)
    ec2.terminate_instances(InstanceIds=[instance])


def test_the_log_follows_line_by_line(home):
    """A TA watches during a lab what the tool does, one object a line for other programs."""
    argv = [sys.executable, "-m", "gpulab", "sandbox", "log", "--follow", "--json"]
    follower = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    client("sts").get_caller_identity()

    operations = []
    while "GetCallerIdentity" not in operations[-1:]:
        operations.append(json.loads(follower.stdout.readline())["operation"])

    follower.terminate()
    follower.communicate()
    assert "GetCallerIdentity" == operations[-1]


def test_status_shows_instances_and_that_the_money_is_simulated(ask, capsys):
    """Nobody should take these dollars for real ones."""
    ec2 = client()
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "gpulab:name", "Value": "lab"}]}]
    instance = launch(ec2, TagSpecifications=tags)

    run(["sandbox", "status"])

    out = capsys.readouterr().out
    assert "no money, made-up prices" in out
    assert "of simulated money spent" in out
    found = next(i for i in ask("status")["instances"] if i["id"] == instance)
    assert ("lab", "g4dn.xlarge", "us-east-1a", "spot") == (
        found["name"],
        found["type"],
        found["zone"],
        found["market"],
    )
    ec2.terminate_instances(InstanceIds=[instance])


def test_status_json_has_its_keys_and_not_the_secret(ask, home):
    """Scripts rely on the keys; the control secret and the key stay where they are."""
    answer = ask("status")

    assert {
        *("running", "url", "pid", "machines", "speed", "seed", "region", "account"),
        *("now", "calls", "simulated_usd", "instances", "capacity"),
    } == set(answer)
    assert find(home / "sandbox").secret not in json.dumps(answer)


def test_a_full_zone_refuses_until_it_has_room(ask, capsys):
    """To rehearse failover, a person fills a zone."""
    assert 0 == run(["sandbox", "capacity", "g4dn.xlarge", "us-east-1b", "0"])
    assert "us-east-1b has room for 0 more of g4dn.xlarge.\n" == capsys.readouterr().err
    place = {"AvailabilityZone": "us-east-1b"}

    with pytest.raises(ClientError, match="InsufficientInstanceCapacity"):
        launch(client(), Placement=place)
    ask("capacity", "g4dn.xlarge", "us-east-1b", "any")
    ec2 = client()
    instance = launch(ec2, Placement=place)

    ec2.terminate_instances(InstanceIds=[instance])
    assert instance.startswith("i-")


def test_a_price_is_in_force_from_now_on(ask):
    """To rehearse a price that rises."""
    ask("price", "g5.xlarge", "us-east-1a", "0.77")

    found = client().describe_spot_price_history(
        InstanceTypes=["g5.xlarge"],
        AvailabilityZone="us-east-1a",
        ProductDescriptions=["Linux/UNIX"],
        MaxResults=1,
    )

    assert 0.77 == float(found["SpotPriceHistory"][0]["SpotPrice"])


def test_a_quota_is_what_the_account_then_has(ask):
    """To rehearse the first day of a student: no GPU quota."""
    ask("quota", _SERVER, "0", "--region", "us-east-2")

    quotas = client("service-quotas", "us-east-2")
    found = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=_SERVER)

    assert 0.0 == found["Quota"]["Value"]
    assert (
        64.0
        == (
            client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=_SERVER)[
                "Quota"
            ]["Value"]
        )
    )


def test_students_apply_their_templates(ask, tmp_path):
    """A class with accounts of its own is rehearsed as it will be: the role asks for the student's external id."""
    arn = "arn:aws:iam::111100000001:role/gpulab-course"
    run(["course", "new", str(tmp_path / "dl")])
    (tmp_path / "dl" / "roster.csv").write_text(
        "id,name,email,account\ns1,Ann,a@x.example,111100000001\n"
    )
    enrol = ["course", "enrol", str(tmp_path / "out"), "--course", str(tmp_path / "dl")]
    assert 0 == run(["--profile", "sandbox", *enrol])
    sts = client("sts")

    found = ask("apply", str(tmp_path / "out" / "s1.template.json"))

    assert arn == found["roles"][0]
    # The course has a budget: the account holds it, and the roster's address is told.
    made = json.loads((tmp_path / "out" / "s1.template.json").read_text())
    assert ("a@x.example", "AWS::Budgets::BudgetsAction") == (
        made["Parameters"]["Email"]["Default"],
        made["Resources"]["BudgetAction"]["Type"],
    )
    assert "arn:aws:iam::111100000001:role/gpulab-budget-course-dl" in found["roles"]
    with pytest.raises(ClientError, match="AccessDenied"):
        sts.assume_role(RoleArn=arn, RoleSessionName="me")


def test_calls_fail_as_often_as_asked(ask):
    """To see what the tool says when AWS has a bad minute."""
    ask("fail", "DescribeVpcs", "InternalError", "--times", "1")

    with pytest.raises(ClientError, match="InternalError"):
        client().describe_vpcs()
    assert 1 == len(client().describe_vpcs()["Vpcs"])


def test_a_lost_reply_is_a_broken_connection(ask):
    """The hardest case of a launch: it took effect and nobody knows."""
    ask("fail", "CreateKeyPair", "reply-lost", "--times", "1")
    ec2 = client()

    with pytest.raises(HTTPClientError):
        ec2.create_key_pair(KeyName="lost")

    names = [k["KeyName"] for k in client().describe_key_pairs()["KeyPairs"]]
    assert ["lost"] == names


def test_faults_are_lifted(ask):
    """A rehearsal must be able to go on."""
    ask("fail", "DescribeVpcs", "InternalError")

    ask("mend")

    assert 1 == len(client().describe_vpcs()["Vpcs"])


def test_throttling_can_be_made_tight(ask):
    """To see the tool wait instead of hammering."""
    ask("throttle", "DescribeKeyPairs", "--size", "1", "--per-second", "0")
    client().describe_key_pairs()

    with pytest.raises(ClientError, match="RequestLimitExceeded"):
        client().describe_key_pairs()
    ask("mend")
    answers = [client().describe_key_pairs()["ResponseMetadata"] for _ in range(3)]
    assert [200, 200, 200] == [answer["HTTPStatusCode"] for answer in answers]


def test_an_interruption_is_announced_and_comes(ask, capsys):
    """A person sees the two minutes of a spot notice without waiting for AWS."""
    ec2 = client()
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "gpulab:name", "Value": "spot1"}]}]
    instance = launch(ec2, TagSpecifications=tags)

    assert 0 == run(["sandbox", "interrupt", "spot1", "--in", "1s"])

    assert (
        f"{instance} has its notice now, and 1 s later AWS terminates it."
        in capsys.readouterr().err
    )
    assert _until(lambda: _state(ec2, instance)[0] in ("shutting-down", "terminated"))
    assert "Server.SpotInstanceTermination" == _state(ec2, instance)[1]


def _state(ec2: Any, instance: str) -> tuple[str, str]:
    found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    return found["State"]["Name"], found.get("StateReason", {}).get("Code", "")


def _until(is_so: Callable[[], object]) -> bool:
    limit = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > limit:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["interrupt", "nobody"], "no instance is called `nobody`", "Running or stopped now:"),
        (
            ["capacity", "g4dn.xlrage", "us-east-1a", "1"],
            "`g4dn.xlrage` is not an instance type",
            "",
        ),
        (["capacity", "g4dn.xlarge", "mars-1a", "1"], "`mars-1a` is not an availability zone", ""),
        (
            ["price", "g4dn.xlarge", "us-east-1z", "1"],
            "`us-east-1z` is not an availability zone",
            "us-east-1 has us-east-1a, us-east-1b, us-east-1c",
        ),
        (
            ["fail", "RunInstances", "InternalError", "--zone", "mars"],
            "`mars` is not an availability zone",
            "Such as us-east-1a",
        ),
        (["quota", "L-3819A6DF", "0", "--region", "mars"], "`mars` is not a region", ""),
        (["capacity", "g4dn.xlarge", "us-east-1a", "-1"], "", ""),
        (
            ["capacity", "g4dn.xlarge", "us-east-1a", "few"],
            "`few` is not a number of instances",
            "",
        ),
        (["price", "g4dn.xlarge", "us-east-1a", "nan"], "`nan` is not an amount", ""),
        (["quota", "L-0", "4"], "`L-0` is not a quota the sandbox knows", "L-3819A6DF (All G"),
        (
            ["fail", "RunInstance", "X"],
            "`RunInstance` is not an operation",
            "Did you mean `RunInstances`?",
        ),
        (["start", "--machines", "vm"], "'vm' is not one of 'process', 'container', 'none'", ""),
        (["start", "--speed", "0"], "0", ""),
    ],
)
def test_wrong_usage_is_exit_2_and_names_it(capsys, words, message, hint):
    """One line that says which word is wrong; nothing is changed."""
    code = run(["sandbox", *words])

    err = capsys.readouterr().err
    assert 2 == code
    assert message in err
    assert hint in err
    assert "Traceback" not in err


def test_without_a_machine_the_door_times_out(home):
    """An address that nobody answers at, in the words an ssh client knows."""
    argv = [sys.executable, "-P", "-m", "gpulab.sandbox", "connect", "54.210.1.2", "22"]

    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )

    expected = "connect to address 54.210.1.2 port 22: Connection timed out\n"
    assert (1, expected) == (done.returncode, done.stderr)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_real_credentials_of_its_user_do_not_reach_it(home):
    """A simulated AWS that holds real keys could one day use them."""
    environment = Path(f"/proc/{find(home / 'sandbox').pid}/environ").read_bytes()

    assert b"a real secret" not in environment
    assert b"GPULAB_HOME=" in environment


class TestAnotherHome:
    """What needs a sandbox of its own, or none."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))

    def test_stop_and_status_without_one_are_fine(self, capsys):
        """Nothing to do is no failure."""
        assert (0, 0) == (run(["sandbox", "stop"]), run(["sandbox", "status"]))

        out, err = capsys.readouterr()
        assert ("The sandbox is not running.\n", "The sandbox was not running.\n") == (out, err)

    def test_steering_without_one_says_how_to_start(self, capsys):
        """The next command is in the hint."""
        code = run(["sandbox", "log"])

        expected = (
            "error: the sandbox is not running\n\nhint: Start it with `gpulab sandbox start`\n"
        )
        assert (1, expected) == (code, capsys.readouterr().err)

    def test_a_taken_port_is_said(self, capsys):
        """The reason stands in the error and not only in a log file."""
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            code = run(["sandbox", "start", "--machines", "none", "--port", port])

        err = capsys.readouterr().err
        assert 1 == code
        assert (
            f"the sandbox did not start: could not listen on port {port}: Address already in use"
            in err
        )

    def test_a_broken_configuration_is_refused_before_anything_starts(self, tmp_path, capsys):
        """Its profile could not be written afterwards, and the file is the user's."""
        home = tmp_path / "home"
        home.mkdir()
        (home / "config.toml").write_text("not = [toml")

        code = run(["sandbox", "start", "--machines", "none"])

        assert (2, "not = [toml", False) == (
            code,
            (home / "config.toml").read_text(),
            (home / "sandbox").exists(),
        )
        assert "config.toml: not readable as TOML" in capsys.readouterr().err

    def test_a_killed_server_is_replaced_by_the_next_start(self, tmp_path, capsys):
        """After a crash, `start` is all a person needs to know."""
        run(["sandbox", "start", "--machines", "none"])
        first = find(tmp_path / "home/sandbox")
        trees.kill_until_gone(
            lambda: {first.pid} if trees.is_running(first.pid, first.started) else ()
        )

        code = run(["sandbox", "start", "--machines", "none"])

        second = find(tmp_path / "home/sandbox")
        run(["sandbox", "stop"])
        assert (0, True) == (code, first.pid != second.pid)
        assert not trees.is_running(second.pid, second.started)

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")
    def test_an_instance_is_a_machine_one_logs_in_to(self, tmp_path):
        """The whole way: RunInstances, the host key from the console, ssh through the profile's door, terminate, nothing left."""
        assert 0 == run(["sandbox", "start"])
        ec2, instance = _launched_with_ssh(tmp_path)

        assert _until(lambda: _state(ec2, instance)[0] == "running")
        done = _ssh(tmp_path, ec2, instance, "cat /dev/stdin; poweroff")

        assert b"through the door" == done.stdout
        assert _until(lambda: _state(ec2, instance)[0] == "terminated")
        assert "Client.InstanceInitiatedShutdown" == _state(ec2, instance)[1]
        machines = tmp_path / "home/sandbox/process/machines"
        assert _until(lambda: not list(machines.iterdir()))
        assert 0 == run(["sandbox", "stop"])
        assert set() == trees.marked(
            "GPULAB_MACHINE", lambda value: value.startswith(str(tmp_path))
        )

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")
    def test_a_closed_security_group_closes_the_door(self, tmp_path):
        """A launch that forgot its rule must fail here as it would on AWS."""
        assert 0 == run(["sandbox", "start"])
        ec2, instance = _launched_with_ssh(tmp_path, is_open=False)

        assert _until(lambda: _state(ec2, instance)[0] == "running")
        done = _ssh(tmp_path, ec2, instance, "true")

        run(["sandbox", "stop"])
        assert 255 == done.returncode
        assert b"port 22: Connection timed out" in done.stderr


def _launched_with_ssh(folder: Path, *, is_open: bool = True) -> tuple[Any, str]:
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    ec2 = client()
    ec2.import_key_pair(KeyName="k", PublicKeyMaterial=key.with_suffix(".pub").read_bytes())
    group = ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    assert _until(lambda: _is_known(ec2, group))
    if is_open:
        ranges = [{"CidrIp": "192.0.2.1/32"}]
        rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": ranges}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    instance = launch(
        ec2,
        KeyName="k",
        SecurityGroupIds=[group],
        InstanceInitiatedShutdownBehavior="terminate",
    )
    return ec2, instance


def _is_known(ec2: Any, name: str) -> bool:
    try:
        if name.startswith("sg-"):
            ec2.describe_security_groups(GroupIds=[name])
        else:
            ec2.describe_instances(InstanceIds=[name])
    except ClientError:
        return False
    return True


def _ssh(folder: Path, ec2: Any, instance: str, command: str) -> subprocess.CompletedProcess[bytes]:
    def host_key() -> str:
        text = ec2.get_console_output(InstanceId=instance, Latest=True).get("Output", "")
        return next((x for x in text.splitlines() if x.startswith("ssh-ed25519 ")), "")

    assert _until(host_key)
    (folder / "known_hosts").write_text(f"{instance} {host_key()}\n")
    found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    profile = tomllib.loads((Path(os.environ["GPULAB_HOME"]) / "config.toml").read_text())
    proxy = " ".join(profile["profiles"]["sandbox"]["ssh_proxy_command"])
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": instance,
        "ProxyCommand": proxy,
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    argv = ["ssh", "-F", "none", "-i", str(folder / "key"), *flags]
    return subprocess.run(
        [*argv, f"ubuntu@{found['PublicIpAddress']}", command],
        input=b"through the door",
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_a_new_world_knows_nothing_of_the_former_one_but_keeps_the_users_work(capsys):
    """Simulated money of yesterday, and a bucket that is gone, must not meet today's instances."""
    from gpulab.cli.context import context_of
    from gpulab.cli.sandbox_profile import forget_former_world
    from gpulab.store.config import change_profile

    context = context_of(profile_name="sandbox")
    folder = context.home.folder("sandbox")
    folder.journal.write_text("{}\n")
    (folder.work / "week4").mkdir()
    change_profile(context.home.config_file, "sandbox", {"keep_bucket": "gone", "gpu": "L4"})

    forget_former_world(context)

    profile = context.home.config().profile("sandbox")
    assert ("", "L4") == (profile.keep_bucket, profile.gpu)
    assert ["work"] == sorted(p.name for p in folder.root.iterdir())


def test_a_sandbox_whose_folder_was_deleted_ends_and_leaves_another_ones_record(
    tmp_path, monkeypatch
):
    """Nobody could ever stop it: it would hold its port and its memory until the computer is switched off."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "sandbox"
    assert 0 == run(["sandbox", "start", "--machines", "none"])
    former = find(folder)
    shutil.rmtree(tmp_path / "home")
    assert 0 == run(["sandbox", "start", "--machines", "none"])
    following = find(folder)

    has_ended = _until(lambda: not trees.is_running(former.pid, former.started))

    assert has_ended
    assert following == find(folder)
    assert 0 == run(["sandbox", "stop"])
    assert not (folder / "control.json").exists()
