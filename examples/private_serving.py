"""Move an adapter to an adapter holder and sample from it there, measured against what it said before."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import tinker
from rich.console import Console
from tinker import types

from adapter_holder import AdapterHolder
from local_service import LocalService
from quantised_adapter import QuantisedAdapter

NEW_TOKENS: Final = 24
TOKENS_PER_SITE: Final = 2000
"""The budget: enough for an example, and what it gives away is printed."""
GREEDY: Final = types.SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, stop=["\n\n"])


@dataclass(frozen=True, slots=True)
class Answers:
    """Token ids per prompt, the client's id of each future, and how long they took all together."""

    tokens: list[list[int]]
    futures: list[str]
    seconds: float


def ask(client: tinker.ServiceClient, path: str, prompts: list[list[int]]) -> Answers:
    """One prompt after the other, greedily."""
    sampler = client.create_sampling_client(model_path=path).result()
    began = time.monotonic()
    tokens = [
        list(sampler.sample(types.ModelInput.from_ints(prompt), 1, GREEDY).result().sequences[0].tokens)
        for prompt in prompts
    ]
    # A future's id is its sampling session and the number of the request in it.
    futures = [f"{sampler._sampling_session_id}:{number}" for number in range(len(prompts))]
    return Answers(tokens, futures, time.monotonic() - began)


def publish_and_sample(
    service: LocalService,
    client: tinker.ServiceClient,
    path: str,
    prompts: list[list[int]],
    model_path: str,
    folder: Path,
    console: Console,
    *,
    keep_run: bool = False,
) -> dict[str, Any]:
    """Ask, publish `path` privately, ask again, compare, verify: what was measured.

    Afterwards nobody can sample from it any more, since its adapter holder has ended.
    """
    plain = ask(client, path, prompts)
    with AdapterHolder(folder) as holder:
        published = service.operate(
            "adapters", "publish", path, "--private", "--yes", "--holder-dir", str(holder.data_dir),
            "--holder", holder.address, "--holder-tenant", "sampler",
            "--tokens-per-site", str(TOKENS_PER_SITE), *(("--keep-run",) if keep_run else ()),
        )  # fmt: skip
        console.print(
            f"published: {published['policy']}; the adapter holder has the weights and answers with them"
        )
        console.print(f"other copies here: {published['other_copies']}", markup=False, soft_wrap=True)
        began = time.monotonic()
        ask(client, path, prompts[:1])
        opening_s = time.monotonic() - began
        private = ask(client, path, prompts)
        public_key = folder / "service.pem"
        public_key.write_text(service.public_key())
        statements = [_verified(service, one, folder, public_key) for one in private.futures]
        spent = holder.spent(published["adapter"])
        integers = QuantisedAdapter(model_path, holder.data_dir, published["adapter"])
    exact = [integers.greedy_after(*pair) == pair[1] for pair in zip(prompts, private.tokens, strict=True)]
    count = sum(len(tokens) for tokens in private.tokens)
    assert all(statement["mode"] == "HE" for statement in statements)
    assert all(statement["digest"] == integers.digest for statement in statements)
    measured = {
        "answers": [
            {"plain": before, "private": after, "exact": right}
            for before, after, right in zip(plain.tokens, private.tokens, exact, strict=True)
        ],
        "policy": published["policy"],
        "extraction": published["extraction"],
        "opening_s": round(opening_s, 1),
        "plain_ms_per_token": round(1000 * plain.seconds / sum(map(len, plain.tokens)), 1),
        "private_ms_per_token": round(1000 * private.seconds / count, 1),
        "attestations": len(statements),
        "sites": statements[0]["sites"],
        "evaluated": sum(int(statement["evaluated"]) for statement in statements),
        "metered": spent,
        "digest": integers.digest,
    }
    console.print(
        f"{sum(exact)} of {len(exact)} encrypted answers are the quantised adapter's in every token; "
        f"{private.seconds / count * 1000:.0f} ms a token, {plain.seconds / count * 1000:.0f} before; "
        f"{len(statements)} attestations verified"
    )
    return measured


def for_report(served: dict[str, Any], questions: Sequence[str], tokenizer: Any) -> dict[str, Any]:  # noqa: ANN401
    """The same with texts in the place of token ids, as `report.Encrypted` takes it."""

    def text(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() or "(nothing)"

    answers = [
        {
            "prompt": question,
            "plain": text(answer["plain"]),
            "private": text(answer["private"]),
            "tokens": len(answer["private"]),
            "same_tokens": answer["plain"] == answer["private"],
            "exact": answer["exact"],
        }
        for question, answer in zip(questions, served["answers"], strict=True)
    ]
    return served | {"answers": answers}


def _verified(service: LocalService, future: str, folder: Path, public_key: Path) -> dict[str, Any]:
    """The attestation of an answer, after `tensafe verify` has accepted it."""
    url = f"{service.url}/v1/futures/{future}/attestation"
    found = httpx.get(url, headers={"X-API-Key": service.api_key}, timeout=30).raise_for_status().json()
    file = folder / "attestation.json"
    file.write_text(json.dumps(found["attestation"]))
    return service.verify(file, public_key)
