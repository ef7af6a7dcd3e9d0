"""Steps of dealt runs: only the units of the open deal enter the sum, and only a whole deal is released.

Which deal an operation worked on is written with its result, under `deal/<seq>`: a replay asks there, since
the deal that is open by then may be another one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, cast

import torch

from tensafe.contracts.errors import Conflict, IntegrityError, InvalidRequest
from tensafe.contracts.training import ForwardBackward, PrivateConfig, StepParams
from tensafe.metrics.port import Metric, Metrics, domain_label
from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.privacy import amplified
from tensafe.privacy.arrival import Arrival, received, refuse_incomplete
from tensafe.privacy.deals import Deals, dealt_ref
from tensafe.privacy.dealt_ledger import NO_DEAL, Issued, charged_so_far
from tensafe.privacy.dealt_records import DealtRecord
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.release import noisy_mean
from tensafe.storage.ports import Items, Key, Put, Write
from tensafe_gpu.trainer.dealt_loss import fixing_loss
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.hot_run import HotRun, PrivateRun
from tensafe_gpu.trainer.state import RunState

WITHHELD: Final = "dp_outputs_withheld:max"
"""Metric of value 1: what is not private of this operation is not returned."""
_KEPT_DEALS: Final = 64


class DealtSteps:
    """What the trainer does for dealt runs in place of `PrivateSteps`."""

    def __init__(self, items: Items, engine: Engine, deals: Deals, metrics: Metrics) -> None:
        self._items = items
        self._metrics = metrics
        self._engine = engine
        self._deals = deals
        self._ledger = deals.ledger
        self._expected: OrderedDict[tuple[str, int], Arrival] = OrderedDict()

    def open(self, stream: StreamRecord, config: PrivateConfig, secret: bytes) -> PrivateRun:
        """Charge the run whole; again, it finds it. Raises as `DealtLedger.open_run`."""
        ref = dealt_ref(stream)
        record = self._ledger.open_run(
            ref, config, noise_key_id=noise_key_id(secret), deal_seed=self._deals.seed(stream)
        )
        self._tell_budget(ref)
        return PrivateRun(ref, record.mechanism, secret)

    def restored(self, stream: StreamRecord, secret: bytes) -> PrivateRun:
        """What a restored run needs; its units and deal come from the snapshot."""
        ref = dealt_ref(stream)
        return PrivateRun(ref, self._ledger.get(ref).mechanism, secret)

    @contextmanager
    def admitted(self, run: HotRun, seq: int, request: ForwardBackward) -> Iterator[Sequence[Write]]:
        """Around the computation of one forward_backward: the writes that go with its result.

        Raises InvalidRequest or Conflict, with the run unchanged, unless the data are units of the open deal
        as registered. What was accumulated of a deal that was given up is dropped first. If the
        computation fails, the run is as before.
        """
        state, private = _state(run), _private(run)
        applied = self._applied(run.stream, seq)
        writes: list[Write] = []
        if applied is None:
            issued = self._open_deal(run)
            writes += fixing_loss(self._items, run.stream, request)
            arrival = self._arrival(run, issued)
            arrival = received(arrival, self._deals.content_key(run.stream), request.data)
            step, arrived = arrival.step, set(arrival.arrived)
            writes.append(_note(run.stream, seq, step))
        else:
            step = applied
            before = private.units if private.deal == step else set()
            arrived = before | {datum.unit_id for datum in request.data if datum.unit_id is not None}
        kept = (state.grad_sum, state.pending_data)
        if private.deal != step:
            _drop_sum(state)
        try:
            yield writes
        except BaseException:
            state.grad_sum, state.pending_data = kept
            raise
        private.units, private.deal = arrived, step

    def step(self, run: HotRun, seq: int, params: StepParams) -> tuple[dict[str, float], list[Write]]:
        """Take the step of the open deal, or again the one that this operation took."""
        state, private = _state(run), _private(run)
        applied = self._applied(run.stream, seq)
        writes: list[Write] = []
        if applied is None:
            issued = self._open_deal(run)
            refuse_incomplete(self._arrival(run, issued))
            charge, step = issued.charge, issued.charge.index
            writes = [*self._ledger.completion(private.ref, step), _note(run.stream, seq, step)]
        else:
            charge, step = self._ledger.charge(private.ref, applied), applied
        if private.deal != step:  # an empty deal: what is there belongs to one that was given up
            _drop_sum(state)
            private.units = set()
        if bool(state.pending_data) != bool(private.units):
            raise IntegrityError("the accumulated sum and its units do not belong together")
        release = partial(noisy_mean, charge, private.noise_secret, threads=torch.get_num_threads())
        metrics = self._engine.optim_step(state, params, release=release)
        private.units, private.deal = set(), None
        self._tell_budget(private.ref)
        if applied is not None:
            return metrics, writes
        record = self._ledger.get(private.ref)
        return metrics | _charged(record, self._ledger.epsilon(private.ref), step), writes

    def metrics(self, run: HotRun) -> dict[str, float]:
        """What is charged, under names that the SDK's chunk merging accepts."""
        private = _private(run)
        return {"dp_epsilon:max": self._ledger.epsilon(private.ref), "dp_delta:max": private.mechanism.delta}

    def _tell_budget(self, ref: RunRef) -> None:
        """All of the run is charged when it is opened; other runs of the domain may have spent since."""
        label = domain_label(ref.tenant, ref.domain)
        self._metrics.set(Metric.BUDGET_USED, self._ledger.budget_used(ref), domain=label)

    def _open_deal(self, run: HotRun) -> Issued:
        private = _private(run)
        issued = self._ledger.open_deal(private.ref)
        if issued is None:
            deals = self._ledger.get(private.ref).deals
            raise Conflict(
                f"no deal of this run is open: ask for that of step {deals.dealt} (POST /v1/training_clients/"
                f"{run.stream.stream_id}/deals) and send exactly its units; {charged_so_far(deals)}",
                code=NO_DEAL,
            )
        return issued

    def _arrival(self, run: HotRun, issued: Issued) -> Arrival:
        """The open deal and what of it is in the run's sum."""
        private, step = _private(run), issued.charge.index
        key = (run.stream.stream_id, step)
        expected = self._expected.get(key)
        if expected is None:
            expected = self._expected[key] = self._deals.arrival(run.stream, issued.record, step)
            while len(self._expected) > _KEPT_DEALS:
                self._expected.popitem(last=False)
        arrived = frozenset(private.units) if private.deal == step else frozenset[int]()
        return Arrival(step, expected.expected, expected.one_datum_each, arrived)

    def _applied(self, stream: StreamRecord, seq: int) -> int | None:
        """The deal that a completed operation worked on; None for one that has not completed."""
        item = self._items.get(_note_key(stream, seq))
        return None if item is None else int(cast(int, item.body["step"]))


