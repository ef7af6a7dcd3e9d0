"""Bad input: a 4xx or a failed future that names the field; the run trains on and every process lives."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import numpy as np
import psutil
import pytest
import zstandard

from tensafe.wire import tinker_v0_38_pb2 as pb
from tests.support.native import TOKENS, batch, example, make_key, problem
from tests.support.service import MODEL_NAME, Service
from tests.support.tinker_http import TinkerHttp, training_message
from tests.unit.wire.messages import dense, text

CONTEXT = 2048
RSS_GROWTH_MAX_BYTES = 64 * 1024 * 1024


class Run:
    """A run with a count of its seq ids, which refusals use up as the SDK does."""

    def __init__(self, client: TinkerHttp, run_id: str) -> None:
        self.client = client
        self.id = run_id
        self.seq = 1

    def take(self) -> int:
        self.seq += 1
        return self.seq - 1

    def trains(self) -> None:
        """Without waiting for anything that was refused."""
        self.seq = self.client.trains(self.id, self.seq)


@pytest.fixture(scope="module")
def shared(service: Service) -> Run:
    client = TinkerHttp(service, make_key(service, f"bad-{uuid4().hex[:8]}"))
    return Run(client, client.new_run(client.session()))


@pytest.fixture(scope="module")
def own(shared: Run) -> str:
    """A run of the native face, which gives its operations their numbers."""
    return shared.client.create()


@pytest.fixture
def run(shared: Run, service: Service) -> Iterator[Run]:
    """The same run for every test: each must leave it able to train, in the same processes."""
    before = {role: service.role_pids(role) for role in ("api", "trainer", "sampler")}
    yield shared
    shared.trains()
    assert {role: service.role_pids(role) for role in before} == before


Change = Callable[[pb.ForwardBackwardRequest], object]


def inputs(message: pb.ForwardBackwardRequest, **tensors: pb.Tensor) -> None:
    for name, tensor in tensors.items():
        message.data[0].loss_fn_inputs[name].CopyFrom(tensor)


def policy(message: pb.ForwardBackwardRequest, advantages: list[float]) -> None:
    size = len(TOKENS) - 1
    message.loss_fn = "importance_sampling"
    del message.data[0].loss_fn_inputs["weights"]
    inputs(message, logprobs=dense([-1.0] * size, "float32"), advantages=dense(advantages, "float32"))


def tokens(message: pb.ForwardBackwardRequest, *ids: int) -> None:
    message.data[0].model_input[0].CopyFrom(text(*ids))
    inputs(
        message,
        target_tokens=dense([1] * len(ids), "int64"),
        weights=dense([1.0] * len(ids), "float32"),
    )


TRAINING: dict[str, tuple[Change, str]] = {
    "token outside the vocabulary": (lambda m: tokens(m, 1, 10**6), "data[0].model_input"),
    "negative token": (lambda m: tokens(m, 1, -5), "data[0].model_input"),
    "target outside the vocabulary": (
        lambda m: inputs(m, target_tokens=dense([10**6] * (len(TOKENS) - 1), "int64")),
        "data[0].loss_fn_inputs.target_tokens",
    ),
    "NaN advantages": (
        lambda m: policy(m, [float("nan")] * (len(TOKENS) - 1)),
        "data[0].loss_fn_inputs.advantages",
    ),
    "infinite advantages": (
        lambda m: policy(m, [float("inf")] * (len(TOKENS) - 1)),
        "data[0].loss_fn_inputs.advantages",
    ),
    "too few advantages": (lambda m: policy(m, [1.0]), "data[0].loss_fn_inputs.advantages"),
    "over the context": (lambda m: tokens(m, *[1] * (CONTEXT + 1)), "data[0].model_input"),
    "no tokens": (tokens, "data[0]"),
    "empty batch": (lambda m: m.ClearField("data"), "data"),
    "no targets": (lambda m: m.data[0].loss_fn_inputs.pop("target_tokens"), "data[0].loss_fn_inputs"),
    "wrong dtype": (
        lambda m: inputs(m, weights=dense([1] * (len(TOKENS) - 1), "int64")),
        "data[0].loss_fn_inputs.weights",
    ),
    "bytes that do not fill the shape": (
        lambda m: inputs(m, weights=dense([1.0], "float32", [len(TOKENS) - 1])),
        "data[0].loss_fn_inputs.weights",
    ),
    "huge shape": (
        lambda m: inputs(m, weights=dense([1.0], "float32", [2**31, 2**31])),
        "data[0].loss_fn_inputs.weights",
    ),
    "negative shape": (
        lambda m: inputs(m, weights=dense([1.0], "float32", [-1])),
        "data[0].loss_fn_inputs.weights",
    ),
    "unknown loss": (lambda m: setattr(m, "loss_fn", "stable_reinforce"), "loss_fn"),
    "unknown setting": (
        lambda m: m.loss_fn_config.update({"temperature": 1.0}),
        "loss_fn_config.temperature",
    ),
    "unit id in a run that is not private": (
        lambda m: inputs(m, dp_unit_id=dense([1], "int64")),
        "data[0].loss_fn_inputs.dp_unit_id",
    ),
}


@pytest.mark.parametrize("what", TRAINING)
def test_bad_training_data(run: Run, what: str) -> None:
    change, field = TRAINING[what]
    seq = run.take()
    status, _, found = run.client.refusal(run.client.changed(run.id, seq, change), run.id, seq)
    assert status == 422
    assert found is not None
    assert found.startswith(field), found
    assert field in run.client.future(f"{run.id}:{seq}").json()["error"]


def test_negative_or_huge_numbers_of_the_native_face(run: Run, own: str) -> None:
    path = f"/v1/training_clients/{own}/forward_backward"
    for body, field in (
        (batch(example([1, -2, 3])), "data[0].tokens"),
        (batch(example([1, 2**40, 3])), "data[0].tokens"),
        (batch(example([1, 10**6, 3])), "data[0].tokens"),
        (batch(example(weights=[1.0])), "data[0].loss_fn_inputs.weights"),
        (batch(example(weights=["a"] * 11)), "data[0].loss_fn_inputs.weights[0]"),
        (batch(example(target_tokens=[1.5] * 11)), "data[0].loss_fn_inputs.target_tokens"),
        ({"data": [], "loss_fn": "cross_entropy"}, "data"),
        ({**batch(), "loss_function": "x"}, "loss_function"),
    ):
        assert problem(run.client.post(path, body)) == (422, "invalid_request", field)
    raw = json.dumps(batch(example(weights=[float("nan")] * 11)))
    answer = run.client.http.post(path, content=raw, headers={"Content-Type": "application/json"})
    assert problem(answer) == (422, "invalid_request", "data[0].loss_fn_inputs.weights[0]")
    assert "finite" in answer.json()["detail"]


def test_an_unknown_model_and_ranks_out_of_range(run: Run, service: Service) -> None:
    client, session = run.client, run.client.session()
    body = {"session_id": session, "model_seq_id": 0, "base_model": MODEL_NAME}
    unknown = {**body, "base_model": "no/such", "lora_config": {"rank": 4}}
    assert problem(client.post("/api/v1/create_model", unknown)) == (404, "not_found", "base_model")
    assert MODEL_NAME in client.post("/api/v1/create_model", unknown).json()["detail"]
    for rank in (0, -1, 65, 257, 10**30):
        asked = client.post("/api/v1/create_model", {**body, "lora_config": {"rank": rank}})
        assert problem(asked) == (422, "invalid_request", "lora_config.rank"), rank
        native = client.post("/v1/training_clients", {"base_model": MODEL_NAME, "lora": {"rank": rank}})
        assert problem(native) == (422, "invalid_request", "lora.rank"), rank
    assert problem(client.post("/v1/training_clients", {"base_model": "no/such"}))[0] == 404
    nothing = {"train_attn": False, "train_mlp": False, "train_unembed": False, "rank": 4}
    assert problem(client.post("/api/v1/create_model", {**body, "lora_config": nothing}))[0] == 422


def test_truncated_and_foreign_bytes(run: Run) -> None:
    seq = run.take()
    whole = training_message(run.id, seq).SerializeToString()
    for cut in (len(whole) - 1, len(whole) // 2, 60):
        refused = run.client.refusal(run.client.data(whole[:cut]), run.id, seq)
        assert refused[:2] == (422, "invalid_request")
    seq = run.take()
    compressed = zstandard.compress(training_message(run.id, seq).SerializeToString())
    longer = run.client.data(compressed + b"x", Content_Encoding="zstd")
    assert run.client.refusal(longer, run.id, seq)[:2] == (422, "invalid_request")
    # What does not say where it belongs is refused itself.
    for raw in (compressed[:-3], compressed[:40], b"\x28\xb5\x2f\xfd" + b"\0" * 40):
        assert problem(run.client.data(raw, Content_Encoding="zstd"))[:2] == (422, "invalid_request")
    for raw in (b"", b"\0" * 1000, b"{}", np.random.default_rng(1).bytes(5000)):
        assert problem(run.client.data(raw))[:2] == (422, "invalid_request")
    as_json = run.client.http.post("/api/v1/forward_backward", json={"model_id": run.id})
    assert problem(as_json) == (422, "unsupported", "Content-Type")
    message = training_message(run.id, run.take())
    unread = run.client.data(message, Content_Encoding="gzip")
    assert run.client.refusal(unread, run.id, message.seq_id)[2] == "Content-Encoding"


@pytest.mark.one_machine("measures the API's process; Lambda's cap is smaller than what is sent")
def test_bombs(run: Run, own: str, service: Service) -> None:
    api = psutil.Process(service.role_pids("api")[0])
    before = api.memory_info().rss

    def refused(seq: int, answer: httpx.Response) -> tuple[int, str, str | None]:
        return run.client.refusal(answer, run.id, seq)

    message = training_message(run.id, run.take())
    inputs(message, weights=dense(np.zeros(64 * 1024 * 1024 // 4), "float32"))
    bomb = zstandard.compress(message.SerializeToString())
    assert len(bomb) < 100_000
    too_large = (422, "payload_too_large", "body")
    assert refused(message.seq_id, run.client.data(bomb, Content_Encoding="zstd")) == too_large
    # Without a declared size, and as a tower of frames.
    message.seq_id = run.take()
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(message.SerializeToString())
    assert refused(message.seq_id, run.client.data(streamed, Content_Encoding="zstd")) == too_large
    message.seq_id = run.take()
    bomb = zstandard.compress(message.SerializeToString())
    tower = run.client.data(bomb + bomb, Content_Encoding="zstd")
    assert refused(message.seq_id, tower)[1] in ("payload_too_large", "invalid_request")
    many = training_message(run.id, run.take())
    many.data.extend([pb.Datum()] * 300_000)
    assert refused(many.seq_id, run.client.data(many))[1] == "payload_too_large"
    path = f"/v1/training_clients/{own}/forward_backward"
    for raw in (
        b"[" * 1_000_000,
        b'{"data":' * 100_000,
        b'{"data":[{"tokens":[' + b",".join([b'""'] * 2_000_000) + b"]}]}",
        b"{" + b",".join(b'"%d":1' % i for i in range(400_000)) + b"}",
        b'{"data":[{"tokens":[' + b"9" * 4_000_000 + b"]}]}",
    ):
        answer = run.client.http.post(path, content=raw, headers={"Content-Type": "application/json"})
        assert problem(answer)[0] in (413, 422)
    assert api.memory_info().rss - before < RSS_GROWTH_MAX_BYTES


def test_a_seq_used_twice_or_left_out(run: Run) -> None:
    seq = run.take()
    first = run.client.step(run.id, seq, learning_rate=1e-3)
    assert run.client.step(run.id, seq, learning_rate=1e-3).json() == first.json()
    other = run.client.step(run.id, seq, learning_rate=2e-3)
    assert problem(other) == (422, "conflict", "seq_id")
    assert run.client.future(f"{run.id}:{seq}").json()["metrics"] is not None
    assert problem(run.client.step(run.id, 0))[2] == "seq_id"
    assert problem(run.client.step(run.id, -1))[2] == "seq_id"
    far = run.client.step(run.id, seq + 1_000_000)
    assert problem(far) == (422, "invalid_request", "seq_id")
    assert problem(run.client.step(run.id, 2**63))[0] == 422
    # A seq ahead of its turn waits, and is done once the one before it has come.
    left_out, ahead = run.take(), run.take()
    assert run.client.step(run.id, ahead).status_code == 200
    assert run.client.post("/api/v1/cancel_future", {"request_id": f"{run.id}:{left_out}"}).status_code == 404
    assert run.client.step(run.id, left_out).status_code == 200
    assert "metrics" in run.client.future(f"{run.id}:{ahead}", timeout_s=10).json()


def test_metadata_that_no_record_holds_is_refused_at_once(run: Run, own: str) -> None:
    """It would fail in the trainer's transaction, three times, and block the run."""
    metadata = {f"k{i}": "\u6f22" * 4000 for i in range(60)}
    seq = run.take()
    body = {"model_id": run.id, "seq_id": seq, "path": "big", "user_metadata": metadata}
    assert problem(run.client.post("/api/v1/save_weights", body))[:2] == (413, "payload_too_large")
    assert "payload_too_large" in run.client.future(f"{run.id}:{seq}").json()["error"]
    small = {**body, "seq_id": run.take(), "user_metadata": {f"k{i}": "v" * 4000 for i in range(20)}}
    assert problem(run.client.post("/api/v1/save_weights", small))[2] == "user_metadata"
    native = {"name": "big", "user_metadata": {"k": "v" * 200_000}}
    path = f"/v1/training_clients/{own}/save_state"
    assert problem(run.client.post(path, native))[2] == "user_metadata"


