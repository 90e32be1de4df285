"""What a test of a booted machine says when its set-up failed: the phase's own words, not what goes wrong for want of it."""

from __future__ import annotations

import json
import subprocess

import pytest

FULL = "uv failed with exit code 2\nNo space left on device (os error 28)"


class Spoken:
    """A machine of which only the answers are there."""

    def __init__(self, *states: str) -> None:
        self.phases = [
            {"name": name, "state": state, "message": FULL if state == "failed" else ""}
            for name, state in zip(("jupyter", "environment", "gpu"), states, strict=True)
        ]

    def ssh(self, script: str) -> subprocess.CompletedProcess[bytes]:
        said = (
            json.dumps({"phases": self.phases})
            if script == "gpulab-agent status"
            else "the log says why"
        )
        return subprocess.CompletedProcess([script], 0, said.encode(), b"")


def test_a_failed_phase_fails_the_test_in_its_own_words(set_up):
    """A full disk once showed as three times `ModuleNotFoundError`, an hour from its reason."""
    with pytest.raises(pytest.fail.Exception) as failure:
        set_up(Spoken("done", "failed", "waiting"))

    assert f"phase environment failed: {FULL}" in str(failure.value)
    assert "the log says why" in str(failure.value)


def test_a_machine_that_is_set_up_gives_its_phases(set_up):
    """What a test asserts about them is one answer, not a second question."""
    phases = set_up(Spoken("done", "done", "done"))

    assert ["jupyter", "environment", "gpu"] == list(phases)


def test_a_phase_can_be_waited_for_alone(set_up):
    """JupyterLab never waits for TensorFlow, so a test of it must not either."""
    phases = set_up(Spoken("done", "running", "waiting"), until="jupyter")

    assert "running" == phases["environment"]["state"]
