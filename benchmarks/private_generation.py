"""Encrypted sampling from a trained adapter on real text: `python -m benchmarks.private_generation`.

The demo's base model and an adapter trained on the demo's corpus, published to a real adapter holder's
process and sampled by vLLM as its key holder: 200 prompts, all of them also to the plain adapter and to the
base model, arriving while others run. Each private token is compared with the one that the adapter's integers
choose in the clear (examples/quantised_adapter.py). Next to it: what rounding the adapter to those integers
does to held-out loss, and how many answers it changes.

Printed and saved in benchmarks/results/private_generation.json; docs/helora.md has the table.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.trained_adapter import RANK, ROOT, STEPS, TrainedAdapter, heldout_loss, trained_adapter
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.private.connecting import CONNECT
from tests.support.holder_process import HolderProcess

RESULT: Final = ROOT / "benchmarks" / "results" / "private_generation.json"
PROMPTS: Final = 200
NEW_TOKENS: Final = 16
ARRIVALS_PER_S: Final = 60.0
NAME: Final = "trained"


@dataclass(frozen=True, slots=True)
class Result:
    """Counts of generations of NEW_TOKENS tokens; losses in nats per held-out answer token."""

    rank: int
    training_steps: int
    prompts: int
    new_tokens: int
    equal_to_quantised: int
    unlike_base: int
    unlike_unquantised: int
    rows_evaluated: int
    greatest_logprob_difference: float
    """Of a sampled token, to the integers in the clear: float32 sums in another order."""
    heldout_loss_base: float
    heldout_loss_adapter: float
    heldout_loss_quantised: float


def rows(result: Result) -> list[tuple[str, str]]:
    """The table of docs/helora.md."""
    count = result.prompts
    return [
        (
            "generations equal to the quantised adapter's, in every token",
            f"{result.equal_to_quantised} of {count}",
        ),
        ("greatest difference of a sampled token's logprob", f"{result.greatest_logprob_difference:.0e}"),
        ("generations that differ from the base model's", f"{result.unlike_base} of {count}"),
        ("generations that quantisation changed", f"{result.unlike_unquantised} of {count}"),
        ("held-out loss, base model", f"{result.heldout_loss_base:.4f}"),
        ("held-out loss, adapter as trained", f"{result.heldout_loss_adapter:.4f}"),
        ("held-out loss, quantised adapter", f"{result.heldout_loss_quantised:.4f}"),
    ]


def prompts_of(trained: TrainedAdapter, count: int) -> list[tuple[int, ...]]:
    """Conversations cut where an answer begins: held-out ones first, then some that were trained on."""
    found = []
    for example in [*trained.heldout, *trained.train]:
        begins = next((i for i, weight in enumerate(example.weights) if weight), None)
        if begins is not None:
            found.append(example.tokens[: begins + 1])
    return found[:count]


async def generations(
    model_path: str, adapters: dict[str, Any], prompts: list[tuple[int, ...]]
) -> dict[str, list[SampleResult]]:
    """Every prompt to every adapter, in a shuffled order, arriving at random."""
    engine = await SamplingEngine.start(
        model_path, dtype="float32", max_context_tokens=512, max_loras=2, max_lora_rank=RANK,
        max_resident_adapters=3, max_sequences=32, key_holder=CONNECT,
    )  # fmt: skip
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, stop=())
    draw = random.Random(6)
    work = [(kind, number) for kind in adapters for number in range(len(prompts))]
    draw.shuffle(work)

    async def one(kind: str, number: int, delay_s: float) -> tuple[str, int, SampleResult]:
        await asyncio.sleep(delay_s)
        request = SampleRequest(prompt=prompts[number], params=params)
        return kind, number, await engine.sample(request, adapters[kind])

    try:
        await engine.sample(SampleRequest(prompt=prompts[0], params=params), adapters["private"])
        answers = await asyncio.gather(
            *(one(*pair, index / ARRIVALS_PER_S) for index, pair in enumerate(work))
        )
    finally:
        await engine.close()
    ordered = sorted(answers, key=lambda answer: answer[1])
    return {kind: [result for of, _, result in ordered if of == kind] for kind in adapters}


def measure(folder: Path, count: int = PROMPTS) -> Result:
    """Train, publish, sample, compare."""
    trained = trained_adapter()
    from quantised_adapter import QuantisedAdapter  # noqa: PLC0415 - examples/ is on the path now

    trained.model.save_pretrained(folder / "peft")
    files = {path.name: path.read_bytes() for path in (folder / "peft").iterdir() if path.suffix != ".md"}
    holder = HolderProcess(folder / "holder")
    try:
        holder.command(
            "publish", "--name", NAME, "--peft", str(folder / "peft"), "--base-model", "demo",
            "--tenants", "bench", "--tokens-per-site", "1000000",
        )  # fmt: skip
        where = {"address": holder.address, "tenant": "bench", "adapter": NAME, "version": "1"}
        where["burn_log"] = str(folder / "burned.db")
        adapters = {
            "private": PrivateAdapter(NAME, "1", where),
            "plain": Adapter(NAME, "1", files),
            "base": None,
        }
        prompts = prompts_of(trained, count)
        found = asyncio.run(generations(str(trained.base_path), adapters, prompts))
        quantised = QuantisedAdapter(str(trained.base_path), holder.data_dir, NAME)
    finally:
        holder.kill()
    tokens = {kind: [one.sequences[0].tokens.tolist() for one in some] for kind, some in found.items()}
    equal, worst = 0, 0.0
    for prompt, result in zip(prompts, found["private"], strict=True):
        drawn = result.sequences[0].tokens.tolist()
        equal += quantised.greedy_after(prompt, drawn) == drawn
        scored = quantised.logprobs([*prompt, *drawn])[len(prompt) - 1 : -1]
        exact = scored[torch.arange(len(drawn)), torch.tensor(drawn)].numpy()
        worst = max(worst, float(abs(result.sequences[0].logprobs - exact).max()))
    assert len(tokens["private"]) == count
    assert all(one.execution and one.execution.mode == "HE" for one in found["private"])
    return Result(
        rank=RANK,
        training_steps=STEPS,
        prompts=count,
        new_tokens=NEW_TOKENS,
        equal_to_quantised=equal,
        unlike_base=sum(map(list.__ne__, tokens["private"], tokens["base"])),
        unlike_unquantised=sum(map(list.__ne__, tokens["private"], tokens["plain"])),
        rows_evaluated=sum(one.execution.evaluated for one in found["private"] if one.execution),
        greatest_logprob_difference=float(f"{worst:.2g}"),
        heldout_loss_base=trained.before,
        heldout_loss_adapter=trained.after,
        heldout_loss_quantised=heldout_loss(quantised.model, trained.heldout),
    )


def main() -> None:
    """Measure, print, save."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    configure_environment(threads=1)
    scratch = ROOT / ".cache"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="private-") as folder:
        result = measure(Path(folder))
    for label, value in rows(result):
        print(f"{label:64s} {value}")
    RESULT.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
