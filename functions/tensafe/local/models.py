"""Base models as an operator names them: `NAME=FOLDER` or `NAME=HUB_ID`, described from config.json alone.

Nothing here loads weights or imports a machine-learning library.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tensafe.contracts.errors import ConfigurationError, InvalidRequest, Unsupported
from tensafe.contracts.training import MAX_RANK, ModelInfo

FAMILIES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Values of `model_type` in config.json that the trainer and the sampler compute."""
_SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_NAME: Final = re.compile(rf"{_SEGMENT}(/{_SEGMENT})?")
_HUB_ID: Final = re.compile(rf"({_SEGMENT}/{_SEGMENT})(?:@([A-Za-z0-9][A-Za-z0-9_./-]{{0,254}}))?")
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model's name and where its files are: a folder, or a hub id with an optional `@REVISION`."""

    name: str
    source: str

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """From `NAME=PATH_OR_HUB_ID`. Raises InvalidRequest."""
        name, equals, source = text.partition("=")
        if not equals or not source.strip():
            raise InvalidRequest(
                f"--model {text[:200]!r}: give NAME=FOLDER or NAME=HUB_ID, as in Qwen/Qwen3-8B-Base=./qwen3",
                field="model",
            )
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name[:200]!r} cannot name a model: use letters, digits, '_', '.' and '-', with one '/' "
                "at most, as Qwen/Qwen3-8B-Base",
                field="model",
            )
        return cls(name, source.strip())

    def resolve(self, *, max_lora_rank: int | None = None) -> ModelInfo:
        """What its config.json says, with the operator's limit on ranks.

        Raises ConfigurationError, InvalidRequest or Unsupported, with what to do.
        """
        folder = self._folder()
        info = describe(self.name, folder)
        if max_lora_rank is None:
            return info
        if not 1 <= max_lora_rank <= MAX_RANK:
            raise InvalidRequest(f"--max-lora-rank is 1 to {MAX_RANK}", field="max_lora_rank")
        return info.model_copy(update={"max_lora_rank": max_lora_rank})

    def _folder(self) -> Path:
        folder = Path(self.source).expanduser()
        if folder.is_dir():
            return folder.resolve()
        hub = _HUB_ID.fullmatch(self.source)
        if hub is None:
            raise ConfigurationError(f"{self.name}: there is no folder {self.source!r}", field="model")
        return download(hub[1], hub[2])


def describe(name: str, folder: Path) -> ModelInfo:
    """Read the model's config.json. Raises ConfigurationError (unreadable), Unsupported (another family)."""
    config = read_config(name, folder)
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise Unsupported(
            f"{name} is a {family!r} model; the families served here are: {', '.join(sorted(FAMILIES))}",
            field="model",
        )
    if config.get("quantization_config") is not None:
        raise Unsupported(f"{name} is quantised; use its float32 or bfloat16 weights", field="model")
    values = text_part(config)
    architectures = config.get("architectures")
    arch = architectures[0] if isinstance(architectures, list) and architectures else FAMILIES[family]
    try:
        return ModelInfo(
            name=name,
            path=str(folder),
            arch=str(arch),
            vocab_size=values["vocab_size"],
            max_context_tokens=values["max_position_embeddings"],
        )
    except (KeyError, ValidationError) as error:
        raise ConfigurationError(
            f"{folder / 'config.json'} lacks a usable vocab_size or max_position_embeddings", field="model"
        ) from error


def download(hub_id: str, revision: str | None) -> Path:
    """The folder of a hub model's files, downloaded if they are not cached. Raises ConfigurationError."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigurationError(
            f"{hub_id} is no local folder, and downloading needs huggingface_hub: install tensafe[gpu], "
            "or give a folder",
            field="model",
        ) from None
    try:
        return Path(hub.snapshot_download(hub_id, revision=revision, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the library raises errors of several others, for every cause
        raise ConfigurationError(
            f"{hub_id} is no local folder and was not downloaded ({type(error).__name__}): check the name "
            "and the network (and HF_TOKEN for a gated model), or give a folder",
            field="model",
        ) from error


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the sizes of the language model, where they stand apart, above the others."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """config.json. Raises ConfigurationError if it is not there or is no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{name}: {folder} is not a model folder, it has no config.json", field="model"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{name}: {path} cannot be read as JSON", field="model") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"{name}: {path} is not a JSON object", field="model")
    return config
