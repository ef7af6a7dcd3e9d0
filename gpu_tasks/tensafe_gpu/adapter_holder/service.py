"""What the adapter holder answers: one session per connection, every refusal one of the port's codes."""

from __future__ import annotations

import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tensafe.contracts.errors import Gone, NotFound
from tensafe_gpu.adapter_holder.opened import OpenedAdapter, Shelf
from tensafe_gpu.adapter_holder.places import Places
from tensafe_gpu.adapter_holder.room import (
    BLOCKS_BYTES,
    FRAMES_BYTES,
    LEFT_S,
    ROOM_S,
    Room,
    Share,
    WhileWaiting,
)
from tensafe_gpu.adapter_holder.store import AdapterStore, Published
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.accepted_records import Offer, Range
from tensafe_gpu.helora.ahead import Rows, RowsAhead
from tensafe_gpu.helora.direct import direct_elements, layout_of
from tensafe_gpu.helora.direct_messages import pack_direct_reply, unpack_direct
from tensafe_gpu.helora.evaluation import BlockEvaluation, answered, evaluation_bytes
from tensafe_gpu.helora.frames import Frame, FrameError, Kind
from tensafe_gpu.helora.limits import request_limits
from tensafe_gpu.helora.messages import (
    Hello,
    Welcome,
    b_bytes,
    pack_b,
    pack_products_reply,
    pack_reply,
    packed,
    parsed,
    unpack_begin,
    unpack_ranges,
    unpack_ring,
    unpack_rows,
    unpack_whole_rows,
)
from tensafe_gpu.helora.parameters import PARAMETERS
from tensafe_gpu.helora.ports import (
    GARBAGE,
    HOLDER_ABSENT,
    NOT_ALLOWED,
    PARAMETERS_REFUSED,
    VERSION_MISMATCH,
    HeUnavailable,
    SiteId,
)
from tensafe_gpu.helora.public_keys import BLOCK_KEY, NONCE_BYTES, check_half, common_elements
from tensafe_gpu.helora.quantise import Int16Array
from tensafe_gpu.helora.seal_stream import WordArray

Answer = tuple[Kind, list[bytes | memoryview]]
EvaluationType = Callable[[Int16Array, WordArray, WordArray], BlockEvaluation]

_LOOK_AGAIN_S: Final = 0.5
"""A rotation or revocation by another process is seen within this time."""
_LOOKS: Final = 3
"""At an adapter that is gone when it is opened; a rotation takes longer than to open what it has begun."""
_NOT_OFFERED: Final = "there is no such adapter for this tenant"
_MOST_KNOWN: Final = 4096
"""Blocks of which a session remembers something."""


class Over(HeUnavailable):
    """What this connection was greeted for is no more: it is told so and ended."""


class HolderService:
    """The adapters of a store, offered under their policies. Thread-safe."""

    def __init__(
        self, store: AdapterStore, accepted: AcceptLog, *, evaluation: EvaluationType = BlockEvaluation
    ) -> None:
        self.accepted, self.evaluation = accepted, evaluation
        self.counters: Counter[str] = Counter()
        self.places = Places()
        self.frame_room, self.block_room = Room(FRAMES_BYTES), Room(BLOCKS_BYTES)
        self._store = store
        self.shelf = Shelf(store, accepted, over=self.forget_what_was_looked_up)
        self._looked: dict[tuple[str, int], tuple[float, tuple[int, bool]]] = {}

    def greet(self, frame: Frame, certified: str | None) -> tuple[Session, Answer]:
        """The first request of a connection; `certified` is the tenant that a certificate names. The session
        has one of the tenant's places: close it.

        Raises FrameError, HeUnavailable. What is absent, revoked and not offered to this tenant look alike.
        """
        if frame.kind is not Kind.HELLO:
            raise FrameError("a connection begins with HELLO")
        hello = parsed(Hello, frame.payload)
        if hello.parameters != PARAMETERS:
            raise HeUnavailable(PARAMETERS_REFUSED, f"this side accepts {PARAMETERS} alone")
        if certified is not None and hello.tenant != certified:
            raise HeUnavailable(NOT_ALLOWED, "the certificate names another tenant")
        self.places.take(hello.tenant)
        try:
            return self._greeted(hello)
        except BaseException:
            self.places.give_back(hello.tenant)
            raise

    def _greeted(self, hello: Hello) -> tuple[Session, Answer]:
        published, opened = self._opened(hello)
        offer = Offer(
            published.name,
            published.version,
            opened.info.epoch,
            hello.tenant,
            published.policy.tokens_per_site,
        )
        nonce = os.urandom(NONCE_BYTES)
        return Session(self, opened, offer, nonce), (Kind.WELCOME, [packed(Welcome.of(opened.info, nonce))])

    def _opened(self, hello: Hello) -> tuple[Published, OpenedAdapter]:
        """What it asks for, open.

        Raises HeUnavailable. That it is not offered is said of what the store has now, and not because a
        rotation took away the epoch that was about to be opened.
        """
        for _ in range(_LOOKS):
            try:
                published = self._store.get(hello.adapter, hello.version)
            except NotFound:
                raise HeUnavailable(NOT_ALLOWED, _NOT_OFFERED) from None
            if hello.tenant not in published.policy.tenants or not published.active:
                raise HeUnavailable(NOT_ALLOWED, _NOT_OFFERED)
            try:
                return published, self.shelf.take((published.name, published.version, published.epoch))
            except Gone:
                continue
        raise HeUnavailable(HOLDER_ABSENT, "the adapter is rotated all the time, or lost; greet again")

    def check_current(self, offer: Offer, *, anew: bool = False) -> None:
        """Raise Over when the epoch is over or the version revoked; `anew`: as the store has it now."""
        key, now, wanted = (offer.adapter, offer.version), time.monotonic(), (offer.epoch, True)
        at, state = self._looked.get(key, (-1e9, (0, False)))
        # What another epoch's connection has found a moment ago ends none of this one's.
        if anew or now - at > _LOOK_AGAIN_S or state != wanted:
            published = self._store.get(offer.adapter, offer.version)
            state = (published.epoch, published.active)
            self._looked[key] = (now, state)
        if not state[1]:
            raise Over(NOT_ALLOWED, _NOT_OFFERED)
        if state != wanted:
            raise Over(VERSION_MISMATCH, "this epoch of the adapter is over; greet again")

    def forget_what_was_looked_up(self) -> None:
        """Look at the store again at the next request, rather than half a second after the last look."""
        self._looked.clear()


