"""The tinker cookbook's recipes, unmodified, offline: exit 0 and metrics that moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.support.service import MODEL_NAME, Service

CONVERSATIONS = [
    ("What is the capital of France?", "Paris is the capital of France."),
    ("How are you?", "I am well, thank you."),
    ("What is four plus five?", "Four plus five is nine."),
]


@pytest.fixture
def kitchen(tmp_path: Path, model_path: Path) -> Path:
    """A folder in which hub names are relative folders: the tokenizer and datasets."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    tokenizer.save_pretrained(tmp_path / MODEL_NAME)
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in CONVERSATIONS * 16
    ]
    preferences = [
        {
            "chosen": f"\n\nHuman: {q}\n\nAssistant: {a}",
            "rejected": f"\n\nHuman: {q}\n\nAssistant: No. {a[:5]}",
        }
        for q, a in CONVERSATIONS * 12
    ]
    datasets = {
        "HuggingFaceH4/no_robots": chats,
        "allenai/tulu-3-sft-mixture": chats,
        "Anthropic/hh-rlhf": preferences,
    }
    for name, rows in datasets.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def cook(service: Service, key: str, kitchen: Path, recipe: str, *arguments: str) -> list[dict[str, float]]:
    """Run a recipe in `kitchen`; its metrics."""
    environment = {
        **os.environ,
        "TINKER_API_KEY": key,
        "TINKER_BASE_URL": service.url,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(kitchen / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    log_path = kitchen / "log"
    command = [sys.executable, "-m", f"tinker_cookbook.recipes.{recipe}"]
    done = subprocess.run(
        [*command, f"model_name={MODEL_NAME}", f"log_path={log_path}", *arguments],
        cwd=kitchen,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]


def test_supervised_loop(service: Service, key: str, kitchen: Path) -> None:
    metrics = cook(
        service,
        key,
        kitchen,
        "sl_loop",
        *("batch_size=8", "max_length=128", "max_steps=3", "lora_rank=8", "save_every=2"),
    )
    losses = [row["train_mean_nll"] for row in metrics if "train_mean_nll" in row]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_reinforcement_learning_on_arithmetic(service: Service, key: str, kitchen: Path) -> None:
    metrics = cook(
        service,
        key,
        kitchen,
        "math_rl.train",
        *("env=arithmetic", "group_size=2", "groups_per_batch=4", "max_tokens=4", "max_steps=2"),
        *("loss_fn=importance_sampling", "eval_every=0", "save_every=0"),
    )
    assert len(metrics) == 2


def test_supervised_chat_goes_on_where_it_stopped_and_from_its_checkpoint(
    service: Service, key: str, kitchen: Path
) -> None:
    arguments = ("batch_size=8", "max_length=128", "lora_rank=8", "save_every=2", "learning_rate=1e-3")
    cook(service, key, kitchen, "chat_sl.train", *arguments, "max_steps=3")
    resumed = cook(
        service, key, kitchen, "chat_sl.train", *arguments, "max_steps=6", "behavior_if_log_dir_exists=resume"
    )
    losses = [row["train_mean_nll"] for row in resumed if "train_mean_nll" in row]
    assert losses[-1] < losses[0] - 0.1
    saved = [json.loads(line) for line in (kitchen / "log" / "checkpoints.jsonl").read_text().splitlines()]
    begun = cook(
        service,
        key,
        kitchen,
        "chat_sl.train",
        *arguments,
        *("max_steps=1", f"load_checkpoint_path={saved[-1]['state_path']}"),
        "behavior_if_log_dir_exists=delete",
    )
    assert begun[0]["train_mean_nll"] < losses[0] - 0.1


def test_direct_preference_optimization(service: Service, key: str, kitchen: Path) -> None:
    metrics = cook(
        service,
        key,
        kitchen,
        "preference.dpo.train",
        *("batch_size=8", "max_length=128", "max_steps=3", "learning_rate=1e-3"),
    )
    losses = [row["dpo_loss"] for row in metrics if "dpo_loss" in row]
    assert losses[0] == pytest.approx(0.693, abs=0.01)  # ln 2: the reference is the model itself
    assert losses[-1] < losses[0]


def test_distillation_on_the_students_own_samples(service: Service, key: str, kitchen: Path) -> None:
    metrics = cook(
        service,
        key,
        kitchen,
        "distillation.on_policy_distillation",
        *(f"teacher_model={MODEL_NAME}", "dataset=tulu3", "lora_rank=8", "group_size=2"),
        *("groups_per_batch=4", "max_tokens=8", "max_steps=2", "eval_every=0", "save_every=0"),
    )
    # The teacher is the student's own base model: what vLLM and the trainer say agrees.
    assert metrics[0]["teacher_kl"] == pytest.approx(0, abs=1e-2)


def test_reinforcement_learning_over_several_turns(service: Service, key: str, kitchen: Path) -> None:
    metrics = cook(
        service,
        key,
        kitchen,
        "multiplayer_rl.guess_number.train",
        *("renderer_name=role_colon", "batch_size=4", "group_size=2", "max_tokens=8"),
        *("max_steps=2", "eval_every=0", "save_every=0"),
    )
    assert len(metrics) == 2
