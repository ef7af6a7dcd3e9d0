"""`privacy plan`: the noise that a training would need, before there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tensafe.cli.options import AsJson
from tensafe.cli.output import print_object, print_rows, progress
from tensafe.privacy.loops import DEALT, Loop

if TYPE_CHECKING:
    from tensafe.privacy.planner import Option

_COLUMNS: Final = (
    "name",
    "noise_multiplier",
    "min_separation",
    "bisr_bandwidth",
    "relative_error",
    "honest_for",
    "honest_here",
    "served",
)
_WHY: Final = {
    Loop.RESHUFFLED: (
        "A loop that the client shuffles anew is honest with mode=bounded alone. Shuffling must not be\n"
        "billed as Poisson sampling, whose noise holds if the server draws every batch."
    ),
    Loop.FIXED: (
        "One fixed order keeps a unit's steps apart: mode=bounded uses that, and the server counts. It must\n"
        "not be billed as Poisson sampling, whose noise holds if the server draws every batch."
    ),
    Loop.SAMPLED: (
        "Nobody can check a sample that the client draws: its amplification could at most be attested, and\n"
        "the budget binds on what the server counts, which is mode=bounded. A unit that is drawn more often\n"
        "than max_participations is refused."
    ),
    Loop.DEALT: (
        "A loop that trains on exactly the units that the server draws earns the noise of Poisson sampling,\n"
        "and no other: nothing bounds the number of steps in which a unit is drawn."
    ),
}


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
    from dataclasses import asdict

    from tensafe.cli.plan_chart import Bar, svg_chart, terminal_chart
    from tensafe.privacy.planner import Question, advised, default_delta, is_honest
    from tensafe.privacy.planner import plan as compute

    question = Question(
        units, batch_size, epochs, epsilon, default_delta(max(units, 1)) if delta is None else delta
    )
    with progress("planning"):
        options = compute(question)
    chosen = advised(options, loop)
    facts = {
        **asdict(question),
        "steps": question.steps,
        "loop": loop.value,
        "advised": None if chosen is None else chosen.name,
        "warning": "delta is not below 1 / units" if question.delta * units >= 1 else None,
    }
    rows = [{**asdict(option), "honest_here": is_honest(option, loop)} for option in options]
    bars = [Bar(o.name, o.noise_multiplier, o.relative_error, is_honest(o, loop)) for o in options]
    if svg is not None:
        asked = f"{units} units, batches of {batch_size}, {epochs} epochs, epsilon {epsilon:g}"
        svg.write_text(svg_chart(bars, f"{asked}, delta {question.delta:.3g}"), encoding="utf-8")
    if as_json:
        print_object({**facts, "options": rows}, as_json=True)
        return
    print_object(facts, as_json=False)
    typer.echo("")
    print_rows(rows, as_json=False, columns=_COLUMNS, empty="")
    for line in terminal_chart(bars):
        typer.echo(line)
    typer.echo(f"\n{_WHY[loop]}\n{_advice(chosen, question.steps)}")


def _advice(chosen: Option | None, steps: int) -> str:
    if chosen is None:
        return "This release serves no mode that is honest for it: choose a loop of epochs (--loop)."
    if chosen.honest_for == DEALT:
        return f"Advised for your loop: {chosen.name} (noise_multiplier={chosen.noise_multiplier:g})."
    settings = f"max_steps={steps}, noise_multiplier={chosen.noise_multiplier:g}"
    if chosen.bisr_bandwidth is not None:
        settings += (
            f', min_separation={chosen.min_separation}, noise="bisr", bisr_bandwidth={chosen.bisr_bandwidth}'
        )
    return f"Advised for your loop: {chosen.name} (max_participations=epochs, {settings})."
