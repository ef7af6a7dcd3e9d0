"""A published adapter as PEFT files, for a publisher who keeps it in the clear: exactly what is served.

Its delta is B' A_q x with x as it is: an encrypted answer differs from it by the rounding of activations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save

from tensafe.contracts.errors import ConfigurationError, Unsupported
from tensafe_gpu.helora.adapter import ServedAdapter
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE

_SHIFT: Final = 9
"""A's integers are below 2^9. A power of two moves from A to B exactly, and half precision can hold both."""


def peft_of(adapter: ServedAdapter) -> dict[str, bytes]:
    """The two files. Raises Unsupported if the modules have several ranks: a PEFT adapter has one."""
    tensors, ranks = {}, set[int]()
    for site in adapter.sites.values():
        for module in site.shape.modules:
            prefix = f"base_model.model.{module.name}"
            a = np.ldexp(site.a[site.shape.rows(module.name)].astype(np.float32), -_SHIFT)
            tensors[f"{prefix}.lora_A.weight"] = a
            tensors[f"{prefix}.lora_B.weight"] = np.ldexp(site.b[module.name], _SHIFT)
            ranks.add(module.rank)
    if len(ranks) != 1:
        raise Unsupported("an adapter whose modules have several ranks cannot be kept in the clear")
    (rank,) = ranks
    leaves = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "target_modules": leaves,
    }
    return {CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: save(tensors)}


@contextmanager
def in_clear(folder: Path | None) -> Iterator[Callable[[ServedAdapter], None]]:
    """What writes an adapter into a new folder of this user's own, which goes if anything fails.

    Without a folder it writes nothing. Raises ConfigurationError where there is one already, none can be
    made, or it cannot be written to.
    """
    if folder is None:
        yield lambda _: None
        return
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"--in-clear names a new folder, and {folder} cannot be made: {error.strerror}", field="in_clear"
        ) from error

    def write(adapter: ServedAdapter) -> None:
        try:
            for name, content in peft_of(adapter).items():
                (folder / name).write_bytes(content)
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be written to, so it was not published: {error.strerror}", field="in_clear"
            ) from error

    try:
        yield write
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