@pytest.mark.parametrize(
    "name", ["", ".hidden", "a/b", "../x", "x" * 129, "session-weights-0", "a b", "\u00e9"]
)
def test_checkpoint_names(run: Run, own: str, name: str) -> None:
    path = f"/v1/training_clients/{own}/save_state"
    assert problem(run.client.post(path, {"name": name})) == (422, "invalid_request", "name")
    body = {"model_id": run.id, "seq_id": run.take(), "path": name}
    assert problem(run.client.post("/api/v1/save_weights", body)) == (422, "invalid_request", "path")


SAMPLES: dict[str, tuple[dict[str, object], str]] = {
    "empty prompt": ({"prompt": []}, "prompt"),
    "token outside the vocabulary": ({"prompt": [1, 10**6]}, "prompt[1]"),
    "negative token": ({"prompt": [-1]}, "prompt[0]"),
    "prompt fills the context": ({"prompt": [1] * CONTEXT}, "prompt"),
    "no samples": ({"prompt": [1], "num_samples": 0}, "num_samples"),
    "too many samples": ({"prompt": [1], "num_samples": 10**6}, "num_samples"),
    "temperature": ({"prompt": [1], "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
    "hot": ({"prompt": [1], "sampling_params": {"temperature": 1e9}}, "sampling_params.temperature"),
    "top_p": ({"prompt": [1], "sampling_params": {"top_p": 0}}, "sampling_params.top_p"),
    "top_k": ({"prompt": [1], "sampling_params": {"top_k": -2}}, "sampling_params.top_k"),
    "large top_k": ({"prompt": [1], "sampling_params": {"top_k": 2**80}}, "sampling_params.top_k"),
    "large max_tokens": (
        {"prompt": [1], "sampling_params": {"max_tokens": 2**80}},
        "sampling_params.max_tokens",
    ),
    "large seed": ({"prompt": [1], "sampling_params": {"seed": 2**80}}, "sampling_params.seed"),
    "large stop": ({"prompt": [1], "sampling_params": {"stop": [2**80]}}, "sampling_params.stop"),
    "large token": ({"prompt": [2**80]}, "prompt[0]"),
    "max_tokens": ({"prompt": [1], "sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
    "stop": ({"prompt": [1], "sampling_params": {"stop": [""]}}, "sampling_params.stop"),
    "stop token": ({"prompt": [1], "sampling_params": {"stop": [-1]}}, "sampling_params.stop"),
    "seed": ({"prompt": [1], "sampling_params": {"seed": -1}}, "sampling_params.seed"),
    "logprobs": ({"prompt": [1], "topk_prompt_logprobs": 65}, "topk_prompt_logprobs"),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_bad_sampling_requests(run: Run, own: str, what: str) -> None:
    body, field = SAMPLES[what]
    answer = run.client.post(f"/v1/training_clients/{own}/sample", body)
    status, _, found = problem(answer)
    assert (status, found) == (422, field)
    assert answer.json()["detail"] != field


def test_sampling_at_the_edges_of_what_is_allowed(run: Run, own: str) -> None:
    """Either it works or its future fails with a cause; the engine goes on."""
    for params in (
        {"max_tokens": 1_000_000, "stop": [0, 1, 2]},
        {"max_tokens": 2, "seed": 2**63 - 1},
        {"max_tokens": 2, "stop": [2**31 - 1]},
        {"max_tokens": 2, "stop": ["\u0000", "\U0001f600"]},
        {"max_tokens": 2, "top_k": 2**31 - 1},
        {"max_tokens": 2, "temperature": 0.01, "top_p": 1e-9},
    ):
        body = {"prompt": [5] * (CONTEXT - 4), "sampling_params": params}
        done = run.client.wait(run.client.submit(own, "sample", body))
        assert done.status_code in (200, 422), done.text


def test_optimizer_values_that_make_no_step(run: Run) -> None:
    for params in (
        {"beta1": 1.0},
        {"eps": 0},
        {"learning_rate": -1},
        {"grad_clip_norm": -1},
        {"momentum": 1},
    ):
        seq = run.take()
        answer = run.client.step(run.id, seq, **params)
        (name,) = params
        assert problem(answer)[::2] == (422, f"adam_params.{name}")
    raw = {"learning_rate": float("nan")}
    content = json.dumps({"model_id": run.id, "seq_id": run.take(), "adam_params": raw})
    answer = run.client.http.post("/api/v1/optim_step", content=content)
    assert problem(answer)[::2] == (422, "adam_params.learning_rate")


def test_weights_of_another_tenant_or_of_no_form(run: Run, service: Service) -> None:
    other = TinkerHttp(service, make_key(service, f"other-{uuid4().hex[:8]}"))
    theirs = other.create()
    other.save(theirs, "secret")
    for path, status in (
        (f"tinker://{theirs}/weights/secret", 404),
        (f"tinker://{theirs}/weights/../weights/secret", 422),
        (f"tinker://{theirs}/weights%2Fsecret", 422),
        (f"{theirs}/weights/secret", 422),
        ("tinker://x/weights/secret", 422),
        ("file:///etc/passwd", 422),
    ):
        body = {"model_id": run.id, "seq_id": run.take(), "path": path, "optimizer": False}
        assert problem(run.client.post("/api/v1/load_weights", body))[0] == status, path


@pytest.mark.one_machine("a gateway answers what is none of its routes")
def test_ids_that_are_no_ids(run: Run) -> None:
    client = run.client
    for text_ in ("%00", "x" * 300, "a b", "..%2F..", "%F0%9F%98%80", "'", "x:train:0", "x:train:01"):
        for path in (
            f"/v1/training_clients/{text_}",
            f"/v1/futures/{text_}",
            f"/v1/artifacts/{text_}",
            f"/api/v1/samplers/{text_}",
            f"/api/v1/sessions/{text_}",
            f"/api/v1/training_runs/{text_}",
        ):
            assert problem(client.get(path))[:2] == (404, "not_found"), path


@pytest.mark.one_machine("a gateway has limits of its own")
def test_a_head_of_ten_megabytes_and_a_body_of_a_hundred(service: Service, run: Run) -> None:
    api = psutil.Process(service.role_pids("api")[0])
    before = api.memory_info().rss
    peak = before
    key = run.client.http.headers["x-api-key"].encode()
    head = b"POST /v1/training_clients HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key + b"\r\n"
    block = b"a" * 65536

    def pour(first: bytes, piece: bytes, times: int) -> bytes:
        nonlocal peak
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            try:
                connection.sendall(first)
                for _ in range(times):
                    connection.sendall(piece)
                    peak = max(peak, api.memory_info().rss)
                return connection.recv(200)
            except (ConnectionError, TimeoutError):
                return b""

    for answer in (
        pour(head + b"X-Big: ", block, 160),
        pour(head, b"X-Small: a\r\n" * 5000, 160),
        pour(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: ", block, 160),
    ):
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    for framing, piece in (
        (b"Content-Length: 104857600\r\n\r\n", block),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + block + b"\r\n"),
    ):
        assert pour(head + framing, piece, 1600).startswith(b"HTTP/1.1 413 ")
    assert peak - before < RSS_GROWTH_MAX_BYTES


def test_an_upload_over_the_cap_leaves_no_gap(run: Run) -> None:
    """The SDK sends one oversized datum whole, and counts its seq_id."""
    for encoding in (None, "zstd"):
        message = training_message(run.id, run.take())
        inputs(message, weights=dense(np.random.default_rng(1).random(5_000_000), "float32"))
        raw = message.SerializeToString()
        if encoding:
            answer = run.client.data(zstandard.compress(raw), Content_Encoding=encoding)
        else:
            answer = run.client.data(raw)
        refused = run.client.refusal(answer, run.id, message.seq_id)
        assert refused == (422, "payload_too_large", "body")


@pytest.mark.one_machine("a gateway collects the body")
def test_a_client_that_hangs_up_in_the_middle(service: Service, run: Run) -> None:
    key = run.client.http.headers["x-api-key"].encode()
    for path in (b"/api/v1/forward_backward", b"/v1/training_clients"):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key
            connection.sendall(head + b"\r\nContent-Length: 1000\r\n\r\nhalf")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert httpx.get(f"{service.url}/healthz").status_code == 200


@pytest.mark.one_machine("a gateway answers what is none of its routes")
def test_wrong_methods_and_content_types(run: Run) -> None:
    client = run.client
    assert problem(client.http.put("/v1/training_clients"))[:2] == (405, "method_not_allowed")
    assert problem(client.get("/v1/nothing"))[:2] == (404, "not_found")
    form = client.http.post("/v1/training_clients", data={"base_model": MODEL_NAME})
    assert problem(form)[:2] == (422, "invalid_request")
    for content in (b"", b"null", b'"x"', b"[]", b"\xff\xfe", b"{} {}"):
        assert problem(client.http.post("/v1/training_clients", content=content))[:2] == (
            422,
            "invalid_request",
        )
