"""Byte vectors of the wire format (docs/helora-wire.md), for this and any other implementation."""

from __future__ import annotations

import hashlib
import socket
import threading
import time

import numpy as np
import pytest

from tensafe_gpu.helora import direct_messages, frames, messages
from tensafe_gpu.helora.accepted_records import Range
from tensafe_gpu.helora.direct import layout_of
from tensafe_gpu.helora.direct_messages import MAX_ENTRIES
from tensafe_gpu.helora.evaluation import answered
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, TO_KEY_HOLDER, FrameError, Kind, PeerGone, PeerSlow
from tensafe_gpu.helora.messages import MAX_RANGES, Hello, MaskedRange, Refusal, Welcome
from tensafe_gpu.helora.online import masked, unmasked
from tensafe_gpu.helora.parameters import MAX_D_IN, MAX_ROWS, MAX_TOKENS, PARAMETERS, PRIMES, N, Q, T
from tensafe_gpu.helora.ports import CODES, WIRE_CODES, AdapterInfo, ModuleShape, SiteShape
from tensafe_gpu.helora.public_keys import keys_of_block
from tensafe_gpu.helora.quantise import quantised_tokens
from tensafe_gpu.helora.residues import scaled_up
from tensafe_gpu.helora.seal_library import KEY_PRIMES
from tensafe_gpu.helora.seal_stream import MemoryFile, ciphertext_from_seed, ciphertext_words
from tests.project_files import ROOT

DOCUMENT = ROOT / "docs" / "helora-wire.md"

BLOCK = bytes(range(16))
NONCE = bytes(range(32))
SHAPE = SiteShape("s", 3, (ModuleShape("m", 2, 1),), 7)
INFO = AdapterInfo("a", 2, "0" * 64, 3, "base", (SHAPE,), PARAMETERS, 9)


def words(*shape: int, limit: int) -> np.ndarray:
    """Word i is i * 2654435761 modulo `limit`."""
    count = int(np.prod(shape))
    return (
        (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(limit))
        .astype("<u4")
        .reshape(shape)
    )


def frame(kind: Kind, parts: list, request: int = 5) -> bytes:
    payload = b"".join(bytes(part) for part in parts)
    return frames.HEADER.pack(b"TSHE", 3, kind, 0, request, len(payload)) + payload


WHOLE = {
    "hello": (
        frame(
            Kind.HELLO, [messages.packed(Hello(parameters=PARAMETERS, tenant="t", adapter="a", version=2))]
        ),
        b"TSHE\x03\x01\x00\x00\x05\x00\x00\x00\x64\x00\x00\x00"
        b'{"parameters":"bfv/n4096/q30.30.30.19/t28/flood-gap/tc128/1","tenant":"t","adapter":"a","version":2}',
    ),
    "welcome": (
        frame(Kind.WELCOME, [messages.packed(Welcome.of(INFO, NONCE))]),
        b"TSHE\x03\x02\x00\x00\x05\x00\x00\x00\x75\x01\x00\x00"
        b'{"name":"a","version":2,"digest":"' + b"0" * 64 + b'","epoch":3,"base_model":"base",'
        b'"parameters":"bfv/n4096/q30.30.30.19/t28/flood-gap/tc128/1","tokens_per_site":9,"sites":[{"site":"s",'
        b'"d_in":3,"x_bound":7,"modules":[{"name":"m","rank":2,"d_out":1}]}],'
        b'"nonce":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"}',
    ),
    "products": (
        frame(Kind.PRODUCTS, messages.pack_products([MaskedRange(Range(BLOCK, 7, 2), words(2, 3, limit=T))])),
        bytes.fromhex(
            "5453484503090000050000003400000001000000000102030405060708090a0b0c0d0e0f0700000002000000"
            "00000000b179370e62f36e0c136da60ac4e6dd0875601507"
        ),
    ),
    "products reply": (
        frame(Kind.PRODUCTS_REPLY, messages.pack_products_reply([words(2, 2, limit=T)])),
        bytes.fromhex("54534845030a0000050000001000000000000000b179370e62f36e0c136da60a"),
    ),
    "B reply": (
        frame(Kind.B_REPLY, messages.pack_b(1, [np.array([[1.0, -2.5]], dtype=np.float32)])),
        bytes.fromhex("5453484503040000050000000a00000001000000803f000020c0"),
    ),
    "B request": (
        frame(Kind.B_REQUEST, [(3).to_bytes(2, "little")]),
        bytes.fromhex("545348450303000005000000020000000300"),
    ),
    "accepted": (frame(Kind.ACCEPTED, []), bytes.fromhex("54534845030800000500000000000000")),
    "refusal": (
        frame(Kind.ERROR, [messages.packed(Refusal(code="budget_spent", message="m"))]),
        b'TSHE\x03\xff\x00\x00\x05\x00\x00\x00\x25\x00\x00\x00{"code":"budget_spent","message":"m"}',
    ),
}

