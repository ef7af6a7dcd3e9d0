"""A sampler calls, over the adapters of AWS, what its role and the keys let it; and its role no more.

The process's own `serve`, from the template's settings to its end, with an engine that draws nothing: what an
engine computes calls nothing on AWS. No emulator here enforces IAM, so the calls are held to the template.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from tensafe.audit.attestation import unwrapped, verify
from tensafe.cloud.composition import cloud_services
from tensafe.cloud.settings import read_cloud_settings
from tensafe.contracts.errors import HeRefused, Unavailable
from tensafe.contracts.execution import Execution, ExecutionMode, ExecutionPolicy
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest, SampleResult, Sequence
from tensafe.contracts.text import TextPayload
from tensafe.local.certificates import keep_certificate
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.placements import Placement
from tensafe.operations.records import Operation, OpKind, OpState, StreamKind, StreamRecord
from tensafe.operations.streams import now_ms
from tensafe.operations.submissions import Submission
from tensafe.packages.bundle import pack_files
from tensafe.services import Services
from tensafe.storage.signing import PublicKey
from tensafe.vault import forgetting
from tensafe_gpu.sampler import weights, worker
from tensafe_gpu.sampler.__main__ import serve
from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.worker import SamplerSettings
from tests.support.aws_stack import Stack, make_stack
from tests.support.certificates import Authority
from tests.support.cloud import MODEL
from tests.support.helora import peft_files
from tests.support.key_policies import permits
from tests.support.operator_calls import may_use
from tests.support.role_rights import held, of_a_task
from tests.support.tiny_models import byte_tokenizer
from tests.support.wire_calls import WireCalls, recording_moto

pytestmark = pytest.mark.slow

BASE, RUN, OWNER = str(MODEL["name"]), "s-1:train:0", "sampler-1"
REFUSED, DOWN, HANGING, LONG = 300, 301, 302, 40_000
QUICK = SamplerSettings(pause_s=0.05, receive_wait_s=0.0, heartbeat_s=0.2, stop_grace_s=0.2)
NOT_CALLED = {
    ("s3:ListBucket", "BlobBucket"): "without it S3 answers 403 for what is not there",
    **of_a_task(),
}


class Engine:
    """Takes half a second for each request, and remembers which adapters it was given."""

    healthy = True

    def __init__(self) -> None:
        self.known: list[str] = []
        self.files: dict[str, str] = {}
        self._fails = 1

    @classmethod
    async def start(cls, *_: object, **__: object) -> Engine:
        return ENGINE

    async def sample(
        self, request: SampleRequest, adapter: Any, *, policy: Any, cache_scope: str, on_tokens: Any = None
    ) -> SampleResult:
        first = request.prompt[0]
        if first == HANGING:
            await asyncio.sleep(600)
        if first == REFUSED:
            raise HeRefused("he_timeout")
        if first == DOWN and self._fails:
            self._fails -= 1
            raise Unavailable("it gave up")
        for count in range(1, 6):
            if on_tokens is not None:
                on_tokens(0, [65] * count)
            await asyncio.sleep(0.1)
        tokens = np.full(5 if on_tokens else LONG, 65, np.int32)
        drawn = Sequence(tokens, np.zeros(len(tokens), np.float32), "length")
        return SampleResult((drawn,), execution=self._execution(adapter, len(tokens)))

    def _execution(self, adapter: Any, rows: int) -> Execution:
        if adapter is None:
            return Execution(ExecutionMode.NONE, prompt_tokens=1)
        self.known.append(adapter.identity)
        if isinstance(adapter, Adapter):
            return Execution(ExecutionMode.PLAINTEXT, adapter.identity, prompt_tokens=1)
        assert isinstance(adapter, PrivateAdapter)
        self.files = dict(adapter.holder)
        return Execution(
            ExecutionMode.HE,
            "a@1",
            digest="0" * 64,
            epoch=1,
            parameters="p",
            prompt_tokens=1,
            tokens=rows,
            evaluated_by_site={"site": rows},
        )

    def resident(self) -> list[str]:
        return list(dict.fromkeys(self.known))

    async def forget(self, identity: str) -> None:
        raise AssertionError("nothing has gone")

    async def close(self) -> None: ...


ENGINE = Engine()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[WireCalls]:
    monkeypatch.setattr("tensafe_gpu.sampler.engine.SamplingEngine", Engine)
    monkeypatch.setattr(worker, "SamplerSettings", lambda: QUICK)
    monkeypatch.setattr(weights, "CHECK_S", 0.2)
    monkeypatch.setattr(forgetting, "WATCH", forgetting.Watch(0.2))
    with recording_moto() as wire:
        yield wire


def services_of(stack: Stack, caller: str, patch: pytest.MonkeyPatch) -> Services:
    """A process's view, with credentials of its own."""
    for name, value in (stack.environment | {"AWS_ACCESS_KEY_ID": caller}).items():
        patch.setenv(name, value)
    patch.setattr(boto3, "DEFAULT_SESSION", None)
    return cloud_services(read_cloud_settings())


def session(services: Services, name: str, path: str | None = None) -> StreamRecord:
    spec: dict[str, Any] = {} if path is None else {"model_path": path}
    record, writes = services.streams.creation(
        f"s-1:sample:{name}", "acme", StreamKind.SAMPLER, BASE, spec=spec
    )
    services.ports.items.write(writes)
    return record


