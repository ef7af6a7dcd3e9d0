"""SEAL's own stream format, version 4.3, to and from plain words; through memory, never a disk.

The binding saves and loads by path alone: the paths here are those of an anonymous memory file. SEAL
compresses what it saves (zstd) and loads uncompressed streams too, which is what is written here. Bytes
from the other side never reach SEAL's parser: they are words, checked for their range, around which this
module writes the stream.

    header  magic 0x5ea1, header size 16, major 4, minor 3, compression, 0, 0, u64 size of all
    body    parms_id 32, ntt u8, u64 size, u64 degree, u64 primes, f64 scale, u64 correction, array [,
    generator] array   header, u64 count, count words of 64 bits
"""

from __future__ import annotations

import os
import struct
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import zstandard

from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.seal_library import SealCiphertext, SealObject, seal, shared_context

WordArray = npt.NDArray[np.uint32]

SeedArray = npt.NDArray[np.uint8]
SEED_BYTES: Final = 64
_HEADER: Final = struct.Struct("<HBBBBHQ")
_MEMBERS: Final = struct.Struct("<32sBQQQdQ")
_MAGIC: Final = 0xA15E
_VERSION: Final = (4, 3)
_PLAIN, _ZLIB, _ZSTD = 0, 1, 2
_MAX_BODY_BYTES: Final = 8 << 20
_BLAKE2XB: Final = 1
_LEVELS: Final = len(PRIMES)


class SealFormatError(RuntimeError):
    """The installed SEAL writes something else than version 4.3 of its format: install the locked tenseal."""


class MemoryFile:
    """An anonymous file that SEAL can save to and load from by path. Not for several threads at once."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("tensafe-seal", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"

    def saved(self, savable: SealObject) -> bytes:
        """What `savable.save` writes."""
        os.ftruncate(self._fd, 0)
        savable.save(self.path)
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def holding(self, content: bytes) -> str:
        """The path of a file with this content."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, content, 0)
        return self.path

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def body_of(stream: bytes) -> bytes:
    """The body of a SEAL stream, decompressed. Raises SealFormatError."""
    if len(stream) < _HEADER.size:
        raise SealFormatError("a SEAL stream is shorter than its header")
    magic, size, major, minor, compression, _, total = _HEADER.unpack_from(stream)
    if (magic, size, (major, minor)) != (_MAGIC, _HEADER.size, _VERSION) or total != len(stream):
        raise SealFormatError(f"SEAL stream of version {major}.{minor}; this program reads 4.3")
    body = stream[_HEADER.size :]
    if compression == _PLAIN:
        return body
    if compression != _ZSTD:
        raise SealFormatError(f"SEAL stream with compression {compression}; this program reads zstd")
    try:
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        return unpacker.decompress(body)
    except zstandard.ZstdError as error:
        raise SealFormatError("a SEAL stream does not decompress") from error


def ciphertext_words(stream: bytes) -> WordArray:
    """uint32 [2, 3, N] of a whole ciphertext."""
    words = _array(body_of(stream), _MEMBERS.size)
    return _checked(words, 2 * _LEVELS * N).reshape(2, _LEVELS, N)


def seeded_words(stream: bytes) -> tuple[WordArray, bytes]:
    """uint32 [3, N] of the first polynomial, and the seed of the second (64 bytes)."""
    body = body_of(stream)
    words = _checked(_array(body, _MEMBERS.size), _LEVELS * N).reshape(_LEVELS, N)
    info = body[_MEMBERS.size + _HEADER.size + 8 + 8 * words.size :]
    if len(info) != _HEADER.size + 1 + SEED_BYTES or info[_HEADER.size] != _BLAKE2XB:
        raise SealFormatError("a seeded ciphertext names another generator than SEAL's BLAKE2xb")
    return words, info[-SEED_BYTES:]


def public_key_words(stream: bytes) -> WordArray:
    """uint32 [2, 4, N] of a public key, which has the fourth prime too."""
    words = _array(body_of(stream), _MEMBERS.size)
    return _checked(words, 2 * (_LEVELS + 1) * N).reshape(2, _LEVELS + 1, N)


