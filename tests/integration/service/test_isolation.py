"""What belongs to another tenant answers, byte for byte, as what never existed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest

from tests.support.native import TOKENS, batch, make_key, problem, without_request_id
from tests.support.service import Service
from tests.support.tinker_http import TinkerHttp, training_message


@dataclass(frozen=True)
class Names:
    """What one tenant's things are called; or what nothing is called."""

    session: str
    artifact: str

    @property
    def run(self) -> str:
        return f"{self.session}:train:0"

    @property
    def sampler(self) -> str:
        return f"{self.session}:sample:0"

    def path(self, kind: str) -> str:
        return f"tinker://{self.run}/{kind}/mine"


Ask = Callable[[TinkerHttp, Names], httpx.Response]


@pytest.fixture(scope="module")
def alice(service: Service) -> tuple[TinkerHttp, Names]:
    """A tenant with one of everything."""
    client = TinkerHttp(service, make_key(service, f"alice-{uuid4().hex[:8]}"))
    session = client.session()
    run = client.new_run(session)
    seq = client.trains(run, 1)
    for path in ("save_weights", "save_weights_for_sampler", "save_weights_external"):
        body = {"model_id": run, "seq_id": seq, "path": "mine"}
        client.future(client.ok(path, body)["request_id"]).raise_for_status()
        seq += 1
    body = {"model_id": run, "seq_id": seq, "sampling_session_seq_id": 0}
    saved = client.future(client.ok("save_weights_for_sampler", body)["request_id"]).json()
    assert saved["sampling_session_id"] == f"{session}:sample:0"
    client.future(client.ok("asample", sample(f"{session}:sample:0"))["request_id"]).raise_for_status()
    listed = client.get(f"/v1/training_clients/{run}/artifacts").json()["artifacts"]
    return client, Names(session, next(a["id"] for a in listed if a["kind"] == "weights"))


@pytest.fixture(scope="module")
def bob(service: Service) -> TinkerHttp:
    return TinkerHttp(service, make_key(service, f"bob-{uuid4().hex[:8]}"))


def sample(sampler: str, seq: int = 1) -> dict[str, object]:
    return {
        "sampling_session_id": sampler,
        "seq_id": seq,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": TOKENS[:3]}]},
        "sampling_params": {"max_tokens": 4},
    }


def post(path: str, body: Callable[[Names], object]) -> Ask:
    return lambda client, names: client.post(path.format(n=names), body(names))


def call(method: str, path: str) -> Ask:
    return lambda client, names: client.http.request(method, path.format(n=names))


NATIVE = "/v1/training_clients/{n.run}"
CHECKPOINT = "/api/v1/training_runs/{n.run}/checkpoints/weights/mine"
EXTERNAL = "/api/v1/training_runs/{n.run}/checkpoints/external_weights/mine"
ASKS: dict[str, Ask] = {
    "native run": call("GET", NATIVE),
    "native erase": call("DELETE", NATIVE),
    "native artifacts": call("GET", NATIVE + "/artifacts"),
    "native forward_backward": post(NATIVE + "/forward_backward", lambda n: batch()),
    "native optim_step": post(NATIVE + "/optim_step", lambda n: {}),
    "native save_state": post(NATIVE + "/save_state", lambda n: {"name": "x"}),
    "native load_state": post(NATIVE + "/load_state", lambda n: {"name": "mine"}),
    "native sample": post(NATIVE + "/sample", lambda n: {"prompt": [1]}),
    "native sample of saved weights": post(
        "/v1/sample", lambda n: {"model": n.path("sampler_weights"), "prompt": [1]}
    ),
    "native future": call("GET", "/v1/futures/{n.run}:1"),
    "native result": call("GET", "/v1/futures/{n.run}:1/result"),
    "native cancel": call("POST", "/v1/futures/{n.run}:1/cancel"),
    "native sample's result": call("GET", "/v1/futures/{n.sampler}:1/result"),
    "artifact": call("GET", "/v1/artifacts/{n.artifact}"),
    "artifact content": call("GET", "/v1/artifacts/{n.artifact}/content"),
    "privacy statement": call("GET", "/v1/artifacts/{n.artifact}/privacy_statement"),
    "get_info": post("/api/v1/get_info", lambda n: {"model_id": n.run}),
    "forward_backward": lambda client, n: client.data(training_message(n.run, 20)),
    "optim_step": lambda client, n: client.step(n.run, 20),
    "save": post("/api/v1/save_weights", lambda n: {"model_id": n.run, "seq_id": 20, "path": "x"}),
    "load into": post(
        "/api/v1/load_weights",
        lambda n: {"model_id": n.run, "seq_id": 20, "path": n.path("weights"), "optimizer": True},
    ),
    "load path": post(
        "/api/v1/load_weights",
        lambda n: {"session_id": "s-1", "model_seq_id": 9, "path": n.path("weights"), "optimizer": True},
    ),
    "weights_info": post("/api/v1/weights_info", lambda n: {"tinker_path": n.path("weights")}),
    "create_model in the session": post(
        "/api/v1/create_model",
        lambda n: {
            "session_id": n.session,
            "model_seq_id": 7,
            "base_model": "x",
            "lora_config": {"rank": 4},
        },
    ),
    "create_sampling_session in the session": post(
        "/api/v1/create_sampling_session",
        lambda n: {"session_id": n.session, "sampling_session_seq_id": 7, "base_model": "x"},
    ),
    "join": post("/api/v1/join_sampling_session", lambda n: {"sampling_session_id": n.sampler}),
    "sampler": call("GET", "/api/v1/samplers/{n.sampler}"),
    "asample": post("/api/v1/asample", lambda n: sample(n.sampler, 9)),
    "retrieve_future": post("/api/v1/retrieve_future", lambda n: {"request_id": f"{n.run}:1"}),
    "retrieve_future of a sample": post(
        "/api/v1/retrieve_future", lambda n: {"request_id": f"{n.sampler}:1"}
    ),
    "retrieve_futures": post(
        "/api/v1/retrieve_futures", lambda n: {"target": {"sampling_session_id": n.sampler}}
    ),
    "cancel_future": post("/api/v1/cancel_future", lambda n: {"request_id": f"{n.run}:1"}),
    "session": call("GET", "/api/v1/sessions/{n.session}"),
    "heartbeat": post("/api/v1/session_heartbeat", lambda n: {"session_id": n.session}),
    "finish": post("/api/v1/sessions/{n.session}/finish", lambda n: {"reason": {"type": "success"}}),
    "training run": call("GET", "/api/v1/training_runs/{n.run}"),
    "checkpoints": call("GET", "/api/v1/training_runs/{n.run}/checkpoints"),
    "delete checkpoint": call("DELETE", CHECKPOINT),
    "publish": call("POST", CHECKPOINT + "/publish"),
    "ttl": lambda client, n: client.http.put(CHECKPOINT.format(n=n) + "/ttl", json={"ttl_seconds": 3600}),
    "urls": call("GET", EXTERNAL + "/external_weights_urls"),
}


