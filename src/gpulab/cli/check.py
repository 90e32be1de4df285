"""`gpulab check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument
from gpulab.errors import ProblemsFound

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="check")
@name_argument()
@json_option
@click.pass_obj
def command(context: Context, name: str | None, as_json: bool) -> None:
    """
    Check driver, GPU, TensorFlow and disk of an instance.

    Runs one matrix product and one convolution, and says which notebook holds how much GPU memory: a full GPU is the usual reason of a
    failing cell. Exits with 5 when something failed. Without a GPU it says so and checks the rest.

    \b
    Example:
      gpulab check
      gpulab check week4 --json
    """
    from gpulab.launch.running import checking, instances
    from gpulab.view.checks import findings_text

    instance = instances.find(context.launch, name)
    with context.console.step(f"Checking {instance.name}"):
        found = checking.check(context.launch, instance)
    if as_json:
        context.console.show_json({"instance": instance.id, "checks": found})
    else:
        context.console.show(findings_text(found))
    failed = [finding.name for finding in found if finding.state == "failed"]
    if failed:
        raise ProblemsFound(
            f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}",
            hint="`gpulab logs` shows what the instance wrote; `gpulab stop` saves the work, `gpulab up` takes another instance",
        )
