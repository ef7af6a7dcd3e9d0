"""The key holder's port over a connection to an adapter holder."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import chain
from math import inf
from typing import Final

import numpy as np

from tensafe.contracts.errors import TensafeError
from tensafe_gpu.helora.accepted_records import Range
from tensafe_gpu.helora.ahead import Rows, RowsAhead
from tensafe_gpu.helora.burned import BurnLog, IndexBurned
from tensafe_gpu.helora.connection import Connection, Connector, Timeouts, Wanted
from tensafe_gpu.helora.copies import Original
from tensafe_gpu.helora.direct import DirectRequest, layout_of
from tensafe_gpu.helora.direct_messages import (
    MAX_ENTRIES,
    DirectEntry,
    direct_bytes,
    direct_reply_bytes,
    pack_direct,
    unpack_direct_reply,
)
from tensafe_gpu.helora.exchange import gather, wait_for
from tensafe_gpu.helora.frames import FrameError, Kind
from tensafe_gpu.helora.limits import request_limits
from tensafe_gpu.helora.messages import (
    MaskedRange,
    b_bytes,
    pack_products,
    unpack_b,
)
from tensafe_gpu.helora.online import masked, token_scales
from tensafe_gpu.helora.parameters import MAX_TOKENS
from tensafe_gpu.helora.ports import (
    HOLDER_ABSENT,
    NOT_PREPARED,
    STATE_FAILED,
    VERSION_MISMATCH,
    AdapterInfo,
    Asked,
    Float32Array,
    HeUnavailable,
    SiteId,
    SiteShape,
)
from tensafe_gpu.helora.preparation import prepared
from tensafe_gpu.helora.quantise import Float64Array, dequantised, quantised_tokens
from tensafe_gpu.helora.rounds import Round
from tensafe_gpu.helora.supply import Slice, Supply

log = logging.getLogger(__name__)

_DIRECT_TOKEN_S: Final = 0.1
"""Of patience per token of the direct mode, which takes a tenth of it."""


class RemoteKeyHolder:
    """One private adapter in one epoch. Thread-safe. Implements `KeyHolder`.

    Online requests take turns on one connection and preprocessing on another. That of preprocessing is made
    anew when it has gone; the other one by `connect_again` alone, since a forward pass would wait for it. The
    adapter's digest and epoch stay those of the first greeting: if the adapter holder has moved on,
    everything is refused with `version_mismatch`, and a new object serves what there is now. In a forked
    child everything is refused with `state_failed`: masks and connections are its parent's.
    """

    def __init__(
        self, connector: Connector, wanted: Wanted, burn_log: BurnLog, timeouts: Timeouts | None = None
    ) -> None:
        """Greet. Raises HeUnavailable."""
        self._connector, self._burn_log, self._original = connector, burn_log, Original()
        self._timeouts = timeouts or Timeouts()
        self._online = Connection(connector, wanted, self._timeouts)
        self._info = self._online.info
        self._limits = request_limits(self._info)
        self._wanted = Wanted(wanted.tenant, wanted.adapter, self._info.version)
        self._offline: Connection | None = None
        self._online_lock, self._offline_lock = threading.Lock(), threading.Lock()
        self._supply_lock = threading.Lock()
        self._connecting_lock, self._closed = threading.Lock(), False
        self._ahead = RowsAhead()  # of whoever holds the online lock
        self._shapes = {shape.site: (index, shape) for index, shape in enumerate(self._info.sites)}
        self._supplies = {site: Supply(site, self._info.digest, self._info.epoch) for site in self._shapes}
        self._b: Mapping[SiteId, Mapping[str, Float32Array]] | None = None

    def info(self) -> AdapterInfo:
        return self._info

    def b_matrices(self) -> Mapping[SiteId, Mapping[str, Float32Array]]:
        self._check_original()
        with self._online_lock:
            if self._b is None:
                self._b = {site: self._fetch_b(*numbered) for site, numbered in self._shapes.items()}
            return self._b

    def prepared(self) -> Mapping[SiteId, int]:
        with self._supply_lock:
            return {site: supply.left() for site, supply in self._supplies.items()}

    def products(self, sites: Sequence[tuple[SiteId, Float32Array]]) -> Sequence[Float32Array]:
        asked = self.ask(sites)
        gather([asked])
        return asked.answers()

    def ask(self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf) -> Asked:
        shapes, tokens, most = [self._shapes[site][1] for site, _ in sites], 0, 0
        for (site, x), shape in zip(sites, shapes, strict=True):
            if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != shape.d_in or not len(x):
                raise ValueError(f"activations of {site} must be float32 [tokens, {shape.d_in}]")
            tokens += len(x)
            most += 4 * len(x) * shape.rank_rows
        if tokens > MAX_TOKENS:
            raise ValueError(
                f"a request takes at most {MAX_TOKENS} tokens: ask for the others in another one"
            )
        self._check_original()
        rows = [np.ascontiguousarray(x) for _, x in sites]
        scales = [token_scales(x, shape.x_bound) for x, shape in zip(rows, shapes, strict=True)]
        self._online_lock.acquire()  # until `answers`
        try:
            connection = self._standing()
            slices = self._burned([(site, len(x)) for site, x in sites])
            parts: list[MaskedRange] = []
            used: list[Rows] = []
            for shape, x, by, some in zip(shapes, rows, scales, slices, strict=True):
                used.append(self._mask(shape, x, by, some, parts))
            wait_s = self._timeouts.online_s
            exchange = connection.begin(
                Kind.PRODUCTS, pack_products(parts), Kind.PRODUCTS_REPLY, most, wait_s, limit_s
            )
            self._ahead.note(used)
        except BaseException:
            self._online_lock.release()
            raise

        def payload() -> memoryview:
            try:
                return connection.ended(exchange, Kind.PRODUCTS_REPLY)
            finally:
                self._online_lock.release()

        widths = [shape.rank_rows for shape in shapes]
        return Round(exchange, self._ahead.draw, payload, connection.garbage, widths, slices, scales)

    def direct_products(
        self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf
    ) -> Sequence[Float32Array]:
        """As `products`, bit for bit, with nothing prepared: one round, and about 10 ms a token and site.

        Raises HeUnavailable; ValueError for more than 256 tokens in all, or than a frame holds at this width.
        """
        if not 1 <= sum(len(x) for _, x in sites) <= MAX_ENTRIES:
            raise ValueError(f"the direct mode takes 1 to {MAX_ENTRIES} tokens at once")
        shapes = [self._shapes[site][1] for site, x in sites for _ in x]
        layouts = [layout_of(shape.d_in, shape.rank_rows) for shape in shapes]
        most = self._limits[Kind.DIRECT]
        if direct_bytes(layouts) > most:
            raise ValueError(f"the direct mode takes fewer tokens of this width at once: {most} bytes")
        self._check_original()
        quantised = [quantised_tokens(x, self._shapes[site][1].x_bound) for site, x in sites]
        entries = []
        with self._online_lock:
            connection = self._standing()
            with closing(DirectRequest()) as request:  # its id is drawn when the nonce is there
                for (site, _), (x_q, _) in zip(sites, quantised, strict=True):
                    index, shape = self._shapes[site]
                    layout = layout_of(shape.d_in, shape.rank_rows)
                    entries += [DirectEntry(index, *request.encrypted(layout, token)) for token in x_q]
                parts = pack_direct(request.key_id, request.public_half(connection.nonce), entries)
                wait_s = self._timeouts.online_s + _DIRECT_TOKEN_S * len(entries)
                most = direct_reply_bytes(layouts)
                exchange = connection.begin(Kind.DIRECT, parts, Kind.DIRECT_REPLY, most, wait_s, limit_s)
                wait_for(exchange)
                payload = connection.ended(exchange, Kind.DIRECT_REPLY)
                try:
                    replies = unpack_direct_reply(payload, layouts)
                    sums = iter([request.products(*pair) for pair in zip(layouts, replies, strict=True)])
                except FrameError as error:
                    raise connection.garbage("reply", error) from error
                except HeUnavailable:
                    connection.close()
                    raise
        return [dequantised(np.stack([next(sums) for _ in x_q]), scales) for x_q, scales in quantised]

    def prepare(self, site: SiteId) -> None:
        self._check_original()
        began = time.monotonic()
        index, shape = self._shapes[site]
        with self._offline_lock:
            if self._offline is None or not self._offline.usable:
                self._offline = self._greeted()
            block = prepared(self._offline, index, shape, self._timeouts.offline_s)
        with self._supply_lock:
            self._supplies[site].add(block)
        log.info(
            "block prepared",
            extra={"site": site, "adapter": self._info.name, "seconds": round(time.monotonic() - began, 2)},
        )

    def connected(self) -> bool:
        if self._original.copied:
            return False  # a look at the connection could take a byte of the parent's
        if not self._online_lock.acquire(blocking=False):
            return True  # it is being used, which shows what it is worth
        try:
            return self._online.usable
        finally:
            self._online_lock.release()

    def connect_again(self) -> None:
        self._check_original()
        with self._connecting_lock:
            if self.connected():
                return
            connection = self._greeted()  # nobody waits for this but its own thread
            with self._online_lock, self._supply_lock:
                if self._closed:
                    connection.close()
                    return
                self._online.close()
                self._online = connection
                for supply in self._supplies.values():
                    supply.skip_reserved()

    def close(self) -> None:
        """Close both connections and forget every mask. The burn log is its owner's."""
        with self._supply_lock:
            self._closed = True
            connections = self._online, self._offline
            for supply in self._supplies.values():
                supply.drop()
        for connection in connections:
            if connection is not None:
                connection.close()
        self._ahead.forget()

    def _check_original(self) -> None:
        """Before any lock: in a child some may be held by threads that it has not."""
        if self._original.copied:
            raise HeUnavailable(STATE_FAILED, "this process is a copy of the one that opened the adapter")

    def _greeted(self) -> Connection:
        connection = Connection(self._connector, self._wanted, self._timeouts)
        if (connection.info.digest, connection.info.epoch) != (self._info.digest, self._info.epoch):
            connection.close()
            raise HeUnavailable(VERSION_MISMATCH, "the adapter holder has begun another epoch")
        return connection

    def _standing(self) -> Connection:
        """The connection in use. Raises HeUnavailable at once if it has gone."""
        if not self._online.usable:
            self._online.close()
            raise HeUnavailable(HOLDER_ABSENT, "the connection to the adapter holder has ended")
        return self._online

    def _burned(self, wanted: Sequence[tuple[SiteId, int]]) -> list[list[Slice]]:
        """Indices for all tokens, durably burned; none are taken unless all are there."""
        totals: dict[SiteId, int] = {}
        for site, tokens in wanted:
            totals[site] = totals.get(site, 0) + tokens
        with self._supply_lock:
            for site, tokens in totals.items():
                if not self._supplies[site].has(tokens):
                    raise HeUnavailable(
                        NOT_PREPARED, f"{self._supplies[site].left()} tokens of {site} are prepared"
                    )
            taken = [self._supplies[site].take(tokens) for site, tokens in wanted]
            burns = list(chain.from_iterable(burns for _, burns in taken))
            if burns:
                # A forward pass uses as many of every site: all of them with one write, not with one each.
                more = max(totals.values())
                burns += chain.from_iterable(one.ahead(more) for one in self._supplies.values())
                try:
                    self._burn_log.burn(burns)
                except BaseException as error:  # whatever it is: they pass for burned from here on
                    for supply in self._supplies.values():
                        supply.drop()
                    if isinstance(error, IndexBurned | TensafeError):
                        raise HeUnavailable(STATE_FAILED, "the used indices could not be burned") from error
                    raise
        return [slices for slices, _ in taken]

    def _mask(
        self,
        shape: SiteShape,
        x: Float32Array,
        scales: Float64Array,
        slices: Sequence[Slice],
        into: list[MaskedRange],
    ) -> Rows:
        """Append the masked tokens of a site's slices; the rows of masks that were used last."""
        begin = 0
        for one in slices:
            used = Rows(one.block.rho_key, one.first, one.tokens, shape.d_in)
            end = begin + one.tokens
            z = masked(x[begin:end], scales[begin:end], self._ahead.taken(used))
            into.append(MaskedRange(Range(one.block.block_id, one.first, one.tokens), z))
            begin = end
        return used

    def _fetch_b(self, index: int, shape: SiteShape) -> Mapping[str, Float32Array]:
        request, wait_s = struct.pack("<H", index), self._timeouts.offline_s
        payload = self._online.ask(Kind.B_REQUEST, [request], Kind.B_REPLY, b_bytes(shape), wait_s)
        try:
            return unpack_b(payload, index, shape)
        except FrameError as error:
            raise self._online.garbage("B", error) from error
