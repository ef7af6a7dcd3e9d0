"""Sampling through the API, with the SDK, against vllm.LLM.generate on the same prompts."""

from __future__ import annotations

import statistics
import tarfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.harness import Bench, Benchmark, Measure, NotRun, at_least, cores, cpu, interleaved, ratio
from benchmarks.peer import Peer
from benchmarks.sdk import sdk_client
from benchmarks.service import MODEL, Deployed, deployed
from benchmarks.vllm_loop import vllm_loop
from tensafe.local.admin import export_checkpoint, find_checkpoint

if TYPE_CHECKING:
    import tinker

ROUNDS = 6
WARM_ROUNDS = 2
ADAPTER_ROUNDS = 3
PROMPTS = 32
PROMPT_TOKENS = 64
NEW_TOKENS = 128
CONTEXT_TOKENS = 1024
RANK = 16
_VOCABULARY = 8192
_PAUSE_S = 3.0
"""vLLM's worker process looks for more work without a pause for about a second after its last, on a
core that the other side would then share."""


def run(bench: Bench) -> Mapping[str, float]:
    """The base model against vLLM without LoRA, then an adapter against vLLM with the same adapter."""
    if find_spec("vllm") is None:
        raise NotRun("vLLM is not installed: pip install 'tensafe[sampler]'")
    model, threads = models.thirty_million(bench.folder), cores()
    arguments = (str(model), CONTEXT_TOKENS, threads, NEW_TOKENS)
    roles = ("api", "trainer", "sampler")
    with (
        deployed(bench.folder, model, roles=roles, threads=threads) as service,
        sdk_client(service) as client,
    ):
        base = client.create_sampling_client(base_model=MODEL).result()
        with Peer(vllm_loop, *arguments) as vllm:
            bench.note("taking turns, the base model")
            seconds = _compare("", base, vllm, ROUNDS, WARM_ROUNDS)
        path = _train_adapter(client)
        folder = _export(service, path, bench.folder / "adapter")
        tuned = client.create_sampling_client(model_path=path).result()
        with Peer(vllm_loop, *arguments, str(folder)) as vllm:
            bench.note("taking turns, an adapter")
            seconds |= _compare("adapter_", tuned, vllm, ADAPTER_ROUNDS, 1)
    tokens_per_s = {side: PROMPTS * NEW_TOKENS / statistics.median(took) for side, took in seconds.items()}
    return {
        "sampling_ratio": ratio(seconds["vllm"], seconds["sampling"]),
        "adapter_sampling_ratio": ratio(seconds["adapter_vllm"], seconds["adapter_sampling"]),
        **{f"{side}_tokens_per_s": rate for side, rate in tokens_per_s.items()},
    }


def _compare(
    prefix: str, ours: tinker.SamplingClient, theirs: Peer, rounds: int, warm_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round, by side; all sides get all prompts of a round at once."""
    sides = {
        f"{prefix}sampling": lambda index: _through_api(ours, _prompts(index)),
        f"{prefix}vllm": lambda index: _whole(theirs(_prompts(index))),
    }
    return interleaved(sides, rounds, warm_rounds, pause_s=_PAUSE_S)


def _train_adapter(client: tinker.ServiceClient) -> str:
    """The path of sampler weights after one step, so that no matrix is zero."""
    from tinker import types  # noqa: PLC0415 - see sdk_client

    training = client.create_lora_training_client(MODEL, rank=RANK, seed=1).result()
    tokens = _prompts(2**32)[0]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "weights": np.ones(len(tokens) - 1, dtype=np.float32),
        },
    )
    training.forward_backward([datum], "cross_entropy").result()
    training.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    return str(training.save_weights_for_sampler("bench").result().path)


def _export(service: Deployed, path: str, folder: Path) -> Path:
    """The adapter as a PEFT folder, by what `tensafe checkpoints export` does."""
    archive = folder.with_suffix(".tar")
    export_checkpoint(service.services, find_checkpoint(service.services, path), archive)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder


def _prompts(index: int) -> npt.NDArray[np.int64]:
    """Random token ids [PROMPTS, PROMPT_TOKENS]."""
    return np.random.default_rng(index).integers(0, _VOCABULARY, (PROMPTS, PROMPT_TOKENS))


def _through_api(sampler: tinker.SamplingClient, prompts: npt.NDArray[np.int64]) -> float:
    from tinker import types  # noqa: PLC0415 - see sdk_client

    began = time.perf_counter()
    pending = [
        sampler.sample(
            types.ModelInput.from_ints(row.tolist()),
            1,
            types.SamplingParams(max_tokens=NEW_TOKENS, temperature=1.0, seed=i, stop=[]),
        )
        for i, row in enumerate(prompts)
    ]
    answers = [future.result() for future in pending]
    took = time.perf_counter() - began
    return _whole((took, sum(len(answer.sequences[0].tokens) for answer in answers)))


def _whole(timed: tuple[float, int]) -> float:
    """The seconds, once it is certain that every token asked for was drawn."""
    seconds, tokens = timed
    assert tokens == PROMPTS * NEW_TOKENS, tokens
    return seconds


BENCHMARK = Benchmark(
    name="sampling",
    summary=f"{PROMPTS} prompts at once through the API against vllm.LLM, without and with an adapter",
    measures=(
        Measure("sampling_ratio", "x", at_least(0.95)),
        Measure("sampling_tokens_per_s", "tokens/s"),
        Measure("vllm_tokens_per_s", "tokens/s"),
        Measure("adapter_sampling_ratio", "x"),
        Measure("adapter_sampling_tokens_per_s", "tokens/s"),
        Measure("adapter_vllm_tokens_per_s", "tokens/s"),
    ),
    run=run,
    device=cpu,
)