DIGESTS = {
    "block begin": (
        frame(Kind.BLOCK_BEGIN, messages.pack_begin(1, BLOCK, words(2, 4, N, limit=PRIMES[0]))),
        "024b0d9edde4eab7e9ac1f3cfe08fc8d1770fbcbdf34918408a4afb368480584", 16 + 20 + 4 * 8 * N,
    ),
    "block rows": (
        frame(
            Kind.BLOCK_ROWS,
            messages.pack_rows(
                BLOCK, 64, words(2, 3, N, limit=PRIMES[0]), words(2, 64, limit=256).astype(np.uint8)
            ),
        ),
        "34adbffb720a06579a798896bed48ff6fe774d3355354ac4d4d6f89d8085102b", 16 + 24 + 2 * (12 * N + 64),
    ),
    "block whole rows": (
        frame(
            Kind.BLOCK_WHOLE_ROWS, messages.pack_whole_rows(BLOCK, 64, words(2, 2, 3, N, limit=PRIMES[0]))
        ),
        "30ed47a5b9babe8edda69f74bc54f379b15a0aad00575f1013d46cf4b44b4048", 16 + 24 + 2 * 24 * N,
    ),
    "block reply": (
        frame(Kind.BLOCK_REPLY, messages.pack_reply(BLOCK, words(1, 2, 3, N, limit=PRIMES[0]))),
        "7ce479c397b3ec0d2cd11833fe197381016c8087364f6ac3f3d16f6f7d578ddb", 16 + 16 + 24 * N,
    ),
    "direct reply": (
        frame(Kind.DIRECT_REPLY, direct_messages.pack_direct_reply([words(1, 2, 3, N, limit=PRIMES[0])] * 2)),
        "4ea37a19a6fadfb1c9e6e9b1cd519b4889dd107feb5849371cd3a0a8fd5d6d28", 16 + 2 * 24 * N,
    ),
}  # fmt: skip
EXPANDED = "b55dd460aef64a00d8184fbd114355404288eea174811d26b5fa9473996ee6c4"


def test_a_seed_stands_for_these_words() -> None:
    """The second polynomial of a ciphertext whose seed is 0, 1, ..., 63."""
    file = MemoryFile()
    whole = ciphertext_from_seed(words(3, N, limit=PRIMES[0]), bytes(range(64)), file)
    second = ciphertext_words(file.saved(whole))[1]
    assert second[0, :3].tolist() == [151222512, 834430223, 1011999200]
    assert hashlib.sha256(second.astype("<u4").tobytes()).hexdigest() == EXPANDED


def test_every_kind_has_a_vector() -> None:
    written = [frame for frame, *_ in (*WHOLE.values(), *DIGESTS.values())]
    assert {Kind(one[5]) for one in written} | {Kind.DIRECT} == set(Kind)


def test_the_document_names_what_the_program_holds_to() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for kind in Kind:
        assert f"| {kind.value} | {kind.name} |" in text, kind
    for number in (*KEY_PRIMES, MAX_RANGES, MAX_ENTRIES, MAX_D_IN, MAX_ROWS, N):
        assert str(number) in text, number
    assert {code for code in CODES if f"`{code}`" in text} == set(WIRE_CODES)