def submit(services: Services, sampler: StreamRecord, seq: int, first: int, *, length: int = 1) -> Operation:
    payload = SamplePayload(request=SampleRequest(prompt=(first,) * length), answer="json")
    return services.submissions.submit(
        sampler, Submission(seq, OpKind.SAMPLE, payload.model_dump_json().encode())
    )


def prepare(services: Services, folder: Path) -> dict[str, StreamRecord]:
    """A run with weights that are kept here and weights placed elsewhere, and a request of every kind."""
    run, creation = services.streams.creation(RUN, "acme", StreamKind.RUN, BASE)
    services.submissions.create(run, creation, Submission(0, OpKind.NOOP, b"{}"))
    ref = services.artifacts.write(run.scope, "ckpt/sampler_weights/mine", pack_files(peft_files(32, 4)))
    checkpoint = Checkpoint(
        run_id=RUN, tenant="acme", kind=CheckpointKind.SAMPLER, name="mine",
        base_model=BASE, created_ms=1, ref=ref, artifact_id="art-1",
        expires_ms=now_ms() + 3_600_000, idle_s=86_400,
    )  # fmt: skip
    services.ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))
    place = Placement(
        run_id=RUN, name="placed", tenant="acme", base_model=BASE, policy=ExecutionPolicy.HE_REQUIRED,
        address="tcp:h:1", adapter="a", version=1, holder_tenant="sampler", created_ms=1,
    )  # fmt: skip
    services.placements.add(place)
    files = Authority(folder).issue("sampler")
    keep_certificate(services, {"cert": files.certificate, "key": files.key, "ca": files.authority})
    streams = {
        "base": session(services, "0"),
        "plain": session(services, "1", checkpoint.path),
        "private": session(services, "2", place.path),
        "gone": session(services, "3", f"tinker://{RUN}/sampler_weights/none"),
        "poison": session(services, "4"),
        "hanging": session(services, "5"),
    }
    submit(services, streams["base"], 1, 7, length=LONG)
    submit(services, streams["base"], 2, REFUSED)
    submit(services, streams["base"], 3, DOWN)
    text = TextPayload(prompt="AB", stream=True).model_dump_json().encode()
    services.submissions.submit(streams["base"], Submission(4, OpKind.TEXT, text))
    for name in ("plain", "private", "gone"):
        submit(services, streams[name], 1, 7)
    suspect = submit(services, streams["poison"], 1, 7, length=LONG)
    for _ in range(3):
        suspect = services.outcomes.start(suspect, ())
    submit(services, streams["hanging"], 1, HANGING)
    return streams


async def served(services: Services, looking: Services, streams: dict[str, StreamRecord]) -> None:
    """From its start to SIGTERM, once all but what hangs has ended and its adapters were looked for."""
    stop, settings = threading.Event(), read_cloud_settings(private_adapters=True)
    (info,) = settings.models
    serving = asyncio.create_task(serve(services, info, settings, OWNER, stop))

    def waiting() -> bool:
        found = {name: looking.outcomes.operations(one.stream_id) for name, one in streams.items()}
        (hanging,) = found.pop("hanging")
        ended = all(one.state.final for log in found.values() for one in log)
        return not ended or hanging.state is not OpState.RUNNING

    for _ in range(200):
        if serving.done() or not await asyncio.to_thread(waiting):
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # a heartbeat and a look at the adapters
    stop.set()
    await serving
    services.workers.withdraw(OWNER)


def test_a_sampler_takes_no_right_that_it_lacks_and_has_none_that_it_does_not_take(
    wire: WireCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_tokenizer(512).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    stack = make_stack(wire.endpoint, MODEL | {"path": str(tmp_path / "model")})
    with monkeypatch.context() as patch:
        looking = services_of(stack, "test", patch)
        streams = prepare(looking, tmp_path)
        sampler = services_of(stack, "sampler", patch)
        asyncio.run(served(sampler, looking, streams))

    def states(name: str) -> list[str]:
        return [one.state.value for one in looking.outcomes.operations(streams[name].stream_id)]

    assert states("base") == ["completed", "failed", "completed", "completed"]
    assert [states(name) for name in ("plain", "private", "gone", "poison", "hanging")] == [
        *(["completed"], ["completed"], ["failed"], ["failed"], ["pending"])
    ]
    result = looking.outcomes.result(streams["private"], looking.outcomes.get(streams["private"], 1))
    key = PublicKey.from_pem(looking.ports.signer.public_key)
    (word,) = unwrapped(result.data)
    statement = verify(word, {looking.ports.signer.key_id: key})
    assert (statement.mode, statement.adapter) == (ExecutionMode.HE, "a@1")
    assert {"tls_cert", "tls_key", "tls_ca"} < set(ENGINE.files)

    keys = {
        stack.environment["TENSAFE_KMS_KEY_ID"]: "DataKey",
        stack.environment["TENSAFE_SIGNING_KEY_ID"]: "SigningKey",
    }
    found = held(wire.of("sampler"), "Sampler", keys)
    assert found.refused == set()
    assert found.untaken == set(NOT_CALLED)
    scopes = {use.context["scope"].partition("/")[0] for use in wire.of("sampler").uses if use.context}
    assert scopes == {"stream", "holder-tls"}
    assert "SamplerRole" not in may_use("DataKey", "kms:Encrypt")
    of_a_domain = {"tenant": "acme", "scope": "domain/acme/letters", "purpose": "tensafe-data-key"}
    assert not permits("DataKey", "SamplerRole", "kms:Decrypt", of_a_domain)
