"""One engine for private adapters and everybody else, or two engines that share the machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

from benchmarks.decode_loop import Job, decode_loop
from benchmarks.harness import Bench, Benchmark, Measure, NotRun, cores, cpu
from benchmarks.peer import Peer
from benchmarks.private_decode import HALF_BILLION, model_of, published_at

BATCH = 8
NEW_TOKENS = 32
ROUNDS = 3
WAYS = ("one", "two")


def run(bench: Bench) -> Mapping[str, float]:
    """As many continuations of a private adapter as of the base model, begun at once, on all cores.

    `one`: both in the batches of one engine with all threads. `two`: each kind in an engine of its own with
    half of them. Tokens a second of either kind until its last one is there, and of both until all are. The
    adapter holder runs beside them; nothing is prepared meanwhile. Memory: resident, the engines alone.
    """
    from tests.support.holder_process import HolderProcess  # noqa: PLC0415 - not needed to list benchmarks

    if find_spec("vllm") is None:
        raise NotRun("vLLM is not installed: pip install 'tensafe[sampler]'")
    if cores() < len(WAYS):
        raise NotRun("two engines on one core share nothing but that")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    model = str(model_of(bench.folder / "model", HALF_BILLION))
    holder = HolderProcess(bench.folder / "holder")
    where = published_at(bench.folder, holder, HALF_BILLION)
    other = {**where, "burn_log": str(bench.folder / "other-burned.db")}
    rank, half = HALF_BILLION.rank, cores() // 2
    private, base = Job(BATCH, NEW_TOKENS), Job(BATCH, NEW_TOKENS, on_base=True)
    both = replace(private, beside=BATCH)
    seconds: dict[str, list[float]] = {}
    try:
        with (
            Peer(decode_loop, model, rank, where, None, None, cores()) as one,
            Peer(decode_loop, model, rank, other, None, None, half) as first,
            Peer(decode_loop, model, rank, None, str(bench.folder / "peft"), None, half) as second,
            ThreadPoolExecutor(2) as pool,
        ):
            bench.note("opening, a block for every site, twice")
            for engine in (one, first):
                engine(replace(private, new_tokens=2))
            second(replace(base, new_tokens=2))
            for index in range(ROUNDS):
                bench.note(f"taking turns, {index + 1} of {ROUNDS}")
                took = one(both)
                beside = pool.submit(first, private), pool.submit(second, base)
                alone = [future.result() for future in beside]
                for name, value in (
                    *((f"one_{kind}", took) for kind in ("private", "base", "all")),
                    *zip(("two_private", "two_base"), alone, strict=True),
                    ("two_all", max(alone)),
                ):
                    seconds.setdefault(name, []).append(value)
            resident = {"one": one.resident_mb(), "two": first.resident_mb() + second.resident_mb()}
    finally:
        holder.kill()
    tokens = {"private": BATCH * NEW_TOKENS, "base": BATCH * NEW_TOKENS, "all": 2 * BATCH * NEW_TOKENS}
    rates = {
        f"engines_{name}": tokens[name.partition("_")[2]] / statistics.median(values)
        for name, values in seconds.items()
    }
    return rates | {f"engines_{way}_resident": value for way, value in resident.items()}


BENCHMARK = Benchmark(
    name="engines",
    summary="private and other requests in one engine, or in two on the same cores, 896 x 24",
    measures=tuple(
        Measure(f"engines_{way}_{what}", "MB" if what == "resident" else "tokens/s")
        for what in ("private", "base", "all", "resident")
        for way in WAYS
    ),
    run=run,
    device=cpu,
)
