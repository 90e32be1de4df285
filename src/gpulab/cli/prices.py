"""`gpulab prices`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import listing_options

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="prices")
@click.option(
    "--gpu",
    metavar="NAME",
    help="Only this GPU, such as T4, A10G or L4.  [default: every single GPU]",
)
@click.option(
    "--type", "instance_type", metavar="TYPE", help="Only this instance type, such as g4dn.xlarge."
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Look here; repeatable.  [default: the profile's regions]",
)
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Rows to show; --json and --csv show all.",
)
@listing_options
@click.pass_obj
def command(
    context: Context,
    gpu: str | None,
    instance_type: str | None,
    regions: tuple[str, ...],
    limit: int,
    as_json: bool,
    as_csv: bool,
) -> None:
    """
    Show what GPUs cost now, by zone, cheapest first.

    Spot prices are read from AWS now; on-demand prices come with their date.

    \b
    Example:
      gpulab prices --gpu T4
      gpulab prices --type g5.xlarge --region eu-north-1 --json
    """
    from gpulab.launch.offers import prices
    from gpulab.view.prices import COLUMNS, price_row, prices_text

    offers = prices.offers(
        context.launch,
        gpu=gpu,
        instance_type=instance_type,
        regions=regions or context.profile.regions,
    )
    if as_json:
        context.console.show_json({"offers": [price_row(offer) for offer in offers]})
    elif as_csv:
        context.console.show_csv([price_row(offer) for offer in offers], COLUMNS)
    else:
        context.console.show(prices_text(offers[:limit]))
        if len(offers) > limit:
            context.console.say(f"{len(offers) - limit} more with `--limit {len(offers)}`")
