"""The private adapters that a worker has open, by their name inside vLLM.

An adapter is opened in a thread, so that a holder that does not answer costs nobody else a step. Its first
failure ends it for good: whoever wants it again opens it under a new name, with an empty prefix cache.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tensafe_gpu.helora.exchange import gather
from tensafe_gpu.helora.ports import (
    GARBAGE,
    HOLDER_ABSENT,
    NOT_PREPARED,
    PARAMETERS_REFUSED,
    VERSION_MISMATCH,
    AdapterInfo,
    Asked,
    Float32Array,
    HeUnavailable,
    KeyHolder,
    SiteId,
)
from tensafe_gpu.sampler.private.budget import PASS_S, Budget
from tensafe_gpu.sampler.private.placing import DoesNotFit, Placed, Slice, Target, place
from tensafe_gpu.sampler.private.preparing import BLOCK_S, Preparer

_LOG: Final = logging.getLogger(__name__)

_DIRECT_MS: Final = 10
"""What the direct mode takes for a token; a block takes about a millisecond per input of its site."""
_DIRECT_TOKENS: Final = 16
"""The most that are evaluated so at once."""
_REASON_CHARACTERS: Final = 300
"""Of what may be the other side's text."""
_WORK: Final = 2.0
"""So many times what either should take is allowed to it, beside the budget of its pass."""

Connect = Callable[[Mapping[str, str]], KeyHolder]
"""Reach the adapter holder that a `PrivateAdapter.holder` describes; raises HeUnavailable."""


class OtherDigest(Exception):
    """The adapter holder offers other weights under this name and version than were published."""

    code = "digest_mismatch"


def code_of(error: BaseException) -> str:
    """The public code of a failure; whatever a key holder raised that it should not is garbage."""
    return "he_" + (error.code if isinstance(error, HeUnavailable | DoesNotFit | OtherDigest) else GARBAGE)


NOTHING_MISSING: Final[dict[str, Any]] = {
    "missing": 0, "blocks": 0, "block_s": 0.0, "failures": 0, "code": None
}  # fmt: skip


class Products(NamedTuple):
    """float32 [n, rank_rows]; `overflowed` bool [n] are rows that left float32: NaN here, all others finite.

    The integers are exact, so only a token's own activations do that. NaN goes on into whatever is cached of
    the token: a request that reads it is found by its own activations.
    """

    rows: npt.NDArray[np.float32]
    overflowed: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """What a layer asks of an adapter; `asked` is None where nothing was prepared.

    Then `in_block` says that a block was wanted for it; else it goes the direct way.
    """

    x: npt.NDArray[np.float32]
    asked: Asked | None = None
    in_block: bool = False


