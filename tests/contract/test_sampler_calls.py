"""What a sample that ends costs on AWS: counted while `SamplerWorker.run` works on an engine of a test."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Final

from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest
from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.storage.process_bell import ProcessBell
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.worker import SamplerSettings, SamplerWorker
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_rooms_on_aws import AwsWorld
from tests.unit.operations.world import BASE
from tests.unit.sampler.test_worker import Engine

QUIET: Final = SamplerSettings(receive_wait_s=0.02, heartbeat_s=60.0, visibility_s=120.0)
SUBMITTED: Final = {"TransactWriteItems": 1, "SendMessage": 1}
ENDED: Final = {"BatchGetItem": 1, "TransactWriteItems": 2, "DeleteMessage": 1}
"""Session, operation and payload are read; it is begun; it ends; its message goes."""


def test_a_sample_that_ends_takes_three_calls_of_dynamodb_and_one_of_sqs() -> None:
    with moto_in_process(), Wire().between() as wire:
        world = AwsWorld()
        sampler = world.sampler()
        services = world.open(keyring=world.services.ports.keyring, bell=ProcessBell())
        services.workers.announce("sampler", BASE, "sampler-1", 0)
        engine, stop = Engine(), threading.Event()

        def submit(seq: int) -> None:
            payload = SamplePayload(request=SampleRequest(prompt=(seq,))).model_dump_json().encode()
            world.services.submissions.submit(sampler, Submission(seq, OpKind.SAMPLE, payload))

        async def answered(count: int) -> None:
            """So many since the calls were forgotten: of an answer its message is deleted last."""
            async with asyncio.timeout(60):
                while Counter(call.rpartition(".")[2] for call in wire.called)["DeleteMessage"] < count:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # and nothing else comes

        async def life() -> Counter[str]:
            worker = SamplerWorker(
                services, BASE, engine, owner="sampler-1", texts=Texts("none"), settings=QUIET
            )  # type: ignore[arg-type]
            running = asyncio.create_task(worker.run(stop))
            submit(0)
            await answered(
                1
            )  # a process's first one of a session looks how many have ended, and opens its key
            wire.forget()
            for seq in (1, 2, 3):  # those that end at once may share a transaction
                submit(seq)
                await answered(seq)
            found = Counter(call.rpartition(".")[2] for call in wire.called)
            stop.set()
            await running
            return found

        calls = asyncio.run(life())
        states = {operation.state for operation in world.log(sampler)}
    del calls["ReceiveMessage"]  # looks at the queue, whether or not anything is there
    assert states == {OpState.COMPLETED}
    assert calls == Counter({name: 3 * n for name, n in (Counter(SUBMITTED) + Counter(ENDED)).items()})
