"""What each kind of operation does through the worker, and what a mistake of the caller does not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyrage
import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.payloads import PROTOBUF
from tensafe.operations import layout
from tensafe.operations.checkpoints import UNUSED_S, CheckpointKind
from tensafe.operations.completions import since
from tensafe.operations.records import Operation, OpKind, OpState, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.packages.bundle import unpack_files
from tensafe.privacy.artifact_statement import JSON_FILE, TEXT_FILE
from tensafe.privacy.noise import grid_spacing
from tensafe.wire import tinker_v0_38_pb2 as pb
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.state import RunState
from tests.support.training_log import (
    LORA,
    begin,
    create,
    forward_backward,
    load,
    optim_step,
    private,
    save,
    submit,
)
from tests.unit.operations.world import BASE, SAMPLE
from tests.unit.trainer_worker.rig import RUN, Rig

OTHER = "s-1:train:1"


def _code(operation: Operation) -> tuple[str, str | None]:
    assert operation.state is OpState.FAILED
    assert operation.failure is not None
    return operation.failure.code, operation.failure.field


def test_a_run_is_created_trained_and_saved(durable_rig: Rig) -> None:
    rig = durable_rig
    rig.begin()
    rig.drain()
    assert rig.result(0) == {"type": "create_model", "model_id": RUN}
    assert rig.do(1, forward_backward()).state is OpState.COMPLETED
    assert rig.do(2, optim_step()).state is OpState.COMPLETED
    assert rig.result(2)["metrics"]["step"] == 1.0
    assert rig.do(3, save("final")).state is OpState.COMPLETED
    assert rig.result(3)["path"] == f"tinker://{RUN}/weights/final"
    checkpoint = rig.services.checkpoints.find(RUN, CheckpointKind.TRAINING, "final", "acme")
    saved = RunState.load(rig.services.checkpoints.read(rig.world.stream(RUN), checkpoint), rig.base)
    assert saved.step == 1
    assert saved.dump() == rig.final()[0]
    assert checkpoint.details["lora"] == LORA.model_dump(mode="json")


def test_training_lowers_the_loss(rig: Rig) -> None:
    rig.begin()
    losses = []
    for step in range(8):
        rig.do(2 * step + 1, forward_backward(7))
        rig.do(2 * step + 2, optim_step(5e-2))
        losses.append(rig.result(2 * step + 1)["metrics"]["loss:sum"])
    assert losses[-1] < 0.9 * losses[0]


def test_a_loaded_run_goes_on_as_the_saved_one(rig: Rig) -> None:
    rig.begin()
    for seq, step in enumerate((forward_backward(1), optim_step(), forward_backward(2), save("middle")), 1):
        rig.do(seq, step)
    rig.begin(OTHER, load(RUN, "middle"))
    rig.drain()
    assert rig.result(0, OTHER)["path"] == f"tinker://{RUN}/weights/middle"
    for seq, step in enumerate((forward_backward(3), optim_step())):
        rig.do(seq + 5, step)
        rig.do(seq + 1, step, OTHER)
    assert rig.final(OTHER) == rig.final(RUN)


def test_a_loaded_run_needs_its_source_no_more(rig: Rig) -> None:
    rig.begin()
    for seq, step in enumerate((forward_backward(1), optim_step(), save("middle")), 1):
        rig.do(seq, step)
    rig.begin(OTHER, load(RUN, "middle"))
    rig.drain()
    checkpoint = rig.services.checkpoints.find(RUN, CheckpointKind.TRAINING, "middle", "acme")
    rig.services.checkpoints.delete(checkpoint)
    rig.services.streams.erase(RUN, "acme")
    rig.restart()
    assert rig.do(1, forward_backward(), OTHER).state is OpState.COMPLETED


@pytest.mark.parametrize("kind", [OpKind.SAVE, OpKind.SAVE_SAMPLER, OpKind.SAVE_EXTERNAL])
def test_weights_leave_only_when_the_state_behind_them_is_durable(rig: Rig, kind: OpKind) -> None:
    """Output commit: the snapshot is in the transaction that ends the save."""
    rig.begin()
    rig.do(1, forward_backward())
    rig.do(2, optim_step())
    assert "snapshot" not in rig.world.stored(rig.world.stream(RUN))
    rig.do(3, save("x", kind))
    snapshot = rig.world.items.get(layout.stream_item(RUN, "snapshot"))
    assert snapshot is not None
    assert snapshot.body["seq"] == 3


def test_weights_alone_begin_with_a_fresh_optimizer(rig: Rig) -> None:
    rig.begin()
    for seq, step in enumerate(
        (forward_backward(1), optim_step(), save("t"), save("s", OpKind.SAVE_SAMPLER)), 1
    ):
        rig.do(seq, step)
    rig.begin(OTHER, load(RUN, "t", with_optimizer=False))
    rig.begin("s-1:train:2", load(RUN, "s", kind="sampler_weights", with_optimizer=False))
    rig.drain()
    states = [RunState.load(rig.final(run_id)[0], rig.base) for run_id in (RUN, OTHER, "s-1:train:2")]
    assert [state.step for state in states] == [1, 0, 0]
    for state in states[1:]:
        np.testing.assert_array_equal(state.params.numpy(), states[0].params.numpy())


def test_protobuf_is_answered_in_protobuf(rig: Rig) -> None:
    rig.begin()
    rig.do(1, forward_backward(1, forward_only=True))
    request = pb.ForwardBackwardRequest(model_id=RUN, seq_id=2, loss_fn="cross_entropy", forward_only=True)
    for datum in json.loads(forward_backward(1)[1])["data"]:
        message = request.data.add()
        message.model_input.add().encoded_text.tokens = np.array(datum["tokens"], "<i4").tobytes()
        for name, dtype, tag in (
            ("target_tokens", "<i8", pb.DTYPE_INT64),
            ("weights", "<f4", pb.DTYPE_FLOAT32),
        ):
            tensor = message.loss_fn_inputs[name]
            tensor.dtype, tensor.dense = tag, np.array(datum["loss_fn_inputs"][name], dtype).tobytes()
    submission = Submission(2, OpKind.FORWARD_BACKWARD, request.SerializeToString(), content_type=PROTOBUF)
    rig.services.submissions.submit(rig.world.stream(RUN), submission)
    rig.drain()
    operation = rig.op(2)
    assert operation.failure is None
    result = rig.services.outcomes.result(rig.world.stream(RUN), operation)
    answer = pb.ForwardBackwardOutput()
    answer.ParseFromString(result.data)
    assert result.content_type == PROTOBUF
    assert dict(answer.metrics)["loss:sum"] == rig.result(1)["metrics"]["loss:sum"]


@pytest.mark.parametrize(
    ("step", "code", "field"),
    [
        (forward_backward(tokens=[[1, 320]]), "invalid_request", "data[0].model_input"),
        (forward_backward(tokens=[[1] * 65]), "invalid_request", "data[0].model_input"),
        (forward_backward(units=[1], count=1), "invalid_request", "data[0].loss_fn_inputs.dp_unit_id"),
        (forward_backward(loss_fn="ppo"), "invalid_request", None),
        (forward_backward(loss_fn_config={"beta": 1.0}), "invalid_request", "loss_fn_config.beta"),
        ((OpKind.FORWARD_BACKWARD, b"{"), "invalid_request", None),
        ((OpKind.FORWARD_BACKWARD, b'{"data": []}'), "invalid_request", None),
        (save("taken"), "conflict", "path"),
    ],
)
def test_a_mistake_fails_its_operation_and_leaves_the_run_as_it_was(
    new_rig: Any, step: tuple[OpKind, bytes], code: str, field: str | None
) -> None:
    rig, clean = new_rig(), new_rig()
    for one in (rig, clean):
        one.begin()
        one.do(1, save("taken"))
        one.do(2, forward_backward(1))
    found_code, found_field = _code(rig.do(3, step))
    assert found_code == code
    assert field is None or found_field == field
    clean.do(3, (OpKind.NOOP, b"{}"))
    for one in (rig, clean):
        assert one.do(4, optim_step()).state is OpState.COMPLETED
    assert len(rig.world.blob_keys()) == len(clean.world.blob_keys())
    assert rig.final() == clean.final()


@pytest.mark.parametrize(
    "step",
    [
        load("s-9:train:9", "final"),
        load("s-2:train:0", "final"),
        load(RUN, "absent"),
        load(RUN, "final", kind="external_weights", with_optimizer=False),
    ],
)
def test_a_run_that_could_not_begin_says_so_to_what_follows(rig: Rig, step: tuple[OpKind, bytes]) -> None:
    rig.begin()
    rig.do(1, save("final"))
    begin(rig.world.services, "s-2:train:0", BASE, create(), tenant="rival")
    submit(rig.world.services, "s-2:train:0", 1, save("final"), tenant="rival")
    rig.drain()
    rig.begin(OTHER, step)
    rig.drain()
    assert _code(rig.op(0, OTHER))[0] in ("not_found", "invalid_request")
    code, _ = _code(rig.do(1, forward_backward(), OTHER))
    assert code == "invalid_request"
    rig.restart()
    assert _code(rig.do(2, optim_step(), OTHER))[0] == "invalid_request"


def without(files: dict[str, bytes], names: set[str]) -> dict[str, bytes]:
    """The files but for these, which are there."""
    assert names <= files.keys()
    return {name: data for name, data in files.items() if name not in names}


def test_every_kind_of_save_is_registered_and_readable(rig: Rig) -> None:
    identity = pyrage.x25519.Identity.generate()
    rig.begin()
    rig.do(1, forward_backward())
    rig.do(2, optim_step())
    rig.do(3, save("x", OpKind.SAVE_SAMPLER, user_metadata={"note": "n"}))
    rig.do(4, save("x", OpKind.SAVE_EXTERNAL))
    rig.do(5, save("aged", OpKind.SAVE_EXTERNAL, age_recipients=(str(identity.to_public()),), ttl_s=60))
    run, checkpoints = rig.world.stream(RUN), rig.services.checkpoints
    sampler = checkpoints.find(RUN, CheckpointKind.SAMPLER, "x", "acme")
    external = checkpoints.find(RUN, CheckpointKind.EXTERNAL, "x", "acme")
    aged = checkpoints.find(RUN, CheckpointKind.EXTERNAL, "aged", "acme")
    assert sampler.user_metadata == {"note": "n"}
    assert aged.expires_ms is not None
    plain = unpack_files(checkpoints.read(run, sampler))
    statement = {JSON_FILE, TEXT_FILE}  # what they say is about one artifact
    assert without(unpack_files(checkpoints.read(run, external)), statement) == plain
    sealed = unpack_files(checkpoints.read(run, aged))
    opened = {name: pyrage.decrypt(data, [identity]) for name, data in sealed.items()}
    assert without(opened, {f"{name}.age" for name in statement}) == {
        f"{name}.age": data for name, data in plain.items()
    }
    assert {one.name for one in checkpoints.of_run(RUN)} == {"x", "aged"}


def test_what_a_trainer_writes_is_claimed_in_its_transaction(rig: Rig) -> None:
    rig.begin()
    rig.do(1, save("final"))
    rig.do(2, save("x", OpKind.SAVE_SAMPLER))
    notes = [item.key.sort for item in rig.world.due()]
    assert [sort for sort in notes if "/unclaimed/" in sort] == []


def test_saving_for_a_new_session_begins_the_session(rig: Rig) -> None:
    rig.begin()
    session = "s-1:sample:0"
    rig.do(1, save("hidden", OpKind.SAVE_SAMPLER, sampling_session_id=session))
    assert rig.result(1) == {"sampling_session_id": session}
    sampler = rig.services.streams.get(session, "acme", StreamKind.SAMPLER)
    assert sampler.spec == {"model_path": f"tinker://{RUN}/sampler_weights/hidden"}
    assert rig.services.checkpoints.of_run(RUN) == []
    hidden = rig.services.checkpoints.find(RUN, CheckpointKind.SAMPLER, "hidden", "acme")
    assert hidden.idle_s == UNUSED_S
    assert hidden.expires_ms == hidden.created_ms + UNUSED_S * 1000


def test_unlisted_weights_with_a_time_to_live_keep_to_it(rig: Rig) -> None:
    rig.begin()
    rig.do(1, save("hidden", OpKind.SAVE_SAMPLER, sampling_session_id="s-1:sample:0", ttl_s=60))
    hidden = rig.services.checkpoints.find(RUN, CheckpointKind.SAMPLER, "hidden", "acme")
    assert (hidden.idle_s, hidden.expires_ms) == (None, hidden.created_ms + 60_000)


def test_a_session_begins_once_and_a_second_save_for_it_harms_nobody(rig: Rig) -> None:
    rig.begin()
    rig.do(1, save("one", OpKind.SAVE_SAMPLER, sampling_session_id="s-1:sample:0"))
    blobs = rig.world.blob_keys()
    failed = rig.do(2, save("two", OpKind.SAVE_SAMPLER, sampling_session_id="s-1:sample:0"))
    assert _code(failed) == ("conflict", "sampling_session_seq_id")
    assert rig.world.blob_keys() == blobs
    assert rig.do(3, optim_step()).state is OpState.COMPLETED


@pytest.mark.parametrize("good", [True, False])
def test_a_sample_that_waits_for_weights_is_rung_for_when_the_save_ends(rig: Rig, good: bool) -> None:
    rig.begin()
    rig.do(1, save("taken", OpKind.SAVE_SAMPLER))
    sampler = rig.world.sampler("n-1:sample:0")
    waiting = Submission(1, OpKind.SAMPLE, b"{}", ring=False)
    rig.services.submissions.submit(sampler, waiting)
    assert rig.world.drain(SAMPLE) == []
    name = "fresh" if good else "taken"
    step = save(name, OpKind.SAVE_SAMPLER, sampling_session_id="n-1:sample:0", create_session=False)
    assert rig.do(2, step).state is (OpState.COMPLETED if good else OpState.FAILED)
    assert rig.world.drain(SAMPLE) == [{"stream": "n-1:sample:0", "seq": 1}]
    assert since(rig.world.items, "n-1:sample:0", 0, 0) == []


def test_two_runs_interleave_without_touching_each_other(rig: Rig, new_rig: Any) -> None:
    steps = [forward_backward(1), optim_step(), forward_backward(2), optim_step(3e-2)]
    other = [forward_backward(5), forward_backward(6), optim_step(), optim_step()]
    rig.begin()
    rig.begin(OTHER)
    for seq, (mine, theirs) in enumerate(zip(steps, other, strict=True), 1):
        rig.submit(seq, mine)
        rig.submit(seq, theirs, OTHER)
        rig.worker.step()
    rig.drain()
    for log, run_id in ((steps, RUN), (other, OTHER)):
        alone = new_rig()
        alone.begin()
        for seq, step in enumerate(log, 1):
            alone.do(seq, step)
        assert alone.final() == rig.final(run_id)


def test_a_private_run_reports_what_it_spent_and_refuses_what_is_over(rig: Rig) -> None:
    rig.begin(optimizer=private(max_participations=2, max_epsilon=7.0))
    epsilons = []
    for seq in (1, 3):
        rig.do(seq, forward_backward(seq, units=[1, 2]))
        rig.do(seq + 1, optim_step())
        epsilons.append(rig.result(seq + 1)["metrics"]["dp/epsilon"])
    assert 0 < epsilons[0] < epsilons[1] <= 7.0
    assert rig.result(4)["metrics"]["dp/delta"] == 1e-5
    spent = rig.do(5, forward_backward(5, units=[1]))
    assert _code(spent) == ("privacy_budget_exceeded", "data[0].loss_fn_inputs.dp_unit_id")
    assert _code(rig.do(6, forward_backward(6)))[0] == "invalid_request"  # no unit ids
    assert rig.do(7, forward_backward(7, units=[3])).state is OpState.COMPLETED
    assert rig.do(8, optim_step()).state is OpState.COMPLETED
    assert rig.result(8)["metrics"]["dp/epsilon"] == epsilons[1]


def test_a_step_over_the_budget_changes_nothing(rig: Rig) -> None:
    rig.begin(optimizer=private(max_participations=2, max_epsilon=6.0))
    for seq in (1, 3):
        rig.do(seq, forward_backward(seq, units=[1, 2]))
        before = _hot_state(rig)
        rig.do(seq + 1, optim_step())
    assert rig.op(2).state is OpState.COMPLETED
    assert _code(rig.op(4))[0] == "privacy_budget_exceeded"
    assert _hot_state(rig) == before
    assert _code(rig.do(5, save("x")))[0] == "conflict"
    assert rig.do(6, save("x", OpKind.SAVE_SAMPLER)).state is OpState.COMPLETED
    rig.restart()
    assert rig.final() == before


def _hot_state(rig: Rig) -> tuple[bytes, set[int]]:
    (run,) = rig.worker._hot.all()
    assert run.state is not None
    assert run.private is not None
    return run.state.dump(), set(run.private.units)


def test_a_half_accumulated_private_step_is_not_saved_but_its_weights_are(rig: Rig) -> None:
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(1, units=[1]))
    assert _code(rig.do(2, save("x")))[0] == "conflict"
    assert rig.do(3, save("x", OpKind.SAVE_SAMPLER)).state is OpState.COMPLETED
    assert rig.do(4, optim_step()).state is OpState.COMPLETED
    assert rig.do(5, save("x")).state is OpState.COMPLETED


def test_the_noise_and_the_clipped_sum_lie_on_one_grid(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into the parameters is a multiple of the grid's spacing: no bit of the sum is below it."""
    released: list[np.ndarray[Any, Any]] = []
    original = Engine.optim_step

    def spy(self: Engine, state: RunState, params: Any, **given: Any) -> dict[str, float]:
        released.append(given["release"](state.grad_sum.numpy()) * 4.0)  # the batch size of `private`: exact
        return original(self, state, params, **given)

    monkeypatch.setattr(Engine, "optim_step", spy)
    rig.begin(optimizer=private(noise_multiplier=0.9))
    rig.do(1, forward_backward(1, units=[1, 2]))
    before = RunState.load(rig.worker._hot.all()[0].state.dump(), rig.base).grad_sum.double().numpy()
    rig.do(2, optim_step())
    spacing = grid_spacing(0.9 * 0.5)
    assert np.abs(before).max() > spacing
    assert np.any(np.rint(before / spacing) != before / spacing)
    (sum_and_noise,) = released
    np.testing.assert_array_equal(np.rint(sum_and_noise / spacing), sum_and_noise / spacing)


