"""The comparison from its command to its page, on a tiny model and few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corpus import load_corpus
from tensafe.privacy.bisr import sensitivity
from tests.support.example import example
from tests.support.tiny_models import tiny_model


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_mode_on_a_model_given_by_its_path(tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny", "qwen3", hidden=64, heads=2, kv_heads=1, layers=1, max_context=512)
    arguments = ("--model", "tiny", "--steps", "2", "--epsilons", "8")
    done = example("compare_privacy.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads((tmp_path / "compare-out" / "comparison.json").read_text())
    assert [run["mode"] for run in told["runs"]] == ["bounded", "correlated", "dealt"]
    for run in told["runs"]:
        assert 7.9 < run["epsilon"] <= run["target_epsilon"] == 8.0
    independent, correlated, dealt = (run["noise_multiplier"] for run in told["runs"])
    whole = sensitivity(2, steps=2, participations=1, min_separation=4)
    assert correlated == pytest.approx(whole * independent, rel=1e-4)
    assert 0 < dealt < independent, "a quarter is drawn in each of two steps"
    corpus = load_corpus()
    assert (told["conversations"], told["heldout_conversations"]) == (len(corpus.train), len(corpus.heldout))
    assert told["batch_size"] == len(corpus.train) // 4
    losses = [told["base"], told["not_private"], *(run["heldout"] for run in told["runs"])]
    assert all(0 < loss < 10 for loss in losses)
    assert len(set(losses)) == len(losses)
    page = (tmp_path / "compare-out" / "comparison.html").read_text()
    assert f"{told['not_private']:.3f}" in page
    assert "nothing was tuned for any mode here" in page
