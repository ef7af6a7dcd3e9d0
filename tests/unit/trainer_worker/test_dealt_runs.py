"""Dealt runs through the native face and the trainer: what is charged, what is let in, what is released."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tinker
from starlette.testclient import TestClient
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import Conflict, NotFound
from tensafe.metrics.counters import Counters
from tensafe.metrics.port import Metric, domain_label
from tensafe.operations.doorbell import queue_specs
from tensafe.privacy import deals, release
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.content import unit_content_hash
from tensafe.privacy.dealing import Deal
from tensafe.privacy.export import Exporter
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.noise import gaussian
from tensafe.privacy.records import RunRef
from tensafe.privacy.replay import replay
from tensafe.privacy.verify import verify
from tensafe.privacy.verify_replay import Report
from tensafe.services import wire
from tensafe.storage.signing import PublicKey
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tensafe_gpu.trainer import dealt_steps, private_steps
from tensafe_gpu.trainer.__main__ import build_worker
from tests.support.dealt_training import DOMAIN, UNITS, body, dealt, register, rows_of, texts_of
from tests.support.sdk_data import supervised
from tests.support.training_log import forward_backward, optim_step, private
from tests.unit.operations.world import BASE, TENANT
from tests.unit.trainer_worker.rig import Rig


class Client:
    """A dealt run over HTTP; the trainer works whenever something is asked of it."""

    def __init__(self, http: TestClient, rig: Rig, **changes: Any) -> None:
        self.http, self.rig = http, rig
        optimizer = dealt(**changes).model_dump(mode="json", exclude_none=True)
        request = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}, "optimizer": optimizer}
        answer = http.post("/v1/training_clients", json=request)
        assert answer.status_code == 201, answer.text
        self.run = answer.json()["training_client"]["id"]
        rig.drain()
        self.created = http.get(f"/v1/futures/{answer.json()['future']['id']}/result")

    def ask(self, step: int) -> Any:
        return self.http.post(f"/v1/training_clients/{self.run}/deals", json={"step": step})

    def deal(self, step: int) -> list[int]:
        answer = self.ask(step)
        assert answer.status_code == 200, answer.text
        assert answer.json()["step"] == step
        return list(answer.json()["unit_ids"])

    def deals(self) -> Any:
        return self.http.get(f"/v1/training_clients/{self.run}/deals").json()

    def submit(self, operation: str, content: dict[str, Any]) -> Any:
        answer = self.http.post(f"/v1/training_clients/{self.run}/{operation}", json=content)
        assert answer.status_code == 202, answer.text
        self.rig.drain()
        return self.http.get(f"/v1/futures/{answer.json()['id']}/result")

    def send(self, unit_ids: list[int], **changes: Any) -> Any:
        return self.submit("forward_backward", body(unit_ids, **changes))

    def step(self) -> Any:
        return self.submit("optim_step", {"learning_rate": 1e-2})

    def train(self, step: int) -> Any:
        unit_ids = self.deal(step)
        if unit_ids:
            assert self.send(unit_ids).status_code == 200
        return self.step().json()["metrics"]

    def nonempty(self, step: int, least: int = 2) -> tuple[int, list[int]]:
        """A deal of some units, from `step` on; smaller ones are taken, too."""
        while len(unit_ids := self.deal(step)) < least:
            if unit_ids:
                self.send(unit_ids)
            self.step()
            step += 1
        return step, unit_ids


@pytest.fixture
def registered(rig: Rig) -> None:
    register(rig.services.domains)


@pytest.fixture
def client(registered: None, http: TestClient, rig: Rig) -> Client:
    made = Client(http, rig)
    assert made.created.status_code == 200, made.created.text
    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """Secret and step of every noise vector that has been asked for."""
    calls: list[tuple[bytes, int]] = []

    def watched(key: bytes, step: int, *rest: Any, **options: Any) -> np.ndarray:
        calls.append((key, step))
        return gaussian(key, step, *rest, **options)

    monkeypatch.setattr(release, "gaussian", watched)
    return calls


def verified(rig: Rig) -> Report:
    """The exported ledger, checked offline, and the replay of the stored one, which must agree."""
    services = rig.world.open()
    ports = services.ports
    exporter = Exporter(ports.items, services.vault, ports.signer, Anchoring(ports.items, ports.anchors))
    lines = b"".join(exporter.lines("acme", DOMAIN, at_ms=1))
    key = PublicKey.from_pem(ports.signer.public_key)
    report = verify(io.BytesIO(lines), {key.key_id: key}, processes=1)
    shown = replay(ports.items, services.vault, "acme", DOMAIN)
    assert report.rows == shown.steps
    assert report.head_hash == shown.head_hash
    assert report.epsilon == pytest.approx(shown.epsilon, rel=1e-2)
    return report


def rows(rig: Rig) -> int:
    services = rig.world.open()
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    return ledger.show("acme", DOMAIN).steps


def refusal(answer: Any) -> str:
    assert answer.status_code in (409, 422), answer.text
    return str(answer.json()["detail"])


def test_a_run_is_trained_deal_by_deal_and_charged_whole(client: Client, rig: Rig) -> None:
    assert rows(rig) == 1, "the opening"
    metrics = [client.train(step) for step in range(4)]
    assert {one["dp/epsilon"] for one in metrics} == {metrics[0]["dp/run_epsilon"]}
    so_far = [one["dp/run_epsilon_so_far"] for one in metrics]
    assert so_far == sorted(so_far)
    assert so_far[-1] < metrics[0]["dp/run_epsilon"]
    assert [one["dp/deal"] for one in metrics] == [0, 1, 2, 3]
    assert client.deals() == {
        "max_steps": 10,
        "dealt": 4,
        "completed": 4,
        "abandoned": 0,
        "open_step": None,
        "next_step": 4,
    }
    assert rows(rig) == 5
    report = verified(rig)
    assert report.epsilon == pytest.approx(metrics[0]["dp/epsilon"], rel=2e-3)
    (run,) = report.runs
    assert (run.steps, run.max_steps, run.abandoned, run.units) == (4, 10, 0, None)


def test_a_deal_that_is_asked_for_again_is_the_same_and_charged_once(client: Client, rig: Rig) -> None:
    first = client.deal(0)
    assert client.deal(0) == first
    assert rows(rig) == 2
    client.train(0)
    assert "steps only go forward" in refusal(client.ask(0))
    assert "next deal is that of step 1" in refusal(client.ask(2))


def test_the_next_deal_abandons_the_open_one_and_both_are_charged(client: Client, rig: Rig) -> None:
    step, unit_ids = client.nonempty(0)
    client.send(unit_ids[:1])
    after = client.deal(step + 1)
    state = client.deals()
    assert (state["abandoned"], state["dealt"], state["open_step"]) == (1, step + 2, step + 1)
    if after:
        assert client.send(after).status_code == 200
    metrics = client.step().json()["metrics"]
    assert metrics["dp/deals_abandoned"] == 1
    assert metrics["dp/deal"] == step + 1
    assert rows(rig) == step + 3


def test_an_abandoned_deal_takes_no_data_and_no_step(client: Client) -> None:
    unit_ids = client.deal(0)
    url = f"/v1/training_clients/{client.run}/deals/0/abandon"
    for _ in range(2):
        assert client.http.post(url).json()["abandoned"] == 1
    refused = client.send(unit_ids or [1])
    assert "no deal of this run is open" in refusal(refused)
    assert "all 10 deals of the run are charged since it was created; 1 were made, 1 of them" in refusal(
        refused
    )
    assert "ask for that of step 1" in refusal(client.step())


def test_the_last_deal_is_the_last(registered: None, http: TestClient, rig: Rig) -> None:
    client = Client(http, rig, max_steps=2)
    client.train(0)
    client.train(1)
    refused = client.ask(2)
    assert refused.json()["error"]["code"] == "privacy_budget_exceeded"
    assert "all 2 steps that the budget allows are charged, 0 of them abandoned" in refusal(refused)


WRONG: dict[str, tuple[Callable[[list[int]], list[dict[str, Any]]], str]] = {
    "another unit": (
        lambda ids: rows_of(next(unit for unit in range(UNITS) if unit not in ids)),
        "this unit is not in the deal of step",
    ),
    "an unknown unit": (lambda _: [{**rows_of(1)[0], "dp_unit_id": 999}], "this unit is not in the deal"),
    "no unit": (
        lambda ids: [{key: value for key, value in rows_of(ids[0])[0].items() if key != "dp_unit_id"}],
        "every datum needs dp_unit_id",
    ),
    "changed content": (
        lambda ids: [{**rows_of(ids[0])[0], "tokens": [9, *rows_of(ids[0])[0]["tokens"][1:]]}],
        "are not those of the manifest",
    ),
    "a datum more": (lambda ids: rows_of(ids[0]) + rows_of(ids[0])[:1], "are not those of the manifest"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_data_are_refused_and_the_deal_stays_open(client: Client, rig: Rig, wrong: str) -> None:
    step, unit_ids = client.nonempty(0)
    charged = rows(rig)
    make, problem = WRONG[wrong]
    refused = client.submit("forward_backward", {"data": make(unit_ids), "loss_fn": "cross_entropy"})
    assert problem in refusal(refused)
    assert wrong == "no unit" or "The deal stays open; it is charged once" in refusal(refused)
    assert rows(rig) == charged
    assert client.send(unit_ids).status_code == 200
    assert client.step().json()["metrics"]["dp/deal"] == step


def test_the_loss_is_that_of_the_first_data_whoever_is_dealt(
    http: TestClient, rig: Rig, planned: list[list[int]]
) -> None:
    """Four losses read the same inputs, so one content hash fits all: the choice could tell of the deal."""
    planned += [[0, 1], [2], [0]]

    def data(unit_id: int) -> list[dict[str, Any]]:
        rows_ = rows_of(unit_id)
        for row in rows_:
            length = len(row["loss_fn_inputs"].pop("weights"))
            row["loss_fn_inputs"] |= {"logprobs": [-1.0] * length, "advantages": [1.0] * length}
        return rows_

    domains = rig.services.domains
    domain = domains.create(TENANT, DOMAIN, DomainTerms(unit="user", delta=1e-5, max_epsilon=30.0))
    entries = b""
    for unit_id in range(24):
        parsed = request_json_to_forward_backward(
            json.dumps({"data": data(unit_id), "loss_fn": "ppo"}).encode()
        )
        content = unit_content_hash(domains.content_key(domain), unit_id, parsed.data)
        entries += unit_id.to_bytes(8, "big") + content
    domains.add_units(TENANT, DOMAIN, 0, entries)
    domains.finish(TENANT, DOMAIN)
    client = Client(http, rig)

    def send(unit_id: int, loss_fn: str, **config: float) -> Any:
        return client.submit(
            "forward_backward", {"data": data(unit_id), "loss_fn": loss_fn, "loss_fn_config": config}
        )

    def refused(answer: Any) -> bool:
        assert "a dealt run keeps the loss of its first data" in refusal(answer)
        return True

    client.deal(0)
    assert send(0, "ppo", clip_low_threshold=0.9).status_code == 200
    rig.restart()
    assert refused(send(1, "cispo", clip_low_threshold=0.9))
    assert refused(send(1, "ppo", clip_low_threshold=0.5))
    assert send(1, "ppo", clip_high_threshold=1.2, clip_low_threshold=0.9).status_code == 200
    assert client.step().status_code == 200
    client.deal(1)
    assert refused(send(2, "dro"))
    assert send(2, "ppo", clip_low_threshold=0.9).status_code == 200
    assert client.step().json()["metrics"]["dp/deal"] == 1
    client.deal(2)
    assert refused(send(0, "importance_sampling"))


def test_a_unit_comes_once(client: Client) -> None:
    step, unit_ids = client.nonempty(0)
    assert client.send(unit_ids[:1]).status_code == 200
    assert "has arrived in an earlier request of step" in refusal(client.send(unit_ids))
    assert client.send(unit_ids[1:]).status_code == 200
    assert client.step().json()["metrics"]["dp/deal"] == step


def test_too_few_are_refused_with_their_number(client: Client) -> None:
    step, unit_ids = client.nonempty(0, least=3)
    client.send(unit_ids[:1])
    refused = refusal(client.step())
    assert (
        f"the deal of step {step} has {len(unit_ids)} units, of which {len(unit_ids) - 1} have not" in refused
    )
    assert "The deal stays open; it is charged once" in refused
    client.send(unit_ids[1:])
    assert client.step().status_code == 200


def test_an_empty_deal_steps(registered: None, http: TestClient, rig: Rig, drawn: list[Any]) -> None:
    client = Client(http, rig, sampling_probability=1e-9)
    assert client.deal(0) == []
    metrics = client.step().json()["metrics"]
    assert metrics["grad_norm"] > 0
    assert [step for _, step in drawn] == [1]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Indices of the deals of steps 0, 1, ...: what the test wants to be dealt."""
    plan: list[list[int]] = []

    def chosen(_: bytes, step: int, terms: Any) -> Deal:
        return Deal(step, np.array(plan[step], dtype=np.int64), len(plan[step]))

    monkeypatch.setattr(deals, "deal", chosen)
    return plan


