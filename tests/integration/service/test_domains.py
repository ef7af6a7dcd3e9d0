"""A data set is registered over HTTP from the SDK's examples, binds the runs on it, and is closed."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from tinker import types

from tensafe.client.domains import PrivacyDomains
from tensafe.client.service import Service as Connection
from tensafe.client.service import ServiceError
from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import Conflict, InvalidRequest, Unavailable
from tensafe.privacy.artifact_statement import check_statement
from tensafe.privacy.closed_form import epsilon_of
from tensafe.storage.signing import PublicKey
from tests.support.aws_service import AwsService
from tests.support.native import Native, batch, example, make_key
from tests.support.service import Service, tensafe

TERMS = DomainTerms(unit="record", delta=1e-4, max_epsilon=2.0)
PRIVATE = {
    "type": "tensafe_dp_adamw",
    "clip_norm": 1.0,
    "noise_multiplier": 3.0,
    "delta": 1e-4,
    "batch_size": 2,
    "max_participations": 4,
    "domain": "letters",
}


def letter(unit: int) -> types.Datum:
    tokens = [unit % 250 + 1, 9, 301, 77, 45]
    inputs = {
        "target_tokens": np.array(tokens[1:]),
        "weights": np.ones(4, np.float32),
        "dp_unit_id": np.array([unit]),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


@pytest.fixture
def key(service: Service, tenant: str) -> str:
    return make_key(service, tenant)


@pytest.fixture
def domains(service: Service, key: str) -> PrivacyDomains:
    return PrivacyDomains(Connection(service.url, key, pause=lambda _: None))


def units(*ids: int) -> dict:
    return batch(*({**example(), "dp_unit_id": unit} for unit in ids))


def refusal(answer: httpx.Response) -> tuple[str, str | None]:
    error = answer.json()["error"]
    return error["code"], error["field"]


def epsilon_spent(service: Service | AwsService, tenant: str, domains: PrivacyDomains) -> float:
    """By the command line, and over HTTP where the API has accountants (docs/aws.md, "Functions")."""
    where = ("--tenant", tenant, "--json")
    spent = float(json.loads(service.tensafe("privacy", "show", "letters", *where).stdout)["epsilon"])
    if isinstance(service, AwsService):
        with pytest.raises(ServiceError) as caught:
            domains.show("letters")
        assert (caught.value.status, caught.value.code) == (501, "unsupported")
    else:
        assert domains.show("letters").epsilon == spent
    return spent


def register_again(service: Service | AwsService, tenant: str, domains: PrivacyDomains) -> None:
    """A charged domain with the same data: as it stands, or refused where that cannot be said."""
    where = ("letters", "--tenant", tenant, "--json")
    before = json.loads(service.tensafe("privacy", "show", *where).stdout)
    other = TERMS.model_copy(update={"max_epsilon": 3.0})
    with pytest.raises(ServiceError) as caught:
        domains.register("letters", map(letter, range(20)), other)
    assert (caught.value.status, caught.value.code) == (409, "conflict")
    if isinstance(service, AwsService):
        with pytest.raises(ServiceError) as caught:
            domains.register("letters", map(letter, range(20)), TERMS)
        assert (caught.value.status, caught.value.code) == (501, "unsupported")
    else:
        assert domains.register("letters", map(letter, range(20)), TERMS) == domains.show("letters")
    assert json.loads(service.tensafe("privacy", "show", *where).stdout) == before


def close(service: Service | AwsService, tenant: str, domains: PrivacyDomains) -> None:
    """Where the API has no accountants it refuses, nothing is closed, and the command line does it."""
    if not isinstance(service, AwsService):
        assert domains.close("letters").state == "closed"
        return
    with pytest.raises(ServiceError) as caught:
        domains.close("letters")
    assert (caught.value.status, caught.value.code) == (501, "unsupported")
    where = ("letters", "--tenant", tenant)
    assert json.loads(service.tensafe("privacy", "show", *where, "--json").stdout)["state"] == "open"
    assert "is closed" in service.tensafe("privacy", "close", *where, "--yes").stdout


def test_a_registered_data_set_binds_its_runs_until_it_is_closed(
    service: Service, key: str, tenant: str, domains: PrivacyDomains, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    done = domains.register(
        "letters", map(letter, range(20)), TERMS, progress=lambda *sent: told.append(sent)
    )
    assert (done.state, done.units, done.warnings, told) == ("open", 20, (), [(20, 20)])
    assert domains.register("letters", map(letter, range(20)), TERMS) == done

    native = Native(service, key)
    run = native.create(optimizer=PRIVATE)
    native.do(run, "forward_backward", units(3, 19))
    native.do(run, "optim_step", {"learning_rate": 1e-3})
    answer = native.wait(native.submit(run, "forward_backward", units(4, 20)))
    assert refusal(answer) == ("unit_not_registered", "data[1].loss_fn_inputs.dp_unit_id")

    saved = native.save(run, "first")
    statement = domains.artifact_statement(saved["id"])
    files = {"state.safetensors": native.content(saved["id"])}
    public = service.tensafe("privacy", "public-key").stdout
    signer = PublicKey.from_pem(public)
    check_statement(statement, {signer.key_id: signer}, files=files)
    assert (statement["domain"]["root"], statement["domain"]["units"]) == (done.root, 20)
    assert 0 <= statement["spent"]["epsilon"] - epsilon_of(1 / 9.0, 1e-4) < 1e-4
    shown = service.tensafe("privacy", "statement", f"{run}/first")
    assert str(done.root) in shown.stdout

    # A second participation is epsilon 1.59 and fits the domain's 2.0; a third, by any run, does not.
    native.do(run, "forward_backward", units(3))
    native.do(run, "optim_step", {"learning_rate": 1e-3})
    native.do(run, "forward_backward", units(3))
    answer = native.wait(native.submit(run, "optim_step", {"learning_rate": 1e-3}))
    assert refusal(answer)[0] == "privacy_budget_exceeded"
    other = native.post(
        "/v1/training_clients", {"base_model": service.model_name, "optimizer": PRIVATE}
    ).json()
    assert refusal(native.wait(other["future"]["id"]))[0] == "privacy_budget_exceeded"
    spent = epsilon_spent(service, tenant, domains)
    assert 0 <= spent - epsilon_of(2 / 9.0, 1e-4) < 1e-4

    register_again(service, tenant, domains)
    export = tmp_path / "letters.jsonl"
    domains.export("letters", export)
    signer = json.loads(service.tensafe("privacy", "public-key", "--json").stdout)
    verified = tensafe("privacy", "verify", str(export), "--key-id", signer["key_id"])
    assert "valid" in verified.stdout

    close(service, tenant, domains)
    for operation, body in (("forward_backward", units(4)), ("optim_step", {"learning_rate": 1e-3})):
        answer = native.wait(native.submit(run, operation, body))
        assert refusal(answer)[0] == "privacy_domain_closed"
    assert epsilon_spent(service, tenant, domains) == spent


def test_a_name_whose_runs_have_spent_something_is_registered_by_who_can_account_for_it(
    service: Service, key: str, tenant: str, domains: PrivacyDomains, tmp_path: Path
) -> None:
    """Over HTTP on one machine. On AWS the API refuses before it does anything; the command line does it."""
    native = Native(service, key)
    run = native.create(optimizer=PRIVATE)
    native.do(run, "forward_backward", units(3))
    native.do(run, "optim_step", {"learning_rate": 1e-3})
    if not isinstance(service, AwsService):
        done = domains.register("letters", map(letter, range(20)), TERMS)
        assert (done.state, done.units, done.epsilon > 0) == ("open", 20, True)
        return
    with pytest.raises(ServiceError) as caught:
        domains.register("letters", map(letter, range(20)), TERMS)
    assert (caught.value.status, caught.value.code) == (501, "unsupported")
    where = ("letters", "--tenant", tenant)
    assert json.loads(service.tensafe("privacy", "show", *where, "--json").stdout)["state"] == "unregistered"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({**example(), "dp_unit_id": unit}) + "\n" for unit in range(20)))
    with service.services() as rooms:  # the command line, interrupted before its pages were sent
        rooms.domains.create(tenant, "letters", TERMS)
    for method, path, body in (
        ("PUT", "units/0", bytes(40)),
        ("DELETE", "units/0", b""),
        ("POST", "finish", b"{}"),
    ):
        answer = native.http.request(method, f"/v1/privacy/domains/letters/{path}", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unsupported")
    with service.services() as rooms:
        found = rooms.domains.get(tenant, "letters")
        assert (found.state, found.pages, found.units) == ("registering", 0, 0)
    terms = ("--unit", "record", "--delta", "1e-4", "--max-epsilon", "2")
    made = service.tensafe("privacy", "create", *where, "--data", str(data), *terms, "--json")
    assert json.loads(made.stdout)["state"] == "open"


def test_other_data_under_the_same_name_and_an_earlier_longer_upload(
    service: Service, key: str, domains: PrivacyDomains
) -> None:
    native = Native(service, key)
    body = {"name": "letters", **TERMS.model_dump()}
    assert native.post("/v1/privacy/domains", body).status_code == 201
    for page in range(3):  # of an upload that was given up
        path = f"/v1/privacy/domains/letters/units/{page}"
        assert native.http.put(path, content=bytes([page]) * 40).status_code == 200
    done = domains.register("letters", map(letter, range(5)), TERMS)
    assert (done.state, done.units) == ("open", 5)
    with pytest.raises(Conflict, match="open with other data"):
        domains.register("letters", map(letter, range(6)), TERMS)
    with pytest.raises(ServiceError) as caught:
        domains.register("letters", [letter(0)], TERMS.model_copy(update={"max_epsilon": 3.0}))
    assert (caught.value.status, caught.value.code) == (409, "conflict")
    assert caught.value.request_id is not None


def test_data_that_cannot_be_registered_leave_no_domain_whose_terms_could_not_be_changed(
    domains: PrivacyDomains,
) -> None:
    for data, problem in (([], "at least one unit"), ([letter(1), letter(1)], "has a second datum")):
        with pytest.raises(InvalidRequest, match=problem):
            domains.register("mails", data, TERMS)
        with pytest.raises(ServiceError) as caught:
            domains.show("mails")
        assert caught.value.status == 404
    users = TERMS.model_copy(update={"unit": "user"})
    assert domains.register("mails", [letter(1), letter(1)], users).units == 1


def test_a_service_that_does_not_answer_is_told_so(service: Service) -> None:
    pauses: list[float] = []
    nowhere = PrivacyDomains(Connection("http://127.0.0.1:9", "tml-x", timeout_s=1, pause=pauses.append))
    with pytest.raises(Unavailable, match="does not answer"):
        nowhere.show("letters")
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]
    with pytest.raises(ServiceError) as caught:
        PrivacyDomains(Connection(service.url, "tml-wrong")).show("letters")
    assert caught.value.status == (403 if isinstance(service, AwsService) else 401)