@pytest.mark.parametrize("what", ASKS)
def test_another_tenants_thing_is_as_absent_as_nothing(
    what: str, alice: tuple[TinkerHttp, Names], bob: TinkerHttp
) -> None:
    ask, (_, hers) = ASKS[what], alice
    nothing = Names(f"s-{'0' * 32}", f"art-{'0' * 24}")
    theirs, absent = ask(bob, hers), ask(bob, nothing)
    assert problem(theirs)[:2] == (404, "not_found")
    assert without_request_id(theirs) == without_request_id(absent)


def test_the_owner_is_answered(alice: tuple[TinkerHttp, Names]) -> None:
    """So that none of the above passes for the wrong reason; and nothing was changed by it."""
    client, hers = alice
    destructive = {"native erase", "delete checkpoint", "finish", "native cancel", "cancel_future"}
    taken = {"forward_backward", "optim_step", "save", "load into"}  # they would leave a gap in the log
    wrong = {"publish", "load path", "create_model in the session", "create_sampling_session in the session"}
    # The run is the SDK's, which numbers its operations itself.
    numbered = {f"native {name}" for name in ("forward_backward", "optim_step", "save_state", "sample")}
    for what in numbered:
        assert problem(ASKS[what](client, hers))[:2] == (409, "sdk_session_run"), what
    for what, ask in ASKS.items():
        if what not in destructive | taken | wrong | numbered:
            answer = ask(client, hers)
            assert answer.status_code < 300, (what, answer.status_code, answer.text)
    assert problem(ASKS["publish"](client, hers)) == (422, "unsupported", "publish")


def test_a_session_tells_what_it_created(alice: tuple[TinkerHttp, Names]) -> None:
    client, hers = alice
    told = client.get(f"/api/v1/sessions/{hers.session}").json()
    assert (told["training_run_ids"], told["sampler_ids"]) == ([hers.run], [hers.sampler])


def test_sampling_from_another_tenants_weights(alice: tuple[TinkerHttp, Names], bob: TinkerHttp) -> None:
    _, hers = alice
    session = bob.session()

    def ask(path: str, seq: int) -> httpx.Response:
        body = {"session_id": session, "sampling_session_seq_id": seq, "model_path": path}
        return bob.post("/api/v1/create_sampling_session", body)

    theirs = ask(hers.path("sampler_weights"), 0)
    absent = ask(hers.path("sampler_weights").replace("/mine", "/none"), 1)
    assert problem(theirs)[:2] == (404, "not_found")
    assert without_request_id(theirs) == without_request_id(absent)


def test_lists_show_ones_own(alice: tuple[TinkerHttp, Names], bob: TinkerHttp) -> None:
    client, hers = alice
    for path in ("/v1/training_clients", "/api/v1/training_runs", "/api/v1/checkpoints", "/api/v1/sessions"):
        assert hers.session in client.get(path).text, path
        assert hers.session not in bob.get(path).text, path


def test_a_signed_url_is_bound_to_its_file_its_time_and_its_tenant(
    alice: tuple[TinkerHttp, Names], bob: TinkerHttp, service: Service
) -> None:
    client, hers = alice
    urls = client.get((EXTERNAL + "/external_weights_urls").format(n=hers)).json()["urls"]
    good = httpx.URL(urls["adapter_config.json"])
    assert httpx.get(good).status_code == 200
    query = dict(good.params)
    other = httpx.URL(urls["adapter_model.safetensors"])
    last = query["signature"][-1]
    tampered = [
        good.copy_with(params={**query, "expires": str(int(query["expires"]) + 1)}),
        good.copy_with(params={**query, "tenant": "bob"}),
        good.copy_with(
            params={**query, "signature": query["signature"][:-1] + ("1" if last == "0" else "0")}
        ),
        good.copy_with(params={**query, "signature": ""}),
        other.copy_with(params=query),
    ]
    for url in tampered:
        assert problem(httpx.get(url))[:2] == (404, "not_found"), url
    outside = str(good).replace("adapter_config.json", "..%2Fadapter_config.json")
    refused = httpx.get(outside)
    assert refused.status_code == 404
    if isinstance(service, Service):  # to a gateway it is no route
        assert problem(refused)[1] == "not_found"
    assert bob.get(str(good)).status_code == 200  # the link is the credential
