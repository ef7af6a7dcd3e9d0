"""Requests of the Tinker face, built as bytes beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.raw_client import RawConnection, post
from benchmarks.service import MODEL, Deployed
from tensafe.contracts.payloads import PROTOBUF
from tensafe.wire import tinker_v0_38_pb2 as pb

PREFIX = "/api/v1"
Submit = Callable[[str, int], bytes]
"""The request that submits operation `seq` of a run."""


def create_runs(service: Deployed, count: int, *, rank: int) -> list[str]:
    """Fresh runs of one session, each waited for."""
    with _connected(service) as connection:
        session = connection.call(f"{PREFIX}/create_session", _SESSION, service.key)["session_id"]
        runs = []
        for index in range(count):
            body = {
                "session_id": session,
                "model_seq_id": index,
                "base_model": MODEL,
                "lora_config": {"rank": rank, "seed": 1},
                "type": "create_model",
            }
            request_id = connection.call(f"{PREFIX}/create_model", body, service.key)["request_id"]
            answer = connection.call(f"{PREFIX}/retrieve_future", {"request_id": request_id}, service.key)
            runs.append(str(answer["model_id"]))
        return runs


def get_info(service: Deployed, run: str) -> bytes:
    body = {"model_id": run, "type": "get_info"}
    return post(f"{PREFIX}/get_info", json.dumps(body).encode(), service.key)


def retrieve(service: Deployed, run: str, seq: int) -> bytes:
    body = {"request_id": f"{run}:{seq}", "allow_metadata_only": True}
    return post(f"{PREFIX}/retrieve_future", json.dumps(body).encode(), service.key)


def optim_step(service: Deployed, learning_rate: float = 1e-4) -> Submit:
    """Submissions of optimizer steps."""

    def build(run: str, seq: int) -> bytes:
        body = {
            "model_id": run,
            "seq_id": seq,
            "adam_params": {"learning_rate": learning_rate},
            "type": "optim_step",
        }
        return post(f"{PREFIX}/optim_step", json.dumps(body).encode(), service.key)

    return build


def forward(service: Deployed, tokens: Sequence[int]) -> Submit:
    """Submissions of a forward pass over one example: its cross entropy, no gradient."""
    ids = np.asarray(tokens, "<i4")
    weights = pb.Tensor(dense=np.ones(len(ids), "<f4").tobytes(), dtype=pb.DTYPE_FLOAT32, shape=[len(ids)])
    targets = pb.Tensor(dense=ids.astype("<i8").tobytes(), dtype=pb.DTYPE_INT64, shape=[len(ids)])
    datum = pb.Datum(
        model_input=[pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=ids.tobytes()))],
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )

    def build(run: str, seq: int) -> bytes:
        message = pb.ForwardBackwardRequest(
            model_id=run, seq_id=seq, loss_fn="cross_entropy", data=[datum], forward_only=True
        )
        return post(f"{PREFIX}/forward_backward", message.SerializeToString(), service.key, PROTOBUF)

    return build


def rounds(service: Deployed, run: str, submit: Submit, count: int, first_seq: int = 1) -> list[list[bytes]]:
    """Submit an operation, then ask for its result; `count` times."""
    return [[submit(run, seq), retrieve(service, run, seq)] for seq in range(first_seq, first_seq + count)]


@contextmanager
def _connected(service: Deployed) -> Iterator[RawConnection]:
    connection = RawConnection(service.port)
    try:
        yield connection
    finally:
        connection.close()


_SESSION = {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0", "type": "create_session"}