def test_a_seq_that_never_arrives_fails_what_waits_for_it(new_rig: Any) -> None:
    rig = new_rig(missing_seq_s=0)
    rig.begin()
    rig.submit(3, optim_step())
    rig.submit(4, forward_backward())
    rig.drain()
    assert rig.states() == [
        OpState.COMPLETED,
        OpState.FAILED,
        OpState.FAILED,
        OpState.FAILED,
        OpState.COMPLETED,
    ]
    code, field = _code(rig.op(3))
    assert (code, field) == ("invalid_request", "seq_id")
    assert "seq_id 1 has not arrived" in rig.op(3).failure.message


def test_a_seq_that_is_late_is_waited_for(rig: Rig) -> None:
    rig.begin()
    rig.submit(2, optim_step())
    rig.drain()
    assert rig.op(2).state is OpState.PENDING
    rig.submit(1, forward_backward())
    rig.drain()
    assert rig.states() == [OpState.COMPLETED] * 3


def test_a_refused_seq_holds_up_nobody(rig: Rig) -> None:
    rig.begin()
    rig.submit(2, optim_step())
    rig.services.submissions.reject(
        rig.world.stream(RUN), 1, OpKind.FORWARD_BACKWARD, InvalidRequest("empty batch")
    )
    rig.drain()
    assert rig.op(2).state is OpState.COMPLETED


def test_a_cancelled_operation_is_passed_over(rig: Rig) -> None:
    rig.begin()
    rig.drain()
    for seq, step in enumerate((forward_backward(), optim_step(), forward_backward()), 1):
        rig.submit(seq, step)
    rig.services.submissions.cancel(rig.world.stream(RUN), 2)
    rig.drain()
    assert [state.value for state in rig.states()] == ["completed", "completed", "cancelled", "completed"]
    rig.restart()
    assert rig.do(4, optim_step()).state is OpState.COMPLETED
