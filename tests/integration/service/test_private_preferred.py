"""HE_PREFERRED over real HTTP: encrypted while the adapter holder answers, in the clear while it does not.

In the clear are the weights that are served, which the publisher chose to keep in the vault; the attestation
says which of the two ran, and why. Under HE_REQUIRED the same adapter never falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import tinker

from tensafe.audit.attestation import Statement
from tests.integration.service.test_private import refusals, refused_since
from tests.integration.service.test_private_faces import (
    DRAW,
    TEXT,
    Published,
    operate,
    sampled,
    trained_and_published,
)
from tests.support.holder_process import HolderProcess
from tests.support.native import problem
from tests.support.service import Service, tensafe

pytestmark = pytest.mark.one_machine("the adapter holder shares one machine; aws/test_private.py has AWS's")

STRICT = {"execution_policy": "HE_REQUIRED"}
ABSENT = "he_adapter_holder_absent"


@pytest.fixture(scope="module")
def preferred(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """A trained adapter that is preferably evaluated by its holder, and may be applied in the clear."""
    holder = HolderProcess(tmp_path_factory.mktemp("h"))
    options = ("--holder", holder.address, "--tokens-per-site", "4000")
    kept = ("--policy", "HE_PREFERRED", "--keep-plaintext")
    with trained_and_published(service, holder, "private-preferred", *options, *kept) as found:
        yield found


def answers(published: Published, chat: openai.OpenAI) -> tuple[list[Any], list[Statement]]:
    """What each face answers, and what is vouched for: Tinker, native, OpenAI whole and streamed."""
    sampler = published.sampler(published.path)
    tokens = sampled(sampler)
    native = published.native(published.path).json()
    whole = chat.completions.create(model=published.path, prompt=TEXT, **DRAW)
    events = list(chat.completions.create(model=published.path, prompt=TEXT, stream=True, **DRAW))
    assert native["sequences"][0]["tokens"] == tokens
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
    evidence = [
        published.evidence(sampler),
        native,
        whole.model_extra["attestations"][0],
        events[-1].model_extra["attestations"][0],
    ]
    return [tokens, whole.choices[0].text], [published.statement(one) for one in evidence]


def refused_under_he_required(published: Published, chat: openai.OpenAI, code: str) -> None:
    """A request that strengthens the policy is never answered in the clear, on no face."""
    strict = tinker.ServiceClient(
        base_url=published.service.url,
        api_key=published.key,
        default_headers_overrides={"X-TenSafe-Execution-Policy": "HE_REQUIRED"},
    )
    with pytest.raises(tinker.TinkerError, match=code):
        sampled(strict.create_sampling_client(model_path=published.path).result())
    strict.close("success").result()
    assert problem(published.native(published.path, **STRICT)) == (503, code, None)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as raised:
            chat.completions.create(
                model=published.path, prompt=TEXT, stream=stream, extra_body=STRICT, **DRAW
            )
        assert (raised.value.status_code, raised.value.body["code"]) == (503, code)  # type: ignore[index]


def test_he_preferred_falls_back_to_what_is_served_on_every_face_and_says_so(preferred: Published) -> None:
    digest = preferred.said["digest"]
    with openai.OpenAI(base_url=f"{preferred.service.url}/v1", api_key=preferred.key, max_retries=0) as chat:
        encrypted, statements = answers(preferred, chat)
        for one in statements:
            assert (one.policy, one.mode, one.digest) == ("HE_PREFERRED", "HE", digest)
            assert isinstance(one, Statement)
            assert one.fallback is None
            assert one.evaluated == one.sites * one.tokens > 0

        preferred.holder.kill()
        counted = refusals(preferred.service)
        in_clear, statements = answers(preferred, chat)
        assert in_clear == encrypted  # the quantised weights: only the rounding of activations differs
        for one in statements:
            assert (one.policy, one.mode, one.digest) == ("HE_PREFERRED", "PLAINTEXT", digest)
            assert one.fallback == ABSENT
            assert (one.adapter, one.evaluated) == (f"{preferred.said['adapter']}@1", 0)
        assert refused_since(preferred.service, counted) > 0  # the alarm tells of the holder all the same
        refused_under_he_required(preferred, chat, ABSENT)
        weaker = preferred.native(preferred.path, execution_policy="PLAINTEXT_ONLY")
        assert problem(weaker) == (422, "invalid_request", "execution_policy")

        preferred.holder.start()
        encrypted_again, statements = answers(preferred, chat)
        assert encrypted_again == encrypted
        assert {one.mode for one in statements} == {"HE"}

        # An epoch that the service was not told of is not evaluated: in the clear it is what was published.
        preferred.holder.command("rotate", "--name", preferred.said["adapter"])
        _, statements = answers(preferred, chat)
        assert {one.fallback for one in statements} == {"he_digest_mismatch"}
        refused_under_he_required(preferred, chat, "he_digest_mismatch")
        where = ("--holder-dir", str(preferred.holder.data_dir))
        turned = operate(preferred.service, "rotate", preferred.path, "--rotated", *where)
        _, statements = answers(preferred, chat)
        assert {(one.mode, one.epoch, one.digest) for one in statements} == {("HE", 2, turned["digest"])}

        # Erasing the run takes what is kept along: then nobody answers in the holder's place.
        run = preferred.path.removeprefix("tinker://").partition("/")[0]
        tensafe("runs", "erase", run, "--data-dir", str(preferred.service.data_dir), "--yes")
        preferred.holder.kill()
        assert problem(preferred.native(preferred.path)) == (503, ABSENT, None)