def secret_key_words(stream: bytes) -> WordArray:
    """uint32 [4, N] of a secret key, in NTT form as a public key's words are."""
    words = _array(body_of(stream), 32 + 8 + 8)  # parms_id, coefficient count, scale
    return _checked(words, (_LEVELS + 1) * N).reshape(_LEVELS + 1, N)


def plain_words(stream: bytes) -> WordArray:
    """uint32 [N] of a plaintext in coefficient form; SEAL leaves out leading zeros."""
    body = body_of(stream)
    words = _array(body, 32 + 8 + 8)  # parms_id, coefficient count, scale
    if words.size > N:
        raise SealFormatError("a plaintext has more coefficients than the ring")
    result = np.zeros(N, dtype=np.uint32)
    result[: words.size] = words
    return result


def ciphertext_from(words: WordArray, file: MemoryFile) -> SealCiphertext:
    """A SEAL ciphertext of uint32 [2, 3, N], each word below its prime (checked by SEAL once more)."""
    parms_id = _parms_id(shared_context().first_parms_id())
    ciphertext = cast(SealCiphertext, seal.Ciphertext())
    ciphertext.load(shared_context(), file.holding(_stream(parms_id, 0, _LEVELS, _words_array(words))))
    return ciphertext


def ciphertext_from_seed(words: WordArray, seed: bytes, file: MemoryFile) -> SealCiphertext:
    """A SEAL ciphertext of uint32 [3, N] and the 64-byte seed from which SEAL makes its second polynomial."""
    parms_id = _parms_id(shared_context().first_parms_id())
    info = bytes([_BLAKE2XB]) + seed
    info = _header(len(info)) + info
    ciphertext = cast(SealCiphertext, seal.Ciphertext())
    content = _stream(parms_id, 0, _LEVELS, _words_array(words) + info)
    ciphertext.load(shared_context(), file.holding(content))
    return ciphertext


def plain_from(words: WordArray, file: MemoryFile) -> SealObject:
    """A SEAL plaintext of uint32 [N] coefficients below t."""
    members = struct.pack("<32sQd", bytes(32), words.size, 1.0)
    content = members + _words_array(words)
    plain = seal.Plaintext()
    plain.load(shared_context(), file.holding(_header(len(content)) + content))
    return cast(SealObject, plain)


def public_key_from(words: WordArray, file: MemoryFile) -> SealObject:
    """A SEAL public key of uint32 [2, 4, N]."""
    parms_id = _parms_id(shared_context().key_parms_id())
    key = seal.PublicKey()
    content = _stream(parms_id, 1, _LEVELS + 1, _words_array(words))
    key.load(shared_context(), file.holding(content))
    return cast(SealObject, key)


def _array(body: bytes, offset: int) -> npt.NDArray[np.uint64]:
    if len(body) < offset + _HEADER.size + 8:
        raise SealFormatError("a SEAL stream ends before its words")
    magic, _, major, minor, compression, _, _ = _HEADER.unpack_from(body, offset)
    if (magic, (major, minor), compression) != (_MAGIC, _VERSION, _PLAIN):
        raise SealFormatError("a SEAL stream holds its words in another form")
    (count,) = struct.unpack_from("<Q", body, offset + _HEADER.size)
    begin = offset + _HEADER.size + 8
    if count > _MAX_BODY_BYTES // 8 or len(body) < begin + 8 * count:
        raise SealFormatError("a SEAL stream has fewer words than it says")
    return np.frombuffer(body, dtype="<u8", count=count, offset=begin)


def _checked(words: npt.NDArray[np.uint64], count: int) -> WordArray:
    if words.size != count:
        raise SealFormatError(f"a SEAL object has {words.size} words, not {count}")
    return words.astype(np.uint32)


def _words_array(words: WordArray) -> bytes:
    content = struct.pack("<Q", words.size) + words.astype("<u8").tobytes()
    return _header(len(content)) + content


def _stream(parms_id: bytes, ntt: int, levels: int, rest: bytes) -> bytes:
    members = _MEMBERS.pack(parms_id, ntt, 2, N, levels, 1.0, 1)
    return _header(len(members) + len(rest)) + members + rest


def _header(content_bytes: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *_VERSION, _PLAIN, 0, _HEADER.size + content_bytes)


def _parms_id(parts: list[int]) -> bytes:
    return struct.pack("<4Q", *parts)
