"""Encrypted sampling from a trained adapter on real text: `python -m benchmarks.private_generation`.

The demo's base model and an adapter trained on the demo's corpus, published to a real adapter holder's
process and sampled by vLLM as its key holder: 200 prompts, all of them also to the plain adapter and to the
base model, arriving while others run. Each private token is compared with the one that the adapter's integers
choose in the clear (examples/quantised_adapter.py). Next to it: what rounding the adapter to those integers
does to held-out loss, how many answers it changes, and how far activations are rounded on held-out tokens.

Printed and saved in benchmarks/results/private_generation.json; docs/helora.md has the table.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from tests.support.quantised_reference import served_integers

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
    greatest_crest: float
    """Of a token's largest activation to their root mean square, over held-out tokens and sites."""
    rounding_x: float
    """Of activations at the worst site: error over activations, both root mean square, held-out tokens."""
    rounding_x_reported: float
    rounding_a_reported: float
    """At the worst site, as the adapter holder said when the adapter was published."""


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
        ("a token's largest activation over their root mean square, at most", f"{result.greatest_crest:.1f}"),
        ("rounding of activations at the worst site", f"{result.rounding_x:.1e}"),
        ("the same as reported by `publish`, for a ratio of 8", f"{result.rounding_x_reported:.1e}"),
        (
            "rounding of weights at the worst site, as `publish` reports it",
            f"{result.rounding_a_reported:.1e}",
        ),
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


@torch.no_grad()
def rounded_activations(
    model: torch.nn.Module, sites: Mapping[str, dict[str, Any]], examples: Sequence[Any]
) -> tuple[float, float]:
    """The greatest crest factor of a token, and the relative error of rounding at the worst site."""
    crests, errors = [0.0], {name: torch.zeros(2, dtype=torch.float64) for name in sites}

    def seeing(site: str, x_bound: int) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0].double().flatten(0, -2)
            largest = x.abs().amax(-1, keepdim=True)
            crests.append(float((largest[:, 0] / x.square().mean(-1).sqrt()).max()))
            scale = largest / x_bound
            errors[site] += torch.stack((((x / scale).round() * scale - x).square().sum(), x.square().sum()))

        return hook

    handles = [
        model.get_submodule(next(iter(site["modules"]))).register_forward_pre_hook(
            seeing(name, site["x_bound"])
        )
        for name, site in sites.items()
    ]
    for example in examples:
        model(input_ids=torch.tensor([list(example.tokens)]))
    for handle in handles:
        handle.remove()
    return max(crests), max(float((lost / power).sqrt()) for lost, power in errors.values())


def measure(folder: Path, count: int = PROMPTS) -> Result:
    """Train, publish, sample, compare."""
    trained = trained_adapter()
    from quantised_adapter import QuantisedAdapter  # noqa: PLC0415 - examples/ is on the path now

    trained.model.save_pretrained(folder / "peft")
    files = {path.name: path.read_bytes() for path in (folder / "peft").iterdir() if path.suffix != ".md"}
    holder = HolderProcess(folder / "holder")
    try:
        published = holder.command(
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
        sites = served_integers(holder.data_dir, NAME)
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
    crest, rounding_x = rounded_activations(quantised.model, sites, trained.heldout)
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
        greatest_crest=crest,
        rounding_x=rounding_x,
        rounding_x_reported=max(site["error_x"] for site in published["sites"]),
        rounding_a_reported=max(site["error_a"] for site in published["sites"]),
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
