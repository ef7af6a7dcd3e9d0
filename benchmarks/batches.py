"""Training batches of random tokens, the same for both sides of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tinker import types


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Examples of one length, so that padding costs neither side anything."""

    examples: int
    tokens: int
    vocabulary: int

    def batch(self, index: int) -> npt.NDArray[np.int64]:
        """Batch number `index`: token ids [examples, tokens + 1]; the last one of a row is a target only."""
        generator = np.random.default_rng(index)
        return generator.integers(0, self.vocabulary, (self.examples, self.tokens + 1))


def sdk_data(batch: npt.NDArray[np.int64], *, units: bool = False) -> list[types.Datum]:
    """The batch for the SDK; with `units`, row i belongs to unit i of a private run."""
    from tests.support.sdk_data import supervised  # noqa: PLC0415 - imports the SDK and torch

    return [supervised(row.tolist(), unit=i if units else None) for i, row in enumerate(batch)]
