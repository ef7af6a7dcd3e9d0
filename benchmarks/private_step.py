"""What differential privacy costs: a private step against the same step without it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.batches import BatchShape
from benchmarks.harness import Bench, Benchmark, Measure, at_most, cores, cpu, gpu, interleaved, ratio
from benchmarks.peer import Handler, Peer
from benchmarks.sdk import sdk_client
from benchmarks.service import MODEL, deployed
from benchmarks.training_step import RANK, SHAPES, sdk_step

if TYPE_CHECKING:
    import tinker

ROUNDS = 24
WARM_ROUNDS = 2
CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1.0


def run(bench: Bench, device: str = "cpu") -> Mapping[str, float]:
    """On the trainer's engine alone, then through the service; plain and private steps take turns."""
    suffix = "" if device == "cpu" else f"_{device}"
    if device == "cuda":
        gpu()
    shape, threads = SHAPES[device], cores()
    model = models.thirty_million(bench.folder)
    bench.note("on the engine")
    with Peer(engine_steps, str(model), shape, threads, device) as engine:
        alone = interleaved(
            {"private": lambda i: engine((i, True)), "plain": lambda i: engine((i, False))},
            ROUNDS,
            WARM_ROUNDS,
        )
    bench.note("through the service")
    with (
        deployed(bench.folder, model, threads=threads, device=device) as service,
        sdk_client(service) as client,
    ):
        plain = client.create_lora_training_client(MODEL, rank=RANK, seed=1, train_unembed=False).result()
        private = _private_client(client, shape)
        served = interleaved(
            {"private": sdk_step(private, shape, units=True), "plain": sdk_step(plain, shape)},
            ROUNDS,
            WARM_ROUNDS,
        )
    return {
        f"private_step_ratio_engine{suffix}": ratio(alone["private"], alone["plain"]),
        f"private_step_ratio_service{suffix}": ratio(served["private"], served["plain"]),
    }


def _private_client(client: tinker.ServiceClient, shape: BatchShape) -> tinker.TrainingClient:
    from tinker.types.optimizer import OptimizerConfigBase  # noqa: PLC0415 - see sdk_client

    config = OptimizerConfigBase(
        type="tensafe_dp_adamw",
        clip_norm=CLIP_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        delta=1e-5,
        batch_size=shape.examples,
        max_participations=ROUNDS + WARM_ROUNDS,
        domain="bench",
    )
    return client.create_lora_training_client(
        MODEL, rank=RANK, seed=1, train_unembed=False, optimizer=config
    ).result()


def engine_steps(model_path: str, shape: BatchShape, threads: int, device: str) -> Handler:
    """Called with (batch's number, private or not), it takes that step and returns its seconds."""
    import torch  # noqa: PLC0415 - in the peer alone

    from tensafe.contracts.training import AdamParams, Datum, ForwardBackward, LoraSpec  # noqa: PLC0415
    from tensafe.privacy.noise import gaussian, round_to_grid  # noqa: PLC0415
    from tensafe_gpu.trainer.base_model import BaseModel  # noqa: PLC0415
    from tensafe_gpu.trainer.engine import Engine  # noqa: PLC0415

    torch.set_num_threads(threads)
    dtype = "float32" if device == "cpu" else "bfloat16"
    engine = Engine(BaseModel.load(model_path, device=device, dtype=dtype))  # type: ignore[arg-type]
    states = {
        private: engine.create(LoraSpec(rank=RANK, seed=1, train_unembed=False)) for private in (False, True)
    }
    deviation, secret = NOISE_MULTIPLIER * CLIP_NORM, os.urandom(32)

    def noisy_mean(clipped_sum: npt.NDArray[np.float32], *, number: int) -> npt.NDArray[np.float64]:
        """The arithmetic of tensafe.privacy.release, which asks for a charge in a ledger besides."""
        total = round_to_grid(clipped_sum, deviation).reshape(-1)
        total += gaussian(secret, number, total.size, deviation, threads=threads)
        total /= shape.examples
        return total

    def step(request: tuple[int, bool]) -> float:
        index, private = request
        data = tuple(
            Datum(row[:-1].astype(np.int32), {"target_tokens": row[1:]}, unit)
            for unit, row in enumerate(shape.batch(index))
        )
        batch = ForwardBackward(data, "cross_entropy", {}, forward_only=False)
        began = time.perf_counter()
        state = states[private]
        engine.forward_backward(state, batch, clip_norm=CLIP_NORM if private else None)
        release = partial(noisy_mean, number=index) if private else None
        engine.optim_step(state, AdamParams(), release=release)
        return time.perf_counter() - began

    return step


def _benchmark(device: str, names: Callable[[], str]) -> Benchmark:
    suffix = "" if device == "cpu" else f"_{device}"
    return Benchmark(
        name=f"private_step{suffix}",
        summary=f"a step with differential privacy against the same step without ({device})",
        measures=(
            Measure(f"private_step_ratio_engine{suffix}", "x", at_most(1.05)),
            Measure(f"private_step_ratio_service{suffix}", "x", at_most(1.05)),
        ),
        run=partial(run, device=device),
        device=names,
    )


BENCHMARK = _benchmark("cpu", cpu)
CUDA_BENCHMARK = _benchmark("cuda", gpu)
