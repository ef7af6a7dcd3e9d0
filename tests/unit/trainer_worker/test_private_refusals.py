"""Bad input to private runs, over HTTP and through the official SDK: what to do, and what was charged."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
from starlette.testclient import TestClient
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.contracts.training import PrivateConfig
from tensafe.privacy import deals
from tensafe.privacy.dealing import Deal
from tensafe.privacy.manifest import DELTA_TOO_LARGE
from tensafe.privacy.refusals import FROZEN, NOTHING_CHARGED, NOTHING_MORE_CHARGED
from tensafe.privacy.verify import keys_of, verify
from tensafe_gpu.trainer import private_steps
from tests.support.dealt_training import DOMAIN, dealt, register, texts_of
from tests.support.sdk_data import supervised
from tests.support.training_log import private, private_sgd
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig

STAYS = "The deal stays open; it is charged once, whatever becomes of it"
UNIT = "data[0].loss_fn_inputs.dp_unit_id"
DEALT_UNITS = [0, 1, 2]
"""The deal of every step; unit 0 has two texts, the others one."""

Texts = Sequence[tuple[int, list[int]]]
"""Unit and token ids of each datum."""


class Refusal(NamedTuple):
    """`status` and `field` are the native face's; the SDK shows a message, which names the datum at fault."""

    status: int | None
    code: str
    field: str | None
    message: str


@dataclass
class Native:
    """The native face; the worker works whenever something is asked of it."""

    http: TestClient
    rig: Rig
    run: str = ""

    def create(self, optimizer: PrivateConfig, **headers: str) -> Refusal | None:
        chosen = optimizer.model_dump(mode="json", exclude_none=True)
        body = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}, "optimizer": chosen}
        answer = self.http.post("/v1/training_clients", json=body, headers=headers)
        if answer.status_code != 201:
            return refusal(answer)
        self.run = answer.json()["training_client"]["id"]
        return self._ended(answer.json()["future"]["id"])

    def data(self, texts: Texts, loss_fn: str = "cross_entropy") -> Refusal | None:
        rows = [
            {
                "tokens": text[:-1],
                "loss_fn_inputs": {"target_tokens": text[1:], "weights": [1.0] * (len(text) - 1)},
                "dp_unit_id": unit,
            }
            for unit, text in texts
        ]
        return self._do("forward_backward", {"data": rows, "loss_fn": loss_fn})

    def step(self, **changes: Any) -> Refusal | None:
        return self._do("optim_step", {"learning_rate": 0.1, **changes})

    def save(self, name: str) -> Refusal | None:
        return self._do("save_state", {"name": name})

    def _do(self, operation: str, body: dict[str, Any]) -> Refusal | None:
        answer = self.http.post(f"/v1/training_clients/{self.run}/{operation}", json=body)
        return self._ended(answer.json()["id"]) if answer.status_code == 202 else refusal(answer)

    def _ended(self, future: str) -> Refusal | None:
        self.rig.drain()
        answer = self.http.get(f"/v1/futures/{future}/result")
        return None if answer.status_code == 200 else refusal(answer)


@dataclass
class Sdk:
    """The official SDK, with a worker behind it."""

    http: TestClient
    service: tinker.ServiceClient
    training: Any = None
    run: str = ""

    def create(self, optimizer: PrivateConfig) -> Refusal | None:
        config = OptimizerConfigBase(**optimizer.model_dump(mode="json", exclude_none=True))

        def created() -> None:
            made = self.service.create_lora_training_client(BASE, rank=2, seed=7, optimizer=config)
            self.training = made.result(30)
            self.run = self.training.model_id

        return self._failed(created)

    def data(self, texts: Texts, loss_fn: str = "cross_entropy") -> Refusal | None:
        rows = [supervised(text, unit=unit) for unit, text in texts]
        return self._failed(lambda: self.training.forward_backward(rows, loss_fn).result(timeout=30))

    def step(self) -> Refusal | None:
        return self._failed(lambda: self.training.optim_step(types.AdamParams()).result(timeout=30))

    def _failed(self, act: Callable[[], object]) -> Refusal | None:
        try:
            act()
        except tinker.RequestFailedError as error:
            text = str(error)
        else:
            return None
        found = re.search(r"\[(\w+)\] (.*?)(?: \((?:counted|submitted) .*)?$", text, re.DOTALL)
        assert found is not None, text
        return Refusal(None, found[1], None, found[2])


