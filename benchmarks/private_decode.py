"""What a private adapter adds to a decode step on one host, over vLLM's native LoRA with the same weights."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.decode_loop import Job, decode_loop
from benchmarks.harness import Bench, Benchmark, Measure, NotRun, at_most, cpu, interleaved, pinned, two_cores
from benchmarks.models import sized
from benchmarks.peer import Handler, Peer

if TYPE_CHECKING:
    from tests.support.holder_process import HolderProcess

BATCHES: Final = (1, 16)
PARTS: Final = ("hook", "wire", "kernel", "beside")
NAME: Final = "bench"


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, and how much is measured: `rounds` of `new_tokens` decode steps a side and batch."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    rank: int = 16
    rounds: int = 5
    new_tokens: int = 32

    @property
    def head(self) -> int:
        return self.hidden // self.heads


HALF_BILLION: Final = Shape(896, 24, 4864, 14)


def run(bench: Bench) -> Mapping[str, float]:
    """The 0.5B shape."""
    if find_spec("vllm") is None:
        raise NotRun("vLLM is not installed: pip install 'tensafe[sampler]'")
    return measured(bench, HALF_BILLION)


def measured(bench: Bench, shape: Shape) -> Mapping[str, float]:
    """One engine on one core takes turns: vLLM's own LoRA, and the key holder of the same adapter, whose
    adapter holder has another core. Wall time over decode steps, nothing prepared meanwhile. One engine,
    since two lie differently in memory: their steps of the base model were 9 ms apart.

    Split of what is added: `kernel` is the key holder's arithmetic for the same rows, without a connection;
    `wire` is what a round adds to its layer's own product beyond that (sending, what is left to wait for when
    the layer has been computed, receiving, logs); `hook` is what is left: reaching Python from the layers,
    the product with B', and that everything is done with caches which the model has emptied. The adapter
    holder's arithmetic (`beside`) is done while the layer is computed.
    """
    from tests.support.holder_process import HolderProcess  # noqa: PLC0415 - not needed to list benchmarks

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of all processes that are started here

    mine, theirs = two_cores()
    model = model_of(bench.folder / "model", shape)
    with pinned(theirs):
        holder = HolderProcess(bench.folder / "holder")
    try:
        where = published_at(bench.folder, holder, shape)
        with pinned(mine):
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
    peft = adapter_files(folder / "peft", shape)
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
    with Peer(decode_loop, str(model), shape.rank, where, str(bench.folder / "peft")) as engine:
        bench.note("opening, a block for every site")
        engine(Job(1, 2))
        results["private_holder_resident"] = (resident().rss - before) / 1e6
        for batch in BATCHES:
            bench.note(f"taking turns, batch {batch}")
            job = Job(batch, shape.new_tokens)
            native = replace(job, in_clear=True)
            seconds = interleaved(
                {"native": lambda _, job=native: engine(job), "private": lambda _, job=job: engine(job)},
                shape.rounds,
                1,
            )
            step = {k: statistics.median(v) / shape.new_tokens * 1e3 for k, v in seconds.items()}
            results[f"private_native_step_b{batch}"] = step["native"]
            results[f"private_added_b{batch}"] = (step["private"] - step["native"]) / batch
    bench.note("the same rounds without vLLM")
    with Peer(_rounds_of, where, shape) as rounds:
        for batch in BATCHES:
            round_ms, kernel_ms, beside_ms = rounds(batch)
            added = results[f"private_added_b{batch}"]
            results[f"private_kernel_b{batch}"] = kernel_ms / batch
            results[f"private_wire_b{batch}"] = (round_ms - kernel_ms) / batch
            results[f"private_hook_b{batch}"] = added - round_ms / batch
            results[f"private_beside_b{batch}"] = beside_ms / batch
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


def _rounds(where: Mapping[str, str], shape: Shape, batch: int) -> tuple[float, float, float]:
    """Milliseconds of a decode step for `batch` rows: what its rounds add to the products of their layers,
    the key holder's arithmetic, and the adapter holder's.

    One layer's two sites stand for all layers; all are timed in turns.
    """
    import torch  # noqa: PLC0415

    from tensafe_gpu.helora.exchange import gather  # noqa: PLC0415
    from tensafe_gpu.sampler.private.connecting import connect  # noqa: PLC0415

    torch.set_num_threads(1)
    holder = connect(where)
    sites = [one for one in holder.info().sites if one.site.startswith("model.layers.0.")]
    rng, sums = np.random.default_rng(0), np.zeros(3)
    for site in sites:
        holder.prepare(site.site)
        kernel = _Kernel(site, batch)
        weights = torch.ones(sum(one.d_out for one in site.modules), site.d_in)
        seconds = []
        for n in range(60):
            x = rng.standard_normal((batch, site.d_in)).astype(np.float32)
            clock = [time.perf_counter()]

            def layer(x: np.ndarray[Any, Any] = x, weights: torch.Tensor = weights) -> None:
                torch.nn.functional.linear(torch.from_numpy(x), weights)

            layer()
            clock.append(time.perf_counter())
            asked = holder.ask([(site.site, x)])
            layer()
            gather([asked])
            asked.answers()
            clock.append(time.perf_counter())
            z, scales = kernel.ask(x, n)
            clock.append(time.perf_counter())
            y = kernel.answer(z, n)
            clock.append(time.perf_counter())
            kernel.take(y, scales, n)
            clock.append(time.perf_counter())
            alone, together, asking, beside, taking = np.diff(clock)
            seconds.append((together - alone, asking + taking, beside))
        sums += np.median(seconds[10:], axis=0)
    holder.close()
    round_ms, kernel_ms, beside_ms = 1e3 * shape.layers * sums
    return round_ms, kernel_ms, beside_ms


class _Kernel:
    """Both parties' arithmetic for one site: quantise, mask; product; unmask, scale."""

    def __init__(self, site: Any, batch: int) -> None:  # noqa: ANN401 - helora.ports.SiteShape
        from tensafe_gpu.helora.keystream import new_key  # noqa: PLC0415
        from tensafe_gpu.helora.masks import PreparedBlock  # noqa: PLC0415
        from tensafe_gpu.helora.parameters import N  # noqa: PLC0415

        rng = np.random.default_rng(1)
        self.site, self.batch = site, batch
        self.columns = rng.integers(-127, 128, (site.d_in, site.rank_rows)).astype(np.float64)
        self.block = PreparedBlock(bytes(16), new_key(), np.zeros((N, site.rank_rows), np.uint32))
        self.key = new_key()

    def ask(self, x: np.ndarray[Any, np.dtype[np.float32]], n: int) -> tuple[Any, Any]:
        from tensafe_gpu.helora.online import masked, token_scales  # noqa: PLC0415

        scales = token_scales(x, self.site.x_bound)
        return masked(x, scales, self.block.rho(n * self.batch, self.batch, self.site.d_in)), scales

    def answer(self, z: Any, n: int) -> Any:  # noqa: ANN401 - uint32 arrays
        from tensafe_gpu.helora.evaluation import answered  # noqa: PLC0415
        from tensafe_gpu.helora.keystream import ring_rows  # noqa: PLC0415

        shares = ring_rows(self.key, n * self.batch, self.batch, self.site.rank_rows)
        return answered(self.columns, z, shares)

    def take(self, y: Any, scales: Any, n: int) -> None:  # noqa: ANN401 - as above
        from tensafe_gpu.helora.online import unmasked  # noqa: PLC0415

        first = n * self.batch
        unmasked(y, self.block.shares[first : first + self.batch], scales)


def adapter_files(folder: Path, shape: Shape) -> Path:
    """A folder with random matrices for q, k, v and o in PEFT's layout."""
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
        *(Measure(f"private_{part}_b{batch}", "ms") for batch in BATCHES for part in PARTS),
        *(Measure(f"private_native_step_b{batch}", "ms") for batch in BATCHES),
        Measure("private_holder_resident", "MB"),
    ),
    run=run,
    device=cpu,
)
