"""What needs privacy accounting, which the functions' package does not have, is 501; the rest is answered."""

from __future__ import annotations

import httpx
import pytest

from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.services import Services
from tests.integration.lambdas.conftest import TENANT
from tests.integration.lambdas.test_api import a_run

DOMAIN = "/v1/privacy/domains/letters"


@pytest.fixture(scope="module")
def charged(services: Services) -> str:
    """A domain in which one unit took part in one step."""
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=2.0, batch_size=8, max_participations=3, delta=1e-5, domain="letters"
    )
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    run = a_run(services)
    ledger.reserve(ledger.open_run(TENANT, run.stream_id, mechanism, noise_key_id="noise-1"), 1, [42])
    return "letters"


@pytest.mark.parametrize("path", ["/v1/privacy/domains", DOMAIN, f"{DOMAIN}/ledger"])
def test_an_epsilon_is_not_computed_here(http: httpx.Client, charged: str, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unsupported"), answer.text
    assert "use the command line" in answer.json()["error"]["message"]


def test_the_ledger_is_exported(http: httpx.Client, charged: str) -> None:
    answer = http.get(f"{DOMAIN}/export")
    assert answer.status_code == 200, answer.text
    assert charged in answer.text
