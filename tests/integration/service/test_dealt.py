"""Dealt runs over the real service: registered, dealt, trained by the official SDK, exported and verified."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.client.deals import DealtBatch, DealtBatches
from tensafe.client.domains import PrivacyDomains
from tensafe.client.parts import PartLimits, by_unit
from tensafe.client.service import Service as Connection
from tensafe.client.service import ServiceError
from tensafe.contracts.domains import DomainTerms
from tests.project_files import ROOT
from tests.support.native import Native, example
from tests.support.sdk_data import supervised
from tests.support.service import MODEL_NAME, Service, tensafe

UNITS = 40
TERMS = DomainTerms(unit="user", delta=1e-4, max_epsilon=20.0)
ADAM = types.AdamParams(learning_rate=1e-3)
STAYS = "The deal stays open; it is charged once"


def config(**changes: object) -> dict[str, object]:
    """Half of all units on average: practically never less than two of them, and never all."""
    settings = {"type": "tensafe_dp_adamw", "mode": "dealt", "domain": "letters", "delta": 1e-4}
    sampling = {"clip_norm": 1.0, "noise_multiplier": 4.0, "batch_size": 20, "max_steps": 8}
    return {**settings, **sampling, **changes}


def texts_of(unit: int) -> list[list[int]]:
    """Two texts of every third unit, one of the others."""
    return [[unit + 1, 9 + part, 301, 77, 45] for part in range(2 if unit % 3 == 0 else 1)]


@pytest.fixture
def connection(service: Service, key: str) -> Connection:
    return Connection(service.url, key)


@pytest.fixture
def domains(connection: Connection) -> PrivacyDomains:
    return PrivacyDomains(connection)


@pytest.fixture
def data() -> list[types.Datum]:
    return [supervised(text, unit=unit) for unit in range(UNITS) for text in texts_of(unit)]


@pytest.fixture
def owned(data: list[types.Datum], domains: PrivacyDomains) -> dict[int, list[types.Datum]]:
    """The data of each unit of the registered domain."""
    domains.register("letters", data, TERMS)
    return by_unit(data)


def create(client: tinker.ServiceClient, **changes: object) -> tinker.TrainingClient:
    optimizer = OptimizerConfigBase(**config(**changes))
    return client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=optimizer).result()


def test_an_ordinary_loop_over_deals_is_charged_verified_and_stated(
    client: tinker.ServiceClient,
    connection: Connection,
    domains: PrivacyDomains,
    owned: dict[int, list[types.Datum]],
    service: Service,
    tmp_path: Path,
) -> None:
    run, rare = create(client), create(client, max_steps=1, sampling_probability=1e-9)
    with pytest.raises(tinker.RequestFailedError, match=r"no room for 10000 deals .* would fit. Nothing was"):
        create(client, max_steps=10_000)

    # The loop that the documents show, with two requests a step and no wait for anything in it.
    answers, steps, stated = [], [], set()
    for deal in DealtBatches(connection, run.model_id, owned, limits=PartLimits(data=12)):
        answers += [run.forward_backward(part, "cross_entropy") for part in deal.parts]
        steps.append(run.optim_step(ADAM))
        stated.add(deal.epsilon)
    outputs = [answer.result() for answer in answers]
    assert len(outputs) > len(steps) == 8
    assert all(one.loss_fn_outputs == [{}] * len(one.loss_fn_outputs) for one in outputs)
    assert {one.metrics["dp_outputs_withheld:max"] for one in outputs} == {1.0}
    metrics = [step.result().metrics or {} for step in steps]
    assert [one["dp/deal"] for one in metrics] == list(range(8))
    so_far = [one["dp/run_epsilon_so_far"] for one in metrics]
    assert so_far == sorted(set(so_far))
    (run_epsilon,) = {one["dp/run_epsilon"] for one in metrics}
    assert so_far[-1] == pytest.approx(run_epsilon)
    assert {one["dp/epsilon"] for one in metrics} == stated, "the runs were charged whole at their creation"

    (empty,) = [(deal.parts, rare.optim_step(ADAM).result()) for deal in batches(connection, rare, owned)]
    assert empty[0] == ()
    assert (empty[1].metrics or {})["grad_norm"] > 0, "an empty deal steps, with noise"

    # What was said is what the ledger holds, and the artifact's statement says the same.
    run.save_state("final").result()
    (listed,) = connection.get(f"/v1/training_clients/{run.model_id}/artifacts")["artifacts"]
    statement, shown = domains.artifact_statement(listed["id"]), domains.show("letters")
    assert statement["mode"] == "dealt_truncated_poisson_gaussian"
    assert (statement["domain"]["root"], statement["domain"]["units"]) == (shown.root, UNITS)
    assert {statement["spent"]["epsilon"]} == {shown.epsilon} == stated
    told = tmp_path / "final.json"
    told.write_text(json.dumps(statement))
    export = tmp_path / "letters.jsonl"
    domains.export("letters", export)
    signer = json.loads(service.tensafe("privacy", "public-key", "--json").stdout)["key_id"]
    verified = tensafe("privacy", "verify", str(export), "--key-id", signer, "--statement", str(told))
    assert "valid" in verified.stdout
    text = service.tensafe("privacy", "statement", f"{run.model_id}/final").stdout
    assert "dealt" in text


def test_what_does_not_answer_the_deal_is_refused_and_says_what_was_charged(
    client: tinker.ServiceClient, connection: Connection, owned: dict[int, list[types.Datum]]
) -> None:
    run = create(client)
    deals = batches(connection, run, owned)
    deal = next(iter(deals))
    first, second = deal.unit_ids[:2]
    stranger = next(unit for unit in owned if unit not in deal.unit_ids)
    charged = deal.epsilon

    said = refused(run.forward_backward(owned[stranger], "cross_entropy"))
    assert "not in the deal of step 0" in said
    assert STAYS in said
    said = refused(run.forward_backward([supervised([1, 2, 3], unit=first)], "cross_entropy"))
    assert "are not those of the manifest" in said
    assert STAYS in said
    run.forward_backward(owned[first], "cross_entropy").result()
    assert "has arrived in an earlier request" in refused(run.forward_backward(owned[first], "cross_entropy"))
    said = refused(run.optim_step(ADAM))
    assert f"has {len(deal.unit_ids)} units, of which {len(deal.unit_ids) - 1} have not arrived" in said
    assert STAYS in said

    # Taken up again it is the same deal; some of it has arrived, so it is given up by name.
    again = next(iter(deals))
    assert (again.step, again.unit_ids, again.resumed) == (0, deal.unit_ids, True)
    assert deals.abandon(0).abandoned == 1
    said = refused(run.forward_backward(owned[second], "cross_entropy"))
    assert "all 8 deals of the run are charged since it was created; 1 were made, 1 of them" in said

    after = next(iter(deals))
    assert (after.step, after.resumed, after.epsilon) == (1, False, charged)
    for part in after.parts:
        run.forward_backward(part, "cross_entropy")
    step = run.optim_step(ADAM).result().metrics or {}
    assert (step["dp/deal"], step["dp/deals_abandoned"], step["dp/epsilon"]) == (1, 1, charged)
    for deal in deals:
        connection.post(f"/v1/training_clients/{run.model_id}/deals", {"step": deal.step})  # the same again
        assert deals.abandon(deal.step).abandoned == deal.step
    with pytest.raises(ServiceError) as caught:
        connection.post(f"/v1/training_clients/{run.model_id}/deals", {"step": 8})
    assert (caught.value.status, caught.value.code) == (422, "privacy_budget_exceeded")


def batches(
    connection: Connection, run: tinker.TrainingClient, owned: dict[int, list[types.Datum]]
) -> DealtBatches[types.Datum]:
    return DealtBatches(connection, run.model_id, owned)


def refused(future: tinker.APIFuture) -> str:
    with pytest.raises(tinker.RequestFailedError) as caught:
        future.result()
    return str(caught.value)


def test_a_crashed_native_client_takes_its_deal_up_where_it_stopped(
    connection: Connection, domains: PrivacyDomains, service: Service, key: str
) -> None:
    """Under idempotency keys the operations of the open deal may all be sent again."""
    rows = [{**example(text), "dp_unit_id": unit} for unit in range(UNITS) for text in texts_of(unit)]
    owned = by_unit(rows)
    domains.register("letters", rows, TERMS)
    native = Native(service, key)
    run = native.create(optimizer=config(max_steps=2))

    def deals() -> DealtBatches[dict]:
        return DealtBatches(connection, run, owned, limits=PartLimits(data=12))

    def send(deal: DealtBatch[dict], part: int) -> str:
        body = {"data": deal.parts[part], "loss_fn": "cross_entropy"}
        return native.submit(run, "forward_backward", body, Idempotency_Key=f"{deal.step}-{part}")

    lost = next(iter(deals()))
    arrived = [send(lost, part) for part in (0, 1)]
    native.result(arrived[1])
    for deal in deals():
        assert deal.resumed is (deal.step == 0)
        futures = [send(deal, part) for part in range(len(deal.parts))]
        assert deal.step > 0 or futures[:2] == arrived
        step = native.do(run, "optim_step", {"learning_rate": 1e-3}, Idempotency_Key=f"{deal.step}-step")
        assert step["metrics"]["dp/deal"] == deal.step
    assert deals().show().completed == 2
    closed: httpx.Response = native.wait(native.submit(run, "optim_step", {}))
    assert closed.json()["error"]["code"] == "no_open_deal"


def test_the_readme_s_loop_trains_as_it_stands(
    client: tinker.ServiceClient, service: Service, key: str
) -> None:
    """Its code, with this service's address, key and model, and numbers that fit forty units."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    use, register, deal = (
        next(b for b in blocks if w in b) for w in ("def datum", "register(", "DealtBatches")
    )
    imports, function = use.split("service =")[0], re.search(r"def datum.*?\n\n\n", use, flags=re.DOTALL)
    assert function is not None
    code = "\n".join([imports, function[0], register, deal])
    for written, here in (
        ("http://127.0.0.1:8000", service.url),
        ("tml-...", key),
        ("Qwen/Qwen3-0.6B", MODEL_NAME),
        ("batch_size=256", "batch_size=20"),
        ("max_steps=200", "max_steps=2"),
    ):
        assert written in code
        code = code.replace(written, here)
    names: dict[str, Any] = {"service": client, "data": [(texts_of(unit)[0], unit) for unit in range(UNITS)]}
    exec(code, names)  # noqa: S102 - the project's own document
    shown = names["DealtBatches"](names["connection"], names["dealt"].model_id, {}).show()
    assert (shown.completed, shown.abandoned, shown.next_step) == (2, 0, None)
