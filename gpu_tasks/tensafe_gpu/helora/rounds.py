"""The answer of one round: from the adapter holder's words to the products that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tensafe_gpu.helora.exchange import Exchange
from tensafe_gpu.helora.frames import FrameError
from tensafe_gpu.helora.messages import ring_words
from tensafe_gpu.helora.online import unmasked
from tensafe_gpu.helora.ports import Float32Array, HeUnavailable
from tensafe_gpu.helora.quantise import Float64Array
from tensafe_gpu.helora.seal_stream import WordArray
from tensafe_gpu.helora.supply import Slice


class Round:
    """Implements `ports.Asked`: masked products of one adapter on their way."""

    def __init__(
        self,
        exchange: Exchange,
        draw: Callable[[], None],
        payload: Callable[[], memoryview],
        garbage: Callable[[str, Exception], HeUnavailable],
        rows: Sequence[int],
        slices: Sequence[Sequence[Slice]],
        scales: Sequence[Float64Array],
    ) -> None:
        """`draw` draws masks that were noted; `payload` takes the answer and lets the connection go, and
        `garbage` closes it; the rest is R, masks and scales by site.
        """
        self.advance, self.waits_for, self.poll_s = exchange.advance, exchange.waits_for, exchange.poll_s
        self._exchange, self._draw = exchange, draw
        self._payload, self._garbage, self._rows, self._slices = payload, garbage, rows, slices
        self._scales = scales

    @property
    def took_s(self) -> float:
        return self._exchange.took_s

    def meanwhile(self) -> bool:
        self._exchange.waited_for()
        if self.poll_s and self._exchange.advance():
            return True  # masks are drawn when they are needed: nobody waits for it here
        self._draw()
        return False

    def answers(self) -> Sequence[Float32Array]:
        payload = self._payload()
        try:
            # A site's ranges follow each other, so their words are one array.
            words = ring_words(
                payload, [(len(one), width) for one, width in zip(self._scales, self._rows, strict=True)]
            )
            return [self._products(*site) for site in zip(words, self._slices, self._scales, strict=True)]
        except FrameError as error:
            raise self._garbage("products", error) from error

    @staticmethod
    def _products(y: WordArray, slices: Sequence[Slice], scales: Float64Array) -> Float32Array:
        if len(slices) == 1:
            return unmasked(y, slices[0].shares, scales)
        products, begin = np.empty(y.shape, dtype=np.float32), 0
        for one in slices:
            here = slice(begin, begin + one.tokens)
            unmasked(y[here], one.shares, scales[here], products[here])
            begin += one.tokens
        return products
