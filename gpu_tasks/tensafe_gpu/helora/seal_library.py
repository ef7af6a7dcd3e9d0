"""Microsoft SEAL, as TenSEAL's `sealapi` binds it: the context with the pinned parameters."""

from __future__ import annotations

import functools
from typing import Any, Final, Protocol, cast

from tensafe_gpu.helora.parameters import PRIME_BITS, PRIMES, N, T
from tensafe_gpu.helora.ports import PARAMETERS_REFUSED, HeUnavailable

try:
    import tenseal.sealapi as seal
except ImportError as error:
    raise ImportError("HE-LoRA needs TenSEAL: pip install 'tensafe[he]'") from error

__all__ = [
    "KEY_PRIMES",
    "SealCiphertext",
    "SealContext",
    "SealObject",
    "check_ciphertext",
    "new_context",
    "seal",
    "shared_context",
]


class SealObject(Protocol):
    """Whatever SEAL saves."""

    def save(self, path: str, /) -> None: ...


class SealCiphertext(SealObject, Protocol):
    """A ciphertext, of which this is used."""

    def load(self, context: SealContext, path: str, /) -> None: ...
    def size(self) -> int: ...
    def is_transparent(self) -> bool: ...


class SealContext(Protocol):
    """Parameters and what SEAL computed from them."""

    def parameters_set(self) -> bool: ...
    def first_parms_id(self) -> list[int]: ...
    def key_parms_id(self) -> list[int]: ...
    def key_context_data(self) -> Any: ...  # noqa: ANN401 - as below
    def first_context_data(self) -> Any: ...  # noqa: ANN401 - SEAL's own types are not declared


def new_context(
    degree: int = N, prime_bits: tuple[int, ...] = PRIME_BITS, plain_modulus: int = T
) -> SealContext:
    """A SEALContext at 128 bits. Raises HeUnavailable for other parameters than the pinned ones.

    What is checked is what SEAL made of them: degree, the primes themselves, plain modulus, security level.
    """
    wanted = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    wanted.set_poly_modulus_degree(degree)
    try:
        wanted.set_coeff_modulus(seal.CoeffModulus.Create(degree, list(prime_bits)))
        wanted.set_plain_modulus(plain_modulus)
        context = seal.SEALContext(wanted, True, seal.SEC_LEVEL_TYPE.TC128)
    except (ValueError, RuntimeError) as error:
        raise HeUnavailable(PARAMETERS_REFUSED, "SEAL refuses the parameters") from error
    if not context.parameters_set():
        raise HeUnavailable(PARAMETERS_REFUSED, "the parameters do not reach 128 bits of security")
    made = context.first_context_data().parms()
    primes = tuple(int(prime.value()) for prime in made.coeff_modulus())
    if (made.poly_modulus_degree(), primes, made.plain_modulus().value()) != (N, PRIMES, T):
        raise HeUnavailable(PARAMETERS_REFUSED, "not the pinned parameters; both sides accept those alone")
    return cast(SealContext, context)


@functools.cache
def shared_context() -> SealContext:
    """The context of this process; SEAL's contexts are immutable and may be shared by threads."""
    return new_context()


KEY_PRIMES: Final = tuple(
    int(prime.value()) for prime in shared_context().key_context_data().parms().coeff_modulus()
)
"""All four primes, which keys have."""


def check_ciphertext(ciphertext: SealCiphertext) -> None:
    """Raise HeUnavailable unless SEAL finds it valid, of size 2 and not transparent (readable by all)."""
    valid = seal.is_valid_for(ciphertext, shared_context())
    if not valid or ciphertext.size() != 2 or ciphertext.is_transparent():
        raise HeUnavailable(PARAMETERS_REFUSED, "a ciphertext is not valid for the pinned parameters")
