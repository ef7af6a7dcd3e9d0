"""Train the same text four ways and draw held-out loss against epsilon, through the official tinker SDK.

`make compare` runs it: a base model (trained here, or `--model HUB_ID_OR_PATH`), the service, and then LoRA
adapters on the demo's corpus: without privacy, with bounded participation (independent noise; and correlated
noise, which a fixed order earns), and with batches that the service deals. One page and one JSON at the end.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import tinker
from rich.console import Console
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from comparison_page import Comparison, Mode, Trained, write_comparison
from corpus import Example, load_corpus
from local_service import LocalService, end_on_signals, model_name
from make_base_model import NAME, ensure_base_model
from output_folder import fresh_folder
from private_finetune import datum, examples_of, heldout_loss
from tensafe.client.deals import DealtBatches
from tensafe.client.domains import PrivacyDomains
from tensafe.client.parts import by_unit
from tensafe.client.service import Service
from tensafe.contracts.domains import DomainTerms

EPSILONS: Final = (2.0, 8.0, 32.0)
STEPS: Final = 20
MODES: Final[tuple[Mode, ...]] = ("bounded", "correlated", "dealt")
_NOTES: Final = (
    "All runs have the same learning rate, clip norm, rank, steps and first weights. Rate, norm and rank are "
    "the demo's, chosen for bounded runs with independent noise at ε = 8 on conversations of this corpus; "
    "nothing was tuned for any mode here, nor for training without privacy.",
    "One run each, with fresh noise (and fresh deals).",
    "Each private run has a domain of its own, as if it were the only one. Whoever trains several on one "
    "data set and then picks one has spent all their ε together; a domain of that data set would say so.",
    "Held-out losses are not private with respect to the held-out conversations.",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One recipe for every run; only where the batches come from and the noise differ."""

    conversations: int
    """How many there are to train on; taken as public."""
    steps: int = STEPS
    steps_per_pass: int = 4
    rank: int = 2
    clip_norm: float = 1.0
    delta: float = 1e-4
    learning_rate: float = 8e-3
    bandwidth: int = 2
    seed: int = 7

    @property
    def batch_size(self) -> int:
        """Conversations of a step; on average, where they are dealt."""
        return max(1, self.conversations // self.steps_per_pass)

    @property
    def steps_of_a_pass(self) -> int:
        """In the fixed order; what does not fill a last batch is left out."""
        return self.conversations // self.batch_size

    def optimizer(self, mode: Mode, epsilon: float, domain: str) -> OptimizerConfigBase:
        """Lets the service find the noise that costs `epsilon` over all steps."""
        settings: dict[str, Any] = {
            "type": "tensafe_dp_adamw",
            "mode": "dealt" if mode == "dealt" else "bounded",
            "domain": domain,
            "clip_norm": self.clip_norm,
            "delta": self.delta,
            "batch_size": self.batch_size,
            "target_epsilon": epsilon,
            "max_steps": self.steps,
        }
        if mode != "dealt":
            uses = math.ceil(self.steps / self.steps_of_a_pass)
            settings |= {"max_participations": uses, "min_separation": self.steps_of_a_pass}
        if mode == "correlated":
            settings |= {"noise": "bisr", "bisr_bandwidth": min(self.bandwidth, self.steps)}
        return OptimizerConfigBase(**settings)

    def fixed_order(self, data: Sequence[types.Datum]) -> Iterator[list[types.Datum]]:
        """Shuffled once, then the same order in every pass: a unit returns after a whole pass, not before."""
        if len(data) != self.conversations:
            raise ValueError(f"planned for {self.conversations} conversations, and there are {len(data)}")
        order = random.Random(self.seed).sample(list(data), len(data))
        for step in range(self.steps):
            first = step % self.steps_of_a_pass * self.batch_size
            yield order[first : first + self.batch_size]


class Trainer:
    """Trains and judges adapters of one plan; each private run has a registered domain of its own."""

    def __init__(self, service: LocalService, name: str, plan: Plan) -> None:
        self._sdk = tinker.ServiceClient(base_url=service.url, api_key=service.api_key)
        self._native = Service(service.url, service.api_key)
        self._name = name
        self._plan = plan
        self._params = types.AdamParams(learning_rate=plan.learning_rate, eps=1e-8)

    def client(self, optimizer: OptimizerConfigBase | None = None) -> tinker.TrainingClient:
        """A new adapter; all begin with the same weights."""
        plan = self._plan
        made = self._sdk.create_lora_training_client(
            self._name, rank=plan.rank, seed=plan.seed, train_unembed=False, optimizer=optimizer
        )
        return made.result()

    def without_privacy(self, examples: list[Example], heldout: list[Example]) -> float:
        """The held-out loss after plain training on the same batches as in the bounded runs."""
        client = self.client()
        for batch in self._plan.fixed_order([datum(example, private=False) for example in examples]):
            client.forward_backward(batch, "cross_entropy")
            client.optim_step(self._params).result()
        return heldout_loss(client, heldout)

    def private(self, mode: Mode, epsilon: float, examples: list[Example], heldout: list[Example]) -> Trained:
        """Register the data, train, judge; what the ledger says it cost."""
        domain = f"chatterbot-{mode}-{epsilon:g}"
        data = [datum(example, private=True) for example in examples]
        terms = DomainTerms(unit="record", delta=self._plan.delta, max_epsilon=epsilon)
        PrivacyDomains(self._native).register(domain, data, terms)
        began = time.monotonic()
        client = self.client(self._plan.optimizer(mode, epsilon, domain))
        metrics: dict[str, float] = {}
        for parts in self._batches(mode, client, data):
            for part in parts:
                client.forward_backward(part, "cross_entropy")
            metrics = client.optim_step(self._params).result().metrics or {}
        return Trained(
            mode=mode,
            target_epsilon=epsilon,
            epsilon=metrics["dp/epsilon"],
            noise_multiplier=metrics["dp/noise_multiplier"],
            train_s=round(time.monotonic() - began, 1),
            heldout=heldout_loss(client, heldout),
        )

    def _batches(
        self, mode: Mode, client: tinker.TrainingClient, data: list[types.Datum]
    ) -> Iterator[Sequence[list[types.Datum]]]:
        """Each step's data, in requests."""
        if mode != "dealt":
            yield from ((batch,) for batch in self._plan.fixed_order(data))
            return
        for deal in DealtBatches(self._native, client.model_id, by_unit(data)):
            yield deal.parts

    def close(self) -> None:
        """End the SDK's session."""
        self._sdk.close("success").result()


def run(service: LocalService, name: str, arguments: argparse.Namespace, console: Console) -> Comparison:
    """Every training, one after the other."""
    began = time.monotonic()
    corpus = load_corpus()
    plan = Plan(conversations=len(corpus.train), steps=arguments.steps)
    trainer = Trainer(service, name, plan)
    untrained = trainer.client()
    examples, heldout = examples_of(corpus, untrained.get_tokenizer())
    base = heldout_loss(untrained, heldout)
    console.print(f"base model: {base:.3f} nats per answer token")
    not_private = trainer.without_privacy(examples, heldout)
    console.print(f"not private: {not_private:.3f}")
    runs: list[Trained] = []
    for mode in MODES:
        for epsilon in arguments.epsilons:
            runs.append(trainer.private(mode, epsilon, examples, heldout))
            told = runs[-1]
            console.print(f"{mode}, epsilon {told.epsilon:.2f}: {told.heldout:.3f} in {told.train_s:.0f} s")
    trainer.close()
    return Comparison(
        title="What each privacy mode costs",
        generated_at=datetime.now(UTC),
        base_model=name,
        conversations=len(examples),
        heldout_conversations=len(heldout),
        heldout_tokens=sum(example.answer_tokens for example in heldout),
        delta=plan.delta,
        steps=plan.steps,
        batch_size=plan.batch_size,
        base=base,
        not_private=not_private,
        runs=tuple(runs),
        facts=(
            ("base model", name),
            (
                "data",
                f"{len(examples)} conversations of chatterbot-corpus (English), one unit each",
            ),
            ("training", f"{plan.steps} steps, batches of {plan.batch_size}, LoRA rank {plan.rank}"),
            ("optimizer", f"AdamW, learning rate {plan.learning_rate:g}, clip norm {plan.clip_norm:g}"),
            ("bounded", f"one fixed order, {plan.steps_per_pass} steps a pass; bandwidth {plan.bandwidth}"),
            ("dealt", f"every unit with probability {plan.batch_size / len(examples):.3g} in each step"),
            ("everything", f"{time.monotonic() - began:.0f} s"),
        ),
        notes=(
            *_NOTES,
            f"{corpus.units_that_share()} of {len(corpus.train)} training conversations share a turn with "
            "another one: the guarantee covers a conversation, not such a turn.",
        ),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="hub id or local path of a Llama, Qwen2 or Qwen3 model")
    parser.add_argument("--output", type=Path, default=Path("compare-out"))
    parser.add_argument("--steps", type=int, default=STEPS, choices=range(2, 1001), metavar="2..1000")
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS), metavar="EPSILON")
    return parser.parse_args(arguments)


def main() -> int:
    """Compare; 0 if the page was written, 1 if it may not write there."""
    arguments, console = parse(), Console()
    end_on_signals()
    try:
        output = fresh_folder(arguments.output)
    except FileExistsError as error:
        console.print(str(error), markup=False)
        return 1
    if arguments.model:
        name, path = model_name(arguments.model), arguments.model
    else:
        name, path = NAME, str(ensure_base_model(console=console).path)
    with LocalService(output / "data", name, path, console) as service:
        measured = run(service, name, arguments, console)
    console.print(f"comparison: {write_comparison(measured, output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
