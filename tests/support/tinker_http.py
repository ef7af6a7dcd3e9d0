"""The Tinker face over plain httpx, for requests that the SDK would not send."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from tensafe.wire import tinker_v0_38_pb2 as pb
from tests.support.native import TOKENS, Native, problem
from tests.support.service import MODEL_NAME
from tests.unit.wire.messages import dense, text

PROTOBUF = "application/x-protobuf"


def training_message(run: str, seq: int, tokens: Sequence[int] = TOKENS) -> pb.ForwardBackwardRequest:
    """Next-token cross-entropy over `tokens`."""
    inputs = {
        "target_tokens": dense(list(tokens[1:]), "int64"),
        "weights": dense([1.0] * (len(tokens) - 1), "float32"),
    }
    datum = pb.Datum(model_input=[text(*tokens[:-1])], loss_fn_inputs=inputs)
    return pb.ForwardBackwardRequest(model_id=run, seq_id=seq, loss_fn="cross_entropy", data=[datum])


class TinkerHttp(Native):
    """One key on the Tinker face; the native face is there too."""

    def ok(self, path: str, body: object) -> dict[str, Any]:
        answer = self.post(f"/api/v1/{path}", body)
        assert answer.status_code == 200, (path, answer.text)
        return dict(answer.json())

    def session(self) -> str:
        return str(self.ok("create_session", {"tags": [], "sdk_version": "0.38.0"})["session_id"])

    def new_run(self, session: str, index: int = 0, **lora: Any) -> str:
        """A run whose adapter is made."""
        config = {"rank": 4, "seed": 1, **lora}
        body = {
            "session_id": session,
            "model_seq_id": index,
            "base_model": MODEL_NAME,
            "lora_config": config,
        }
        created = self.ok("create_model", body)["request_id"]
        assert self.future(created).json()["model_id"] == f"{session}:train:{index}"
        return f"{session}:train:{index}"

    def data(self, message: pb.ForwardBackwardRequest | bytes, **headers: str) -> httpx.Response:
        """POST forward_backward; keyword arguments become headers, '_' for '-'."""
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(
            "/api/v1/forward_backward", content=raw, headers={"Content-Type": PROTOBUF, **named}
        )

    def changed(
        self, run: str, seq: int, change: Callable[[pb.ForwardBackwardRequest], object]
    ) -> httpx.Response:
        """A valid training request after `change`."""
        message = training_message(run, seq)
        change(message)
        return self.data(message)

    def refusal(self, answer: httpx.Response, run: str, seq: int) -> tuple[int, str, str | None]:
        """`problem` of training data that were refused: the answer is their future, which has failed."""
        assert (answer.status_code, answer.json()["request_id"]) == (200, f"{run}:{seq}"), answer.text
        told = self.future(f"{run}:{seq}").json()
        status, code, field = problem(self.wait(f"{run}:{seq}"))
        assert (told["category"], f"[{code}]" in told["error"]) == ("user", True), told
        return status, code, field

    def step(self, run: str, seq: int, **params: float) -> httpx.Response:
        return self.post("/api/v1/optim_step", {"model_id": run, "seq_id": seq, "adam_params": params})

    def future(self, request_id: str, timeout_s: float = 120) -> httpx.Response:
        """The answer of retrieve_future once it is no 408."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self.post("/api/v1/retrieve_future", {"request_id": request_id})
            if answer.status_code != 408:
                return answer
        raise TimeoutError(request_id)

    def trains(self, run: str, seq: int) -> int:
        """The run takes a step at `seq` and `seq + 1`; the next free seq."""
        for offset, answer in enumerate((self.data(training_message(run, seq)), self.step(run, seq + 1))):
            assert answer.status_code == 200, answer.text
            done = self.future(f"{run}:{seq + offset}", timeout_s=30)
            assert done.status_code == 200, done.text
            assert b"error" not in done.content[:20], done.text
        return seq + 2
