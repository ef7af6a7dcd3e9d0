"""A private step by the service's engine and by Opacus in its three ways, against the step without it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.batches import BatchShape
from benchmarks.dp_peers import CLIP_NORM, NOISE_MULTIPLIER, answering, peft_steps
from benchmarks.harness import Bench, Benchmark, Measure, at_most, cores, cpu, interleaved, ratio
from benchmarks.peer import Handler, Peer

RANK: Final = 16
ROUNDS: Final = 5
WARM_ROUNDS: Final = 1
VOCABULARY: Final = 4096
SHAPES: Final = {
    f"b{examples}_t{tokens}": BatchShape(examples, tokens, VOCABULARY)
    for examples in (8, 32)
    for tokens in (32, 256)
}
WIDEST: Final = "b32_t256"
"""Where memory is compared."""
PEERS: Final = {"opacus_hooks": "hooks", "opacus_functorch": "functorch", "opacus_ghost": "ghost"}
SIDES: Final = ("private", "plain", *PEERS, "peft")
AGREES: Final = 1e-3
"""Largest difference of two clipped sums over the norm of one: fp32, and Opacus' 1e-6 beside the norm."""


def run(bench: Bench) -> Mapping[str, float]:
    """Every side in a process of its own, on the same adapter, batches and threads, taking turns.

    `private` and `plain` are the engine's steps, and `peft` is PEFT's without privacy. Before anything is
    timed, every private side's clipped sum of one batch is held to the engine's.
    """
    model, threads, adapter = models.eight_million(bench.folder), cores(), bench.folder / "adapter"
    adapter.mkdir()
    values: dict[str, float] = {}
    with ExitStack() as stack:
        bench.note("starting")
        peers = {
            name: stack.enter_context(
                Peer(engine_steps, str(model), str(adapter), name == "private", threads)
            )
            for name in ("private", "plain")
        }
        for name in (*PEERS, "peft"):
            peers[name] = stack.enter_context(
                Peer(peft_steps, str(model), str(adapter), PEERS.get(name), threads)
            )
        bench.note("comparing gradients")
        parameters = _compare(peers)
        for shape_name, shape in SHAPES.items():
            bench.note(f"taking turns at {shape_name}")
            sides = {
                name: lambda index, peer=peer, shape=shape: peer(("step", shape, index))
                for name, peer in peers.items()
            }
            seconds = interleaved(sides, ROUNDS, WARM_ROUNDS)
            for name in SIDES:
                if name != "plain":
                    values[f"dp_table_{name}_{shape_name}"] = ratio(seconds[name], seconds["plain"])
        bench.note("memory")
        shape = SHAPES[WIDEST]
        peaks = {name: float(peer(("peak", shape, ROUNDS))) for name, peer in peers.items()}
    values |= {f"dp_table_{name}_peak": peak for name, peak in peaks.items()}
    allowed = 1.05 * peaks["plain"] + shape.examples * parameters * 4 / 1e6
    return {**values, "dp_table_memory": peaks["private"] / allowed}


def _compare(peers: Mapping[str, Peer]) -> int:
    """The number of an adapter's parameters, once all private sides give the same clipped sum."""
    shape = SHAPES["b8_t32"]
    wanted: npt.NDArray[np.float32] = peers["private"](("sum", shape, 0))
    for name in PEERS:
        found = peers[name](("sum", shape, 0))
        apart = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not apart <= AGREES:
            raise AssertionError(f"{name} does not train the same adapter: its sum is {apart:.1e} away")
    return int(wanted.size)


def engine_steps(model_path: str, adapter: str, private: bool, threads: int) -> Handler:
    """The engine's steps, on an adapter that it leaves in the folder `adapter` for the other sides."""
    import torch  # noqa: PLC0415 - in the peer alone

    from tensafe.contracts.training import AdamParams, Datum, ForwardBackward, LoraSpec  # noqa: PLC0415
    from tensafe.privacy.noise import gaussian, round_to_grid  # noqa: PLC0415
    from tensafe_gpu.trainer.base_model import BaseModel  # noqa: PLC0415
    from tensafe_gpu.trainer.engine import Engine, accumulated_sum  # noqa: PLC0415
    from tensafe_gpu.trainer.peft_format import export_peft  # noqa: PLC0415

    torch.set_num_threads(threads)
    engine = Engine(BaseModel.load(model_path, device="cpu", dtype="float32"))
    state = engine.create(LoraSpec(rank=RANK, seed=1, train_unembed=False))
    generator = torch.Generator().manual_seed(2)
    for _, b in state.layout.pairs(state.params):  # zero at first, and then no gradient reaches A
        b.normal_(0.0, 0.02, generator=generator)
    state.refresh()
    if private:
        for name, content in export_peft(state, "bench").items():
            (Path(adapter) / name).write_bytes(content)
    deviation, secret = NOISE_MULTIPLIER * CLIP_NORM, os.urandom(32)
    numbers = iter(range(1 << 62))

    def forward_backward(shape: BatchShape, index: int) -> None:
        data = tuple(
            Datum(row[:-1].astype(np.int32), {"target_tokens": row[1:]}, unit)
            for unit, row in enumerate(shape.batch(index))
        )
        request = ForwardBackward(data, "cross_entropy", {}, forward_only=False)
        engine.forward_backward(state, request, clip_norm=CLIP_NORM if private else None)

    def step(shape: BatchShape, index: int) -> float:
        def noisy_mean(clipped: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
            """The arithmetic of tensafe.privacy.release, which asks for a charge in a ledger besides."""
            total = round_to_grid(clipped, deviation).reshape(-1)
            total += gaussian(secret, next(numbers), total.size, deviation, threads=threads)
            total /= shape.examples
            return total

        began = time.perf_counter()
        forward_backward(shape, index)
        engine.optim_step(state, AdamParams(learning_rate=1e-4), release=noisy_mean if private else None)
        return time.perf_counter() - began

    def clipped_sum(shape: BatchShape, index: int) -> npt.NDArray[np.float32]:
        forward_backward(shape, index)
        found = accumulated_sum(state)
        state.grad_sum.zero_()
        state.pending_data = 0
        return found

    return answering(step, clipped_sum)


def _measures() -> tuple[Measure, ...]:
    goal = {"private": at_most(1.05)}
    ratios = tuple(
        Measure(f"dp_table_{name}_{shape}", "x", goal.get(name))
        for shape in SHAPES
        for name in SIDES
        if name != "plain"
    )
    peaks = tuple(Measure(f"dp_table_{name}_peak", "MB") for name in SIDES)
    return (*ratios, *peaks, Measure("dp_table_memory", "x", at_most(1.0)))


BENCHMARK = Benchmark(
    name="dp_table",
    summary="a private step, by the engine and by Opacus, against the same step without privacy",
    measures=_measures(),
    run=run,
    device=cpu,
)
