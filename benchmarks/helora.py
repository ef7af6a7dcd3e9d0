"""HE-LoRA on one core: a module online, sustained tokens per second with preprocessing, memory, and peers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Benchmark, Goal, Measure, at_least, at_most, cpu
from benchmarks.peer import Handler, Peer
from benchmarks.spent import Spent, spent

if TYPE_CHECKING:
    import numpy as np

    from tensafe_gpu.adapter_holder.service import HolderService
    from tensafe_gpu.helora.burned import BurnLog
    from tensafe_gpu.helora.ports import KeyHolder

RANK = 16
MODELS = {"05b": (896, 24), "15b": (1536, 28)}
"""Width and layers; q, k and v are one site, o another."""
TOKENS = 2000
STEPS = 992
"""Tokens that go through all sites of a model, one at a time, and BATCH at once."""
BATCH = 16
_US, _MS = 1e6, 1e3


def run(bench: Bench) -> Mapping[str, float]:
    """Thread CPU time of both parties, and time on the wall (`_wall`), all in one process on one core.

    A module: quantise, mask, product, unmask for one token of 896, r = 16; with its part of a block. Peers
    on the same A and x. In the service: a third of a round of q, k and v with all that both parties do for
    it, frames and index logs on the disk included, sockets not. A round: that through a unix socket.
    Sustained: blocks of all sites of all layers are prepared, tokens go through all of them, one at a time,
    or 16 sequences at once (`_b16`); 1 / (a token's part of the blocks + its rounds). Floor: the arithmetic
    of that alone (`helora_floor`). Memory: `helora_memory`.
    """
    from benchmarks.helora_memory import memory  # noqa: PLC0415 - not needed to list benchmarks

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with Peer(_measures, str(bench.folder)) as peer:
        results: dict[str, float] = {}
        for step in ("module", *MODELS):
            bench.note(step)
            results |= peer(step)
    bench.note("memory")
    return results | memory(bench)


def _measures(folder: str) -> Handler:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return lambda step: _module() if step == "module" else _model(step, Path(folder) / step)


def _module() -> Mapping[str, float]:
    """One module in three ways, on the same A [16, 896] and the same tokens."""
    import numpy as np  # noqa: PLC0415 - in the peer alone, after its threads were set

    from benchmarks.helora_peers import rotations, tenseal_mm  # noqa: PLC0415

    rng, d = np.random.default_rng(0), MODELS["05b"][0]
    a, x = rng.standard_normal((RANK, d)), rng.standard_normal((TOKENS, d)).astype(np.float32)
    offline, online = _masked(a, x)
    per_token = offline + online
    mm, turned = tenseal_mm(a, x[0]), rotations(a, x[:10])
    return {
        **online.named("helora_online_module", _US),
        **per_token.named("helora_module", _US),
        **mm.named("helora_tenseal_mm", _MS),
        **turned.named("helora_rotations", _MS),
        "helora_tenseal_ratio": mm.cpu_s / per_token.cpu_s,
        "helora_rotations_ratio": turned.cpu_s / per_token.cpu_s,
    }


def _masked(a: np.ndarray, x: np.ndarray) -> tuple[Spent, Spent]:
    """A token's part of a block, and its step online; the products are held to the integers'."""
    import numpy as np  # noqa: PLC0415 - as above

    from tensafe_gpu.helora.evaluation import BlockEvaluation, answered  # noqa: PLC0415
    from tensafe_gpu.helora.keystream import new_key, ring_rows  # noqa: PLC0415
    from tensafe_gpu.helora.masks import PreparedBlock, PreparingBlock  # noqa: PLC0415
    from tensafe_gpu.helora.messages import ROWS_PER_FRAME  # noqa: PLC0415
    from tensafe_gpu.helora.online import masked, token_scales, unmasked  # noqa: PLC0415
    from tensafe_gpu.helora.parameters import N  # noqa: PLC0415
    from tensafe_gpu.helora.quantise import dequantised, quantised_rows, quantised_tokens  # noqa: PLC0415
    from tests.support.helora import halves_of  # noqa: PLC0415

    d, share_key, blocks = a.shape[1], new_key(), list[PreparedBlock]()
    site = quantised_rows(a)
    columns = np.ascontiguousarray(site.a.T.astype(np.float64))

    def prepare() -> None:
        preparing = PreparingBlock(d, RANK)
        evaluation = BlockEvaluation(site.a, *halves_of(preparing))
        for first in range(0, d, ROWS_PER_FRAME):
            evaluation.add(*preparing.encrypted(first, min(ROWS_PER_FRAME, d - first)))
        blocks.append(preparing.finish(evaluation.reply(share_key)))
        preparing.close()
        evaluation.close()

    offline = spent(prepare)
    (block,) = blocks

    def one(n: int) -> np.ndarray:
        token = x[n : n + 1]
        scales = token_scales(token, site.x_bound)
        y = answered(columns, masked(token, scales, block.rho(n, 1, d)), ring_rows(share_key, n, 1, RANK))
        return unmasked(y, block.shares[n : n + 1], scales)

    for n in range(100):
        x_q, scales = quantised_tokens(x[n : n + 1], site.x_bound)
        wanted = dequantised(x_q.astype(np.int64) @ site.a.astype(np.int64).T, scales)
        assert np.array_equal(one(n), wanted)
    online = spent(lambda: [one(n) for n in range(TOKENS)])
    return offline.times(1 / N), online.times(1 / TOKENS)


def _model(name: str, folder: Path) -> Mapping[str, float]:
    """Blocks of every site of every layer are prepared, then tokens go through all of them in their order."""
    import numpy as np  # noqa: PLC0415 - as above

    from benchmarks.helora_floor import primitives, site_token_s  # noqa: PLC0415
    from tensafe_gpu.helora.burned import BurnLog  # noqa: PLC0415
    from tensafe_gpu.helora.parameters import N  # noqa: PLC0415
    from tests.support.helora import PlainReference, adapter_holder, peft_files, policy  # noqa: PLC0415

    d, layers = MODELS[name]
    folder.mkdir()
    burn_log, results = BurnLog(folder / "burned.db"), dict[str, float]()
    with adapter_holder(folder / "holder") as holder:
        files = peft_files(d, RANK, layers=layers)
        _, adapter = holder.store.publish("a", files, base_model="bench", policy=policy(10 * N))
        private, plain = holder.key_holder(burn_log), PlainReference(adapter)
        sites = [shape.site for shape in private.info().sites]
        assert len(sites) == 2 * layers
        offline = spent(lambda: [private.prepare(site) for site in sites]).times(1 / N)
        x = np.random.default_rng(1).standard_normal((STEPS, d)).astype(np.float32)
        for site in sites:
            request = [(site, x[:4])]
            assert np.array_equal(private.products(request)[0], plain.products(request)[0])

        def walked(batch: int) -> Spent:
            first = range(0, STEPS, batch)
            took = spent(
                lambda: [private.products([(site, x[n : n + batch])]) for n in first for site in sites]
            )
            return took.times(1 / STEPS)

        online, together = walked(1), walked(BATCH)
        if name == "05b":
            (qkv,) = (site for site in sites if site.startswith("model.layers.0.") and site.endswith("qkv"))
            rounds = _rounds(private, qkv, x)
            results |= rounds.named("helora_online_round", _US)
            results |= _in_service(holder.service, burn_log, qkv, x).named("helora_online_service", _US)
        private.close()
    burn_log.close()
    sustained = offline + online
    by = primitives(3 * RANK, d)
    floor_s = layers * (site_token_s(d, 3 * RANK, by) + site_token_s(d, RANK, by))
    results |= {
        **sustained.rates(f"helora_sustained_{name}"),
        **(offline + together).rates(f"helora_sustained_{name}_b{BATCH}"),
        **offline.named(f"helora_offline_{name}", _MS),
        f"helora_floor_{name}": 1 / floor_s,
        f"helora_floor_ratio_{name}": sustained.cpu_s / floor_s,
    }
    if name == "05b":
        results["helora_transform"] = by.transform_s * _US
        results["helora_product"] = 1e-9 / by.product_s
        results["helora_keystream"] = 1e-9 / by.keystream_s
    return results


def _rounds(private: KeyHolder, site: str, x: np.ndarray) -> Spent:
    """One round of one token, at one site again and again."""
    for n in range(100):
        private.products([(site, x[n : n + 1])])
    return spent(lambda: [private.products([(site, x[n : n + 1])]) for n in range(len(x))]).times(1 / len(x))


def _in_service(service: HolderService, burn_log: BurnLog, qkv: str, x: np.ndarray) -> Spent:
    """A module's third of the round of q, k and v: all that both parties do, without sockets and threads."""
    from benchmarks.helora_in_memory import InMemory  # noqa: PLC0415 - as above
    from tensafe_gpu.helora.connection import Wanted  # noqa: PLC0415
    from tensafe_gpu.helora.key_holder import RemoteKeyHolder  # noqa: PLC0415
    from tests.support.helora import TENANT  # noqa: PLC0415

    private = RemoteKeyHolder(lambda: InMemory.to(service), Wanted(TENANT, "a"), burn_log)
    private.prepare(qkv)
    took = _rounds(private, qkv, x).times(1 / 3)
    private.close()
    return took


def _both(name: str, unit: str, *goal: Goal) -> tuple[Measure, Measure]:
    """By thread CPU time, which a goal is of, and on the wall."""
    return Measure(name, unit, *goal), Measure(f"{name}_wall", unit)


BENCHMARK = Benchmark(
    name="helora",
    summary="private adapters: online, sustained with preprocessing, memory, and other ways under encryption",
    measures=(
        *_both("helora_online_module", "us", at_most(50)),
        *_both("helora_online_service", "us", at_most(50)),
        *_both("helora_online_round", "us"),
        *_both("helora_sustained_05b", "tokens/s", at_least(50)),
        *_both("helora_sustained_05b_b16", "tokens/s", at_least(50)),
        Measure("helora_floor_05b", "tokens/s"),
        Measure("helora_floor_ratio_05b", "x"),
        *_both("helora_sustained_15b", "tokens/s", at_least(25)),
        *_both("helora_sustained_15b_b16", "tokens/s", at_least(25)),
        Measure("helora_floor_15b", "tokens/s"),
        Measure("helora_floor_ratio_15b", "x"),
        *_both("helora_offline_05b", "ms"),
        *_both("helora_offline_15b", "ms"),
        Measure("helora_transform", "us"),
        Measure("helora_product", "GMAC/s"),
        Measure("helora_keystream", "GB/s"),
        *_both("helora_module", "us"),
        *_both("helora_tenseal_mm", "ms"),
        Measure("helora_tenseal_ratio", "x"),
        *_both("helora_rotations", "ms"),
        Measure("helora_rotations_ratio", "x"),
        *(
            Measure(f"helora_{what}_{how}", "MB")
            for what in ("adapter_holder", "key_holder", "block")
            for how in ("memory", "counted")
        ),
    ),
    run=run,
    device=cpu,
)
