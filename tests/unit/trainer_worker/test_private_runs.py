"""What a private run may begin from, hold and release."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import NotFound
from tensafe.metrics.counters import Counters
from tensafe.metrics.port import Metric, domain_label
from tensafe.operations.records import OpKind, OpState
from tensafe.packages.bundle import unpack_files
from tensafe.privacy import units
from tensafe.privacy.artifact_statement import JSON_FILE, TEXT_FILE
from tensafe_gpu.trainer import execute
from tensafe_gpu.trainer.__main__ import build_worker
from tests.support.training_log import Step, forward_backward, load, optim_step, private, save
from tests.unit.operations.world import BASE, TENANT
from tests.unit.trainer_worker.rig import RUN, Rig

PLAIN = "s-1:train:5"


def failure_of(rig: Rig, seq: int, run_id: str = RUN) -> str:
    failure = rig.op(seq, run_id).failure
    assert failure is not None
    assert failure.category == "user"
    return failure.message


@pytest.mark.parametrize(
    ("own", "of_domain", "limit"),
    [(20.0, None, 20.0), (None, 30.0, 30.0), (40.0, 30.0, 30.0), (20.0, 30.0, 20.0), (None, None, None)],
)
def test_what_is_used_of_a_budget_is_told_over_the_smaller_limit(
    rig: Rig, own: float | None, of_domain: float | None, limit: float | None
) -> None:
    counted = Counters()
    rig.services = replace(rig.services, metrics=counted)
    rig.worker = build_worker(rig.services, BASE, rig.base, "trainer-counted", rig.settings)
    optimizer = private(max_epsilon=own, noise_multiplier=2.0)
    if of_domain is not None:
        domains = rig.world.services.domains
        terms = DomainTerms(unit="record", delta=1e-5, max_epsilon=of_domain)
        domains.create(TENANT, "letters", terms)
        domains.add_units(TENANT, "letters", 0, (1).to_bytes(8, "big") + bytes(32))
        domains.finish(TENANT, "letters")
    rig.begin(optimizer=optimizer)
    rig.do(1, forward_backward(units=(1,)))
    assert rig.do(2, optim_step()).state is OpState.COMPLETED
    epsilon = rig.result(2)["metrics"]["dp/epsilon"]
    told = [(one.labels, one.value) for one in counted.series() if one.metric is Metric.BUDGET_USED]
    used = [] if limit is None else [((("domain", domain_label(TENANT, "letters")),), epsilon / limit)]
    assert told == used


def plain_checkpoints(rig: Rig) -> None:
    """Of a run without privacy: `half` holds a gradient that was never clipped, `whole` a finished step."""
    rig.begin(PLAIN)
    rig.do(1, forward_backward(), PLAIN)
    rig.do(2, save("half"), PLAIN)
    rig.do(3, optim_step(), PLAIN)
    rig.do(4, save("whole"), PLAIN)
    rig.do(5, save("sampled", OpKind.SAVE_SAMPLER), PLAIN)


@pytest.mark.parametrize("name", ["half", "whole"])
def test_the_optimizer_state_of_a_run_without_privacy_is_refused(rig: Rig, name: str) -> None:
    """An unclipped gradient would have been released at epsilon 0."""
    plain_checkpoints(rig)
    optimizer = private(allow_nonprivate_weights=True)
    rig.begin(optimizer=optimizer)
    rig.do(1, load(PLAIN, name, optimizer=optimizer))
    assert "optimizer adamw" in failure_of(rig, 1)
    rig.do(2, forward_backward(units=(1, 2, 3)))
    done = rig.do(3, optim_step())
    assert done.state is OpState.COMPLETED
    assert rig.result(3)["metrics"]["dp/participations"] == 1


@pytest.mark.parametrize(("name", "kind"), [("whole", "weights"), ("sampled", "sampler_weights")])
def test_weights_without_privacy_are_refused_unless_declared_harmless(
    new_rig: Callable[..., Rig], name: str, kind: str
) -> None:
    rig = new_rig()
    plain_checkpoints(rig)
    rig.begin(step=load(PLAIN, name, kind=kind, with_optimizer=False, optimizer=private()))
    rig.drain()
    assert "allow_nonprivate_weights=true" in failure_of(rig, 0)
    declared = private(allow_nonprivate_weights=True)
    other = "s-1:train:9"
    rig.begin(
        other, load(PLAIN, name, kind=kind, with_optimizer=False, optimizer=declared), optimizer=declared
    )
    rig.drain()
    assert rig.op(0, other).state is OpState.COMPLETED


def test_a_private_checkpoint_is_loaded_with_its_optimizer(rig: Rig) -> None:
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(units=(1, 2)))
    rig.do(2, optim_step())
    rig.do(3, save("kept"))
    assert rig.do(4, load(RUN, "kept", optimizer=private())).state is OpState.COMPLETED
    assert rig.do(5, optim_step()).state is OpState.COMPLETED


def test_a_sum_without_units_is_never_released(rig: Rig) -> None:
    """However it came about: the step fails for good and nothing is charged or applied."""
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(units=(1, 2)))
    (run,) = rig.worker._hot.all()
    assert run.private is not None
    assert run.state is not None
    before = run.state.params.clone()
    run.private.units.clear()
    rig.submit(2, optim_step())
    rig.worker.step()
    assert rig.op(2).state is OpState.RUNNING
    assert np.array_equal(before.numpy(), run.state.params.numpy())


def test_more_units_than_a_step_can_charge_are_refused_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MAX_UNITS_PER_STEP", 3)
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(units=(1, 2)))
    rig.do(2, forward_backward(units=(3, 4)))
    assert "at most 3 units" in failure_of(rig, 2)
    rig.do(3, forward_backward(units=(5,)))
    assert rig.do(4, optim_step()).state is OpState.COMPLETED


def test_a_result_that_cannot_be_written_is_no_failure_with_a_grown_sum(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is dropped and restored: its state agrees with what a replay of the log gives."""
    rig.begin(optimizer=private())
    rig.drain()
    rig.submit(1, forward_backward(units=(1, 2)))

    def refused(*_: Any) -> Any:
        raise NotFound("nothing")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "forward_backward_json", refused)
        rig.worker.step()
    assert rig.op(1).state is OpState.RUNNING
    rig.drain()
    assert rig.op(1).state is OpState.COMPLETED
    assert rig.do(2, optim_step()).state is OpState.COMPLETED
    assert rig.result(2)["metrics"]["dp/participations"] == 1


