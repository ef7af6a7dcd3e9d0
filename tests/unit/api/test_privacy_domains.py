"""`/v1/privacy/domains`: registered over HTTP, capped, idempotent, one tenant's alone."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import Unsupported
from tensafe.lambdas.api import _absent
from tensafe.privacy import accountant
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.content import content_key
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.verify import keys_of, verify
from tensafe.services import Services
from tests.unit.operations.world import TENANT
from tests.unit.privacy.support import open_run

DOMAINS = "/v1/privacy/domains"
LETTERS = f"{DOMAINS}/letters"
TERMS = {"unit": "record", "delta": 1e-5, "max_epsilon": 6.6}
BODY = {"name": "letters", **TERMS}


def page(*ids: int) -> bytes:
    return b"".join(struct.pack(">q", unit) + struct.pack(">q", unit) * 4 for unit in ids)


def code(answer) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["field"]


@pytest.fixture
def ledger(services: Services) -> Ledger:
    ports = services.ports
    return Ledger(ports.items, services.vault, ports.signer, ports.anchors)


@pytest.fixture
def stranger(services: Services) -> Iterator[TestClient]:
    key, _ = services.api_keys.create("stranger", ["train", "sample"])
    with TestClient(create_app(services), headers={"X-API-Key": key}) as client:
        yield client


def register(http: TestClient, *pages: bytes) -> dict:
    assert http.post(DOMAINS, json=BODY).status_code == 201
    for number, entries in enumerate(pages):
        assert http.put(f"{LETTERS}/units/{number}", content=entries).status_code == 200
    return http.post(f"{LETTERS}/finish", json={}).raise_for_status().json()


def test_from_creation_to_closing_and_again(http: TestClient) -> None:
    created = http.post(DOMAINS, json=BODY)
    assert (created.status_code, created.json()["state"]) == (201, "registering")
    assert created.json()["terms"] == {**TERMS, "adjacency": "zero_out_one_unit"}
    for _ in range(2):
        filled = http.put(f"{LETTERS}/units/0", content=page(3, -1))
        assert (filled.json()["units"], filled.json()["pages"]) == (2, 1)
    done = http.post(f"{LETTERS}/finish", json={"units": 2}).json()
    assert (done["state"], done["units"], done["warnings"]) == ("open", 2, [])
    assert len(bytes.fromhex(done["root"])) == len(bytes.fromhex(done["manifest_digest"])) == 32
    assert http.post(f"{LETTERS}/finish", json={"root": done["root"]}).json() == done
    assert http.post(DOMAINS, json=BODY).json() == done == http.get(LETTERS).json()
    assert (done["epsilon"], done["steps"], done["runs"]) == (0.0, 0, [])
    closed = http.post(f"{LETTERS}/close").json()
    assert (closed["state"], closed["root"]) == ("closed", done["root"])
    assert http.post(f"{LETTERS}/close").json() == closed
    again = http.put(f"{LETTERS}/units/1", content=page(9))
    assert code(again) == (409, "privacy_domain_closed", None)


def test_a_closing_that_cannot_be_answered_has_not_happened(
    http: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On AWS the API has no accountants: a refusal after the deed would be believed."""

    def without_accountants(*_: object) -> None:
        raise Unsupported("no accountants here")

    register(http, page(1))
    with monkeypatch.context() as patch:
        patch.setattr(type(services.domain_reader), "show", without_accountants)
        assert code(http.post(f"{LETTERS}/close"))[1] == "unsupported"
    assert http.get(LETTERS).json()["state"] == "open"