class OpenAdapter:
    """One adapter: opening until it is ready or has failed, and failed for good after its first failure."""

    def __init__(self, name: str, *, failure: str | None = None) -> None:
        self.name = name
        self.placed: Mapping[str, Placed] = {}
        """By layer."""
        self.b: Mapping[str, torch.Tensor] = {}
        """B' by module, transposed: float32 [rank, d_out]."""
        self.failure = failure
        self._info: AdapterInfo | None = None
        self._holder: KeyHolder | None = None
        self._preparer: Preparer | None = None
        self._opening: Preparer | None = None
        self._closed = self._connecting = False
        self._lock = threading.Lock()

    @property
    def usable(self) -> bool:
        return self._holder is not None and self.failure is None

    def fail(self, error: BaseException, *, connecting: bool = False) -> str:
        """Note the first failure; the connection is ended by `close`, since that may wait.

        Of one while connecting the log has the reason.
        """
        if self.failure is None:
            self.failure = code_of(error)
            # No traceback and mostly no message: they could quote activations, which then are not there yet.
            facts = {"code": self.failure, "error": type(error).__name__}
            if connecting and isinstance(error, HeUnavailable):
                facts["reason"] = str(error)[:_REASON_CHARACTERS]
            _LOG.error("private adapter failed", extra=facts)
        return self.failure

    def ready(self, holder: KeyHolder, placed: Mapping[str, Placed], b: Mapping[str, torch.Tensor]) -> None:
        """Opened; if it was closed meanwhile, so is the holder."""
        preparer = Preparer(holder)
        with self._lock:
            self._opening = preparer
            if self._closed:
                preparer.stop()
        preparer.fill()
        with self._lock:
            if not self._closed:
                self.placed, self.b, self._info = placed, b, holder.info()
                self._preparer, self._holder = preparer, holder  # last: this makes it usable
                preparer.start()
                return
        holder.close()

    def ask(self, placed: Placed, x: npt.NDArray[np.float32], budget: Budget) -> Pending:
        """Send float32 [n, d_in] on its way. Raises HeUnavailable, or whatever a broken holder raises."""
        holder, preparer = self._holder, self._preparer
        if holder is None or preparer is None:
            raise HeUnavailable(HOLDER_ABSENT, "not open")
        try:
            return Pending(x, holder.ask([(placed.site, x)], limit_s=budget.left_s))
        except HeUnavailable as error:
            if error.code != NOT_PREPARED:
                raise
        # Few tokens go the direct way, which is there sooner than a block: the numbers are the same.
        if len(x) > min(_DIRECT_TOKENS, x.shape[1] // _DIRECT_MS):
            preparer.want(placed.site)
            return Pending(x, in_block=True)
        return Pending(x)

    def answered(self, placed: Placed, pending: Pending, budget: Budget) -> Products:
        """Products of the n rows that were asked and gathered; without preprocessing it waits for them.

        What was waited is taken from the budget. Raises HeUnavailable, or whatever a broken holder raises.
        """
        holder, preparer, x = self._holder, self._preparer, pending.x
        if holder is None or preparer is None:
            raise HeUnavailable(HOLDER_ABSENT, "not open")
        if pending.asked is not None:
            answers = pending.asked.answers()
            budget.charge(pending.asked.took_s)
        else:
            answers = _unprepared(holder, preparer, placed.site, pending, budget)
        preparer.used(placed.site, len(x))
        (answer,) = answers
        if answer.shape != (len(x), placed.rank_rows) or answer.dtype != np.float32:
            raise HeUnavailable(GARBAGE, "products of another shape or type")
        finite = np.isfinite(answer)
        if finite.all():
            return Products(answer)
        if np.isnan(answer).any():
            raise HeUnavailable(GARBAGE, "products that are no numbers")
        overflowed = np.logical_not(finite.all(axis=1))
        return Products(np.where(overflowed[:, None], np.float32(np.nan), answer), overflowed)

    def missing(self, tokens: int) -> dict[str, Any]:
        """What a prompt of so many tokens lacks of preprocessing, blocks made so far, the seconds of one, how
        many were not made and why the last one was not.
        """
        preparer, info = self._preparer, self._info
        if preparer is None or info is None or self.failure is not None:
            return NOTHING_MISSING
        widest = max(shape.d_in for shape in info.sites)
        failures, code = preparer.failed()
        return {
            "missing": preparer.missing(tokens),
            "blocks": preparer.made,
            "block_s": _WORK * widest / 1000,
            "failures": failures,
            "code": None if code is None else f"he_{code}",
        }

    def standing(self) -> dict[str, Any]:
        """Whether its connection stands, and its failure; what has gone is made anew in a thread."""
        holder = self._holder
        if holder is None or self.failure is not None or holder.connected():
            return {"connected": self.failure is None, "code": self.failure}
        with self._lock:
            begin = not (self._connecting or self._closed)
            self._connecting |= begin
        if begin:
            work = threading.Thread(target=self._connect_again, args=(holder,), daemon=True)
            work.name = "connect private adapter"
            work.start()
        return {"connected": False, "code": None}

    def _connect_again(self, holder: KeyHolder) -> None:
        try:
            holder.connect_again()
        except Exception as error:  # noqa: BLE001 - it is told to whoever waits for the adapter
            self.fail(error, connecting=True)
        finally:
            with self._lock:
                self._connecting = False

    def close(self) -> None:
        """End the connection; waits for what is on its way."""
        with self._lock:
            self._closed = True
            holder, preparer = self._holder, self._preparer
            if self._opening is not None and preparer is None:
                self._opening.stop()  # `ready` closes the holder after the block at hand
        if holder is None or preparer is None:
            return
        preparer.stop()
        try:
            holder.close()
        except Exception as error:  # noqa: BLE001 - nothing depends on it any more
            _LOG.warning("private adapter not closed cleanly", extra={"error": type(error).__name__})

    def facts(self) -> dict[str, Any]:
        """For the sampler: what is open, or why nothing is."""
        info = self._info
        if self.failure is not None:
            return {"state": "failed", "code": self.failure}
        if self._holder is None or info is None:
            return {"state": "opening", "blocks": 0 if self._opening is None else self._opening.made}
        return {
            "state": "ready",
            "digest": info.digest,
            "epoch": info.epoch,
            "parameters": info.parameters,
            "sites": len(info.sites),
        }


class OpenAdapters:
    """Opens and closes in threads; `get` is called in the forward pass and takes no lock."""

    def __init__(
        self, connect: Connect, modules: Mapping[str, Slice], device: torch.device, pass_s: float = PASS_S
    ) -> None:
        self._connect = connect
        self._modules = modules
        self._device = device
        self.pass_s = pass_s
        """What each may take of a forward pass; see `Budget`."""
        self._open: dict[str, OpenAdapter] = {}

    def get(self, name: str) -> OpenAdapter | None:
        return self._open.get(name)

    def open(self, name: str, wanted: Mapping[str, str | None], holder: Mapping[str, str]) -> None:
        """Begin to open; `wanted` is name, version, digest and base model as the adapter must have them.

        None: any.
        """
        adapter = OpenAdapter(name)
        self._open[name] = adapter
        work = (adapter, dict(wanted), dict(holder))
        threading.Thread(target=self._bring, args=work, name="open private adapter", daemon=True).start()

    def close(self, name: str) -> None:
        """Forget the adapter and end its connection; absent is fine."""
        adapter = self._open.pop(name, None)
        if adapter is not None:
            threading.Thread(target=adapter.close, name="close private adapter", daemon=True).start()

    def failures(self) -> dict[str, str]:
        """Name -> code of all that have failed and are not closed yet."""
        return {name: one.failure for name, one in list(self._open.items()) if one.failure is not None}

    def _bring(self, adapter: OpenAdapter, wanted: dict[str, str | None], holder: dict[str, str]) -> None:
        try:
            key_holder = self._connect(holder)
            try:
                self._admit(adapter, key_holder, wanted)
            except BaseException:
                key_holder.close()
                raise
        except Exception as error:  # noqa: BLE001 - it is told to whoever waits for the adapter
            adapter.fail(error, connecting=True)

    def _admit(self, adapter: OpenAdapter, holder: KeyHolder, wanted: dict[str, str | None]) -> None:
        info = holder.info()
        found = {"name": info.name, "version": str(info.version)}
        if any(wanted.get(key) not in (None, value) for key, value in found.items()):
            raise HeUnavailable(VERSION_MISMATCH, "the adapter holder has another version")
        if wanted.get("digest") not in (None, info.digest):
            raise OtherDigest
        if wanted.get("base_model") not in (None, info.base_model):
            raise DoesNotFit("the adapter was trained on another base model")
        placed = place(info, self._modules)
        matrices = holder.b_matrices()
        b = {
            target.module: _matrix(matrices[site.site][target.module], target).to(self._device)
            for site in placed.values()
            for target in site.targets
        }
        adapter.ready(holder, placed, b)


def _unprepared(
    holder: KeyHolder, preparer: Preparer, site: SiteId, pending: Pending, budget: Budget
) -> Sequence[Float32Array]:
    """The preparer did not keep up. Raises HeUnavailable."""
    x = pending.x
    if not pending.in_block:
        began, work_s = time.monotonic(), _WORK * _DIRECT_MS * len(x) / 1000
        try:
            answers = holder.direct_products([(site, x)], limit_s=budget.left_s + work_s)
        except HeUnavailable as error:
            if error.code != PARAMETERS_REFUSED:  # a site too large for it
                raise
            preparer.want(site)
        else:
            budget.charge(time.monotonic() - began, work_s)
            return answers
    began, work_s = time.monotonic(), _WORK * x.shape[1] / 1000
    preparer.wait(site, len(x), min(BLOCK_S, budget.left_s + work_s))
    budget.charge(time.monotonic() - began, work_s)
    asked = holder.ask([(site, x)], limit_s=budget.left_s)
    gather([asked])
    answers = asked.answers()
    budget.charge(asked.took_s)
    return answers


def _matrix(b: npt.NDArray[np.float32], target: Target) -> torch.Tensor:
    width = (target.stop - target.start, target.rows.stop - target.rows.start)
    if b.shape != width or b.dtype != np.float32 or not np.isfinite(b).all():
        raise HeUnavailable(GARBAGE, "a matrix of another shape or type")
    return torch.from_numpy(np.array(b)).T
