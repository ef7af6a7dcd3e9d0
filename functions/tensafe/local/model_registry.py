"""The base models that a data directory has ever served, so that a name always means the same weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.training import ModelInfo
from tensafe.storage.durable import replace_file

_FILE: Final = "models.json"
_EDGE_BYTES: Final = 1024 * 1024


class ModelRegistry:
    """`models.json` of a data directory. Written by the supervisor alone, under its lock."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _FILE

    def models(self) -> tuple[ModelInfo, ...]:
        """Every model that was ever served here. Raises ConfigurationError if the file is damaged."""
        try:
            return tuple(ModelInfo(**entry["model"]) for entry in self._read().values())
        except (KeyError, TypeError, ValidationError) as error:
            raise ConfigurationError(f"{self._path} is damaged; restore it from a backup") from error

    def register(self, model: ModelInfo) -> None:
        """Remember the model. Raises ConfigurationError if its name stood for other weights before.

        Runs are trained against fixed base weights; on others their adapters would be silently wrong.
        """
        entries, weights = self._read(), weights_digest(Path(model.path))
        known = entries.get(model.name)
        if known is not None and known["weights"] != weights:
            raise ConfigurationError(
                f"{model.name} was served from other weights in this data directory, and its runs belong to "
                "those; give the new weights another name",
                field="model",
            )
        entries[model.name] = {"model": model.model_dump(mode="json"), "weights": weights}
        replace_file(self._path, json.dumps(entries, indent=2))

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigurationError(f"{self._path} is damaged; restore it from a backup") from error
        if not isinstance(entries, dict):
            raise ConfigurationError(f"{self._path} is damaged; restore it from a backup")
        return entries


def weights_digest(folder: Path) -> str:
    """SHA-256 over names, sizes, first and last MiB of the weight files: tells trained weights apart.

    Not the whole contents, which would read gigabytes at every start. Raises ConfigurationError if
    there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigurationError(f"{folder} has no weights: *.safetensors files are needed", field="model")
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                digest.update(f"{path.name} {size_bytes}\n".encode())
                digest.update(hashlib.sha256(file.read(_EDGE_BYTES)).digest())
                file.seek(max(0, size_bytes - _EDGE_BYTES))
                digest.update(hashlib.sha256(file.read(_EDGE_BYTES)).digest())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}", field="model") from error
    return digest.hexdigest()
