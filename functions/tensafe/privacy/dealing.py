"""Deals: the units of a step, drawn by the server from a committed seed and regenerable from it.

The law of a deal is that of truncated Poisson sampling (Ganesh 2025, arXiv 2508.15089, section 2; it is
what dp-accounting's TruncatedSubsampledGaussianDpEvent accounts for): every unit is drawn
independently with probability q; of more than `batch_cap` drawn units a uniformly random subset of
`batch_cap` stays.

Both draws are exact, given a uniform stream. A unit is drawn if its own 64 random bits, as an integer,
lie below t = floor(q * 2**64), so with probability t / 2**64, which is a float64: it is what
`exact_probability` returns and what must be accounted for. For q >= 2**-12 it is q itself; below, it
is less than q by under 2**-64. The subset is a partial Fisher-Yates shuffle whose integers are drawn
by rejection, without the bias of a remainder.

The stream is AES-256-CTR under keys that HKDF-SHA256 makes of the run's 32-byte deal seed, the use and
the step: a deal is a function of (seed, step), so after a crash it is made again, never drawn again.
The seed is not the noise secret: opening it shows an auditor who took part when, and no noise.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tensafe.contracts.domains import MAX_MANIFEST_UNITS
from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.units import MAX_UNITS_PER_STEP

DEAL_SEED_BYTES: Final = 32
MAX_STEP: Final = 2**63 - 1
_WORDS: Final[int] = 2**64
"""Number of values of one random word."""
_DRAW_LABEL: Final = b"tensafe/privacy/deal-draw/v1"
_SUBSET_LABEL: Final = b"tensafe/privacy/deal-subset/v1"
_COMMIT_LABEL: Final = b"tensafe/privacy/deal-seed/v1\0"
_WORDS_PER_CHUNK: Final = 1 << 17
_ZEROS: Final = bytes(8 * _WORDS_PER_CHUNK)

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DealTerms:
    """What the deals of a run are drawn by; frozen, and bound by the seed's commitment.

    `units`: N of the manifest that `manifest_digest` names. `sampling_probability`: q in (0, 1], a
    multiple of 2**-64 (`exact_probability`). `batch_cap`: the most units in one step.
    Raises InvalidRequest naming the field.
    """

    run_id: str
    manifest_digest: str
    units: int
    sampling_probability: float
    batch_cap: int

    def __post_init__(self) -> None:
        if not 1 <= self.units <= MAX_MANIFEST_UNITS:
            raise InvalidRequest(f"units must be 1 to {MAX_MANIFEST_UNITS}, got {self.units}", field="units")
        if exact_probability(self.sampling_probability) != self.sampling_probability:
            raise InvalidRequest(
                "sampling_probability must be a multiple of 2**-64; use what exact_probability returns",
                field="sampling_probability",
            )
        if not 1 <= self.batch_cap <= MAX_UNITS_PER_STEP:
            raise InvalidRequest(
                f"batch_cap must be 1 to {MAX_UNITS_PER_STEP}, got {self.batch_cap}", field="batch_cap"
            )


@dataclass(frozen=True, slots=True)
class Deal:
    """One step's units: indices into the manifest, int64 [n], ascending, n <= batch_cap; n may be 0.

    `drawn` is how many there were before the cap. Both are secret from whoever receives the model.
    """

    step: int
    indices: Int64Array
    drawn: int


def exact_probability(probability: float) -> float:
    """The largest multiple of 2**-64 that is at most `probability`, exactly. Raises InvalidRequest."""
    if not 1 / _WORDS <= probability <= 1.0:
        raise InvalidRequest(
            f"sampling_probability must be above 0 and at most 1, got {probability!r}",
            field="sampling_probability",
        )
    return _threshold(probability) / _WORDS


def new_deal_seed() -> bytes:
    """32 bytes from the operating system's CSPRNG; a run's own, and no other run's."""
    return os.urandom(DEAL_SEED_BYTES)


