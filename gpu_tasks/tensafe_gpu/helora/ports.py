"""What the process that runs the base model needs of a private adapter: the key holder's port.

Imports numpy alone. The key holder sees activations and holds secret keys; the adapter holder, at the other
end, holds A and never sees either. `products` is exact in the integers: for a token's activations x and a
site,

    x_q = rint(x / s),  s = max|x| / x_bound          (float64, per token, s = 0 for x = 0)
    products = float32( float64(A_q x_q) * s )         (A_q: the adapter holder's integers, [R, d_in];
                                                        beyond float32 it is infinite)

and the LoRA delta of module m of that site is `products[:, rows of m] @ b_matrices[site][m].T`, in which the
adapter's scaling (alpha / r), the scales of A_q's rows and the epoch's basis are folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
SiteId = str
"""One distinct layer input, as `model.layers.3.self_attn.qkv`: modules that read the same input share it."""

HOLDER_ABSENT: Final = "adapter_holder_absent"
BUDGET_SPENT: Final = "budget_spent"
TOO_MANY_BLOCKS: Final = "too_many_blocks"
PARAMETERS_REFUSED: Final = "parameters_refused"
VERSION_MISMATCH: Final = "version_mismatch"
TIMEOUT: Final = "timeout"
GARBAGE: Final = "garbage"
NOT_ALLOWED: Final = "not_allowed"
CERTIFICATE_REFUSED: Final = "certificate_refused"
MISCONFIGURED: Final = "misconfigured"
NOT_PREPARED: Final = "not_prepared"
NOT_FINITE: Final = "activations_not_finite"
STATE_FAILED: Final = "state_failed"
CODES: Final = (
    HOLDER_ABSENT,
    BUDGET_SPENT,
    TOO_MANY_BLOCKS,
    PARAMETERS_REFUSED,
    VERSION_MISMATCH,
    TIMEOUT,
    GARBAGE,
    NOT_ALLOWED,
    CERTIFICATE_REFUSED,
    MISCONFIGURED,
    NOT_PREPARED,
    NOT_FINITE,
    STATE_FAILED,
)
"""Every reason for which HE cannot run.

`not_allowed`: the adapter is unknown or not offered to this tenant, which look alike. `certificate_refused`:
one of the two sides does not accept the other's. `misconfigured`: what the key holder was given to reach the
adapter holder with cannot be used. `not_prepared`: more
tokens were asked for than are prepared; prepare and ask again. `state_failed`: the log of used indices
could not be written, or says that a copy of this process used them. `too_many_blocks`: prepared and not
used, more than the adapter holder keeps open for one tenant.
"""


WIRE_CODES: Final = tuple(
    code for code in CODES if code not in {MISCONFIGURED, NOT_PREPARED, NOT_FINITE, STATE_FAILED}
)
"""What an adapter holder may refuse with. The others are the key holder's own: of what is on its side, and
of one request's activations, for which no adapter holder's word is taken.
"""


class HeUnavailable(Exception):
    """The encrypted evaluation did not happen; nothing was released. `code` is one of CODES."""

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, code  # noqa: S101 - a code is part of the contract
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """One LoRA pair of a site: A is [rank, d_in], B is [d_out, rank]; `name` as
    `model.layers.3.self_attn.q_proj`.
    """

    name: str
    rank: int
    d_out: int


@dataclass(frozen=True, slots=True)
class SiteShape:
    """A layer input and the modules that read it, in the order in which their rows are stacked.

    `x_bound` is the largest |x_q|: with it no sum of this site leaves (-t/2, t/2).
    """

    site: SiteId
    d_in: int
    modules: tuple[ModuleShape, ...]
    x_bound: int
    rank_rows: int = field(init=False, repr=False, compare=False)
    """R, the rows of all its A together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_rows", sum(module.rank for module in self.modules))

    def rows(self, module: str) -> slice:
        """The rows of one module in this site's products. Raises KeyError."""
        begin = 0
        for shape in self.modules:
            if shape.name == module:
                return slice(begin, begin + shape.rank)
            begin += shape.rank
        raise KeyError(module)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A version of a private adapter in one epoch. `digest`: SHA-256 (hex) of its integers, scales and B'."""

    name: str
    version: int
    digest: str
    epoch: int
    base_model: str
    sites: tuple[SiteShape, ...]
    parameters: str
    tokens_per_site: int
    """The publisher's budget for this epoch."""

    def site(self, name: SiteId) -> SiteShape:
        """Raises KeyError."""
        for shape in self.sites:
            if shape.site == name:
                return shape
        raise KeyError(name)


class Asked(Protocol):
    """Products on their way, so that those of several adapters are waited for at once (`exchange.gather`)."""

    def meanwhile(self) -> bool:
        """Called when the wait begins: do what is worth the time until the answer is there.

        Whether it is there by now.
        """
        ...

    def advance(self) -> bool:
        """Send and receive what can be without waiting; whether it has ended, well or not."""
        ...

    def waits_for(self) -> tuple[int, int, float]:
        """File descriptor (-1: closed), events of poll(2), and when it is given up (`time.monotonic`)."""
        ...

    @property
    def poll_s(self) -> float:
        """How long it is worth being looked for before its thread sleeps."""
        ...

    @property
    def took_s(self) -> float:
        """Seconds that were waited for the end of the answer, once that is there."""
        ...

    def answers(self) -> Sequence[Float32Array]:
        """The products, once it has ended; to be called once, whatever happened. Raises HeUnavailable."""
        ...


class KeyHolder(Protocol):
    """A private adapter as the process that runs the base model uses it. Thread-safe."""

    def info(self) -> AdapterInfo:
        """What was agreed with the adapter holder; does not touch the network."""
        ...

    def b_matrices(self) -> Mapping[SiteId, Mapping[str, Float32Array]]:
        """B' of every module: float32 [d_out, rank], by site and module name.

        Asked for when it is first wanted, and as large as `info` says: look at that before. Raises
        HeUnavailable.
        """
        ...

    def products(self, sites: Sequence[tuple[SiteId, Float32Array]]) -> Sequence[Float32Array]:
        """float32 [tokens, d_in] -> float32 [tokens, R] for each, in one round trip. Raises HeUnavailable."""
        ...

    def ask(self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf) -> Asked:
        """As `products`, without waiting for the answer; until it is taken nobody else is answered.

        It is given up when it was waited for `limit_s`, however it comes along. Raises HeUnavailable;
        ValueError for more than 4096 tokens in all.
        """
        ...

    def direct_products(
        self, sites: Sequence[tuple[SiteId, Float32Array]], *, limit_s: float = inf
    ) -> Sequence[Float32Array]:
        """As `products`, the same numbers, with nothing prepared: about 10 ms a token.

        The answer is given up after `limit_s`. Raises HeUnavailable.
        """
        ...

    def connected(self) -> bool:
        """Whether the connection that products take stands, by what is known here; does not wait."""
        ...

    def connect_again(self) -> None:
        """Make that connection anew if it has gone; for a background thread. Raises HeUnavailable."""
        ...

    def prepared(self) -> Mapping[SiteId, int]:
        """Tokens of preprocessing left per site."""
        ...

    def prepare(self, site: SiteId) -> None:
        """Prepare another block of tokens for a site; for a background thread: it takes about d_in ms.

        Raises HeUnavailable.
        """
        ...

    def close(self) -> None:
        """Let go of the connection, and forget keys and masks."""
        ...
