"""What a private adapter adds to a decode step on one host, over vLLM's native LoRA with the same weights."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.decode_loop import Job, decode_loop
from benchmarks.harness import Bench, Benchmark, Measure, NotRun, at_most, cpu, interleaved
from benchmarks.models import sized
from benchmarks.peer import Handler, Peer

if TYPE_CHECKING:
    from tests.support.holder_process import HolderProcess

BATCHES: Final = (1, 16)
PARTS: Final = ("hook", "wire", "kernel")
NAME: Final = "bench"


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, and how much is measured: `rounds` of `new_tokens` decode steps a side and batch."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    rank: int = 16
    rounds: int = 3
    new_tokens: int = 32

    @property
    def head(self) -> int:
        return self.hidden // self.heads


HALF_BILLION: Final = Shape(896, 24, 4864, 14)


def run(bench: Bench) -> Mapping[str, float]:
    """The 0.5B shape."""
    if find_spec("vllm") is None:
        raise NotRun("vllm is not installed")
    return measured(bench, HALF_BILLION)


def measured(bench: Bench, shape: Shape) -> Mapping[str, float]:
    """Two engines take turns: vLLM's own LoRA, and the key holder of the same adapter with its holder beside
    it. Wall time over decode steps, nothing prepared meanwhile.

    Split: `kernel` is the arithmetic of both parties for the same rows, without a connection; `wire` is what
    a round trip takes beyond that (sockets, two logs on the disk, the other process' turn); `hook` is what is
    left of the added time: reaching Python from the layers, copies, the product with B'.
    """
    from tests.support.holder_process import HolderProcess  # noqa: PLC0415 - not needed to list benchmarks

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of all processes that are started here

    model = model_of(bench.folder / "model", shape)
    holder = HolderProcess(bench.folder / "holder")
    try:
        where = published_at(bench.folder, holder, shape)
        return _compare(bench, shape, model, holder, where)
    finally:
        holder.kill()


def model_of(folder: Path, shape: Shape) -> Path:
    """A random model of these sizes."""
    return sized(
        folder,
        hidden=shape.hidden,
        layers=shape.layers,
        intermediate=shape.intermediate,
        heads=shape.heads,
    )


def published_at(folder: Path, holder: HolderProcess, shape: Shape) -> dict[str, str]:
    """Where a key holder finds a random adapter on q, k, v and o of this shape; its files are in `peft`."""
    peft = _adapter(folder / "peft", shape)
    holder.publish(NAME, peft, base_model=NAME, tenant=NAME, tokens_per_site=1_000_000)
    return _where(folder, holder)


def _compare(
    bench: Bench, shape: Shape, model: Path, holder: HolderProcess, where: Mapping[str, str]
) -> Mapping[str, float]:
    import psutil  # noqa: PLC0415

    assert holder.process is not None
    resident = psutil.Process(holder.process.pid).memory_info
    before = resident().rss
    results: dict[str, float] = {}
    with Peer(decode_loop, str(model), shape.rank, where, None) as private:
        bench.note("opening, a block for every site")
        private(Job(1, 2))
        results["private_holder_resident"] = (resident().rss - before) / 1e6
        with Peer(decode_loop, str(model), shape.rank, None, str(bench.folder / "peft")) as native:
            for batch in BATCHES:
                bench.note(f"taking turns, batch {batch}")
                job = Job(batch, shape.new_tokens)
                seconds = interleaved(
                    {"native": lambda _, job=job: native(job), "private": lambda _, job=job: private(job)},
                    shape.rounds,
                    1,
                )
                step = {k: statistics.median(v) / shape.new_tokens * 1e3 for k, v in seconds.items()}
                results[f"private_native_step_b{batch}"] = step["native"]
                results[f"private_added_b{batch}"] = (step["private"] - step["native"]) / batch
    bench.note("the same rounds without vLLM")
    with Peer(_rounds_of, where, shape) as rounds:
        for batch in BATCHES:
            round_ms, kernel_ms = rounds(batch)
            added = results[f"private_added_b{batch}"]
            results[f"private_kernel_b{batch}"] = kernel_ms / batch
            results[f"private_wire_b{batch}"] = (round_ms - kernel_ms) / batch
            results[f"private_hook_b{batch}"] = added - round_ms / batch
    return results


def _rounds_of(where: Mapping[str, str], shape: Shape) -> Handler:
    return lambda batch: _rounds(where, shape, batch)


def _where(folder: Path, holder: HolderProcess) -> dict[str, str]:
    return {
        "address": holder.address,
        "tenant": NAME,
        "adapter": NAME,
        "version": "1",
        "burn_log": str(folder / "burned.db"),
    }


def _rounds(where: Mapping[str, str], shape: Shape, batch: int) -> tuple[float, float]:
    """Milliseconds of all round trips of a decode step, and of their arithmetic alone, for `batch` rows.

    One layer's two sites stand for all layers; both are timed in turns.
    """
    from tensafe_gpu.sampler.private.connecting import connect  # noqa: PLC0415

    holder = connect(where)
    rng = np.random.default_rng(0)
    sites = [one for one in holder.info().sites if one.site.startswith("model.layers.0.")]
    trips, sums = [], []
    for site in sites:
        holder.prepare(site.site)
        kernel = _Kernel(site, batch)
        for n in range(60):
            x = rng.standard_normal((batch, site.d_in)).astype(np.float32)
            began = time.perf_counter()
            holder.products([(site.site, x)])
            trip = time.perf_counter() - began
            began = time.perf_counter()
            kernel.run(x, n)
            if n >= 10:
                trips.append(trip)
                sums.append(time.perf_counter() - began)
    holder.close()
    rounds = shape.layers * len(sites)
    return 1e3 * rounds * statistics.median(trips), 1e3 * rounds * statistics.median(sums)


class _Kernel:
    """Both parties' arithmetic for one site: quantise, mask, product, unmask, scale."""

    def __init__(self, site: Any, batch: int) -> None:  # noqa: ANN401 - helora.ports.SiteShape
        from tensafe_gpu.helora.keystream import new_key  # noqa: PLC0415
        from tensafe_gpu.helora.masks import PreparedBlock  # noqa: PLC0415
        from tensafe_gpu.helora.parameters import N  # noqa: PLC0415

        rng = np.random.default_rng(1)
        self.site, self.batch = site, batch
        self.columns = rng.integers(-127, 128, (site.d_in, site.rank_rows)).astype(np.float64)
        self.block = PreparedBlock(bytes(16), new_key(), np.zeros((N, site.rank_rows), np.uint32))
        self.key = new_key()

    def run(self, x: np.ndarray[Any, np.dtype[np.float32]], n: int) -> None:
        from tensafe_gpu.helora.keystream import ring_rows  # noqa: PLC0415
        from tensafe_gpu.helora.online import answered, masked, unmasked  # noqa: PLC0415
        from tensafe_gpu.helora.quantise import dequantised, quantised_tokens  # noqa: PLC0415

        first = n * self.batch
        x_q, scales = quantised_tokens(x, self.site.x_bound)
        z = masked(x_q, self.block.rho(first, self.batch, self.site.d_in))
        y = answered(self.columns, z, ring_rows(self.key, first, self.batch, self.site.rank_rows))
        dequantised(unmasked(y, self.block, first), scales)


def _adapter(folder: Path, shape: Shape) -> Path:
    """Random matrices for q, k, v and o in PEFT's layout."""
    from safetensors.numpy import save_file  # noqa: PLC0415

    rng, tensors = np.random.default_rng(2), {}
    heads, kv = shape.heads * shape.head, 2 * shape.head
    widths = {"q": (shape.hidden, heads), "k": (shape.hidden, kv), "v": (shape.hidden, kv)}
    widths["o"] = (heads, shape.hidden)
    for layer in range(shape.layers):
        for leaf, (d_in, d_out) in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{leaf}_proj"
            tensors[f"{name}.lora_A.weight"] = 0.02 * rng.standard_normal((shape.rank, d_in))
            tensors[f"{name}.lora_B.weight"] = 0.02 * rng.standard_normal((d_out, shape.rank))
    folder.mkdir()
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "bias": "none",
        "target_modules": [f"{leaf}_proj" for leaf in widths],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


BENCHMARK = Benchmark(
    name="private_decode",
    summary="a private adapter's decode step against vLLM's native LoRA, 896 x 24, q, k, v and o",
    measures=(
        Measure("private_added_b1", "ms", at_most(15)),
        Measure("private_added_b16", "ms", at_most(1.5)),
        *(
            Measure(f"private_{part}_b{batch}", "ms")
            for batch in BATCHES
            for part in ("hook", "wire", "kernel")
        ),
        *(Measure(f"private_native_step_b{batch}", "ms") for batch in BATCHES),
        Measure("private_holder_resident", "MB"),
    ),
    run=run,
    device=cpu,
)
