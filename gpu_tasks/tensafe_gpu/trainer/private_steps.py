"""DP steps of a run: admit units, charge, draw the step's one noise vector, apply.

Order in `step`: reserve in the ledger (durable, idempotent on the operation's seq) -> regenerate the
noise from (run secret, seq) -> apply -> the caller commits result and ledger row in one transaction.
A crash anywhere repeats the same step with the same noise, and the charge is never returned.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch
from pydantic import TypeAdapter, ValidationError

from tensafe.contracts.errors import IntegrityError
from tensafe.contracts.training import ForwardBackward, OptimizerConfig, PrivateConfig, StepParams
from tensafe.metrics.port import Metric, domain_label
from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.privacy.deals import Deals
from tensafe.privacy.dealt_mechanism import DealtMechanism
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism, resolve
from tensafe.privacy.noise import NOISE_SECRET_BYTES, noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.release import noisy_mean
from tensafe.privacy.statements import Charge
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Put, Write
from tensafe_gpu.trainer.dealt_steps import DealtSteps
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.hot_run import HotRun, PrivateRun

log = logging.getLogger(__name__)

_PART: Final = "noise"
_OPTIMIZER: Final[TypeAdapter[OptimizerConfig]] = TypeAdapter(OptimizerConfig)


class PrivateSteps:
    """The privacy room as the trainer uses it."""

    def __init__(self, services: Services, engine: Engine, ledger: Ledger, deals: Deals) -> None:
        self._services = services
        self._engine = engine
        self._ledger = ledger
        self._dealt = DealtSteps(services.ports.items, engine, deals, services.metrics)

    def open(self, run: HotRun, config: PrivateConfig) -> Sequence[Write]:
        """Freeze the mechanism and register the run in its domain. Idempotent."""
        secret = self._noise_secret(run.stream)
        if config.mode == "dealt":
            run.private = self._dealt.open(run.stream, config, secret)
            return ()
        mechanism = resolve(config)
        ref = self._ledger.open_run(
            run.stream.tenant,
            run.stream.stream_id,
            mechanism,
            noise_key_id=noise_key_id(secret),
            fixed_in_advance=config.fixed_in_advance,
        )
        run.private = PrivateRun(ref, mechanism, secret)
        return ()

    def restore(self, run: HotRun) -> None:
        """Attach what a restored DP run needs; a run without a mechanism in its spec is left alone.

        Raises IntegrityError for an optimizer that this release does not know: it may be a private one.
        """
        config = _optimizer(run.stream)
        if not isinstance(config, PrivateConfig):
            return
        if config.mode == "dealt":
            run.private = self._dealt.restored(run.stream, self._noise_secret(run.stream))
            return
        ref = RunRef(run.stream.tenant, config.domain, run.stream.stream_id)
        run.private = PrivateRun(ref, self._ledger.mechanism(ref), self._noise_secret(run.stream))

    @contextmanager
    def admitted(
        self, run: HotRun, seq: int, request: ForwardBackward, *, replayed: bool
    ) -> Iterator[Sequence[Write]]:
        """Around a forward_backward: the writes that go with its result.

        Refuses data whose units cannot take part, before anything is computed. A replay was admitted when it
        first ran; the ledger may hold the charge of its step by now.
        """
        private = _private(run)
        if isinstance(private.mechanism, DealtMechanism):
            with self._dealt.admitted(run, seq, request) as writes:
                yield writes
            return
        unit_ids = [datum.unit_id for datum in request.data]
        if not replayed:
            self._ledger.check_units(private.ref, unit_ids, accumulated=private.units)
        yield ()
        private.units |= {unit_id for unit_id in unit_ids if unit_id is not None}

    def step(self, run: HotRun, seq: int, params: StepParams) -> tuple[dict[str, float], list[Write]]:
        """Charge, add the noise, step. Returns the metrics and the writes that commit the charge."""
        private, state = _private(run), run.state
        mechanism = private.mechanism
        if isinstance(mechanism, DealtMechanism):
            return self._dealt.step(run, seq, params)
        if state is None:
            raise IntegrityError("the run has no state")
        if bool(state.pending_data) != bool(private.units):
            raise IntegrityError("the accumulated sum and its units do not belong together")
        charge = self._ledger.reserve(private.ref, seq, private.units, extra_writes=[run.lease.check])
        used = self._ledger.budget_used(charge, mechanism.max_epsilon)
        if used is not None:
            label = domain_label(private.ref.tenant, private.ref.domain)
            self._services.metrics.set(Metric.BUDGET_USED, used, domain=label)
        release = partial(noisy_mean, charge, private.noise_secret, threads=torch.get_num_threads())
        metrics = self._engine.optim_step(state, params, release=release)
        private.units = set()
        metrics |= _charged(charge, mechanism)
        return metrics, self._ledger.commit_writes(private.ref, seq)

    def metrics(self, run: HotRun) -> dict[str, float]:
        """Epsilon spent so far, under names that the SDK's chunk merging accepts."""
        private = _private(run)
        if isinstance(private.mechanism, DealtMechanism):
            return self._dealt.metrics(run)
        return {"dp_epsilon:max": self._ledger.spent(private.ref), "dp_delta:max": private.mechanism.delta}

    def _noise_secret(self, stream: StreamRecord) -> bytes:
        """The run's secret from which all its noise is regenerated: 32 bytes, made once, sealed."""
        key = layout.stream_item(stream.stream_id, "noise")
        items, vault = self._services.ports.items, self._services.vault
        item = items.get(key)
        if item is None:
            sealed = vault.seal(stream.scope, _PART, os.urandom(NOISE_SECRET_BYTES))
            try:
                items.write([Put(key, {}, 0, sealed=sealed)])
            except ConditionFailed:
                log.info("another process made the noise secret", extra={"stream": stream.stream_id})
            item = items.get(key)
        if item is None:
            raise IntegrityError("the run's noise secret is missing")
        return vault.open(stream.scope, _PART, item.sealed)


def _charged(charge: Charge, mechanism: Mechanism) -> dict[str, float]:
    return {
        "dp/epsilon": charge.epsilon,
        "dp/run_epsilon": charge.run_epsilon,
        "dp/delta": charge.delta,
        "dp/participations": float(charge.participations),
        "dp/noise_multiplier": mechanism.noise_multiplier,
        **({} if charge.attested_epsilon is None else {"dp/attested_epsilon": charge.attested_epsilon}),
    }


def _optimizer(stream: StreamRecord) -> OptimizerConfig | None:
    stored = stream.spec.get("optimizer")
    if stored is None:
        return None
    try:
        return _OPTIMIZER.validate_python(stored)
    except ValidationError as error:
        raise IntegrityError("the run's optimizer is one that this release cannot read") from error


def _private(run: HotRun) -> PrivateRun:
    if run.private is None:
        raise IntegrityError("the run is not private")
    return run.private
