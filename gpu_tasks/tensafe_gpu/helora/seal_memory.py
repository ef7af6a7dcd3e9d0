"""Words of SEAL ciphertexts without SEAL's compression, which costs more than the encryption itself.

The binding offers the words one at a time or in a zstd stream: 0.9 ms for a ciphertext, against 0.5 ms for
encrypting it. Here they are read where they lie. That place is a private matter of SEAL, so nothing
is taken on trust: every object must show the expected parms_id, shape and word count around the pointer,
the kernel reads those of a new object and, of a new place, the first and last word (a wrong address is an
error, not a crash), and a process first compares both ways on fresh ciphertexts. If anything differs, or the
kernel forbids it, words come from the stream: slower and equally right.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.seal_library import SealObject, seal, shared_context
from tensafe_gpu.helora.seal_stream import (
    SEED_BYTES,
    MemoryFile,
    SealFormatError,
    WordArray,
    ciphertext_words,
    seeded_words,
)

log = logging.getLogger(__name__)

_LEVELS: Final = len(PRIMES)
_WORDS: Final = 2 * _LEVELS * N
_OBJECT: Final = struct.Struct("<32sQQQQdQ16xQQQ")
"""parms_id, is_ntt (padded), size, degree, primes, scale, correction, pool, capacity, words, their address.
"""
_POINTER: Final = struct.Struct("<Q")
_VALUE_OFFSET: Final = 16
"""Of the pointer to the C++ object inside a Python object of the binding."""
_SEED_MARK: Final = 2**64 - 1
"""First word of a second polynomial that is a seed; the generator's record follows it."""
_SEED_OFFSET: Final = 8 + 16 + 1
"""Of the seed in the second polynomial: after the mark, the record's header and the generator's kind."""


Uint64Array = npt.NDArray[np.uint64]


class _Vector(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


class WordReader:
    """Takes the words out of ciphertexts that SEAL made in this process. Not for several threads at once."""

    def __init__(self, *, direct: bool | None = None) -> None:
        self._file = MemoryFile()
        self._direct = _direct_reading_works() if direct is None else direct
        self._holder: object = None
        """The object that was read last: it lives as long as what was returned of it is used."""
        self._object: ctypes.Array[ctypes.c_char] | None = None
        self._place = 0
        """Where the words of the last ciphertext were: the next one's are mostly there too."""
        self._words: Uint64Array = np.empty((2, _LEVELS, 0), dtype=np.uint64)

    @property
    def direct(self) -> bool:
        """Whether words are read where they lie, rather than from SEAL's stream."""
        return self._direct

    def words(self, ciphertext: SealObject) -> Uint64Array:
        """uint64 [2, 3, N] as they lie in it: until it changes, or the next call."""
        if self._direct:
            return self._in_place(ciphertext)
        return ciphertext_words(self._file.saved(ciphertext)).astype(np.uint64)

    def whole(self, ciphertext: SealObject) -> WordArray:
        """uint32 [2, 3, N]."""
        return self.words(ciphertext).astype(np.uint32)

    def second(self, ciphertext: SealObject) -> WordArray:
        """uint32 [3, N], the second polynomial."""
        words: WordArray = self.words(ciphertext)[1].astype(np.uint32)
        return words

    def seeded(self, serializable: SealObject) -> tuple[Uint64Array, bytes]:
        """As `words`, uint64 [3, N], and the seed of the second polynomial (64 bytes)."""
        if not self._direct:
            first, seed = seeded_words(self._file.saved(serializable))
            return first.astype(np.uint64), seed
        first, second = self._in_place(serializable)
        if int(second[0, 0]) != _SEED_MARK:
            raise SealFormatError("a seeded ciphertext has no seed where SEAL 4.3 keeps it")
        return first, second[0].view(np.uint8)[_SEED_OFFSET : _SEED_OFFSET + SEED_BYTES].tobytes()

    def close(self) -> None:
        """Free the memory file and what was read last."""
        self._holder, self._object = None, None
        self._file.close()

    def _in_place(self, holder: object) -> Uint64Array:
        """uint64 [2, 3, N]: a view of a ciphertext's words, valid while `holder` lives and is not changed."""
        if holder is not self._holder or self._object is None:
            (address,) = _POINTER.unpack(_read(id(holder) + _VALUE_OFFSET, 8))
            _read(address, _OBJECT.size)
            self._object = (ctypes.c_char * _OBJECT.size).from_address(address)
            self._holder = holder
        fields = _OBJECT.unpack_from(self._object)
        if fields[0] != _parms_id() or fields[2:6] != (2, N, _LEVELS, 1.0) or fields[8] != _WORDS:
            raise SealFormatError("SEAL keeps a ciphertext in memory in another form")
        place = fields[9]
        if place != self._place:
            for word in (0, _WORDS - 1):
                _read(place + 8 * word, 8)
            self._place = place
            words = np.ctypeslib.as_array((ctypes.c_uint64 * _WORDS).from_address(place))
            self._words = words.reshape(2, _LEVELS, N)
        return self._words


@functools.cache
def _parms_id() -> bytes:
    return struct.pack("<4Q", *shared_context().first_parms_id())


def _read(address: int, length: int) -> bytes:
    buffer = ctypes.create_string_buffer(length)
    local, remote = _Vector(ctypes.addressof(buffer), length), _Vector(address, length)
    got = _libc().process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if got != length:
        raise SealFormatError("SEAL's words are not where its version 4.3 keeps them")
    return buffer.raw


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    return libc


@functools.cache
def _direct_reading_works() -> bool:
    """Whether both ways give the same words on a fresh ciphertext, whole and seeded."""
    context = shared_context()
    encryptor = seal.Encryptor(context, seal.KeyGenerator(context).secret_key())
    whole, seeded = seal.Ciphertext(), encryptor.encrypt_zero_symmetric()
    encryptor.encrypt_zero_symmetric(whole)
    copying, streaming = WordReader(direct=True), WordReader(direct=False)
    try:
        same = np.array_equal(copying.whole(whole), streaming.whole(whole))
        (first, seed), (first_of_stream, seed_of_stream) = copying.seeded(seeded), streaming.seeded(seeded)
        same = same and seed == seed_of_stream and np.array_equal(first, first_of_stream)
    except (SealFormatError, AttributeError, struct.error):
        same = False
    if not same:
        log.warning("SEAL's words are read through its stream; encrypting takes three times as long")
    return same
