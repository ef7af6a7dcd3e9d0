"""`privacy plan`: the noise that a training would need, before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tensafe.cli.options import AsJson
from tensafe.cli.output import print_object, print_rows, progress

if TYPE_CHECKING:
    from tensafe.privacy.planner import Option

_BAR_CHARS: Final = 40
_COLUMNS: Final = (
    "name",
    "noise_multiplier",
    "min_separation",
    "bisr_bandwidth",
    "relative_error",
    "honest_for",
)


class Loop(StrEnum):
    """How the client goes through its data."""

    RESHUFFLED = "reshuffled"
    FIXED = "fixed"


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
        Loop, typer.Option(help="Whether every epoch is shuffled anew, or goes through one fixed order.")
    ] = Loop.RESHUFFLED,
    as_json: AsJson = False,
) -> None:
    """Print the noise that each mode needs for one target, how much it disturbs, and which is honest.

    The relative error is that of sums over steps, against DP-SGD with Poisson sampling: a proxy for utility.
    """
    from dataclasses import asdict

    from tensafe.privacy.planner import Question, default_delta
    from tensafe.privacy.planner import plan as compute

    question = Question(
        units, batch_size, epochs, epsilon, default_delta(max(units, 1)) if delta is None else delta
    )
    with progress("planning"):
        options = compute(question)
    chosen = _advised(options, loop)
    facts = {
        **asdict(question),
        "steps": question.steps,
        "loop": loop.value,
        "advised": chosen.name,
        "warning": "delta is not below 1 / units" if question.delta * units >= 1 else None,
    }
    if as_json:
        print_object({**facts, "options": [asdict(option) for option in options]}, as_json=True)
        return
    print_object(facts, as_json=False)
    typer.echo("")
    print_rows([asdict(option) for option in options], as_json=False, columns=_COLUMNS, empty="")
    typer.echo("\nerror of sums over steps, relative to Poisson-sampled DP-SGD (lower is better)")
    for line in _chart(options):
        typer.echo(line)
    typer.echo(f"\n{_advice(chosen, question.steps)}")


def _advised(options: Sequence[Option], loop: Loop) -> Option:
    """Of what is served and true for the loop, the one with the least error."""
    from tensafe.privacy.planner import ANY_LOOP, FIXED_ORDER

    true_for = {ANY_LOOP, FIXED_ORDER} if loop is Loop.FIXED else {ANY_LOOP}
    fitting = [option for option in options if option.served and option.honest_for in true_for]
    return min(fitting, key=lambda option: option.prefix_error)


def _chart(options: Sequence[Option]) -> list[str]:
    longest = max(option.relative_error for option in options)
    width = max(len(option.name) for option in options)
    return [
        f"{option.name:<{width}}  {'█' * max(1, round(_BAR_CHARS * option.relative_error / longest))} "
        f"{option.relative_error:.2f}"
        for option in options
    ]


def _advice(chosen: Option, steps: int) -> str:
    settings = f"max_steps={steps}, noise_multiplier={chosen.noise_multiplier:g}"
    if chosen.bisr_bandwidth is not None:
        settings += (
            f', min_separation={chosen.min_separation}, noise="bisr", bisr_bandwidth={chosen.bisr_bandwidth}'
        )
    return (
        "A loop in which the client chooses or shuffles its batches is honest with mode=bounded alone: the\n"
        "noise of Poisson sampling holds if the server draws every batch. Shuffling must not be billed so.\n"
        f"Advised for your loop: {chosen.name} (max_participations=epochs, {settings})."
    )
