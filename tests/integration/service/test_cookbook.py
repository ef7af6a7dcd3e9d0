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
    """A folder in which hub names are relative folders: the tokenizer and a dataset."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    tokenizer.save_pretrained(tmp_path / MODEL_NAME)
    dataset = tmp_path / "HuggingFaceH4" / "no_robots"
    dataset.mkdir(parents=True)
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in CONVERSATIONS * 16
    ]
    for split in ("train", "test"):
        (dataset / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
