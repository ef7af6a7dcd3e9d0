"""Model folders without a model: a config.json and bytes in place of weights, for what reads no weights."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG: dict[str, object] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def model_folder(folder: Path, *, weights: bytes = b"weights", **config: object) -> Path:
    """A folder with CONFIG changed by `config` (None removes a key) and one weight file."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(weights)
    return folder
