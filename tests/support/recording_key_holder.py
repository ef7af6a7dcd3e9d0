"""The real key holder, which also writes down what its process must not let out; for captures to be searched.

Runs in the engine's process, which alone has the activations as they were and the keys of its blocks.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tensafe_gpu.helora import key_holder, preparation
from tensafe_gpu.helora.direct import DirectRequest
from tensafe_gpu.helora.exchange import gather
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.ports import Asked, Float32Array, SiteId
from tensafe_gpu.helora.quantise import quantised_tokens
from tensafe_gpu.helora.seal_stream import MemoryFile, _array, body_of
from tests.support.at_once import AtOnce
from tests.support.helora_attacks import ternary_key

_lock = threading.Lock()


def recorded(file: Path) -> list[tuple[str, Any]]:
    """(kind, array or bytes) in the order in which they were written."""
    found = []
    with file.open("rb") as opened:
        while True:
            try:
                found.append(pickle.load(opened))  # noqa: S301 - this test's own
            except EOFError:
                return found


def recording(inner: key_holder.RemoteKeyHolder, file: Path) -> RecordingKeyHolder:
    """The same connections and masks, with a record; nothing is prepared yet."""
    inner.__class__ = RecordingKeyHolder
    assert isinstance(inner, RecordingKeyHolder)
    inner.file = file
    return inner


def _secrets(of: PreparingBlock | DirectRequest) -> list[tuple[str, Any]]:
    kept = body_of(MemoryFile().saved(of._keys.secret_key()))
    return [
        ("secret key", ternary_key(of)),
        ("secret key as SEAL keeps it", _array(kept, 48).astype(np.int64)),
    ]


class RecordingKeyHolder(key_holder.RemoteKeyHolder):
    """Records activations, their integers and scales, products, masks and secret keys."""

    file: Path

    def ask(self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf) -> Asked:
        asked = super().ask(sites, limit_s=limit_s)
        gather([asked])
        answers = asked.answers()
        self._note(sites, answers)
        return AtOnce(answers)

    def direct_products(
        self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf
    ) -> Sequence[Float32Array]:
        holder = self

        class Remembered(DirectRequest):
            def __init__(self) -> None:
                super().__init__()
                holder._write(*_secrets(self))

        with mock.patch.object(key_holder, "DirectRequest", Remembered):
            answers = super().direct_products(sites, limit_s=limit_s)
        self._note(sites, answers)
        return answers

    def prepare(self, site: SiteId) -> None:
        holder = self

        class Remembered(PreparingBlock):
            def __init__(self, d_in: int, rows: int) -> None:
                super().__init__(d_in, rows)
                holder._write(
                    *_secrets(self),
                    ("key of the masks", self._key),
                    ("masks by feature", self._rho[:2].astype(np.int64)),
                    ("masks by token", self._rho[:, :2].T.astype(np.int64)),
                )

        with mock.patch.object(preparation, "PreparingBlock", Remembered):
            super().prepare(site)

    def _note(self, sites: Sequence[tuple[SiteId, Float32Array]], answers: Sequence[Float32Array]) -> None:
        bounds: Mapping[SiteId, int] = {one.site: one.x_bound for one in self.info().sites}
        for (site, x), products in zip(sites, answers, strict=True):
            x_q, scales = quantised_tokens(x, bounds[site])
            self._write(("activations", x), ("quantised", x_q), ("scales", scales), ("products", products))

    def _write(self, *facts: tuple[str, Any]) -> None:
        with _lock, self.file.open("ab") as opened:
            for fact in facts:
                pickle.dump(fact, opened)
