"""The agent on machines that really boot: from the user data the product renders to JupyterLab, and the ends it brings."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gpulab.bootstrap import InstanceSpec, load_environment, user_data
from gpulab.sandbox.machines import LiveMetadata


def a_spec(**changes) -> InstanceSpec:
    now = datetime.now(UTC)
    values = {
        "launch": "l-1",
        "name": "week4",
        "owner": "s-1",
        "user": "ubuntu",
        "made_at": now,
        "deadline": now + timedelta(hours=4),
        "idle_minutes": 60,
        "usd_per_hour": Decimal("0.2158"),
        "environment": load_environment("tf2-small"),
        "has_gpu": False,
    }
    return InstanceSpec(**{**values, **changes})


def status(booted) -> dict:
    return json.loads(booted.run("gpulab-agent status"))


def phase_states(booted) -> dict[str, str]:
    return {phase["name"]: phase["state"] for phase in status(booted)["phases"]}


@pytest.mark.slow
def test_an_instance_comes_up_by_itself(machines, set_up):
    """The product's promise on the instance's side: once RunInstances has answered, the laptop may close."""
    booted = machines.boot(user_data=user_data(a_spec())).wait_for_ssh()

    set_up(booted)
    health = booted.run("systemctl is-system-running --wait; cloud-init status --wait")
    answer = booted.run('curl -s "http://127.0.0.1:8888/api/status?token=$(gpulab-agent token)"')
    refused = booted.run("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8888/api/kernels")
    timers = booted.run("systemctl list-units --plain --no-legend --type=timer 'gpulab-end-*'")
    token = booted.run("stat -c '%a %U' /run/gpulab/token")
    runs_as = booted.run(
        "ps -o user= -p $(systemctl show -p MainPID --value gpulab-jupyter@ubuntu)"
    )

    assert set(phase_states(booted).values()) == {"done"}
    assert health.splitlines()[0] == "running"
    assert health.splitlines()[-1] == "status: done"
    assert json.loads(answer)["kernels"] == 0
    assert (refused, token, runs_as) == ("403", "600 ubuntu", "ubuntu")
    assert len(timers.splitlines()) == 1


@pytest.mark.slow
def test_an_instance_whose_agent_is_broken_still_ends(machines):
    """The timer is armed by the boot's first second, not by the agent: a bug of ours must not cost a student a weekend."""
    deadline = datetime.now(UTC) + timedelta(seconds=45)
    booted = machines.boot(user_data=user_data(a_spec(deadline=deadline))).wait_for_ssh()

    booted.run(
        "sudo systemctl mask --now gpulab-agent.service; sudo rm /usr/local/bin/gpulab-agent"
    )
    booted.wait_until_off()

    assert datetime.now(UTC) - deadline < timedelta(seconds=150)


@pytest.mark.slow
def test_a_spot_notice_is_seen_within_seconds_and_told(machines, set_up, eventually):
    """The notice is two minutes, best effort; what the student sees and what is saved both hang on seeing it."""
    booted = machines.boot(user_data=user_data(a_spec())).wait_for_ssh()
    set_up(booted)
    at = (datetime.now(UTC) + timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")

    booted.machine.publish(LiveMetadata(notice={"action": "terminate", "time": at}))
    eventually(lambda: status(booted)["notice"] is not None)
    told = booted.run(
        "cat /opt/gpulab/server/share/jupyter/labextensions/gpulab-notice/static/notice.json"
    )
    facts = booted.run("cat ~/work/.gpulab/ledger/*.jsonl").splitlines()

    assert status(booted)["ending"] == {"reason": "spot interruption", "at": at}
    assert "takes this spot instance back at" in json.loads(told)["text"]
    assert json.loads(facts[-1])["subject"] == booted.birth.instance_id
    assert json.loads(facts[-1])["details"]["by"] == "aws"
