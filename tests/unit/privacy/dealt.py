"""Data, manifests and terms of deals that the tests of dealing share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.training import Datum
from tensafe.privacy.content import content_key, unit_content_hash
from tensafe.privacy.dealing import DealTerms, exact_probability
from tensafe.privacy.manifest import Manifest, ManifestBuilder

KEY = content_key(bytes(range(32)))
SEED = bytes(range(100, 132))


def a_datum(unit_id: int | None = 7, *, start: int = 1, length: int = 5, weight: float = 1.0) -> Datum:
    tokens = np.arange(start, start + length, dtype=np.int32)
    inputs = {
        "target_tokens": tokens.astype(np.int64) + 1,
        "weights": np.full(length, weight, dtype=np.float32),
    }
    return Datum(tokens, inputs, unit_id)


def terms(unit: str = "record", *, delta: float = 1e-5) -> DomainTerms:
    return DomainTerms(unit=unit, delta=delta, max_epsilon=3.0)  # type: ignore[arg-type]


def manifest_of(data: Mapping[int, Sequence[Datum]], *, unit: str = "record") -> Manifest:
    builder = ManifestBuilder(terms(unit))
    for unit_id, owned in data.items():
        builder.add(unit_id, unit_content_hash(KEY, unit_id, owned))
    return builder.finish()


def deal_terms(units: int, q: float, cap: int) -> DealTerms:
    return DealTerms("run-1", "0" * 64, units, exact_probability(q), cap)
