"""A small base model, trained honestly: `python examples/make_base_model.py [--cache-dir DIR]`.

A Qwen3-architecture model and its tokenizer are trained from scratch on the prose of examples/prose.py,
in about a minute on two cores, and kept in the cache under a digest of everything they were made from.
The model knows a little English and nothing of the corpus that the demo fine-tunes on. It prints its
held-out loss; it is as good as that figure says and no better.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from prose import load_prose, source_versions

NAME: Final = "tensafe/demo-qwen3"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and training of the model. Every field is part of the cache key."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 704
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    max_context_tokens: int = 512
    steps: int = 350
    warmup_steps: int = 20
    batch_sequences: int = 8
    sequence_tokens: int = 128
    learning_rate: float = 6e-3
    matrix_learning_rate: float = 2e-2
    """Muon's, for the weight matrices; AdamW trains the embedding and the norms."""
    seed: int = 20


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A trained model on disk and what was measured when it was made."""

    path: Path
    name: str
    parameters: int
    heldout_loss_nats: float
    """Mean cross-entropy per token on documents that were not trained on."""
    heldout_bits_per_byte: float
    train_tokens: int
    train_s: float
    cached: bool


def ensure_base_model(
    cache_dir: Path = Path(".cache"), *, recipe: Recipe | None = None, console: Console | None = None
) -> BaseModel:
    """The model of `recipe` from the cache, trained first if it is not there.

    A cached model is complete: the folder appears under its name by one rename, after everything is in it.
    """
    recipe = recipe or Recipe()
    folder = cache_dir / "base-model" / _digest(recipe)
    facts = folder / "base_model.json"
    if facts.is_file():
        return BaseModel(path=folder, cached=True, **json.loads(facts.read_text(encoding="utf-8")))
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        model = _make(made, recipe, console or Console(stderr=True))
        measured = {key: value for key, value in asdict(model).items() if key not in ("path", "cached")}
        (made / facts.name).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        os.rename(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return replace(model, path=folder)


def _digest(recipe: Recipe) -> str:
    """Names a model by all that decides what it becomes, the code included."""
    files = [Path(__file__).with_name(name) for name in ("prose.py", "pretraining.py")]
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    inputs = {"recipe": asdict(recipe), "code": code, "versions": versions, "text": source_versions()}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _make(folder: Path, recipe: Recipe, console: Console) -> BaseModel:
    import torch  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    import pretraining  # noqa: PLC0415 - a cached model needs no torch

    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    with console.status("reading the prose of the installed packages"):
        prose = load_prose()
        tokenizer = pretraining.train_tokenizer(prose, recipe)
        train = torch.tensor(pretraining.encode(tokenizer, prose.train))
        heldout = torch.tensor(pretraining.encode(tokenizer, prose.heldout))
    model = pretraining.new_model(tokenizer, recipe)
    console.print("training a small base model from scratch: a minute or two on two idle cores, then cached")
    started = time.monotonic()
    pretraining.train(model, train, recipe, console)
    train_s = time.monotonic() - started
    loss = pretraining.heldout_loss(model, heldout, recipe)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    heldout_bytes = sum(len(document.encode()) for document in prose.heldout)
    return BaseModel(
        path=folder,
        name=NAME,
        parameters=sum(p.numel() for p in model.parameters()),
        heldout_loss_nats=round(loss, 4),
        heldout_bits_per_byte=round(loss * len(heldout) / heldout_bytes / math.log(2), 4),
        train_tokens=recipe.steps * recipe.batch_sequences * recipe.sequence_tokens,
        train_s=round(train_s, 1),
        cached=False,
    )


def main() -> int:
    """Make the model if it is not cached and print where it is."""
    parser = argparse.ArgumentParser(description="Train the demo's base model, or find it in the cache.")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))
    console = Console(stderr=True)
    model = ensure_base_model(parser.parse_args().cache_dir, console=console)
    console.print(
        f"{model.name}: {model.parameters / 1e6:.1f} M parameters, {model.train_tokens:,} tokens in "
        f"{model.train_s:.0f} s, held-out loss {model.heldout_loss_nats:.2f} nats a token "
        f"({model.heldout_bits_per_byte:.2f} bits a byte)" + (", from the cache" if model.cached else "")
    )
    print(model.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
