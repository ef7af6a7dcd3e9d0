"""The demo's base model: trained, as good as it says, complete in the cache, in the corpus's format."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import Conversation, encode, encode_prompt
from make_base_model import BaseModel, Recipe, ensure_base_model

pytestmark = pytest.mark.slow

SMALL = Recipe(
    vocab_size=512, hidden_size=64, intermediate_size=128, layers=2, heads=2, steps=60, warmup_steps=5
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def made(cache: Path) -> BaseModel:
    return ensure_base_model(cache, recipe=SMALL)


def test_it_learned_something_and_says_how_much(made: BaseModel) -> None:
    assert not made.cached
    assert made.heldout_loss_nats < math.log(SMALL.vocab_size) - 1.0
    assert made.train_tokens == 60 * 8 * 128
    model = AutoModelForCausalLM.from_pretrained(made.path)
    assert model.config.model_type == "qwen3"
    assert model.dtype == torch.float32
    assert made.parameters == sum(p.numel() for p in model.parameters())


def test_the_second_call_reads_the_cache_without_torch(made: BaseModel, cache: Path) -> None:
    assert ensure_base_model(cache, recipe=SMALL) == replace(made, cached=True)
    code = (
        "import sys; from pathlib import Path\n"
        f"from make_base_model import Recipe, ensure_base_model\n"
        f"model = ensure_base_model(Path({str(cache)!r}), recipe={SMALL!r})\n"
        "assert model.cached and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3] / "examples")


def test_another_recipe_is_another_model(made: BaseModel, cache: Path) -> None:
    other = ensure_base_model(cache, recipe=replace(SMALL, steps=2))
    assert other.path != made.path
    assert other.heldout_loss_nats > made.heldout_loss_nats


def test_a_failed_training_leaves_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pretraining

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_base_model(tmp_path, recipe=SMALL)
    assert list((tmp_path / "base-model").iterdir()) == []


def test_the_chat_template_is_the_format_of_the_corpus(made: BaseModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    conversation = Conversation(1, "x", ("Hi there", "Hello! It's 5 o'clock.", "Naïve café?", "Yes."))
    example = encode(tokenizer, conversation, max_tokens=1000)
    templated = tokenizer.apply_chat_template(conversation.messages, tokenize=True, return_dict=False)
    assert [example.tokens[0], *example.targets] == templated
    prompt = tokenizer.apply_chat_template(
        conversation.messages[:1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(tokenizer, "Hi there") == prompt
    assert tokenizer.decode(prompt) == "User: Hi there\n\nAssistant:"


def test_what_is_cached_is_described(made: BaseModel) -> None:
    facts = json.loads((made.path / "base_model.json").read_text())
    assert facts["heldout_loss_nats"] == made.heldout_loss_nats
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in made.path.iterdir()
    }
