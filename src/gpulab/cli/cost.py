"""`gpulab cost`: what a timeline of instances and disks cost, offline."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option
from gpulab.model.timeline import PriceRule

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--price-rule",
    type=click.Choice([rule.value for rule in PriceRule]),
    default=PriceRule.HOUR_START.value,
    show_default=True,
    help="A spot run pays the price at the start of each of its hours, or of each second.",
)
@click.option("--explain", is_flag=True, help="List every charge and the total by either rule.")
@json_option
@click.pass_obj
def command(context: Context, file: str, price_rule: str, explain: bool, as_json: bool) -> None:
    """
    Compute what a timeline of instances and disks cost.

    FILE is a JSON document in the cost timeline format (see docs/money.md); `-` reads it from stdin.

    \b
    Example:
      gpulab cost timeline.json
      gpulab cost --json --price-rule per-second - < timeline.json
    """
    from gpulab.spending.charging import cost_of
    from gpulab.spending.document import read_document, render
    from gpulab.view.report_cost import cost_lines, explain_lines

    document = read_document(content_of(file))
    as_of = document.as_of or context.now()
    costs = cost_of(document.timeline, as_of=as_of, price_rule=PriceRule(price_rule))
    answer = render(costs, credit_usd=document.credit_usd)
    if as_json:
        context.console.show_json(answer)
        return
    context.console.show("\n".join(cost_lines(answer)))
    if explain:
        other = [cost_of(document.timeline, as_of=as_of, price_rule=rule) for rule in PriceRule]
        context.console.show("\n".join(explain_lines(costs, other)))


def content_of(file: str) -> bytes:
    """
    Read a file, or stdin for `-`.

    Raises:
        WrongUsage: It cannot be read.
    """
    from pathlib import Path

    from gpulab.errors import WrongUsage

    try:
        if file == "-":
            return sys.stdin.buffer.read()
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WrongUsage(f"could not read {file}: {reason}") from error
