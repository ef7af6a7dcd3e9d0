"""forward_backward and optim_step through the SDK, against a bare PyTorch and PEFT loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import models
from benchmarks.bare_loop import bare_loop
from benchmarks.batches import BatchShape, sdk_data
from benchmarks.harness import Bench, Benchmark, Measure, at_most, cores, cpu, gpu, interleaved, ratio
from benchmarks.peer import Peer
from benchmarks.sdk import sdk_client
from benchmarks.service import MODEL, deployed

if TYPE_CHECKING:
    import tinker

ROUNDS = 10
WARM_ROUNDS = 2
RANK = 16
SHAPES = {
    "cpu": BatchShape(examples=4, tokens=256, vocabulary=8192),
    "cuda": BatchShape(examples=256, tokens=512, vocabulary=8192),
}


def run(bench: Bench, device: str = "cpu") -> Mapping[str, float]:
    """Both sides train on the same batches with the same number of threads, taking turns."""
    suffix = "" if device == "cpu" else f"_{device}"
    shape, threads = SHAPES[device], cores()
    if device == "cuda":
        gpu()
    model = models.thirty_million(bench.folder)
    with (
        Peer(bare_loop, str(model), shape, RANK, threads, device) as bare,
        deployed(bench.folder, model, threads=threads, device=device) as service,
        sdk_client(service) as client,
    ):
        trainer = client.create_lora_training_client(MODEL, rank=RANK, seed=1, train_unembed=False).result()
        step = sdk_step(trainer, shape)
        bench.note("taking turns")
        seconds = interleaved({"service": step, "bare": bare}, ROUNDS, WARM_ROUNDS)
    return {
        f"training_step_ratio{suffix}": ratio(seconds["service"], seconds["bare"]),
        f"training_step{suffix}": statistics.median(seconds["service"]),
        f"bare_training_step{suffix}": statistics.median(seconds["bare"]),
    }


def sdk_step(
    trainer: tinker.TrainingClient, shape: BatchShape, *, units: bool = False
) -> Callable[[int], float]:
    """One training step as the cookbook does it: both operations submitted, then both awaited."""
    from tinker import types  # noqa: PLC0415 - see sdk_client

    def step(index: int) -> float:
        data = sdk_data(shape.batch(index), units=units)
        began = time.perf_counter()
        forward = trainer.forward_backward(data, "cross_entropy")
        stepped = trainer.optim_step(types.AdamParams(learning_rate=1e-4))
        forward.result()
        stepped.result()
        return time.perf_counter() - began

    return step


def _benchmark(device: str, names: Callable[[], str]) -> Benchmark:
    suffix = "" if device == "cpu" else f"_{device}"
    return Benchmark(
        name=f"training_step{suffix}",
        summary=f"a training step through the SDK against a bare PyTorch + PEFT loop ({device})",
        measures=(
            Measure(f"training_step_ratio{suffix}", "x", at_most(1.05)),
            Measure(f"training_step{suffix}", "s"),
            Measure(f"bare_training_step{suffix}", "s"),
        ),
        run=partial(run, device=device),
        device=names,
    )


BENCHMARK = _benchmark("cpu", cpu)
CUDA_BENCHMARK = _benchmark("cuda", gpu)
