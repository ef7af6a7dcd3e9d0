"""The API's function in this process, asked for each of its routes while a trainer and a sampler work.

What it calls on AWS depends on what is there: runs with checkpoints, private ones and dealt ones, sampling
sessions, exports, and answers that are too large for Lambda.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from tensafe.contracts.execution import ExecutionPolicy
from tensafe.lambdas.api import LIMITS
from tensafe.lambdas.entry import Handler
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.placements import Placement
from tensafe.operations.streams import now_ms
from tensafe.packages.bundle import pack_files
from tensafe.privacy.content import unit_content_hash
from tensafe.services import Services
from tests.support import dealt_training
from tests.support.lambda_runtime.gateway import http_event, http_response
from tests.support.native import batch
from tests.support.tinker_http import PROTOBUF, training_message

TENANT: Final = "acme"
URL: Final = "https://tensafe.example"
TOO_LARGE: Final = LIMITS.answer_bytes or 0
REFUSED: Final = {
    "POST /api/v1/auth/token": "keys are sent as they are",
    "POST /api/v1/copy_weights": "a checkpoint stays under its run's key",
    "POST /api/v1/create_custom_loss": "the client computes it",
    "POST /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish": "nothing is public",
    "DELETE /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish": "nothing is public",
    "GET /v1/privacy/domains/{name}/plan": "the functions' package has no accountant",
}
"""Routes that answer nobody on AWS, and why."""


class ThroughHandler(httpx.BaseTransport):
    """Every request is an event of the function's handler; `statuses` has how each route answered."""

    def __init__(self, handler: Handler, routes: Mapping[str, bool]) -> None:
        self._handler = handler
        literal_first = sorted(routes, key=lambda route: route.count("{"))
        self._patterns = [(re.compile(_pattern(route)), route) for route in literal_first]
        self.statuses: dict[str, set[int]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        event = http_event(
            request.method, str(request.url), headers=dict(request.headers), body=request.read()
        )
        answer = http_response(self._handler(event, None))
        asked = f"{request.method} {request.url.path}"
        route = next(route for pattern, route in self._patterns if pattern.fullmatch(asked))
        self.statuses.setdefault(route, set()).add(answer.status)
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


def _pattern(route: str) -> str:
    """API Gateway's `{name}` is one segment, `{name+}` all that follow."""
    return re.sub(r"\\\{\w+(\\\+)?\\\}", lambda part: ".+" if part[1] else "[^/]+", re.escape(route))


@dataclass
class Client:
    """A tenant of the API. `drain` has the trainer do all that was submitted."""

    http: httpx.Client
    drain: Callable[[], None]
    base: str
    services: Services
    """Of somebody else, who puts what the API finds."""

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of the answer, if it is a good one; of an answer left elsewhere, once it is fetched."""
        sent = {"json": body} if body is not None else {}
        answer = self.http.request(method, path, **sent, **more)
        assert answer.status_code < 400, (method, path, answer.status_code, answer.text[:500])
        if answer.status_code == 303:
            answer = httpx.get(answer.headers["location"])
            assert answer.status_code == 200, answer.text
        is_json = answer.content and answer.headers.get("content-type", "") == "application/json"
        return answer.json() if is_json else answer.content

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.ok("POST", path, {} if body is None else body, **more)

    def get(self, path: str) -> Any:
        return self.ok("GET", path)

    def tinker(self, path: str, body: Any) -> Any:
        """Submit over the Tinker face, have it done, and take the result."""
        self.post(f"/api/v1/{path}", body)
        self.drain()
        return self.retrieved(f"{body['model_id']}:{body['seq_id']}")

    def retrieved(self, request_id: str) -> Any:
        return self.post("/api/v1/retrieve_future", {"request_id": request_id})

    def native(self, run: str, operation: str, body: Any = None) -> Any:
        """The same over the native face."""
        future = self.post(f"/v1/training_clients/{run}/{operation}", body)
        self.drain()
        return self.get(f"/v1/futures/{future['id']}/result")

    def refused(self, method: str, path: str, body: Any = None) -> None:
        answer = self.http.request(method, path, **({} if body is None else {"json": body}))
        assert answer.status_code in (404, 422, 501), (method, path, answer.text)


def ask_for_all(client: Client) -> None:
    """Every route at least once, and answered."""
    for path in ("/healthz", "/readyz", "/version", "/openapi.json", "/api/v1/healthz"):
        client.http.get(path)
    session = _sessions(client)
    run = _training(client, session)
    _checkpoints(client, run)
    _sampling(client, session, run)
    _native(client)
    _domains(client)
    _text(client, run)
    client.post(f"/api/v1/sessions/{session}/finish", {"reason": {"type": "success"}})


def _sessions(client: Client) -> str:
    for path in ("client/config", "client/dynamic_config"):
        client.post(f"/api/v1/{path}", {"sdk_version": "0.38.0"})
    client.refused("POST", "/api/v1/auth/token", {})
    made = client.post("/api/v1/create_session", {"tags": [], "sdk_version": "0.38.0"})
    session = str(made["session_id"])
    client.post("/api/v1/telemetry", {"events": [], "sdk_version": "0.38.0", "session_id": session})
    client.post("/api/v1/session_heartbeat", {"session_id": session})
    for path in ("get_server_capabilities", "auth/apikey/me", "sessions"):
        client.get(f"/api/v1/{path}")
    return session


def _training(client: Client, session: str) -> str:
    run = f"{session}:train:0"
    made = {"session_id": session, "base_model": client.base, "lora_config": {"rank": 2, "seed": 1}}
    client.post("/api/v1/create_model", {**made, "model_seq_id": 0})
    client.drain()
    client.retrieved(f"{run}:0")
    client.post("/api/v1/get_info", {"model_id": run})
    message = training_message(run, 1).SerializeToString()
    client.ok("POST", "/api/v1/forward_backward", content=message, headers={"Content-Type": PROTOBUF})
    client.tinker("optim_step", {"model_id": run, "seq_id": 2, "adam_params": {"learning_rate": 1e-3}})
    client.retrieved(f"{run}:1")
    client.refused("POST", "/api/v1/create_custom_loss", {"session_id": session, "name": "x"})
    for seq, (path, named) in enumerate(
        [
            ("save_weights", {"path": "state"}),
            ("save_weights_for_sampler", {"path": "mine"}),
            ("save_weights_for_sampler", {"sampling_session_seq_id": 0}),
            ("save_weights_external", {"path": "export"}),
        ],
        start=3,
    ):
        client.tinker(path, {"model_id": run, "seq_id": seq, **named})
    path = f"tinker://{run}/weights/state"
    client.tinker("load_weights", {"model_id": run, "seq_id": 7, "path": path, "optimizer": True})
    loaded = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": True}
    client.post("/api/v1/load_weights", loaded)
    client.drain()
    client.retrieved(f"{session}:train:1:0")
    client.get(f"/api/v1/sessions/{session}")
    return run


def _saved(client: Client, run: str, kind: CheckpointKind, data: bytes) -> str:
    """A checkpoint larger than an answer may be, as a large model's is; its artifact's id."""
    services = client.services
    stream = services.streams.get(run, TENANT)
    checkpoint = Checkpoint(
        run_id=run, tenant=TENANT, kind=kind, name="large", base_model=client.base, created_ms=now_ms(),
        ref=services.artifacts.write(stream.scope, f"ckpt/{kind.value}/large", data),
        artifact_id=f"art-{kind.value}",
    )  # fmt: skip
    services.ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))
    return checkpoint.artifact_id


def _checkpoints(client: Client, run: str) -> None:
    large = bytes(TOO_LARGE + 1)
    _saved(client, run, CheckpointKind.EXTERNAL, pack_files({"adapter_model.safetensors": large}))
    content = client.get(f"/v1/artifacts/{_saved(client, run, CheckpointKind.TRAINING, large)}/content")
    assert content == large
    client.get("/api/v1/training_runs")
    client.get(f"/api/v1/training_runs/{run}")
    client.get(f"/api/v1/training_runs/{run}/checkpoints")
    client.get("/api/v1/checkpoints")
    of_run = f"/api/v1/training_runs/{run}/checkpoints"
    for name in ("export", "large"):
        for url in client.get(f"{of_run}/external_weights/{name}/external_weights_urls")["urls"].values():
            client.get(url)
    client.refused("POST", f"{of_run}/weights/state/publish")
    client.refused("DELETE", f"{of_run}/weights/state/publish")
    client.refused("POST", "/api/v1/copy_weights", {"source_path": f"tinker://{run}/weights/state"})
    client.ok("PUT", f"{of_run}/weights/state/ttl", {"ttl_seconds": 3600})
    client.post("/api/v1/weights_info", {"tinker_path": f"tinker://{run}/weights/state"})
    client.ok("DELETE", f"{of_run}/weights/large")


def _sample(sampler: str, seq: int, max_tokens: int) -> dict[str, Any]:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}
    params = {"max_tokens": max_tokens}
    return {"sampling_session_id": sampler, "seq_id": seq, "prompt": prompt, "sampling_params": params}


def _sampling(client: Client, session: str, run: str) -> None:
    asked = {"session_id": session, "sampling_session_seq_id": 1, "base_model": client.base}
    base = str(client.post("/api/v1/create_sampling_session", asked)["sampling_session_id"])
    path = f"tinker://{run}/sampler_weights/mine"
    asked = {"session_id": session, "sampling_session_seq_id": 2, "model_path": path}
    weights = str(client.post("/api/v1/create_sampling_session", asked)["sampling_session_id"])
    client.post("/api/v1/join_sampling_session", {"sampling_session_id": base})
    client.get(f"/api/v1/samplers/{weights}")
    for sampler, seq, tokens in ((base, 1, 5), (base, 2, TOO_LARGE // 8 + 1000), (weights, 1, 5)):
        client.post("/api/v1/asample", _sample(sampler, seq, tokens))
        client.retrieved(f"{sampler}:{seq}")
        client.get(f"/v1/futures/{sampler}:{seq}/attestation")
    client.post("/api/v1/retrieve_futures", {"target": {"sampling_session_id": base}})
    client.post("/api/v1/cancel_future", {"request_id": f"{base}:1"})


def _native(client: Client) -> None:
    made = {"base_model": client.base, "lora": {"rank": 2, "seed": 1}}
    created = client.post("/v1/training_clients", made, headers={"Idempotency-Key": "one"})
    run = str(created["training_client"]["id"])
    of_run = f"/v1/training_clients/{run}"
    client.post(f"{of_run}/optim_step")  # to be cancelled while the run is not there yet
    client.post(f"/v1/futures/{run}:1/cancel")
    client.drain()
    client.get("/v1/training_clients")
    client.get(of_run)
    many = batch(*[batch()["data"][0]] * 700)  # more than an item has room for
    client.native(run, "forward_backward", many)
    client.native(run, "optim_step")
    client.native(run, "save_state", {"name": "final"})
    client.native(run, "sample", {"prompt": [1, 2], "sampling_params": {"max_tokens": TOO_LARGE // 5}})
    client.post(f"{of_run}/load_state", {"name": "final"})
    client.drain()
    (state, *_) = client.get(f"{of_run}/artifacts")["artifacts"]
    client.get(f"/v1/artifacts/{state['id']}")
    client.get(f"/v1/artifacts/{state['id']}/content")
    client.get(f"/v1/futures/{run}:0")
    client.ok("DELETE", of_run)


def _registered(client: Client, name: str) -> str:
    """A domain with the dealt training's units on its first page; where it is."""
    of_domain = f"/v1/privacy/domains/{name}"
    client.post("/v1/privacy/domains", {"name": name, "unit": "user", "delta": 1e-5, "max_epsilon": 30.0})
    key = bytes.fromhex(client.get(f"{of_domain}/content_key")["content_key"])
    units = range(dealt_training.UNITS)
    entries = b"".join(
        unit.to_bytes(8, "big", signed=True) + unit_content_hash(key, unit, dealt_training.data_of(unit))
        for unit in units
    )
    for page in (0, 1):
        client.ok("PUT", f"{of_domain}/units/{page}", content=entries)
    client.ok("DELETE", f"{of_domain}/units/1")
    client.post(f"{of_domain}/finish", {"units": len(units)})
    return of_domain


def _domains(client: Client) -> None:
    of_domain = _registered(client, dealt_training.DOMAIN)
    client.post(f"{_registered(client, 'closed')}/close")
    optimizer = dealt_training.dealt(max_steps=3, sampling_probability=0.25)
    made = {
        "base_model": client.base,
        "lora": {"rank": 2, "seed": 7},
        "optimizer": optimizer.model_dump(mode="json", exclude_none=True),
    }
    run = str(client.post("/v1/training_clients", made)["training_client"]["id"])
    client.drain()
    deals = f"/v1/training_clients/{run}/deals"
    units = client.post(deals, {"step": 0})["unit_ids"]
    if units:
        client.native(run, "forward_backward", dealt_training.body(units))
    client.native(run, "optim_step")
    client.native(run, "save_state", {"name": "private"})
    client.post(deals, {"step": 1})
    client.post(f"{deals}/1/abandon")
    client.get(deals)
    (state,) = client.get(f"/v1/training_clients/{run}/artifacts")["artifacts"]
    client.get(f"/v1/artifacts/{state['id']}/privacy_statement")
    client.get("/v1/privacy/domains")
    for path in ("", "/ledger", "/export"):
        client.get(of_domain + path)
    client.refused("GET", f"{of_domain}/plan?batch_size=4&epochs=1")


def _text(client: Client, run: str) -> None:
    private = Placement(
        run_id=run, name="private", tenant=TENANT, base_model=client.base, policy=ExecutionPolicy.HE_REQUIRED,
        address="tcp:h:1", adapter="a", version=1, holder_tenant="sampler", created_ms=1,
    )  # fmt: skip
    client.services.placements.add(private)
    models = [client.base, f"tinker://{run}/sampler_weights/mine", private.path]
    client.get("/v1/models")
    for model in models:
        client.get(f"/v1/models/{model}")
        client.post("/v1/completions", {"model": model, "prompt": "Hi"})
        client.post("/v1/sample", {"model": model, "prompt": [1, 2]})
    message = {"role": "user", "content": "Hi"}
    for stream in (False, True):
        client.post("/v1/chat/completions", {"model": client.base, "messages": [message], "stream": stream})
