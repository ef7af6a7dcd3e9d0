"""HE-LoRA on one core: a module online, sustained tokens per second with preprocessing, memory, and peers."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Bench, Benchmark, Measure, at_least, at_most, cpu
from benchmarks.peer import Handler, Peer

RANK = 16
MODELS = {"05b": (896, 24), "15b": (1536, 28)}
"""Width and layers; q, k and v are one site, o another."""
TOKENS = 2000


def run(bench: Bench) -> Mapping[str, float]:
    """Processor time of both parties, all of it in one process pinned to one core.

    A module: quantise, mask, product, unmask for one token of 896, r = 16, no connection. A round: one
    token's q, k and v through a unix socket, both ends, one index log each on the disk. Sustained: 1 /
    (layers x (rounds of both sites + a 4096th of a block of both)). Peers on the same A and x.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with Peer(_measures, str(bench.folder)) as peer:
        results: dict[str, float] = {}
        for step in ("module", "05b", "15b", "peers"):
            bench.note(step)
            results |= peer(step)
    return results


def _measures(folder: str) -> Handler:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def measure(step: str) -> Mapping[str, float]:
        if step == "module":
            return {"helora_online_module": _module_us()}
        if step == "peers":
            return _peers()
        return _model(step, Path(folder) / step)

    return measure


def _module_us() -> float:
    import numpy as np  # noqa: PLC0415 - in the peer alone, after its threads were set

    from tensafe_gpu.helora.keystream import new_key, ring_rows  # noqa: PLC0415
    from tensafe_gpu.helora.masks import PreparedBlock  # noqa: PLC0415
    from tensafe_gpu.helora.online import answered, masked, unmasked  # noqa: PLC0415
    from tensafe_gpu.helora.parameters import N  # noqa: PLC0415
    from tensafe_gpu.helora.quantise import dequantised, quantised_rows, quantised_tokens  # noqa: PLC0415

    rng, d = np.random.default_rng(0), MODELS["05b"][0]
    site = quantised_rows(rng.standard_normal((RANK, d)))
    columns = np.ascontiguousarray(site.a.T.astype(np.float64))
    block, share_key = PreparedBlock(bytes(16), new_key(), np.zeros((N, RANK), np.uint32)), new_key()
    x = rng.standard_normal((TOKENS, d)).astype(np.float32)

    def one(n: int) -> None:
        x_q, scales = quantised_tokens(x[n : n + 1], site.x_bound)
        y = answered(columns, masked(x_q, block.rho(n, 1, d)), ring_rows(share_key, n, 1, RANK))
        dequantised(unmasked(y, block, n), scales)

    for n in range(100):
        one(n)
    began = time.thread_time()
    for n in range(TOKENS):
        one(n)
    return (time.thread_time() - began) / TOKENS * 1e6


def _model(name: str, folder: Path) -> Mapping[str, float]:
    import numpy as np  # noqa: PLC0415 - as above

    from tensafe_gpu.helora.burned import BurnLog  # noqa: PLC0415
    from tensafe_gpu.helora.parameters import N  # noqa: PLC0415
    from tests.support.helora import PlainReference, adapter_holder, peft_files, policy  # noqa: PLC0415

    d, layers = MODELS[name]
    folder.mkdir()
    burn_log = BurnLog(folder / "burned.db")
    with adapter_holder(folder / "holder") as holder:
        _, adapter = holder.store.publish("a", peft_files(d, RANK), base_model="bench", policy=policy(10 * N))
        private, plain = holder.key_holder(burn_log), PlainReference(adapter)
        qkv, out = "model.layers.0.self_attn.qkv", "model.layers.0.self_attn.o"
        began = time.process_time()
        for site in (qkv, out):
            private.prepare(site)
        offline_s = time.process_time() - began
        x = np.random.default_rng(1).standard_normal((TOKENS, d)).astype(np.float32)
        for site in (qkv, out):
            request = [(site, x[:100])]
            assert np.array_equal(private.products(request)[0], plain.products(request)[0])
        seconds = {}
        for site in (qkv, out):
            began = time.process_time()
            for n in range(TOKENS - 100):
                private.products([(site, x[n : n + 1])])
            seconds[site] = (time.process_time() - began) / (TOKENS - 100)
        private.close()
    burn_log.close()
    per_token_s = layers * (sum(seconds.values()) + offline_s / N)
    results = {
        f"helora_sustained_{name}": 1 / per_token_s,
        f"helora_offline_{name}": offline_s / N * layers * 1e3,
    }
    if name == "05b":
        results["helora_online_round"] = seconds[qkv] * 1e6
        # What each side holds, from the arrays of a layer; the holder keeps A twice, packed and as float64.
        shapes = [site.shape for site in adapter.sites.values()]
        mib = layers / 2**20
        results["helora_adapter_holder_memory"] = mib * sum(
            site.a.size * 10 for site in adapter.sites.values()
        )
        results["helora_key_holder_memory"] = mib * sum(
            b.nbytes for site in adapter.sites.values() for b in site.b.values()
        )
        results["helora_block_memory"] = mib * sum(4 * N * shape.rank_rows for shape in shapes)
    return results


def _peers() -> Mapping[str, float]:
    import numpy as np  # noqa: PLC0415 - as above

    from benchmarks.helora_peers import rotations_s, tenseal_mm_s  # noqa: PLC0415

    rng = np.random.default_rng(2)
    a, x = rng.standard_normal((RANK, MODELS["05b"][0])), rng.standard_normal(MODELS["05b"][0])
    return {"helora_tenseal_mm": tenseal_mm_s(a, x) * 1e3, "helora_rotations": rotations_s(a, x, 10) * 1e3}


BENCHMARK = Benchmark(
    name="helora",
    summary="private adapters: online, sustained with preprocessing, memory, and other ways under encryption",
    measures=(
        Measure("helora_online_module", "us", at_most(50)),
        Measure("helora_online_round", "us"),
        Measure("helora_sustained_05b", "tokens/s", at_least(50)),
        Measure("helora_sustained_15b", "tokens/s", at_least(25)),
        Measure("helora_offline_05b", "ms"),
        Measure("helora_offline_15b", "ms"),
        Measure("helora_tenseal_mm", "ms"),
        Measure("helora_rotations", "ms"),
        Measure("helora_adapter_holder_memory", "MB"),
        Measure("helora_key_holder_memory", "MB"),
        Measure("helora_block_memory", "MB"),
    ),
    run=run,
    device=cpu,
)
