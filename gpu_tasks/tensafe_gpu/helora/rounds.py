"""The answer of one round: from the adapter holder's words to the products that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tensafe_gpu.helora.exchange import Exchange
from tensafe_gpu.helora.frames import FrameError
from tensafe_gpu.helora.messages import unpack_ring
from tensafe_gpu.helora.online import unmasked
from tensafe_gpu.helora.ports import GARBAGE, Float32Array, HeUnavailable
from tensafe_gpu.helora.quantise import Float64Array, dequantised
from tensafe_gpu.helora.residues import Int64Array
from tensafe_gpu.helora.supply import Slice


class Round:
    """Implements `ports.Asked`: masked products of one adapter on their way."""

    def __init__(
        self,
        exchange: Exchange,
        draw: Callable[[], None],
        payload: Callable[[], memoryview],
        rows: Sequence[int],
        slices: Sequence[Sequence[Slice]],
        quantised: Sequence[tuple[object, Float64Array]],
    ) -> None:
        """`draw` draws masks that were noted; `payload` takes the answer and lets the connection go; the rest
        is R, masks and scales by site.
        """
        self.advance, self.waits_for = exchange.advance, exchange.waits_for
        self._exchange, self._draw = exchange, draw
        self._payload, self._rows, self._slices = payload, rows, slices
        self._scales = [scales for _, scales in quantised]

    @property
    def took_s(self) -> float:
        return self._exchange.took_s

    def meanwhile(self) -> bool:
        self._exchange.waited_for()
        if self._exchange.advance():
            return True  # masks are drawn when they are needed: nobody waits for it here
        self._draw()
        return False

    def answers(self) -> Sequence[Float32Array]:
        payload = self._payload()
        shapes = [
            (one.count, width) for width, some in zip(self._rows, self._slices, strict=True) for one in some
        ]
        try:
            words = iter(unpack_ring(payload, shapes))
        except FrameError as error:
            raise HeUnavailable(GARBAGE, f"the adapter holder's products: {error}") from error
        return [
            dequantised(_joined([unmasked(next(words), one.block, one.first) for one in some]), scales)
            for some, scales in zip(self._slices, self._scales, strict=True)
        ]


def _joined(parts: list[Int64Array]) -> Int64Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