def _note_key(stream: StreamRecord, seq: int) -> Key:
    return layout.dealt_operation(stream.stream_id, seq)


def _note(stream: StreamRecord, seq: int, step: int) -> Put:
    return Put(_note_key(stream, seq), {"step": step}, 0)


def _drop_sum(state: RunState) -> None:
    state.grad_sum, state.pending_data = torch.zeros_like(state.grad_sum), 0


def _charged(record: DealtRecord, epsilon: float, step: int) -> dict[str, float]:
    mechanism, deals = record.mechanism, record.deals
    so_far = amplified.epsilon(mechanism.gaussian, deals.dealt, mechanism.delta)
    return {
        "dp/epsilon": epsilon,
        "dp/run_epsilon": record.epsilon,
        "dp/run_epsilon_so_far": so_far,
        "dp/delta": mechanism.delta,
        "dp/deal": float(step),
        "dp/deals_charged": float(deals.max_steps),
        "dp/deals_abandoned": float(deals.abandoned),
        "dp/noise_multiplier": mechanism.noise_multiplier,
    }


def _state(run: HotRun) -> RunState:
    if run.state is None:
        raise InvalidRequest("this run was never created; its first operation failed")
    return run.state


def _private(run: HotRun) -> PrivateRun:
    if run.private is None:
        raise IntegrityError("the run is not private")
    return run.private
