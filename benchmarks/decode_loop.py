"""The sampling engine with one adapter, native or private, as one side of a comparison of decode steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peer import Handler

if TYPE_CHECKING:
    from tensafe.contracts.sampling import SampleResult


@dataclass(frozen=True, slots=True)
class Job:
    """So many continuations at once, of so many new tokens each."""

    batch: int
    new_tokens: int
    on_base: bool = False
    """Of the base model, whatever adapter there is."""
    beside: int = 0
    """So many of the base model in the same batches."""
    in_clear: bool = False
    """With vLLM's own LoRA, of an engine that has both."""


def decode_loop(
    model_path: str,
    rank: int,
    held_at: Mapping[str, str] | None,
    peft: str | None,
    compile_dir: Path | None = None,
    threads: int = 1,
) -> Handler:
    """Called with a Job, it returns seconds. Prompts have two tokens, so prefill is one more small step.

    `held_at` says where a private adapter is, `peft` is the folder of an ordinary one; either or both.
    """
    from tensafe_gpu.sampler.environment import configure_environment  # noqa: PLC0415

    configure_environment(threads=threads, compile_dir=compile_dir)
    from tensafe.contracts.sampling import SampleRequest, SamplingParams  # noqa: PLC0415
    from tensafe_gpu.sampler.adapters import Adapter  # noqa: PLC0415
    from tensafe_gpu.sampler.engine import SamplingEngine  # noqa: PLC0415
    from tensafe_gpu.sampler.private.adapter import PrivateAdapter  # noqa: PLC0415
    from tensafe_gpu.sampler.private.connecting import CONNECT  # noqa: PLC0415

    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(
        SamplingEngine.start(
            model_path,
            dtype="float32",
            max_context_tokens=256,
            max_loras=1,
            max_lora_rank=rank,
            max_resident_adapters=2,
            max_sequences=16,
            key_holder=None if held_at is None else CONNECT,
        )
    )
    adapters: dict[bool, Adapter | PrivateAdapter] = {}  # by whether they are applied in the clear
    if held_at is not None:
        adapters[False] = PrivateAdapter(held_at["adapter"], held_at["version"], held_at)
    if peft is not None:
        files = {path.name: path.read_bytes() for path in Path(peft).iterdir()}
        adapters[True] = Adapter("native", "1", files)
    assert adapters

    async def sample(job: Job) -> list[SampleResult]:
        params = SamplingParams(max_tokens=job.new_tokens, temperature=0.0, stop=())
        count = job.batch + job.beside
        requests = [SampleRequest(prompt=(7 + n, 11), params=params) for n in range(count)]
        adapter = adapters[job.in_clear or held_at is None]
        chosen = [None if job.on_base or n >= job.batch else adapter for n in range(count)]
        pairs = zip(requests, chosen, strict=True)
        return await asyncio.gather(*(engine.sample(request, one) for request, one in pairs))

    def decode(job: Job) -> float:
        began = time.perf_counter()
        results = loop.run_until_complete(sample(job))
        took = time.perf_counter() - began
        assert all(len(one.sequences[0].tokens) == job.new_tokens for one in results)
        modes = {one.execution.mode.value for one in results if one.execution}
        expected = {"NONE"} if job.on_base or job.beside else set()
        if not job.on_base:
            expected.add("PLAINTEXT" if job.in_clear or held_at is None else "HE")
        assert modes == expected, modes
        return took

    return decode
