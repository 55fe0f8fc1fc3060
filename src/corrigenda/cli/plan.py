"""`corrigenda plan`: what an edit will take, from the configuration of a model alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output

if TYPE_CHECKING:
    from corrigenda.planning.plan import CostEstimate

_GIGABYTE = 1e9
_TERA = 1e12


def plan(
    model: options.Model,
    method: options.Method = "memit",
    facts: Annotated[int, typer.Option(help="Facts that are edited at once.")] = 1,
    memory: Annotated[
        float, typer.Option(metavar="GB", help="Memory of the device, to which batches fit.")
    ] = 24.0,
    device_flops: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Operations a second of the device, for seconds (1e14 is 100 teraflops); of this "
            "processor, measured, with --device cpu.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Block to edit; the preset's or one by depth if not given.")
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    dtype: options.Dtype = None,
    device: Annotated[str, typer.Option(help="cuda or cpu; it need not be there.")] = "cuda",
    as_json: options.AsJson = False,
) -> None:
    """Show parameters changed, bytes and seconds of an edit before a model is downloaded."""
    config = options.add_preset(options.parse_settings(settings), preset)
    from corrigenda.planning.plan import plan as estimate

    found = estimate(
        model,
        method,
        facts=facts,
        dtype=dtype,
        device=device,
        memory=memory,
        device_flops=device_flops,
        layer=layer,
        **config,
    )
    output.show(asdict(found), as_json=as_json, people=lambda console: _draw(console, found))


def _draw(console: Console, found: CostEstimate) -> None:
    share = f"{found.changed:,} of {found.parameters:,}" if found.changed else "none"
    console.print(f"{found.method} on {found.model} ({found.dtype}), {found.facts} facts")
    console.print(f"parameters changed: {share}")
    sizes = [
        ("weights", found.weights),
        ("statistics", found.statistics),
        ("search or training", found.search),
        ("patch", found.patch),
        ("most on the device", found.device),
        ("most on the host", found.host),
    ]
    console.print(
        output.table(("memory", "GB"), [(name, size / _GIGABYTE) for name, size in sizes])
    )
    if not found.stages:
        console.print("The work of this method is not estimated.")
        return
    rows = [
        (one.stage, one.flops / _TERA, one.solver_flops / _TERA, one.seconds)
        for one in found.stages
    ]
    console.print(
        output.table(("stage, at most", "teraflop", "of solves, float64", "seconds"), rows)
    )
    if any(one.seconds is None for one in found.stages):
        console.print("Give --device-flops for seconds.")