Face = Native | Sdk


def refusal(answer: Any) -> Refusal:
    error = answer.json()["error"]
    return Refusal(answer.status_code, error["code"], error["field"], error["message"])


@pytest.fixture(params=["native", "sdk"])
def face(request: pytest.FixtureRequest, http: TestClient, rig: Rig) -> Face:
    if request.param == "native":
        return Native(http, rig)
    return Sdk(http, request.getfixturevalue("service"))


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one domain, each with a noise secret of its own; and the same deal at every step."""
    monkeypatch.setattr(private_steps, "os", os)
    monkeypatch.setattr(
        deals,
        "deal",
        lambda _, step, terms: Deal(step, np.array(DEALT_UNITS, dtype=np.int64), len(DEALT_UNITS)),
    )


def spent(http: TestClient, domain: str) -> tuple[float, int, str] | None:
    """Epsilon, rows and last hash of the domain's ledger, as its owner is told; None before there is one."""
    answer = http.get(f"/v1/privacy/domains/{domain}")
    if answer.status_code == 404:
        return None
    told = answer.json()
    return told["epsilon"], told["steps"], told["head_hash"]


def all_of(*units: int) -> Texts:
    return [(unit, text) for unit in units for text in texts_of(unit)]


def check(face: Face, refused: Refusal | None, expected: Refusal) -> None:
    """`expected.message` is a pattern of what to do, then a bar, then the sentence of what was charged."""
    assert refused is not None
    hint, _, charged = expected.message.partition(" | ")
    told = expected if isinstance(face, Native) else expected._replace(status=None, field=None)
    assert refused[:3] == told[:3], refused
    assert re.search(hint, refused.message), refused.message
    if isinstance(face, Sdk) and (expected.field or "").startswith("data["):
        assert refused.message.startswith(f"{expected.field}: ")
    assert refused.message.endswith(f". {charged}"), refused.message
    assert refused.message.count(charged) == 1, refused.message


def answers_with(
    first: Texts | None, then: Texts | None, unit: str, code: str, field: str, message: str
) -> Any:
    """Requests for an open deal of a domain of such units: `first` is taken, `then` (None: a step) is not."""
    return first, then, unit, Refusal(422, code, field, f"{message} | {STAYS}")


DEALS = {
    "another unit": answers_with(
        None, all_of(9), "user", "invalid_request", UNIT, "send exactly the dealt units"
    ),
    "changed content": answers_with(
        None, [(1, [9, *texts_of(1)[0][1:]])], "user", "invalid_request", UNIT, "send all of the unit's data"
    ),
    "too few of a unit": answers_with(
        None, all_of(0)[:1], "user", "invalid_request", UNIT, r"\(1 datum\(s\) came\): send all of the unit's"
    ),
    "too few units": answers_with(
        all_of(0), None, "user", "invalid_request", "data", "of which 2 have not arrived: send them, or"
    ),
    "a unit that returns": answers_with(
        all_of(1), all_of(1, 2), "user", "invalid_request", UNIT, "send only the units that have not arrived"
    ),
    "a record twice": answers_with(
        None,
        [*all_of(1), *all_of(1)],
        "record",
        "invalid_request",
        UNIT.replace("0", "1"),
        "send each record once",
    ),
}


@pytest.mark.parametrize("case", DEALS)
def test_what_does_not_answer_the_deal_leaves_it_open_and_charged_once(
    face: Face, rig: Rig, case: str
) -> None:
    first, then, unit, expected = DEALS[case]
    register(rig.services.domains, unit=unit)
    assert face.create(dealt()) is None
    assert face.http.post(f"/v1/training_clients/{face.run}/deals", json={"step": 0}).status_code == 200
    assert first is None or face.data(first) is None
    before = spent(face.http, DOMAIN)
    assert before is not None
    assert before[1] == 2, "the opening and the deal"
    check(face, face.step() if then is None else face.data(then), expected)
    assert spent(face.http, DOMAIN) == before
    assert (
        face.data([one for one in all_of(*DEALT_UNITS) if one not in (first or ())]) is None or unit != "user"
    )


