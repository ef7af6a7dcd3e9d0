"""What else computes A x under encryption: TenSEAL's own `mm`, and rotations by diagonals on SEAL."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tenseal
import tenseal.sealapi as seal

from benchmarks.spent import Spent, spent

TOLERANCE = 5e-3


def tenseal_mm(a: np.ndarray, x: np.ndarray) -> Spent:
    """One encrypted x [d] times A^T: encrypt, `mm`, decrypt; N = 8192, [60, 40, 40, 60]."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 40, 60], n_threads=1)
    context.global_scale = 2**40
    context.generate_galois_keys()
    columns, got = a.T.tolist(), []
    took = spent(lambda: got.extend(tenseal.ckks_vector(context, x.tolist()).mm(columns).decrypt()))
    _check(np.array(got), a @ x)
    return took


def rotations(a: np.ndarray, x: np.ndarray) -> Spent:
    """A token of x [tokens, d] times A^T by diagonals, baby and giant steps: 12 rotations, 16 products.

    A is [16, d], d at most 1024; N = 4096, [36, 36, 37]; plaintexts are encoded beforehand.
    """
    rows, width, baby = 16, 1024, 4
    padded_a, padded_x = np.zeros((rows, width)), np.zeros((len(x), width))
    padded_a[:, : a.shape[1]], padded_x[:, : a.shape[1]] = a, x
    kernel, got = _Rotations(padded_a, baby), list[np.ndarray]()
    took = [spent(lambda one=one: got.append(kernel(one))) for one in padded_x]
    for mine, one in zip(got, padded_x, strict=True):
        _check(mine, padded_a @ one)
    return Spent(*(float(np.median(clock)) for clock in zip(*took, strict=True)))


def _check(got: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(got - wanted).max() < TOLERANCE * np.abs(wanted).max(), "the peer's product is wrong"


class _Rotations:
    def __init__(self, a: np.ndarray, baby: int) -> None:
        self._rows, self._width = a.shape
        self._baby, self._scale = baby, 2.0**30
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(4096)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(4096, [36, 36, 37]))
        context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        keys = seal.KeyGenerator(context)
        self._galois = seal.GaloisKeys()
        steps = [*range(1, baby), *range(baby, self._rows, baby)]
        fold = self._rows
        while fold < self._width:
            steps.append(fold)
            fold *= 2
        elements = [pow(3, step, 2 * 4096) for step in steps]  # the binding takes elements, not steps
        keys.create_galois_keys(elements, self._galois)
        self._encoder, self._evaluator = seal.CKKSEncoder(context), seal.Evaluator(context)
        self._encryptor = seal.Encryptor(context, keys.secret_key())
        self._decryptor = seal.Decryptor(context, keys.secret_key())
        slots = np.arange(2048)
        self._plains = []
        for step in range(self._rows):
            # Giant steps rotate the product, so the diagonal is turned back by as much.
            back = slots - step // baby * baby
            diagonal = a[back % self._rows, (back + step) % self._width]
            self._plains.append(self._encoded(diagonal))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        encrypted = seal.Ciphertext()
        self._encryptor.encrypt_symmetric(self._encoded(np.tile(x, 2)), encrypted)
        babies = [encrypted, *(self._rotated(encrypted, step) for step in range(1, self._baby))]
        total = None
        for giant in range(0, self._rows, self._baby):
            part = self._sum([self._product(babies[k], self._plains[giant + k]) for k in range(self._baby)])
            part = self._rotated(part, giant) if giant else part
            total = part if total is None else self._sum([total, part])
        fold = self._rows
        while fold < self._width:
            total = self._sum([total, self._rotated(total, fold)])
            fold *= 2
        plain = seal.Plaintext()
        self._decryptor.decrypt(total, plain)
        return np.array(self._encoder.decode_double(plain))[: self._rows]

    def _encoded(self, values: np.ndarray) -> object:
        plain = seal.Plaintext()
        self._encoder.encode(values.tolist(), self._scale, plain)
        return plain

    def _rotated(self, ciphertext: object, step: int) -> object:
        return self._into(self._evaluator.rotate_vector, ciphertext, step, self._galois)

    def _product(self, ciphertext: object, plain: object) -> object:
        return self._into(self._evaluator.multiply_plain, ciphertext, plain)

    def _sum(self, terms: list[object]) -> object:
        total = terms[0]
        for term in terms[1:]:
            total = self._into(self._evaluator.add, total, term)
        return total

    @staticmethod
    def _into(do: Callable[..., None], *arguments: object) -> object:
        result = seal.Ciphertext()
        do(*arguments, result)
        return result