@pytest.fixture
def on_aws(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The API without accountants, as a function's package has it."""
    accountant._gaussian_epsilon.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    key, _ = services.api_keys.create(TENANT, ["train"])
    app = create_app(services)
    app.add_exception_handler(ModuleNotFoundError, _absent)
    with TestClient(app, headers={"X-API-Key": key}) as client:
        yield client


def test_without_accountants_nothing_is_done_to_a_domain_that_has_been_charged(
    ledger: Ledger, services: Services, request: pytest.FixtureRequest
) -> None:
    ledger.reserve(open_run(ledger, tenant=TENANT), 0, [1])
    ledger.reserve(open_run(ledger, "run-2", tenant=TENANT, domain="notes"), 0, [1])
    ledger.reserve(open_run(ledger, "run-3", tenant=TENANT, domain="done"), 0, [1])
    domains, terms = services.domains, DomainTerms(**TERMS)
    for name in ("letters", "done"):  # as by the command line, and then interrupted
        domains.create(TENANT, name, terms)
        domains.add_units(TENANT, name, 0, page(1))
    domains.finish(TENANT, "done")
    before = [domains.get(TENANT, name) for name in ("letters", "done")]

    http: TestClient = request.getfixturevalue("on_aws")
    unsupported = (501, "unsupported", None)
    assert code(http.post(DOMAINS, json={**BODY, "name": "notes"})) == unsupported
    assert domains.find(TENANT, "notes") is None
    assert code(http.put(f"{LETTERS}/units/1", content=page(2))) == unsupported
    assert code(http.delete(f"{LETTERS}/units/0")) == unsupported
    assert code(http.post(f"{LETTERS}/finish", json={})) == unsupported
    for name in ("letters", "done"):
        assert code(http.post(DOMAINS, json={**BODY, "name": name})) == unsupported
        assert code(http.post(f"{DOMAINS}/{name}/close")) == unsupported
        assert code(http.post(DOMAINS, json={**BODY, "name": name, "max_epsilon": 9.0}))[:2] == (
            409,
            "conflict",
        )
    assert code(http.put(f"{DOMAINS}/done/units/0", content=page(2)))[:2] == (409, "conflict")
    assert [domains.get(TENANT, name) for name in ("letters", "done")] == before
    # What has no charges is registered as ever.
    other = f"{DOMAINS}/mails"
    assert http.post(DOMAINS, json={**BODY, "name": "mails"}).status_code == 201
    assert http.put(f"{other}/units/0", content=page(2)).json()["units"] == 1
    assert http.post(f"{other}/finish", json={}).json()["state"] == "open"


def test_what_is_wrong_is_named_and_nothing_is_kept(http: TestClient) -> None:
    for change, field in (
        ({"name": "a/b"}, "name"),
        ({"delta": 0}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"unit": "people"}, "unit"),
        ({"max_epsilon": float(0)}, "max_epsilon"),
        ({"budget": 3}, "budget"),
    ):
        assert code(http.post(DOMAINS, json={**BODY, **change})) == (422, "invalid_request", field)
    assert http.get(DOMAINS).json() == {"domains": []}
    http.post(DOMAINS, json=BODY)
    assert code(http.post(DOMAINS, json={**BODY, "delta": 1e-6}))[:2] == (409, "conflict")
    for number, entries, expected in (
        ("0", b"", (422, "invalid_request", "units")),
        ("0", page(1)[:-1], (422, "invalid_request", "units")),
        ("0", b"x" * 40 * 8193, (413, "payload_too_large", "body")),
        ("10000", page(1), (422, "invalid_request", "page")),
        ("-1", page(1), (422, "invalid_request", "page")),
    ):
        assert code(http.put(f"{LETTERS}/units/{number}", content=entries)) == expected
    http.put(f"{LETTERS}/units/0", content=page(5, 6, 5))
    assert code(http.post(f"{LETTERS}/finish", json={})) == (422, "invalid_request", "units[2]")
    http.put(f"{LETTERS}/units/0", content=page(5, 6))
    assert http.put(f"{LETTERS}/units/1", content=page(7)).json()["units"] == 3
    assert http.delete(f"{LETTERS}/units/1").json()["units"] == 2
    assert code(http.post(f"{LETTERS}/finish", json={"units": 3})) == (422, "invalid_request", "units")
    assert code(http.post(f"{LETTERS}/finish", json={"n": 3})) == (422, "invalid_request", "n")
    assert code(http.get(f"{LETTERS}/plan?batch_size=1&epochs=1"))[:2] == (409, "privacy_domain_not_open")
    assert http.get(LETTERS).json()["state"] == "registering"


def test_a_large_delta_is_warned_of(http: TestClient) -> None:
    http.post(DOMAINS, json={**BODY, "delta": 1e-2})
    http.put(f"{LETTERS}/units/0", content=page(*range(100)))
    done = http.post(f"{LETTERS}/finish", json={}).json()
    assert done["warnings"] == ["delta_at_least_one_over_units"]
    assert http.get(DOMAINS).json()["domains"][0]["warnings"] == done["warnings"]


def test_the_content_key_is_the_domain_s_own_and_kept_nowhere(http: TestClient, services: Services) -> None:
    register(http, page(1))
    answer = http.get(f"{LETTERS}/content_key")
    assert answer.headers["cache-control"] == "no-store"
    key = bytes.fromhex(answer.json()["content_key"])
    assert key == services.domains.content_key(services.domains.get(TENANT, "letters"))
    assert key != content_key(key), "the key, not the secret behind it"


def test_what_runs_have_spent_and_the_proof_of_it(
    http: TestClient, ledger: Ledger, services: Services
) -> None:
    register(http, page(1, 2, 3))
    run = open_run(ledger, "run-1", tenant=TENANT)
    for step in range(4):
        ledger.reserve(run, step, [step % 3 + 1])
    shown = http.get(LETTERS).json()
    assert shown["epsilon"] == epsilon({"run-1": (1.0, 2)}, 1e-5)
    assert (shown["steps"], shown["runs"][0]["participations"]) == (4, 2)
    summary = http.get(DOMAINS).json()["domains"][0]
    assert (summary["epsilon"], summary["steps"], summary["runs"]) == (shown["epsilon"], 4, 1)
    rows = http.get(f"{LETTERS}/ledger?limit=3").json()["rows"]
    rows += http.get(f"{LETTERS}/ledger?after=3").json()["rows"]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["hash"] == shown["head_hash"]
    exported = http.get(f"{LETTERS}/export")
    assert exported.headers["content-type"] == "application/jsonl"
    assert len(exported.text.splitlines()) == 6
    trusted = keys_of(io.BytesIO(exported.content), frozenset({services.ports.signer.key_id}))
    report = verify(io.BytesIO(exported.content), trusted, processes=1)
    assert (report.head_hash, report.rows) == (shown["head_hash"], 4)
    assert report.epsilon == pytest.approx(shown["epsilon"], rel=1e-5)
    header = json.loads(exported.text.splitlines()[0])
    assert header["key_id"] == services.ports.signer.key_id


