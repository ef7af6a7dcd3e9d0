"""`python -m benchmarks [--only NAME]`: measure, print a table, save `results/latest.json`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks import registry, results_file
from benchmarks.harness import Bench, Benchmark, cores, execute, not_run
from benchmarks.results_file import Result

_BUSY: Final = 0.5
"""Load per core at the start above which other work is likely to disturb the figures."""


def main() -> int:
    """0, or 1 if a benchmark broke; a goal that is missed is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one benchmark, by its name or by that of a result")
    arguments = parser.parse_args()
    console = Console()
    try:
        wanted = registry.chosen(arguments.only)
    except KeyError:
        names = ", ".join(benchmark.name for benchmark in registry.BENCHMARKS)
        console.print(f"no benchmark {arguments.only!r}; there are: {names}", markup=False)
        return 2
    _warn_if_busy(console)
    broken = False
    new: list[Result] = []
    for benchmark in wanted:
        results = _measure(console, benchmark)
        broken |= results is None
        new += not_run(benchmark, "it broke; see the output of this run") if results is None else results
        known = results_file.merged(results_file.load(), new, registry.measure_names())
        results_file.save(known)
    console.print(_table(new))
    console.print(f"saved in {os.path.relpath(results_file.LATEST)}")
    return 1 if broken else 0


def _measure(console: Console, benchmark: Benchmark) -> list[Result] | None:
    """The results, or None if it broke, which is told."""
    # On a disk, not in memory: what is durable has to cost what it costs.
    scratch = Path(".cache")
    scratch.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix="bench-") as folder,
        console.status(f"{benchmark.name}: {benchmark.summary}") as status,
    ):

        def note(text: str) -> None:
            status.update(f"{benchmark.name}: {benchmark.summary}: {text}")

        try:
            return execute(benchmark, Bench(Path(folder).resolve(), note))
        except Exception:  # noqa: BLE001 - the other benchmarks still run
            console.print(f"[red]{benchmark.name} broke[/red]")
            console.print(traceback.format_exc(), markup=False, highlight=False)
            return None


def _warn_if_busy(console: Console) -> None:
    load = os.getloadavg()[0] / cores()
    if load > _BUSY:
        console.print(
            f"[yellow]other work is running: load {load:.1f} per core; absolute figures suffer[/yellow]"
        )


def _table(results: Sequence[Result]) -> Table:
    table = Table("measure", "value", "unit", "goal", "met", "device")
    for column in (1, 3):
        table.columns[column].justify = "right"
    for result in results:
        value = "-" if result.value is None else f"{result.value:,.4g}"
        met = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[result.met]
        table.add_row(result.name, value, result.unit, result.goal or "", met, result.device)
    return table


if __name__ == "__main__":
    sys.exit(main())
