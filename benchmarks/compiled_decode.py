"""Compiled passes against eager ones on the CPU: `python -m benchmarks.compiled_decode`.

Two engines take turns on one private adapter's holder and on the base model, at batch 1 and 16: one eager,
with vLLM's LoRA on, as samplers run by default; one compiled, without it. Tokens per second over generations
of NEW_TOKENS tokens, and the compiled engine's speed over the eager one's. Printed, not saved.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.decode_loop import Job, decode_loop
from benchmarks.harness import Bench, interleaved
from benchmarks.peer import Peer
from benchmarks.private_decode import HALF_BILLION, NAME, Shape, model_of, published_at
from tests.project_files import ROOT
from tests.support.holder_process import HolderProcess

BATCHES: Final = (1, 16)
NEW_TOKENS: Final = 32
ROUNDS: Final = 5
SHAPES: Final = {
    "0.5B": HALF_BILLION,
    "30M": Shape(512, 8, 1536, 8),
}


def compared(bench: Bench, shape: Shape, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Kind and batch -> tokens per second, eager and compiled."""
    model = str(model_of(bench.folder / "model", shape))
    holder = HolderProcess(bench.folder / "holder")
    found: dict[str, tuple[float, float]] = {}
    try:
        where = published_at(bench.folder, holder, shape)
        elsewhere = {**where, "burn_log": str(bench.folder / "burned-too.db")}
        began = time.monotonic()
        with Peer(decode_loop, model, shape.rank, where, None) as eager:
            bench.note(f"eager engine after {time.monotonic() - began:.0f} s")
            began = time.monotonic()
            code = bench.folder / "code"
            with Peer(decode_loop, model, shape.rank, elsewhere, None, code) as compiled:
                bench.note(f"compiled engine after {time.monotonic() - began:.0f} s")
                for on_base in (True, False):
                    for batch in BATCHES:
                        job = Job(batch, NEW_TOKENS, on_base)
                        seconds = interleaved(
                            {"eager": lambda _, j=job: eager(j), "compiled": lambda _, j=job: compiled(j)},
                            rounds,
                            1,
                        )
                        rates = [batch * NEW_TOKENS / statistics.median(one) for one in seconds.values()]
                        found[f"{'base' if on_base else 'private'}, batch {batch}"] = (rates[0], rates[1])
    finally:
        holder.kill()
    return found


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    scratch = ROOT / ".cache"
    scratch.mkdir(exist_ok=True)
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{NAME}-") as folder:
            for label, (eager, compiled) in compared(Bench(Path(folder), print), shape).items():
                print(
                    f"{name:5s} {label:18s} eager {eager:8.1f} tok/s   compiled {compiled:8.1f} tok/s   "
                    f"{compiled / eager:.2f}x"
                )


if __name__ == "__main__":
    main()
