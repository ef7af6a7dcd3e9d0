"""The operators' role has what the runbooks' commands call, and no more.

No emulator here enforces IAM: the commands run, their calls are recorded, and the template is held to them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tensafe.operations.records import OpKind, StreamKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.export import Exporter
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.services import Services
from tests.integration.cloud.test_commands import BASE, RUN, run, tensafe
from tests.support.aws_stack import Stack, make_stack
from tests.support.moto_process import moto_process
from tests.support.operator_calls import allowed, may_use, recorded
from tests.support.runbooks import RUNBOOKS

__all__ = ["run", "tensafe"]
THE_PUBLISHERS: Final = {("adapters", "rotate"), ("adapters", "move"), ("adapters", "show")}
"""Of the roles that publish: test_adapters.py runs them as them."""
BUILT_INTO_THE_AWS_CLI: Final = {"logs:Tail": "logs:FilterLogEvents"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Of this module's own: the folder's other tests make the same run."""
    with moto_process() as endpoint:
        yield make_stack(endpoint)


def aws_actions() -> set[str]:
    """IAM's action of every `aws` command in the runbooks."""
    found = set[str]()
    for path in RUNBOOKS.glob("*.md"):
        for service, operation in re.findall(r"\baws ([a-z-]+) ([a-z-]+)", path.read_text(encoding="utf-8")):
            action = f"{service}:{''.join(word.capitalize() for word in operation.split('-'))}"
            found.add(BUILT_INTO_THE_AWS_CLI.get(action, action))
    return found


def ours(text: str) -> set[tuple[str, str]]:
    """The groups and names of the `tensafe` commands of a text."""
    return set(re.findall(r"\btensafe ([a-z][a-z-]*) ([a-z][a-z-]*)", text))


def test_the_role_is_as_large_as_the_commands(
    tensafe: Callable[..., Any], services: Services, run: StreamRecord
) -> None:
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=2.0, batch_size=8, max_participations=3, delta=1e-5, domain="letters"
    )
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    ledger.reserve(ledger.open_run("acme", run.stream_id, mechanism, noise_key_id="noise-1"), 1, [42])
    other, creation = services.streams.creation("s-9:train:0", "acme", StreamKind.RUN, BASE, spec={})
    services.submissions.create(other, creation, Submission(0, OpKind.CREATE, b"{}" * 50_000))
    done = set[tuple[str, str]]()

    def command(line: str, *more: str, as_json: bool = True) -> Any:
        words = [*shlex.split(line), *more]
        done.add((words[0], words[1]))
        return tensafe(*words, as_json=as_json)

    with recorded() as found:
        made = command("keys create --tenant globex --scope train,sample")
        command("keys list --tenant globex")
        command("keys revoke", made["key_id"])
        (letter,) = command("dead-letters list")
        command("dead-letters show", letter["id"])
        command("dead-letters redrive", letter["id"])
        command("runs list --limit 20")
        command("runs show", RUN)
        command("ops list", RUN)
        command("ops show", RUN, "0")
        command("ops cancel", RUN, "0")
        command("checkpoints list")
        command("privacy show letters --tenant acme")
        command("privacy ledger letters --tenant acme")
        command("privacy public-key")
        command("tenants limits acme")
        command("runs erase s-9:train:0 --yes")
    # Each of them, and all that a runbook names, has been run.
    for path in RUNBOOKS.glob("*.md"):
        assert ours(path.read_text(encoding="utf-8")) - THE_PUBLISHERS <= done, path.name
    may = allowed()
    assert {call for call in found.calls if not call[0].startswith("kms:")} - may == set()
    assert {call[0] for call in found.calls if call[0].startswith("kms:")} == {"kms:GetPublicKey"}
    # No data key is opened, of a run or of a domain: nothing sealed is seen.
    assert found.opened == []
    # Nothing is allowed that none of the commands needs.
    needed = {action for action, _ in found.calls} | aws_actions()
    assert sorted(action for action, _ in may if action not in needed) == []
    assert sorted(aws_actions() - {action for action, _ in may}) == []


def test_whoever_signs_may(services: Services, run: StreamRecord) -> None:
    """An export is the API's, an attestation the sampler's: neither would come without the key's policy."""
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=2.0, batch_size=8, max_participations=3, delta=1e-5, domain="signed"
    )
    ledger.reserve(ledger.open_run("acme", run.stream_id, mechanism, noise_key_id="noise-2"), 1, [42])
    anchoring = Anchoring(ports.items, ports.anchors)
    with recorded() as exporting:
        assert b"".join(
            Exporter(ports.items, services.vault, ports.signer, anchoring).lines("acme", "signed", at_ms=1)
        )
    assert ("kms:Sign", "") in exporting.calls
    calls = {call for call in exporting.calls if not call[0].startswith("kms:")}
    assert ("dynamodb:GetItem", "AnchorTable") in calls
    assert calls - allowed("ApiPolicy") == set()
    assert may_use("SigningKey", "kms:Sign") == {"ApiRole", "TrainerRole", "SamplerRole"}
    assert may_use("SigningKey", "kms:GetPublicKey") >= {"ApiRole", "TrainerRole", "SamplerRole"}


def test_a_call_beyond_the_role_is_seen(services: Services, run: StreamRecord) -> None:
    with recorded() as found:
        sealed = services.ports.items.get(run.scope.key_item)
        assert sealed is not None
        services.ports.keyring.unwrap(sealed.sealed, run.scope.context())
        services.ports.blobs.head("health/probe")
        services.ports.queues.depth(services.ports.queue_specs[0].name)
    assert ("s3:GetObject", "BlobBucket") in found.calls - allowed()
    assert found.opened == [run.scope.context()]