def test_deals_out_of_turn_charge_nothing_more(http: TestClient, rig: Rig) -> None:
    register(rig.services.domains)
    face = Native(http, rig)
    assert face.create(dealt(max_steps=1)) is None
    asked = f"/v1/training_clients/{face.run}/deals"

    def refused(step: int, status: int, code: str, hint: str) -> None:
        before = spent(http, DOMAIN)
        answer = http.post(asked, json={"step": step})
        check(face, refusal(answer), Refusal(status, code, None, f"{hint} | {NOTHING_MORE_CHARGED}"))
        assert spent(http, DOMAIN) == before

    refused(3, 409, "conflict", "the next deal is that of step 0, not 3; .*: ask for that one")
    assert http.post(asked, json={"step": 0}).status_code == 200
    refused(1, 422, "privacy_budget_exceeded", "all 1 steps .* are charged, .*: create another run")
    closed = face.data(all_of(*DEALT_UNITS), loss_fn="cross_entropy")
    assert closed is None
    assert face.step() is None
    late = face.step()
    assert late is not None
    assert (late.status, late.code) == (422, "no_open_deal")
    assert "all 1 deals of the run are charged since it was created; 1 were made, 0 of them" in late.message


K, B = {"max_participations": 1}, {"max_participations": 9, "min_separation": 3}
BOUNDED = {
    "k violated": (
        K,
        True,
        Refusal(
            422, "privacy_budget_exceeded", UNIT, "max_participations=1 steps of this run; leave them out"
        ),
    ),
    "b violated": (
        B,
        True,
        Refusal(
            422, "invalid_request", UNIT, r"may return after 2 more step\(s\) .*: leave them out until then"
        ),
    ),
    "a unit that returns": (
        K,
        False,
        Refusal(422, "invalid_request", UNIT, "send all data of a unit in one call, or in another step"),
    ),
}


@pytest.mark.parametrize("case", BOUNDED)
def test_units_that_come_too_often_or_too_early_are_charged_nothing(face: Face, case: str) -> None:
    limits, stepped, expected = BOUNDED[case]
    assert face.create(private(**limits)) is None
    assert face.data(all_of(1)) is None
    assert not stepped or face.step() is None
    before = spent(face.http, "letters")
    assert before is not None
    assert before[1] == stepped
    refused = face.data(all_of(1, 2))
    check(face, refused, expected._replace(message=f"{expected.message} | {NOTHING_CHARGED}"))
    assert spent(face.http, "letters") == before
    assert face.data(all_of(2)) is None
    assert face.step() is None
    after = spent(face.http, "letters")
    assert after is not None
    assert after[1] == before[1] + 1, "what was refused is no part of the step; the rest is charged"


def test_a_unit_that_is_not_registered_is_charged_nothing(face: Face, rig: Rig) -> None:
    register(rig.services.domains)
    assert face.create(private(domain=DOMAIN)) is None
    before = spent(face.http, DOMAIN)
    expected = Refusal(422, "unit_not_registered", UNIT, f"leave them out | {NOTHING_CHARGED}")
    check(face, face.data([(999, [1, 2, 3])]), expected)
    assert spent(face.http, DOMAIN) == before