def seed_commitment(seed: bytes, terms: DealTerms) -> str:
    """SHA-256 (hexadecimal) over the seed and the terms; publish it before the first deal.

    It binds the server to every deal of the run. It hides the seed, which is 256 random bits.
    """
    _check_seed(seed)
    text = json.dumps(asdict(terms), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(_COMMIT_LABEL + seed + text.encode()).hexdigest()


def verify_opening(commitment: str, seed: bytes, terms: DealTerms) -> None:
    """Check that the seed and terms are those committed to. Raises IntegrityError.

    Whoever holds an opened seed knows every deal, so the amplified epsilon does not hold against them.
    """
    if len(seed) != DEAL_SEED_BYTES or not hmac.compare_digest(seed_commitment(seed, terms), commitment):
        raise IntegrityError("the deal seed and its terms are not those that the run committed to")


def deal(seed: bytes, step: int, terms: DealTerms) -> Deal:
    """The units of a step; the same for the same arguments on every machine. Raises InvalidRequest.

    Needs 8 bytes of random stream per unit of the manifest, in pieces of 1 MB.
    """
    _check_seed(seed)
    if not 0 <= step <= MAX_STEP:
        raise InvalidRequest(f"step must be from 0 to {MAX_STEP}, got {step}", field="step")
    drawn = _drawn(_Words(seed, _DRAW_LABEL, step), terms)
    if drawn.size <= terms.batch_cap:
        return Deal(step, drawn, drawn.size)
    kept = _subset(_Words(seed, _SUBSET_LABEL, step), drawn.size, terms.batch_cap)
    return Deal(step, drawn[kept], drawn.size)


class _Words:
    """A stream of uniform uint64 for one use in one step."""

    def __init__(self, seed: bytes, label: bytes, step: int) -> None:
        info = label + struct.pack(">Q", step)
        key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(seed)
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` words, at most _WORDS_PER_CHUNK."""
        return np.frombuffer(self._stream.update(memoryview(_ZEROS)[: 8 * count]), dtype="<u8")


def _threshold(probability: float) -> int:
    numerator, denominator = probability.as_integer_ratio()
    return numerator * _WORDS // denominator


def _drawn(words: _Words, terms: DealTerms) -> Int64Array:
    """Indices of the units that Poisson sampling draws, ascending."""
    if terms.sampling_probability == 1.0:  # 2**64 is no uint64
        return np.arange(terms.units, dtype=np.int64)
    threshold = np.uint64(_threshold(terms.sampling_probability))
    found = []
    for first in range(0, terms.units, _WORDS_PER_CHUNK):
        chunk = words.take(min(_WORDS_PER_CHUNK, terms.units - first))
        found.append(np.flatnonzero(chunk < threshold) + first)
    return np.concatenate(found)


def _subset(words: _Words, size: int, chosen: int) -> Int64Array:
    """`chosen` of the positions 0 to size - 1, every subset as likely as any other; ascending."""
    # Those that go are a uniform subset just as those that stay: shuffle the fewer.
    gone = size - chosen
    count = min(chosen, gone)
    positions = np.arange(size, dtype=np.int64)
    for at, other in enumerate(_uniform_below(words, size, count)):
        positions[at], positions[other] = positions[other], positions[at]
    return np.sort(positions[:count] if count == chosen else positions[count:])


def _uniform_below(words: _Words, size: int, count: int) -> list[int]:
    """For at = 0 .. count - 1 a uniform integer from `at` to size - 1, by rejection."""
    result: list[int] = []
    while len(result) < count:
        for word in words.take(min(_WORDS_PER_CHUNK, count - len(result))).tolist():
            width = size - len(result)
            if word < _WORDS - _WORDS % width:
                result.append(len(result) + word % width)
    return result


def _check_seed(seed: bytes) -> None:
    if len(seed) != DEAL_SEED_BYTES:
        raise InvalidRequest(f"the deal seed must be {DEAL_SEED_BYTES} bytes, got {len(seed)}")