A = [[1, -2, 3, -4, 5], [-127, 0, 64, 1, -1]]
X = [-2.0, 0.625, 0.875, -0.375, 0.125]
X_Q = [-8, 2, 4, -2, 0]
RHO, SHARE = [268435455, 5, 0, 123456789, 2], [3, 268435455]
Z, Y = [268435447, 7, 4, 123456787, 2], [43043760, 123458185]
DECRYPTED = [43043752, 123456915]
SUMS = [8, 1270]
SCALED = {
    0: [0, 0, 0],
    1: [536334381, 536277034, 804614178],
    2: [1072668763, 1072554069, 535535684],
    123456789: [995126803, 775676995, 178066556],
    134217728: [536825856, 536834048, 536846336],
    268435455: [537317331, 537391062, 269078494],
}
"""floor(Q rho / t) modulo each prime."""


def times(vector: list[int]) -> list[int]:
    """A times a vector, in Python's integers."""
    return [sum(a * one for a, one in zip(row, vector, strict=True)) for row in A]


def test_a_token_in_numbers() -> None:
    """What the words of PRODUCTS and PRODUCTS_REPLY mean, step by step, and with Python's integers."""
    x = np.array([X], dtype=np.float32)
    x_q, scales = quantised_tokens(x, 8)
    assert x_q.tolist() == [X_Q] == [[round(one * 8 / 2) for one in X]]  # Python rounds half to even
    z = masked(x, scales, np.array([RHO], dtype=np.uint32))
    assert z.tolist() == [Z] == [[(one + rho) % T for one, rho in zip(X_Q, RHO, strict=True)]]
    y = answered(np.array(A, dtype=np.float64).T, z, np.array([SHARE], dtype=np.uint32))
    assert y.tolist() == [Y] == [[(one - s) % T for one, s in zip(times(Z), SHARE, strict=True)]]
    assert [(one - s) % T for one, s in zip(times(RHO), SHARE, strict=True)] == DECRYPTED
    shares = np.array([DECRYPTED], dtype=np.uint32)
    sums = unmasked(y, shares, np.ones(1))
    assert sums.tolist() == [SUMS] == [times(X_Q)]
    assert (unmasked(y, shares, scales) @ np.array([[1.0], [-2.5]])).tolist() == [[-791.75]]