def test_what_was_accumulated_of_a_deal_that_was_given_up_is_dropped(
    client: Client, planned: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of the empty deal after it is zero, and that of the next one its own units' alone."""
    planned += [[1, 2], [], [3], [1, 2], [3]]
    sums: list[np.ndarray] = []

    def watched(charge: Any, secret: bytes, clipped_sum: Any, **_: Any) -> np.ndarray:
        sums.append(np.array(clipped_sum))
        return np.zeros(len(clipped_sum))

    monkeypatch.setattr(dealt_steps, "noisy_mean", watched)
    client.deal(0)
    client.send([1])
    half = client.submit("save_state", {"name": "half"})
    assert "accumulated gradients" in refusal(half)
    client.train(1)
    client.train(2)
    client.deal(3)
    client.send([1])
    client.train(4)
    assert client.submit("save_state", {"name": "whole"}).status_code == 200
    empty, alone, after_another = sums
    assert not empty.any()
    assert alone.any()
    assert (after_another == alone).all(), "weights have not moved: the release is zero"


def test_forward_is_free_and_says_what_is_not_private(client: Client, rig: Rig) -> None:
    """Of data that name no unit, as an evaluation's: those of units are training data, and withheld."""
    client.deal(0)
    held_out = [{**row, "dp_unit_id": None} for row in body([1, 2, 3])["data"]]
    answer = client.send([], data=held_out, forward_only=True).json()
    assert answer["non_dp"]
    assert answer["metrics"]["loss:sum"] > 0
    for some in (body([1, 2, 3])["data"], [*held_out, *rows_of(1)]):
        withheld = client.send([], data=some, forward_only=True).json()
        assert withheld == {"loss_fn_outputs": None, "metrics": {"dp_outputs_withheld:max": 1.0}}
    assert rows(rig) == 2


def test_training_outputs_are_withheld_unless_the_owner_asks_for_them(
    registered: None, http: TestClient, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_steps, "os", os)
    closed = Client(http, rig)
    open_ = Client(http, rig, reveal_non_dp=True)
    answers = []
    for client in (closed, open_):
        _, unit_ids = client.nonempty(0)
        answers.append(client.send(unit_ids).json())
    withheld, shown = answers
    assert withheld == {
        "loss_fn_outputs": None,
        "metrics": {
            "dp_epsilon:max": withheld["metrics"]["dp_epsilon:max"],
            "dp_delta:max": 1e-5,
            "dp_outputs_withheld:max": 1.0,
        },
    }
    assert shown["loss_fn_outputs"]
    assert "metrics.loss:sum" in shown["non_dp"]


def test_the_domain_must_be_registered_and_open(http: TestClient, rig: Rig) -> None:
    refused = Client(http, rig)
    assert "is not registered, so nothing can be dealt from it" in refusal(refused.created)
    assert refused.ask(0).status_code == 409
    register(rig.services.domains)
    rig.services.domains.close("acme", DOMAIN)
    assert "is closed" in refusal(Client(http, rig).created)


def test_nothing_is_dealt_from_a_closed_domain(client: Client, rig: Rig) -> None:
    client.train(0)
    charged = rows(rig)
    rig.services.domains.close("acme", DOMAIN)
    assert "is closed" in refusal(client.ask(1))
    assert rows(rig) == charged


def test_the_domains_budget_binds_over_all_runs(
    http: TestClient, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_steps, "os", os)
    register(rig.services.domains, max_epsilon=2.0)
    first = Client(http, rig)
    assert first.created.status_code == 200
    second = Client(http, rig, max_steps=1000)
    assert "has no room for 1000 deals" in refusal(second.created)
    assert "would fit. Nothing was charged" in refusal(second.created)
    third = Client(http, rig, max_steps=None, max_epsilon=2.0)
    assert third.created.status_code == 200
    assert third.deals()["max_steps"] > 10
    fourth = Client(http, rig)
    assert "has no room for 10 deals" in refusal(fourth.created)
    assert rows(rig) == 2


def test_a_run_that_comes_after_a_release_must_be_declared(
    client: Client, http: TestClient, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_steps, "os", os)
    before = Client(http, rig)
    assert before.created.status_code == 200, "nothing has been released yet"
    client.deal(0)
    late = Client(http, rig)
    assert "say so with fixed_in_advance=true" in refusal(late.created)
    assert Client(http, rig, fixed_in_advance=True).created.status_code == 200
    assert rows(rig) == 4


def test_a_retry_of_the_creation_charges_once_and_another_configuration_is_a_conflict(
    client: Client, rig: Rig
) -> None:
    stream = rig.world.stream(client.run)
    steps = rig.services.deals
    ref = RunRef("acme", DOMAIN, client.run)
    known = steps.ledger.get(ref)
    seed = steps.seed(stream)
    again = steps.ledger.open_run(ref, dealt(), noise_key_id=known.noise_key_id, deal_seed=seed)
    assert again == known
    with pytest.raises(Conflict, match="was created with another privacy configuration"):
        steps.ledger.open_run(
            ref, dealt(noise_multiplier=5.0), noise_key_id=known.noise_key_id, deal_seed=seed
        )
    assert rows(rig) == 1


def test_a_run_that_has_no_room_in_memory_is_charged_nothing(
    registered: None, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(rig.worker._executor._engine, "create", full)
    rig.begin(optimizer=dealt())
    rig.worker.step()
    with pytest.raises(NotFound):
        rows(rig)
    monkeypatch.undo()
    rig.restart()
    rig.drain()
    assert rows(rig) == 1


def test_the_next_deal_waits_for_operations_that_are_under_way(client: Client, rig: Rig) -> None:
    client.deal(0)
    http = client.http
    http.post(f"/v1/training_clients/{client.run}/optim_step", json={})
    refused = client.ask(1)
    assert refused.json()["error"]["code"] == "operations_under_way"
    rig.drain()
    assert client.deals()["dealt"] == 1


def test_a_bounded_run_has_no_deals(http: TestClient, rig: Rig) -> None:
    request = {"base_model": BASE, "lora": {"rank": 2}}
    run = http.post("/v1/training_clients", json=request).json()["training_client"]["id"]
    refused = http.post(f"/v1/training_clients/{run}/deals", json={"step": 0})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_a_dealt_run")


def test_restarts_anywhere_lead_to_the_same_bytes_and_noise(
    new_rig: Callable[..., Rig], planned: list[list[int]], drawn: list[tuple[bytes, int]]
) -> None:
    """A partial deal that was given up, an empty one, one in halves: replayed by what was noted.

    By then another deal is open, or none. Every rig has one noise secret and one plan of deals.
    """
    planned += [[1, 2, 5], [3, 4], [], [6, 7], [8]]

    def life(rig: Rig, restart: Callable[[], object]) -> bytes:
        register(rig.services.domains)
        with http_of(rig) as http:
            client = Client(http, rig)
            client.deal(0)
            acts: list[Callable[[], Any]] = [
                lambda: client.send([1, 2]),
                lambda: client.deal(1),
                lambda: client.send([3, 4]),
                client.step,
                lambda: client.deal(2),
                client.step,
                lambda: client.deal(3),
                lambda: client.send([6]),
                lambda: client.send([7]),
                client.step,
                lambda: client.deal(4),
            ]
            for act in acts:
                act()
                restart()
            assert client.deals() == {
                "max_steps": 10,
                "dealt": 5,
                "completed": 3,
                "abandoned": 1,
                "open_step": 4,
                "next_step": 5,
            }
            assert rows(rig) == 6
            return rig.final(client.run)[0]

    plain = new_rig()
    wanted = life(plain, lambda: None)
    assert [step for _, step in drawn] == [2, 3, 4]
    for every in (1, 3, 10**9):
        rig = new_rig(snapshot_every_operations=every)
        assert life(rig, rig.restart) == wanted, every
    assert {step for _, step in drawn} == {2, 3, 4}


def http_of(rig: Rig) -> TestClient:
    """Both faces over the rig's stores."""
    ports = replace(rig.world.services.ports, queue_specs=tuple(queue_specs([BASE])))
    services = wire(ports, {BASE: rig.base.info}, clock_ms=rig.world.clock_ms)
    key = services.api_keys.create(TENANT, ["train", "sample"])[0]
    return TestClient(create_app(services, EdgeLimits(long_poll_s=0.2)), headers={"X-API-Key": key})


def test_the_sdk_is_dealt_beside_its_own_protocol(
    registered: None, http: TestClient, service: tinker.ServiceClient
) -> None:
    """It trains as ever; only which data it sends comes from elsewhere."""
    optimizer = OptimizerConfigBase(**dealt().model_dump(mode="json", exclude_none=True))
    training = service.create_lora_training_client(BASE, rank=2, seed=7, optimizer=optimizer).result(30)
    sent = 0
    for step in range(4):
        answer = http.post(f"/v1/training_clients/{training.model_id}/deals", json={"step": step})
        assert answer.status_code == 200, answer.text
        data = [
            supervised(text, unit=unit_id)
            for unit_id in answer.json()["unit_ids"]
            for text in texts_of(unit_id)
        ]
        if data:
            done = training.forward_backward(data, "cross_entropy").result(timeout=30)
            assert set(done.metrics) == {"dp_epsilon:max", "dp_delta:max", "dp_outputs_withheld:max"}
            assert done.loss_fn_outputs == [{}] * len(data)
            looked = training.forward(data, "cross_entropy").result(timeout=30)
            assert (set(looked.metrics), looked.loss_fn_outputs) == (
                {"dp_outputs_withheld:max"},
                done.loss_fn_outputs,
            )
            sent += len(data)
        metrics = training.optim_step(types.AdamParams()).result(timeout=30).metrics
        assert metrics is not None
        assert metrics["dp/deal"] == step
    assert sent


def test_an_attested_run_tells_both_epsilons(rig: Rig) -> None:
    rig.begin(optimizer=private(mode="attested", sampling_probability=0.01, max_participations=9))
    for step in range(2):
        rig.do(1 + 2 * step, forward_backward(step, units=[1, 2]))
        rig.do(2 + 2 * step, optim_step())
    metrics = [rig.result(seq)["metrics"] for seq in (2, 4)]
    assert all(0 < one["dp/attested_epsilon"] < one["dp/epsilon"] for one in metrics)
    assert metrics[0]["dp/attested_epsilon"] < metrics[1]["dp/attested_epsilon"]


@pytest.mark.parametrize(("own", "limit"), [(20.0, 20.0), (None, 30.0)], ids=["its own", "the domain's"])
def test_what_a_dealt_run_uses_of_its_budget_is_told_at_its_opening_and_at_each_step(
    registered: None, http: TestClient, rig: Rig, own: float | None, limit: float
) -> None:
    counted, label = Counters(), domain_label("acme", DOMAIN)
    rig.services = replace(rig.services, metrics=counted)
    rig.worker = build_worker(rig.services, BASE, rig.base, "trainer-counted", rig.settings)
    client = Client(http, rig, max_epsilon=own)
    assert client.created.status_code == 200, client.created.text

    def told() -> float:
        (one,) = [series for series in counted.series() if series.metric is Metric.BUDGET_USED]
        assert one.labels == (("domain", label),)
        return one.value

    opened = told()
    counted.set(Metric.BUDGET_USED, 0.0, domain=label)
    epsilon = client.train(0)["dp/epsilon"]
    assert told() == opened == epsilon / limit
