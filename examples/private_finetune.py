"""Fine-tune with differential privacy through the official tinker SDK, on one machine, from nothing.

`make demo` runs it: a base model (trained here, or `--model HUB_ID_OR_PATH`), the service, then a LoRA
adapter trained on a dialogue corpus in which one conversation is one privacy unit. In the middle the
trainer process is killed with SIGKILL; training goes on. What was spent is verified offline (evidence.py).
Then the adapter moves to an adapter holder, which evaluates it encrypted (private_serving.py). At the end
there is one HTML report.

With `--url` the service is one that runs already, wherever it is: all but the kill and the adapter holder.

Everything that touches the service goes through the SDK, as your own code would: see `train`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import tinker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from corpus import Corpus, Example, encode, encode_prompt, load_corpus
from evidence import verified_spending
from local_service import LocalService, RunningService, end_on_signals, model_name
from make_base_model import NAME, ensure_base_model
from output_folder import fresh_folder
from private_serving import for_report, publish_and_sample
from report import write_report

PROMPTS: Final = ("What is AI?", "How are you?", "Tell me a joke", "What is your favorite book?")
MAX_TOKENS: Final = 256
STEPS: Final = 14
DOMAIN: Final = "chatterbot-english"
NOT_SHOWN: Final = (
    "The trainer is not killed: it is a process of a service that ran already.",
    "The adapter is not moved to an adapter holder: to publish it takes the service's own data directory.",
)
"""With --url."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole recipe. One step releases the noisy mean over `batch_size` conversations."""

    conversations: int
    """How many there are to train on; taken as public, since the size of a step follows from it."""
    rank: int = 2
    steps: int = STEPS
    steps_per_pass: int = 2
    clip_norm: float = 1.0
    max_epsilon: float = 8.0
    delta: float = 1e-4
    learning_rate: float = 8e-3
    seed: int = 7

    @property
    def batch_size(self) -> int:
        """Conversations of a step."""
        return max(1, self.conversations // self.steps_per_pass)

    @property
    def max_participations(self) -> int:
        """Passes begun: a conversation is in one step of each at most."""
        return math.ceil(self.steps / (self.conversations // self.batch_size))

    def optimizer(self) -> OptimizerConfigBase:
        """Asks the service to choose the noise for `max_epsilon` and to refuse anything beyond it."""
        return OptimizerConfigBase(
            type="tensafe_dp_adamw",
            clip_norm=self.clip_norm,
            target_epsilon=self.max_epsilon,
            max_steps=self.steps,
            max_epsilon=self.max_epsilon,
            delta=self.delta,
            batch_size=self.batch_size,
            max_participations=self.max_participations,
            domain=DOMAIN,
        )


@dataclass(slots=True)
class Outcome:
    """What was measured, for the report."""

    steps: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    privacy: dict[str, float] = field(default_factory=dict)
    checkpoint: str = ""


def datum(example: Example, *, private: bool) -> types.Datum:
    """An SDK datum; in training it carries the unit that it belongs to."""
    inputs: dict[str, Any] = {
        "target_tokens": np.array(example.targets, dtype=np.int64),
        "weights": np.array(example.weights, dtype=np.float32),
    }
    if private:
        inputs["dp_unit_id"] = np.array([example.unit_id], dtype=np.int64)
    return types.Datum(model_input=types.ModelInput.from_ints(list(example.tokens)), loss_fn_inputs=inputs)


def batches(examples: list[Example], plan: Plan) -> list[list[Example]]:
    """Shuffled passes over the data, cut into steps: each conversation at most once a pass."""
    if len(examples) < plan.batch_size:
        raise ValueError(f"a step needs {plan.batch_size} conversations and there are {len(examples)}")
    order = random.Random(plan.seed)
    cut: list[list[Example]] = []
    while len(cut) < plan.steps:
        shuffled = order.sample(examples, len(examples))
        cut += [
            shuffled[i : i + plan.batch_size]
            for i in range(0, len(shuffled) - plan.batch_size + 1, plan.batch_size)
        ]
    return cut[: plan.steps]


def heldout_loss(client: tinker.TrainingClient, examples: list[Example]) -> float:
    """Mean loss in nats per answer token; a forward pass, which needs no unit ids and releases nothing."""
    done = client.forward([datum(example, private=False) for example in examples], "cross_entropy").result()
    return float(done.metrics["loss:sum"]) / sum(example.answer_tokens for example in examples)


def train(
    client: tinker.TrainingClient,
    examples: list[Example],
    plan: Plan,
    service: LocalService | RunningService,
    console: Console,
) -> Outcome:
    """The training loop of any tinker program; only the kill in the middle is unusual."""
    outcome = Outcome()
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  epsilon {task.fields[epsilon]:.2f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=plan.steps, loss=float("nan"), epsilon=0.0)
        for number, batch in enumerate(batches(examples, plan), start=1):
            forward = client.forward_backward(
                [datum(example, private=True) for example in batch], "cross_entropy"
            )
            step = client.optim_step(types.AdamParams(learning_rate=plan.learning_rate, eps=1e-8))
            killed_s = None
            if number == plan.steps // 2 and (pid := service.kill_trainer()) is not None:
                killed_s = time.monotonic()
                progress.console.print(f"[red]SIGKILL[/red] to the trainer (pid {pid}); the client waits on")
            loss = forward.result().metrics["loss:sum"] / sum(example.answer_tokens for example in batch)
            metrics = step.result().metrics or {}
            if killed_s is not None:
                took_s = time.monotonic() - killed_s
                progress.console.print(f"went on after {took_s:.1f} s; nothing was lost")
                outcome.events.append(
                    {
                        "step": number,
                        "label": "trainer killed",
                        "detail": f"SIGKILL during step {number}; its result came {took_s:.1f} s later, from "
                        "the log and with the same noise.",
                    }
                )
            outcome.privacy = dict(metrics)
            outcome.steps.append({"step": number, "loss": loss, "epsilon": metrics["dp/epsilon"]})
            progress.update(bar, advance=1, loss=loss, epsilon=metrics["dp/epsilon"])
    outcome.checkpoint = client.save_state("final").result().path
    return outcome


def sample(sampler: tinker.SamplingClient, tokenizer: Any, prompt: str) -> str:  # noqa: ANN401
    """A continuation up to the end of the answer."""
    params = types.SamplingParams(max_tokens=40, temperature=0.7, top_p=0.9, seed=1, stop=["\n\n"])
    tokens = encode_prompt(tokenizer, prompt)
    answer = sampler.sample(types.ModelInput.from_ints(tokens), 1, params).result()
    return str(tokenizer.decode(answer.sequences[0].tokens, skip_special_tokens=True)).strip() or "(nothing)"


def examples_of(corpus: Corpus, tokenizer: Any) -> tuple[list[Example], list[Example]]:  # noqa: ANN401
    """Tokenised training and held-out conversations that hold an answer."""
    train = [encode(tokenizer, c, max_tokens=MAX_TOKENS) for c in corpus.train]
    heldout = [encode(tokenizer, c, max_tokens=MAX_TOKENS) for c in corpus.heldout]
    return [e for e in train if e.answer_tokens], [e for e in heldout if e.answer_tokens]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="hub id or local path of a Llama, Qwen2 or Qwen3 model")
    parser.add_argument("--url", help="a service that runs already; without it one is started for the demo")
    parser.add_argument("--api-key", default=os.environ.get("TINKER_API_KEY"), help="a key of that service")
    parser.add_argument("--public-key", type=Path, metavar="FILE", help="what that service signs with, PEM")
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("--steps", type=int, default=STEPS, choices=range(2, 1001), metavar="2..1000")
    parsed = parser.parse_args(arguments)
    if parsed.url and not parsed.api_key:
        parser.error("--url needs --api-key or TINKER_API_KEY")
    if parsed.public_key and not parsed.url:
        parser.error("--public-key is for --url: a service that is started here tells its own")
    if parsed.url and parsed.model:
        parser.error("--url and --model exclude each other: that service has its base model")
    return parsed


def main() -> int:
    """Run the demo; 0 if the report was written, 1 if it may not write there, is refused, or an encrypted
    answer is not the quantised adapter's.
    """
    arguments = parse()
    console = Console(emoji=False)  # ":train:" is a part of names
    end_on_signals()
    try:
        output = fresh_folder(arguments.output)
    except FileExistsError as error:
        console.print(str(error), markup=False)
        return 1
    timings: list[tuple[str, float]] = []

    def timed(label: str, began: float) -> None:
        timings.append((label, round(time.monotonic() - began, 1)))

    if arguments.url:
        running = RunningService(arguments.url, arguments.api_key, arguments.public_key)
        name = running.model_name()
        facts = [("base model", name), ("service", "one that ran already")]
        for line in NOT_SHOWN:
            console.print(line)
        try:
            run(running, name, name, arguments.steps, facts, timings, output, console)
        except tinker.RequestFailedError as refused:  # its budget was spent by an earlier run, say
            console.print(str(refused), markup=False, soft_wrap=True)
            return 1
        return 0
    began = time.monotonic()
    if arguments.model:
        name, path = model_name(arguments.model), arguments.model
        facts = [("base model", name)]
    else:
        base = ensure_base_model(console=console)
        name, path = NAME, str(base.path)
        facts = [
            (
                "base model",
                f"{base.name}, {base.parameters / 1e6:.1f} M parameters, trained here from scratch",
            ),
            (
                "base model's own held-out loss",
                f"{base.heldout_loss_nats:.2f} nats a token; it is too small to make sense, so judge by "
                "the losses, not by the answers",
            ),
        ]
        timed("base model" + (" (cached)" if base.cached else ""), began)

    began = time.monotonic()
    with LocalService(output / "data", name, path, console) as service:
        timed("start of the service", began)
        exact = run(service, name, path, arguments.steps, facts, timings, output, console)
    if not exact:
        console.print("encrypted answers differ from the quantised adapter's: that is a defect of TenSafe's")
    return 0 if exact else 1


def run(
    service: LocalService | RunningService,
    name: str,
    model_path: str,
    steps: int,
    facts: list[tuple[str, str]],
    timings: list[tuple[str, float]],
    output: Path,
    console: Console,
) -> bool:
    """Everything between `ready` and the report; whether each encrypted answer was the adapter's."""
    client = tinker.ServiceClient(base_url=service.url, api_key=service.api_key)
    corpus = load_corpus()
    plan = Plan(conversations=len(corpus.train), steps=steps)
    training = client.create_lora_training_client(
        name, rank=plan.rank, seed=plan.seed, train_unembed=False, optimizer=plan.optimizer()
    ).result()
    tokenizer = training.get_tokenizer()
    train_examples, heldout_examples = examples_of(corpus, tokenizer)
    began = time.monotonic()
    before_loss = heldout_loss(training, heldout_examples)
    base_sampler = client.create_sampling_client(base_model=name).result()
    before = [sample(base_sampler, tokenizer, prompt) for prompt in PROMPTS]
    judging_s = time.monotonic() - began
    console.print(f"held-out loss before: {before_loss:.3f} nats per answer token")

    began = time.monotonic()
    outcome = train(training, train_examples, plan, service, console)
    timings.append(
        ("training" + (", the kill included" if outcome.events else ""), round(time.monotonic() - began, 1))
    )
    began = time.monotonic()
    after_loss = heldout_loss(training, heldout_examples)
    sampler = training.save_weights_and_get_sampling_client().result()
    after = [sample(sampler, tokenizer, prompt) for prompt in PROMPTS]
    judging_s += time.monotonic() - began
    timings.append(("held-out losses and answers", round(judging_s, 1)))
    began = time.monotonic()
    proven = verified_spending(service, outcome.checkpoint, DOMAIN, output, console)
    timings.append(("verifying what was spent", round(time.monotonic() - began, 1)))
    encrypted = None
    if isinstance(service, LocalService):
        began = time.monotonic()
        path = training.save_weights_for_sampler("private").result().path
        questions = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
        at = (questions, model_path, output / "holder", console)
        served = publish_and_sample(service, client, path, *at, keep_run=True)
        encrypted = for_report(served, PROMPTS, tokenizer)
        timings.append(("publishing, and encrypted answers", round(time.monotonic() - began, 1)))
    privacy = outcome.privacy
    spent = f"epsilon {privacy['dp/epsilon']:.2f} at delta {privacy['dp/delta']:g}"
    console.print(f"held-out loss after:  {after_loss:.3f} nats per answer token, {spent}")
    console.print(f"encrypted checkpoint: {outcome.checkpoint}", soft_wrap=True)
    client.close("success").result()

    report = {
        "title": "Private fine-tuning, measured",
        "summary": f"A LoRA adapter trained on {len(train_examples)} conversations through the tinker SDK. "
        f"Held-out loss went from {before_loss:.3f} to {after_loss:.3f} nats per answer token at "
        f"epsilon {privacy['dp/epsilon']:.2f}, delta {privacy['dp/delta']:g}.",
        "generated_at": datetime.now(UTC).isoformat(),
        "steps": outcome.steps,
        "events": outcome.events,
        "heldout": {
            "before": before_loss,
            "after": after_loss,
            "conversations": len(heldout_examples),
            "tokens": sum(example.answer_tokens for example in heldout_examples),
        },
        "privacy": {
            "epsilon": privacy["dp/epsilon"],
            "delta": privacy["dp/delta"],
            "max_epsilon": plan.max_epsilon,
            "unit": "one conversation",
            "noise_multiplier": privacy["dp/noise_multiplier"],
            "clip_norm": plan.clip_norm,
            "max_participations": plan.max_participations,
            "domain": DOMAIN,
        },
        "samples": [
            {"prompt": prompt, "before": old, "after": new}
            for prompt, old, new in zip(PROMPTS, before, after, strict=True)
        ],
        "encrypted": encrypted,
        "facts": [
            *facts,
            ("adapter", f"LoRA rank {plan.rank} on attention and MLP"),
            ("training data", f"{len(train_examples)} conversations of chatterbot-corpus (English)"),
            ("steps", f"{plan.steps} of {plan.batch_size} conversations each"),
            ("checkpoint", outcome.checkpoint),
            (
                "ledger, verified offline",
                f"{proven['rows']} rows, epsilon {proven['epsilon']:.4f} computed again; {proven['signed']}",
            ),
        ],
        "timings": timings,
        "notes": [
            "The client chose the batches, so no amplification by sampling is claimed.",
            "Losses are not differentially private; they are for the owner of the data.",
            "No turn of a held-out conversation occurs in training. The demo's settings were chosen on "
            "conversations of this corpus, held-out ones among them, which flatters the held-out figure.",
            f"{corpus.units_that_share()} of {len(corpus.train)} training conversations share a turn with "
            "another one (mostly a common question): the guarantee covers a conversation, not such a turn.",
            *(NOT_SHOWN if encrypted is None else ()),
        ],
    }
    page = write_report(report, output / "report.html")
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"report: {page}")
    return encrypted is None or all(answer["exact"] for answer in encrypted["answers"])


if __name__ == "__main__":
    sys.exit(main())