def test_loading_drops_a_sum_that_no_budget_can_pay(rig: Rig) -> None:
    optimizer = private(max_epsilon=5.0, max_participations=4)
    rig.begin(optimizer=optimizer)
    rig.do(1, save("start"))
    rig.do(2, forward_backward(units=(1, 2)))
    rig.do(3, optim_step())
    rig.do(4, forward_backward(units=(1, 2)))
    rig.do(5, optim_step())
    assert "max_epsilon" in failure_of(rig, 5)
    assert rig.do(6, save("never")).state is OpState.FAILED
    rig.do(7, load(RUN, "start", optimizer=optimizer))
    assert rig.do(8, save("again")).state is OpState.COMPLETED


@pytest.mark.parametrize("kind", [OpKind.SAVE_SAMPLER, OpKind.SAVE_EXTERNAL])
def test_weights_that_leave_before_the_step_hold_nothing_of_its_sum(rig: Rig, kind: OpKind) -> None:
    """They are the same bytes as before the gradients came; the state, which would hold the sum, stays."""
    rig.begin(optimizer=private())
    rig.do(1, save("before", kind))
    rig.do(2, forward_backward(units=(1, 2)))
    rig.do(3, save("state"))
    assert "call optim_step, then save" in failure_of(rig, 3)
    rig.do(4, save("during", kind))
    rig.do(5, optim_step())
    rig.do(6, save("after", kind))
    stream = rig.world.stream(RUN)
    saved = {one.name: one for one in rig.services.checkpoints.of_run(RUN)}
    before, during, after = (
        unpack_files(rig.services.checkpoints.read(stream, saved[name]))
        for name in ("before", "during", "after")
    )
    if kind is OpKind.SAVE_EXTERNAL:  # an export brings its privacy statement, each its own
        for files in (before, during, after):
            del files[JSON_FILE], files[TEXT_FILE]
    assert before == during
    assert during != after


def not_finite(step: Step, index: int) -> Step:
    """The data with one whose loss and gradient overflow."""
    kind, payload = step
    body = json.loads(payload)
    weights = body["data"][index]["loss_fn_inputs"]["weights"]
    body["data"][index]["loss_fn_inputs"]["weights"] = [3e38] * len(weights)
    return kind, json.dumps(body).encode()


def test_a_unit_that_is_not_finite_is_charged_adds_zero_and_is_told_to_its_owner_alone(
    new_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    both = {}
    for name, change in (("with", not_finite), ("without", lambda step, _: step)):
        rig = both[name] = new_rig()
        rig.begin(optimizer=private())
        kept = [0, 1, 2] if name == "with" else [0, 2]
        step = forward_backward(tokens=[rows[i] for i in kept], units=kept)
        body = json.loads(step[1])
        for datum in body["data"]:
            datum["loss_fn_inputs"]["weights"] = [1.0] * 3
        step = (step[0], json.dumps(body).encode())
        with caplog.at_level(logging.DEBUG):
            rig.do(1, change(step, 1))
        metrics = rig.result(1)["metrics"]
        assert metrics["non_dp/nonfinite_units:sum"] == (1 if name == "with" else 0)
        assert metrics["non_dp/units:sum"] == len(kept)
        assert rig.do(2, optim_step()).state is OpState.COMPLETED
    states = []
    for rig in both.values():
        (run,) = rig.worker._hot.all()
        assert run.state is not None
        states.append(run.state.params.numpy())
    # 1e-5: the two batches have other shapes, and Adam's first step is of the size of the learning rate.
    np.testing.assert_allclose(states[0], states[1], rtol=0, atol=1e-5)
    both["with"].do(3, forward_backward(units=(1,)))
    assert "max_participations=1" in failure_of(both["with"], 3)
    for record in caplog.records:
        assert not [name for name in vars(record) if "finite" in name or "clipped" in name or "loss" in name]