def test_masks_are_scaled_to_these_residues() -> None:
    messages = np.array(list(SCALED), dtype=np.uint32)
    found = np.array([residues.copy() for residues in scaled_up(messages)])
    assert found.T.tolist() == list(SCALED.values())
    assert list(SCALED.values()) == [[Q * rho // T % prime for prime in PRIMES] for rho in SCALED]


def test_the_document_has_the_same_numbers() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    for vector in (*A, X, X_Q, RHO, SHARE, Z, Y, DECRYPTED, SUMS):
        assert f"({', '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in vector)})" in text
    for rho, residues in SCALED.items():
        assert f"| {' | '.join(map(str, [rho, *residues]))} |" in text, rho


DIRECT_DIGEST = "84f5ee33c7c8f9f410e39006db0e3458f2d90be1606c45bd1eab999cd09561de"


def test_a_direct_request_has_this_digest_and_no_other_length() -> None:
    layouts = [layout_of(64, 3), layout_of(300, 3)]
    rows, seeds = words(1, 3, N, limit=PRIMES[0]), words(1, 64, limit=256).astype(np.uint8)
    key = words(4, N, limit=PRIMES[0])
    parts = direct_messages.pack_direct(BLOCK, key, [direct_messages.DirectEntry(0, rows, seeds)])
    written = frame(Kind.DIRECT, parts)
    assert hashlib.sha256(written).hexdigest() == DIRECT_DIGEST
    payload = memoryview(written)[16:]
    key_id, got, entries = direct_messages.unpack_direct(payload, layouts)
    assert key_id == BLOCK
    assert np.array_equal(got, key)
    assert np.array_equal(entries[0].words, rows)
    for wrong in (payload[:3], payload[:-1], memoryview(bytes(payload) + b"x"), payload[: 20 + key.nbytes]):
        with pytest.raises(FrameError):
            direct_messages.unpack_direct(wrong, layouts)
    with pytest.raises(FrameError):
        direct_messages.unpack_direct(payload, [])


@pytest.mark.parametrize("name", WHOLE)
def test_small_frames_have_these_bytes(name: str) -> None:
    written, wanted = WHOLE[name]
    assert written.hex() == wanted.hex()


@pytest.mark.parametrize("name", DIGESTS)
def test_large_frames_have_these_digests(name: str) -> None:
    written, digest, size = DIGESTS[name]
    assert len(written) == size
    assert hashlib.sha256(written).hexdigest() == digest


def test_what_is_packed_is_unpacked() -> None:
    def view(parts: list) -> memoryview:
        return memoryview(b"".join(bytes(part) for part in parts))

    key = words(2, 4, N, limit=PRIMES[0])
    begin = view(messages.pack_begin(3, BLOCK, key))
    site, block, got = messages.unpack_begin(begin, [4096, 4096, 4096, 64])
    assert (site, block) == (3, BLOCK)
    assert np.array_equal(got, key)
    rows, seeds = words(2, 3, N, limit=PRIMES[0]), words(2, 64, limit=256).astype(np.uint8)
    block, first, got_rows, got_seeds = messages.unpack_rows(view(messages.pack_rows(BLOCK, 64, rows, seeds)))
    assert (block, first) == (BLOCK, 64)
    assert np.array_equal(got_rows, rows)
    assert np.array_equal(got_seeds, seeds)
    whole = words(2, 2, 3, N, limit=PRIMES[0])
    block, first, got_rows = messages.unpack_whole_rows(view(messages.pack_whole_rows(BLOCK, 64, whole)))
    assert (block, first) == (BLOCK, 64)
    assert np.array_equal(got_rows, whole)
    cut = view(messages.pack_whole_rows(BLOCK, 64, whole))
    for wrong in (cut[:-1], cut[:20], cut[: -24 * N]):
        with pytest.raises(FrameError):
            messages.unpack_whole_rows(wrong)
    z = words(2, 3, limit=T)
    ranges, rest = messages.unpack_ranges(view(messages.pack_products([MaskedRange(Range(BLOCK, 7, 2), z)])))
    assert ranges == [Range(BLOCK, 7, 2)]
    assert np.array_equal(messages.unpack_ring(rest, [(2, 3)])[0], z)
    welcome = messages.parsed(Welcome, view([messages.packed(Welcome.of(INFO, NONCE))]))
    assert (welcome.info(), bytes.fromhex(welcome.nonce)) == (INFO, NONCE)


def test_a_block_begins_with_as_many_keys_as_its_site_needs() -> None:
    begin = b"".join(bytes(part) for part in messages.pack_begin(1, BLOCK, words(2, 4, N, limit=PRIMES[0])))
    assert len(begin) == 4 + 16 + 2 * 4 * 4 * N
    messages.unpack_begin(memoryview(begin), [4096, 64])
    for payload, widths in ((begin, [64, 896]), (begin, [64]), (begin[:-1], [64, 64]), (begin[:3], [64, 64])):
        with pytest.raises(FrameError):
            messages.unpack_begin(memoryview(payload), widths)
    assert 20 + 4 * 4 * N * keys_of_block(MAX_D_IN) <= TO_ADAPTER_HOLDER[Kind.BLOCK_BEGIN]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (frames.HEADER.pack(b"HTTP", 1, 1, 0, 0, 0), "not the HE-LoRA protocol"),
        (frames.HEADER.pack(b"TSHE", 3, 1, 7, 0, 0), "not the HE-LoRA protocol"),
        (frames.HEADER.pack(b"TSHE", 2, 1, 0, 0, 0), "version 2"),
        (frames.HEADER.pack(b"TSHE", 3, 77, 0, 0, 0), "kind 77"),
        (frames.HEADER.pack(b"TSHE", 3, Kind.WELCOME, 0, 0, 0), "kind 2"),
        (frames.HEADER.pack(b"TSHE", 3, Kind.HELLO, 0, 0, 4097), "4097 bytes"),
        (frames.HEADER.pack(b"TSHE", 3, Kind.PRODUCTS, 0, 0, 0xFFFFFFFF), "4294967295 bytes"),
    ],
)
def test_headers_that_are_refused(header: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        frames.parse_header(header, TO_ADAPTER_HOLDER)


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b'{"parameters":"p","tenant":"t","adapter":"a","version":1,"prompt":"secret"}',
     b'{"parameters":"p","tenant":"t","adapter":"a","version":"1"}', b'{"parameters":"p","tenant":"t"}'],
)  # fmt: skip
def test_json_with_unknown_or_wrong_fields_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError) as raised:
        messages.parsed(Hello, memoryview(payload))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("cut", [0, 3, 4, 27, 28, -1])
