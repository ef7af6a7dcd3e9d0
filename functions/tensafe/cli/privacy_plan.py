"""`privacy plan`: the noise that a training would need, before there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tensafe.cli.options import AsJson
from tensafe.cli.output import print_object, print_rows, progress
from tensafe.privacy.loops import Loop

_COLUMNS: Final = (
    "name",
    "noise_multiplier",
    "min_separation",
    "bisr_bandwidth",
    "attested_epsilon",
    "relative_error",
    "honest_for",
    "honest_here",
    "served",
)


def plan(
    units: Annotated[int, typer.Option(metavar="N", help="Units (examples or people) in the dataset.")],
    batch_size: Annotated[int, typer.Option(metavar="B", help="Units per step.")],
    epochs: Annotated[int, typer.Option(metavar="E", help="Passes over the dataset.")],
    epsilon: Annotated[float, typer.Option(metavar="EPS", help="Target for the whole run.")],
    delta: Annotated[
        float | None,
        typer.Option(metavar="D", help="(default: the smaller of 1e-5 and N^-1.1)", show_default=False),
    ] = None,
    loop: Annotated[
        Loop,
        typer.Option(
            help="How the training comes by its batches: epochs shuffled anew, or in one fixed order; units "
            "that the client samples, or that the server deals."
        ),
    ] = Loop.RESHUFFLED,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the chart into this file.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the noise that each mode needs for one target, how much it disturbs, and which is honest.

    The relative error is that of sums over steps, against DP-SGD with Poisson sampling: a proxy for utility.
    """

    from tensafe.cli.plan_chart import Bar, svg_chart, terminal_chart
    from tensafe.privacy.planner import Question, default_delta, verdict
    from tensafe.privacy.planner import plan as compute

    question = Question(
        units, batch_size, epochs, epsilon, default_delta(max(units, 1)) if delta is None else delta
    )
    with progress("planning"):
        told = verdict(question, compute(question), loop)
    told["warning"] = "delta is not below 1 / units" if question.delta * units >= 1 else None
    rows = told["options"]
    bars = [
        Bar(row["name"], row["noise_multiplier"], row["relative_error"], row["honest_here"]) for row in rows
    ]
    if svg is not None:
        asked = f"{units} units, batches of {batch_size}, {epochs} epochs, epsilon {epsilon:g}"
        svg.write_text(
            svg_chart(bars, f"{asked}, delta {question.delta:.3g}, loop: {loop.value}"), encoding="utf-8"
        )
    if as_json:
        print_object(told, as_json=True)
        return
    print_object(
        {name: value for name, value in told.items() if name not in ("why", "options")}, as_json=False
    )
    typer.echo("")
    print_rows(rows, as_json=False, columns=_COLUMNS, empty="")
    for line in terminal_chart(bars):
        typer.echo(line)
    typer.echo("")
    for line in _advice(told):
        typer.echo(line)


def _advice(told: Mapping[str, Any]) -> list[str]:
    """Which mode is honest for the loop, and what to write into a run's optimizer."""
    import json
    import textwrap

    name, lines = told["advised"], textwrap.wrap(told["why"], 100)
    if name is None:
        return [
            *lines,
            "This release serves no mode that is honest for it: choose a loop of epochs (--loop).",
        ]
    settings = next(row["settings"] for row in told["options"] if row["name"] == name)
    return [
        *lines,
        f"Advised for your loop: {name}. In the run's optimizer, beside type, clip_norm and domain:",
        "  " + ", ".join(f"{setting}={json.dumps(value)}" for setting, value in settings.items()),
    ]