def test_domains_are_listed_by_name_with_those_that_were_never_registered(
    http: TestClient, ledger: Ledger
) -> None:
    register(http, page(1))
    open_run(ledger, "run-1", tenant=TENANT, domain="notes")
    open_run(ledger, "run-2", tenant="stranger", domain="a")
    listed = http.get(DOMAINS).json()["domains"]
    assert [(one["name"], one["state"]) for one in listed] == [("letters", "open"), ("notes", "unregistered")]
    assert http.get(f"{DOMAINS}?limit=1").json()["domains"] == listed[:1]
    assert http.get(f"{DOMAINS}?after=letters").json()["domains"] == listed[1:]
    notes = http.get(f"{DOMAINS}/notes").json()
    assert (notes["state"], notes["terms"], notes["units"]) == ("unregistered", None, None)
    assert code(http.post(f"{DOMAINS}/notes/close"))[:2] == (404, "not_found")


def test_a_plan_takes_n_and_delta_from_the_domain(http: TestClient) -> None:
    register(http, page(*range(400)))
    plan = http.get(f"{LETTERS}/plan?batch_size=40&epochs=2").json()
    assert (plan["units"], plan["steps"], plan["delta"], plan["target_epsilon"]) == (400, 20, 1e-5, 6.6)
    assert plan["warnings"] == []
    assert (plan["loop"], plan["advised"]) == ("reshuffled", "bounded, bisr, reshuffled")
    assert "Shuffling must not be billed as Poisson" in plan["why"]
    for loop, honest in (("sampled", {"attested"}), ("dealt", {"dealt Poisson"})):
        asked = http.get(f"{LETTERS}/plan?batch_size=40&epochs=2&loop={loop}").json()
        found = {option["name"] for option in asked["options"] if option["honest_here"]}
        assert honest == {name for name in found if not name.startswith("bounded")}
        assert asked["options"][-1]["settings"]["mode"] == "dealt"
    assert code(http.get(f"{LETTERS}/plan?batch_size=40&epochs=2&loop=other")) == (
        422,
        "invalid_request",
        "loop",
    )
    other = http.get(f"{LETTERS}/plan?batch_size=40&epochs=2&epsilon=2").json()
    assert other["options"][0]["noise_multiplier"] > plan["options"][0]["noise_multiplier"]
    assert code(http.get(f"{LETTERS}/plan?epochs=2")) == (422, "invalid_request", "batch_size")
    assert code(http.get(f"{LETTERS}/plan?batch_size=40&epochs=1000000"))[:2] == (422, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("PUT", "/units/0"),
        ("DELETE", "/units/0"),
        ("POST", "/finish"),
        ("POST", "/close"),
        ("GET", "/content_key"),
        ("GET", "/ledger"),
        ("GET", "/export"),
        ("GET", "/plan?batch_size=1&epochs=1"),
    ],
)
def test_another_tenant_s_domain_is_as_none(
    http: TestClient, stranger: TestClient, ledger: Ledger, method: str, path: str
) -> None:
    register(http, page(1))
    open_run(ledger, "run-1", tenant=TENANT)

    def asked(name: str) -> tuple[int, str]:
        sent = {"json": {}} if path == "/finish" else {"content": page(1)}
        answer = stranger.request(method, f"{DOMAINS}/{name}{path}", **(sent if method != "GET" else {}))
        error = answer.json()["error"]
        return answer.status_code, error["message"].replace(name, "NAME")

    assert asked("letters") == asked("nothing")
    assert asked("letters")[0] == 404
    assert asked("%20")[0] == 404
    assert stranger.get(DOMAINS).json() == {"domains": []}
    # The same name is free for them, with other terms and another key.
    assert stranger.post(DOMAINS, json={**BODY, "delta": 1e-7}).status_code == 201
    keys = {client.get(f"{LETTERS}/content_key").json()["content_key"] for client in (http, stranger)}
    assert len(keys) == 2


def test_a_key_that_may_only_sample_sees_no_domain(http: TestClient, services: Services) -> None:
    key, _ = services.api_keys.create(TENANT, ["sample"])
    for method, path in (("GET", ""), ("POST", ""), ("GET", "/letters/content_key")):
        answer = http.request(method, f"{DOMAINS}{path}", headers={"X-API-Key": key})
        assert answer.status_code == 403
