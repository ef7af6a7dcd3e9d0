"""A trainer of a private run calls, over the adapters of AWS, what its role and the keys' policies let it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tensafe.operations.records import OpState
from tensafe.storage.dynamodb_anchors import DynamoDbAnchors
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import WorkerSettings
from tests.contract.emulators import Wire, create_table, moto_in_process
from tests.contract.test_rooms_on_aws import AwsWorld
from tests.support import training_log
from tests.support.key_policies import permits
from tests.support.operator_calls import allowed, recorded
from tests.unit.operations.world import BASE

RUN = "s-1:train:0"
OTHER = "s-1:train:1"
"""Waits for the first one's place, since the worker holds one run at a time."""


def test_a_private_run_takes_no_right_that_the_trainer_lacks(tmp_path: Path) -> None:
    base = BaseModel.load(training_log.smallest_model(tmp_path / "model"), name=BASE)
    with moto_in_process(), Wire().between() as wire:
        world = AwsWorld()
        ports = world.services.ports
        anchors = DynamoDbAnchors(create_table("tensafe-anchors"), "tensafe-anchors")
        services = world.open(keyring=ports.keyring, bell=ports.bell, anchors=anchors)
        training_log.begin(services, RUN, BASE, optimizer=training_log.private(batch_size=3))
        training_log.submit(services, RUN, 1, training_log.forward_backward(0, units=[0, 1, 2]))
        training_log.submit(services, RUN, 2, training_log.optim_step())
        training_log.submit(services, RUN, 3, training_log.save("end"))
        training_log.begin(services, OTHER, BASE)
        training_log.submit(services, OTHER, 1, training_log.forward_backward(0))
        fresh = world.open(keyring=ports.keyring, bell=ports.bell, anchors=anchors)
        settings = WorkerSettings(idle_snapshot_s=0.0, max_hot_runs=1)
        worker = build_worker(fresh, BASE, base, "trainer-1", settings)
        stop = threading.Event()
        wire.forget()
        with recorded() as found:
            working = threading.Thread(target=worker.run, args=(stop,))
            working.start()
            deadline = time.monotonic() + 60
            while not all(
                one.state.final for run in (RUN, OTHER) for one in services.outcomes.operations(run)
            ):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            stop.set()
            working.join(60)
        ended = [one.state for run in (RUN, OTHER) for one in services.outcomes.operations(run)]
        assert set(ended) == {OpState.COMPLETED}
        calls = {one for one in found.calls if not one[0].startswith("kms:")}
        assert {("dynamodb:PutItem", "AnchorTable"), ("s3:PutObject", "BlobBucket")} < calls
        assert ("sqs:GetQueueAttributes", "TrainQueue") in calls  # a full worker asks whether others wait
        assert calls - allowed("TrainerPolicy") == set()
        contexts = [
            (f"kms:{call.rpartition('.')[2]}", sent["EncryptionContext"])
            for call, sent in zip(wire.called, wire.sent, strict=True)
            if "EncryptionContext" in sent
        ]
        assert contexts
        assert [one for one in contexts if not permits("DataKey", "TrainerRole", *one)] == []