class Session:
    """A greeted connection: answers one frame after the other. `nonce` is its own."""

    def __init__(self, service: HolderService, opened: OpenedAdapter, offer: Offer, nonce: bytes) -> None:
        self._service, self._opened, self._offer, self._nonce = service, opened, offer, nonce
        self._block: tuple[bytes, bytes, BlockEvaluation] | None = None
        """Its id, the key of its shares, what it has so far."""
        self._block_at = 0.0
        """When it was begun, or went on."""
        self._share_keys: dict[bytes, bytes] = {}
        """By salt."""
        self._sites: dict[bytes, SiteId] = {}
        """Of blocks that were asked for, by id, which is opened once in an epoch."""
        self._ahead = RowsAhead()
        self._block_room = Share(service.block_room, offer.tenant)
        self.frame_room = Share(service.frame_room, offer.tenant)
        """Of the frame at hand."""
        self.waiting = WhileWaiting()
        """What is looked at while it waits for room; the connection's affair."""
        self.limits: Mapping[Kind, int] = request_limits(opened.info)
        """Of the frames that it answers."""

    @property
    def offer(self) -> Offer:
        return self._offer

    def answer(self, frame: Frame) -> Answer:
        """Raises HeUnavailable for a refusal after which the connection goes on; Over and FrameError for the
        end of it.
        """
        self._service.check_current(self._offer)
        self._service.counters[frame.kind.name] += 1
        try:
            return self._answered(frame)
        except HeUnavailable as error:
            if error.code in {NOT_ALLOWED, VERSION_MISMATCH}:  # somebody may have ended it meanwhile
                self._service.check_current(self._offer, anew=True)
            raise

    def _answered(self, frame: Frame) -> Answer:
        if frame.kind is Kind.PRODUCTS:
            return self._products(frame.payload)
        if frame.kind is Kind.BLOCK_ROWS:
            return self._rows(frame.payload)
        if frame.kind is Kind.BLOCK_WHOLE_ROWS:
            return self._whole_rows(frame.payload)
        if frame.kind is Kind.BLOCK_BEGIN:
            return self._begin(frame.payload)
        if frame.kind is Kind.DIRECT:
            return self._direct(frame.payload)
        if frame.kind is Kind.B_REQUEST:
            return self._b(frame.payload)
        raise FrameError(f"{frame.kind.name} is not expected here")

    def check(self) -> None:
        """To be asked while no frame comes. Raises Over when its adapter has been closed, Unavailable."""
        if self._opened.closed:
            self._service.check_current(self._offer)
        if self._block is not None and time.monotonic() - self._block_at > LEFT_S:
            self._give_up_block()

    def prepare_next(self) -> None:
        """Called when an answer has left: draw what the next one will hold back."""
        if self._block is None:
            self._block_room.give_back()
        self._ahead.draw()

    def close(self) -> None:
        """Give its place back and forget what it has."""
        self._give_up_block()
        self.frame_room.give_back()
        self._service.shelf.give_back(self._opened)
        self._service.places.give_back(self._offer.tenant)

    def _give_up_block(self) -> None:
        if self._block is not None:
            self._block[2].close()
            self._block = None
        self._block_room.give_back()

    def _b(self, payload: memoryview) -> Answer:
        if len(payload) != 2:
            raise FrameError("a request for B holds a site's number")
        (index,) = struct.unpack("<H", payload)
        site = self._site(index)
        matrices = self._opened.adapter.sites[site].b
        shape = self._opened.info.sites[index]
        self.frame_room.take(b_bytes(shape), ROOM_S, self.waiting)
        return Kind.B_REPLY, pack_b(index, [matrices[one.name] for one in shape.modules])

    def _begin(self, payload: memoryview) -> Answer:
        index, block_id, b = unpack_begin(payload, [shape.d_in for shape in self._opened.info.sites])
        site = self._site(index)
        self._give_up_block()
        check_half(b)  # before its id is used up
        a = self._opened.adapter.sites[site].a
        self._block_room.take(evaluation_bytes(a), ROOM_S, self.waiting)
        try:
            self._service.check_current(self._offer, anew=True)  # that may have taken a while
            # Then what is bounded: who is refused costs nothing more.
            salt = self._service.accepted.open_block(self._offer, site, block_id)
            elements = common_elements(self._nonce, BLOCK_KEY, block_id, len(b))
            evaluation = self._service.evaluation(a, b, elements)
            self._block = (block_id, self._share_key(site, block_id, salt), evaluation)
            self._block_at = time.monotonic()
        except BaseException:
            self._block_room.give_back()
            raise
        return Kind.ACCEPTED, []

    def _rows(self, payload: memoryview) -> Answer:
        block_id, first, words, seeds = unpack_rows(payload)
        return self._added(block_id, first, lambda evaluation: evaluation.add(words, seeds))

    def _whole_rows(self, payload: memoryview) -> Answer:
        block_id, first, words = unpack_whole_rows(payload)
        return self._added(block_id, first, lambda evaluation: evaluation.add_whole(words))

    def _added(self, block_id: bytes, first: int, add: Callable[[BlockEvaluation], None]) -> Answer:
        if self._block is None or self._block[0] != block_id or self._block[2].next_feature != first:
            raise HeUnavailable(GARBAGE, "rows of a block that was not begun, or out of their order")
        _, share_key, evaluation = self._block
        self._block_at = time.monotonic()
        try:
            add(evaluation)
        except HeUnavailable:
            self._give_up_block()
            raise
        if not evaluation.complete:
            return Kind.ACCEPTED, []
        reply = evaluation.reply(share_key)
        evaluation.close()
        self._block = None  # its room goes when the reply has left
        return Kind.BLOCK_REPLY, pack_reply(block_id, reply)

    def _products(self, payload: memoryview) -> Answer:
        ranges, rest = unpack_ranges(payload)
        # The words are checked before anything is metered: a frame that is refused costs nothing.
        sites = self._sites_of(ranges)
        shapes = [(one.tokens, self._opened.widths[site]) for one, site in zip(ranges, sites, strict=True)]
        masked = unpack_ring(rest, shapes)
        salts = self._service.accepted.accept(self._offer, ranges)
        parts = []
        for one, site, salt, z in zip(ranges, sites, salts, masked, strict=True):
            columns = self._opened.columns(site)
            rows = Rows(self._share_key(site, one.block_id, salt), one.first, one.tokens, columns.shape[1])
            parts.append(answered(columns, z, self._ahead.taken(rows)))
            self._ahead.note([rows])
        self._service.counters["tokens"] += sum(one.tokens for one in ranges)
        return Kind.PRODUCTS_REPLY, pack_products_reply(parts)

    def _sites_of(self, ranges: Sequence[Range]) -> list[SiteId]:
        try:
            return [self._sites[one.block_id] for one in ranges]
        except KeyError:
            sites = self._service.accepted.sites(self._offer, ranges)
        if len(self._sites) > _MOST_KNOWN:
            self._sites.clear()
        self._sites |= zip((one.block_id for one in ranges), sites, strict=True)
        return sites

    def _direct(self, payload: memoryview) -> Answer:
        shapes = self._opened.info.sites
        layouts = [layout_of(shape.d_in, shape.rank_rows) for shape in shapes]
        key_id, b, entries = unpack_direct(payload, layouts)
        sites = [shapes[entry.site].site for entry in entries]
        # As for products: a frame that is refused costs nothing.
        check_half(b)
        for site, entry in zip(sites, entries, strict=True):
            with self._opened.direct_lock:
                self._opened.direct(site).check(entry.words)
        elements = direct_elements(self._nonce, key_id)
        self._service.accepted.meter(self._offer, Counter(sites))
        self._service.counters["direct tokens"] += len(entries)
        parts = []
        for site, entry in zip(sites, entries, strict=True):
            with self._opened.direct_lock:
                parts.append(self._opened.direct(site).answer(entry.words, entry.seeds, b, elements))
        return Kind.DIRECT_REPLY, pack_direct_reply(parts)

    def _share_key(self, site: SiteId, block_id: bytes, salt: bytes) -> bytes:
        key = self._share_keys.get(salt)
        if key is None:
            if len(self._share_keys) > _MOST_KNOWN:
                self._share_keys.clear()
            key = self._share_keys[salt] = self._opened.share_key(site, block_id, salt)
        return key

    def _site(self, index: int) -> SiteId:
        try:
            return self._opened.info.sites[index].site
        except IndexError:
            raise FrameError("a site's number is out of range") from None