def test_payloads_that_end_early_are_refused(cut: int) -> None:
    payload = WHOLE["products"][0][16:]
    with pytest.raises(FrameError):
        messages.unpack_ring(messages.unpack_ranges(memoryview(payload)[:cut])[1], [(2, 3)])


@pytest.mark.parametrize(("first", "count"), [(N, 1), (0, N + 1), (4000, 97), (0, 0), (2**32 - 1, 1)])
def test_ranges_that_leave_their_block_are_refused(first: int, count: int) -> None:
    parts = messages.pack_products([MaskedRange(Range(BLOCK, first, count), words(1, 3, limit=T))])
    with pytest.raises(FrameError):
        messages.unpack_ranges(memoryview(b"".join(bytes(part) for part in parts)))


def test_a_request_for_products_has_no_more_tokens_than_a_block() -> None:
    z = np.zeros((MAX_TOKENS // 2, 1), dtype="<u4")
    for more in (0, 1):
        last = np.zeros((len(z) + more, 1), dtype="<u4")
        parts = [MaskedRange(Range(bytes([at]) * 16, 0, len(one)), one) for at, one in enumerate((z, last))]
        payload = memoryview(b"".join(bytes(part) for part in messages.pack_products(parts)))
        if more:
            with pytest.raises(FrameError, match="at most 4096 tokens"):
                messages.unpack_ranges(payload)
        else:
            assert len(messages.unpack_ranges(payload)[0]) == 2


def test_the_format_leaves_room_for_the_widest_site() -> None:
    assert messages.most_products_bytes(MAX_D_IN) <= TO_ADAPTER_HOLDER[Kind.PRODUCTS]
    assert messages.most_products_bytes(896) == 98308 + 16384 * 896


def test_masked_words_out_of_range_are_refused() -> None:
    with pytest.raises(FrameError):
        messages.unpack_ring(memoryview(np.array([T], dtype="<u4").tobytes()), [(1, 1)])


def test_b_that_is_not_finite_is_refused() -> None:
    parts = messages.pack_b(0, [np.array([[np.nan, 1.0]], dtype=np.float32)])
    with pytest.raises(FrameError):
        messages.unpack_b(memoryview(b"".join(bytes(part) for part in parts)), 0, SHAPE)


def test_a_frame_in_dribs_has_one_time_limit() -> None:
    ours, theirs = socket.socketpair()

    def dribble() -> None:
        try:
            for byte in WHOLE["hello"][0]:
                theirs.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass

    thread = threading.Thread(target=dribble)
    thread.start()
    began = time.monotonic()
    with pytest.raises(PeerSlow):
        frames.receive(ours, TO_ADAPTER_HOLDER, idle_s=1, frame_s=0.3)
    assert time.monotonic() - began < 1
    ours.close()
    thread.join()
    theirs.close()


@pytest.mark.parametrize("waits_s", [0.0, 0.5])
def test_header_and_payload_share_one_time_and_what_is_waited_for_room_is_not_of_it(waits_s: float) -> None:
    ours, theirs = socket.socketpair()
    frame_s, whole = 0.4, WHOLE["products"][0]

    def send_slowly() -> None:
        for part in (whole[:1], whole[1:16], whole[16:]):
            theirs.sendall(part)
            time.sleep(0.3 if not waits_s else 0.15)

    thread = threading.Thread(target=send_slowly)
    thread.start()

    def receive() -> frames.Frame:
        admit = lambda kind, size: time.sleep(waits_s)  # noqa: E731
        return frames.receive(ours, TO_ADAPTER_HOLDER, idle_s=1, frame_s=frame_s, admit=admit)

    if waits_s:
        assert bytes(receive().payload) == whole[16:]
    else:
        with pytest.raises(PeerSlow):
            receive()
    thread.join()
    ours.close()
    theirs.close()


def test_a_connection_that_ends_inside_a_frame_is_gone() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(WHOLE["refusal"][0][:-1])
    theirs.close()
    with pytest.raises(PeerGone):
        frames.receive(ours, TO_KEY_HOLDER, idle_s=1, frame_s=1)
    ours.close()