SIGMA, DELTA = "optimizer.noise_multiplier", "optimizer.delta"
BY_NAME = "or allow_weak_privacy=true to accept it by name"
UNFIT: dict[str, tuple[PrivateConfig, tuple[str, str, str]]] = {
    "bounded, little noise": (
        private(noise_multiplier=0.01),
        ("invalid_request", SIGMA, f"use noise_multiplier >= .*{BY_NAME}"),
    ),
    "dealt, little noise": (
        dealt(noise_multiplier=0.2, max_epsilon=5000.0),
        ("invalid_request", SIGMA, f"use more noise or fewer steps, {BY_NAME}"),
    ),
    "dealt, hardly any noise": (
        dealt(noise_multiplier=0.05, allow_weak_privacy=True),
        ("invalid_request", SIGMA, "must be from 0.1 to"),
    ),
    "bounded, another delta": (
        private(domain=DOMAIN, delta=1e-6),
        ("invalid_request", DELTA, "give it, or another domain"),
    ),
    "dealt, another delta": (dealt(delta=1e-6), ("invalid_request", DELTA, "give it, or another domain")),
    "dealt, a small cap": (
        dealt(batch_cap=3),
        ("invalid_request", "optimizer.batch_cap", "from the mean of a deal, .* leave it out"),
    ),
    "dealt, too many steps": (
        dealt(max_steps=5_000_000),
        ("invalid_request", "optimizer.max_steps", "give max_steps within that"),
    ),
    "dealt, no such domain": (
        dealt(domain="nowhere"),
        ("invalid_request", "optimizer.domain", "register its units first"),
    ),
    "bounded, no room": (
        private(domain=DOMAIN, noise_multiplier=0.1, allow_weak_privacy=True),
        ("privacy_budget_exceeded", SIGMA, "use more noise"),
    ),
    "dealt, no room": (
        dealt(max_steps=1000, max_epsilon=1.0),
        ("privacy_budget_exceeded", "optimizer.max_steps", r"\d+ would fit"),
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_configuration_that_cannot_stand_is_refused_before_anything_is_charged(
    face: Face, rig: Rig, case: str
) -> None:
    config, (code, field, hint) = UNFIT[case]
    register(rig.services.domains, max_epsilon=5000.0 if "little" in case else 30.0)
    before = spent(face.http, DOMAIN), spent(face.http, "letters")
    check(face, face.create(config), Refusal(422, code, field, f"{hint} | {NOTHING_CHARGED}"))
    assert (spent(face.http, DOMAIN), spent(face.http, "letters")) == before


def test_astronomic_epsilon_is_charged_to_whoever_names_it(face: Face, rig: Rig) -> None:
    register(rig.services.domains, max_epsilon=5000.0)
    assert face.create(dealt(noise_multiplier=0.2, max_epsilon=5000.0, allow_weak_privacy=True)) is None
    charged = spent(face.http, DOMAIN)
    assert charged is not None
    assert charged[0] > 100.0


def test_a_second_delta_of_a_domain_without_registration_is_charged_nothing(face: Face) -> None:
    assert face.create(private()) is None
    before = spent(face.http, "letters")
    expected = Refusal(422, "invalid_request", DELTA, f"give it, or another domain | {NOTHING_CHARGED}")
    check(face, face.create(private(delta=1e-6)), expected)
    assert spent(face.http, "letters") == before


def test_another_configuration_for_a_run_that_exists_changes_and_charges_nothing(
    http: TestClient, rig: Rig
) -> None:
    register(rig.services.domains)
    face = Native(http, rig)
    named = {"Idempotency-Key": "mine"}
    assert face.create(dealt(), **named) is None
    charged = spent(http, DOMAIN)
    expected = Refusal(409, "conflict", None, f"give this one a key of its own | {FROZEN}")
    check(face, face.create(dealt(noise_multiplier=9.0), **named), expected)
    shown = http.get(f"/v1/training_clients/{face.run}").json()
    assert shown["optimizer"]["noise_multiplier"] == 4.0

    session = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()
    body = {"session_id": session["session_id"], "model_seq_id": 0, "base_model": BASE}

    def created(noise_multiplier: float) -> Any:
        config = private(domain=DOMAIN, noise_multiplier=noise_multiplier).model_dump(exclude_none=True)
        sent = {**body, "lora_config": {"rank": 2, "seed": 7}, "optimizer_config": config}
        return http.post("/api/v1/create_model", json=sent)

    assert created(4.0).status_code == 200
    expected = Refusal(422, "conflict", "seq_id", f"give this one a number of its own | {FROZEN}")
    check(face, refusal(created(5.0)), expected)
    assert spent(http, DOMAIN) == charged


def test_a_step_of_another_optimizer_changes_and_charges_nothing(http: TestClient, rig: Rig) -> None:
    face = Native(http, rig)
    assert face.create(private()) is None
    assert face.data(all_of(1)) is None
    before = spent(http, "letters")
    expected = Refusal(422, "invalid_request", "type", f"name that one, or create another run | {FROZEN}")
    check(face, face.step(type="adamw"), expected)
    assert spent(http, "letters") == before
    assert face.step(type="tensafe_dp_adamw") is None
    other = Native(http, rig)
    assert other.create(private_sgd()) is None
    check(other, other.step(beta1=0.9), Refusal(422, "invalid_request", "beta1", f"beta1 | {FROZEN}"))


def test_the_state_of_another_optimizer_is_no_beginning_and_charges_nothing(
    http: TestClient, rig: Rig
) -> None:
    face = Native(http, rig)
    assert face.create(private()) is None
    assert face.save("kept") is None
    before = spent(http, "letters")
    session = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()
    config = private(noise_multiplier=9.0).model_dump(exclude_none=True)
    body = {
        "session_id": session["session_id"],
        "model_seq_id": 0,
        "base_model": BASE,
        "path": f"tinker://{face.run}/weights/kept",
        "optimizer": True,
        "optimizer_config": config,
    }
    answer = http.post("/api/v1/load_weights", json=body)
    hint = f"leave it out, or load the weights alone | {NOTHING_CHARGED}"
    check(face, refusal(answer), Refusal(422, "invalid_request", "optimizer_config", hint))
    assert spent(http, "letters") == before


def test_the_loss_of_a_dealt_run_changes_with_none_of_its_deals(http: TestClient, rig: Rig) -> None:
    register(rig.services.domains)
    face = Native(http, rig)
    assert face.create(dealt()) is None
    assert http.post(f"/v1/training_clients/{face.run}/deals", json={"step": 0}).status_code == 200
    assert face.data(all_of(0)) is None
    before = spent(http, DOMAIN)
    path = f"/v1/training_clients/{face.run}/forward_backward"
    inputs = {"target_tokens": [2, 3], "logprobs": [-1.0] * 2, "advantages": [1.0] * 2}
    row = {"tokens": [1, 2], "loss_fn_inputs": inputs, "dp_unit_id": 1}
    future = http.post(path, json={"data": [row], "loss_fn": "ppo"}).json()["id"]
    expected = Refusal(422, "invalid_request", "loss_fn", f"Send the data with that loss | {STAYS}")
    check(face, face._ended(future), expected)
    assert spent(http, DOMAIN) == before


TERMS = {"unit": "record", "delta": 1e-2, "max_epsilon": 50.0}


def entries(*units: int) -> bytes:
    return b"".join(unit.to_bytes(8, "big", signed=True) + bytes(32) for unit in units)


def test_what_cannot_be_registered_is_named_and_charges_nothing(http: TestClient, rig: Rig) -> None:
    face = Native(http, rig)
    domains, one = "/v1/privacy/domains", "/v1/privacy/domains/few"
    assert http.post(domains, json={"name": "few", **TERMS}).status_code == 201
    assert http.put(f"{one}/units/0", content=entries(5, 6, 5)).status_code == 200

    def refused(answer: Any, status: int, code: str, field: str | None, hint: str) -> None:
        check(face, refusal(answer), Refusal(status, code, field, f"{hint} | {NOTHING_CHARGED}"))

    twice = r"position 2 is that of position 0 again .*; name each unit once"
    refused(http.post(f"{one}/finish", json={}), 422, "invalid_request", "units[2]", twice)
    other = http.post(domains, json={"name": "few", **TERMS, "delta": 1e-3})
    refused(other, 409, "conflict", None, "register the data set under another name")
    assert http.put(f"{one}/units/0", content=entries(5, 6)).status_code == 200
    assert http.post(f"{one}/finish", json={}).status_code == 200
    late = http.put(f"{one}/units/1", content=entries(7))
    refused(late, 409, "conflict", None, "register further data under another name")
    assert http.get(one).json()["steps"] == 0


def test_a_delta_of_one_over_n_is_warned_of_and_stays_on_record(http: TestClient, rig: Rig) -> None:
    one = "/v1/privacy/domains/few"
    assert http.post("/v1/privacy/domains", json={"name": "few", **TERMS}).status_code == 201
    assert http.put(f"{one}/units/0", content=entries(*range(100))).status_code == 200
    assert http.post(f"{one}/finish", json={}).json()["warnings"] == [DELTA_TOO_LARGE], "on registration"
    assert http.get(one).json()["warnings"] == [DELTA_TOO_LARGE]
    face = Native(http, rig)
    assert face.create(private(domain="few", delta=1e-2)) is None
    assert face.data(all_of(1)) is None
    assert face.step() is None
    assert face.save("kept") is None
    exported = http.get(f"{one}/export").content
    trusted = keys_of(io.BytesIO(exported), frozenset({rig.services.ports.signer.key_id}))
    assert verify(io.BytesIO(exported), trusted, processes=1).warnings == (DELTA_TOO_LARGE,)
    (saved,) = http.get(f"/v1/training_clients/{face.run}/artifacts").json()["artifacts"]
    statement = http.get(f"/v1/artifacts/{saved['id']}/privacy_statement").json()
    assert statement["warnings"] == [DELTA_TOO_LARGE]
