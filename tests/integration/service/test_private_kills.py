"""SIGKILL of an adapter holder, of the sampler and of both, in the middle of encrypted generations."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import tinker
from tinker import types

from tensafe.storage.sqlite_items import SqliteItems
from tensafe_gpu.helora.accepted_records import Epoch
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, Kind
from tensafe_gpu.helora.messages import unpack_ranges
from tests.integration.service.test_sdk import train
from tests.support.holder_process import HolderProcess
from tests.support.native import make_key
from tests.support.service import MODEL_NAME, Service, tensafe
from tests.support.tap import Tap, split

pytestmark = pytest.mark.one_machine("kills one machine's processes and taps their socket")

ROUNDS = (("holder",), ("sampler",), ("holder", "sampler"))
RESUMES_S = 90.0
PROMPTS = [types.ModelInput.from_ints([5 + n, 9, 301, 77 + n]) for n in range(3)]
GREEDY = types.SamplingParams(max_tokens=60, temperature=0.0, stop=[])


@pytest.fixture
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    process = HolderProcess(tmp_path_factory.mktemp("h"), watched=True)
    yield process
    process.kill()


@pytest.fixture
def tap(holder: HolderProcess) -> Iterator[Tap]:
    tap = Tap(holder.data_dir / "tap", holder.socket)
    yield tap
    tap.close()


def asked(sampler: tinker.SamplingClient) -> list[list[int]]:
    pending = [sampler.sample(prompt, 1, GREEDY) for prompt in PROMPTS]
    return [list(one.result(timeout=180).sequences[0].tokens) for one in pending]


def answer_or_code(pending: object) -> list[int] | str:
    """The tokens, or what the refusal says."""
    try:
        return list(pending.result(timeout=180).sequences[0].tokens)  # type: ignore[attr-defined]
    except tinker.TinkerError as error:
        return str(error)


def indices_sent(tap: Tap) -> list[tuple[bytes, int]]:
    """(block, index) of everything that was masked and left the sampler."""
    return [
        (one.block_id, index)
        for stream, _ in tap.streams()
        for kind, payload in split(stream, TO_ADAPTER_HOLDER, cut=True)
        if kind is Kind.PRODUCTS
        for one in unpack_ranges(memoryview(payload))[0]
        for index in range(one.first, one.first + one.tokens)
    ]


def burned_until(path: Path) -> dict[bytes, int]:
    """Block -> the index up to which the key holder's log says that it is used up."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT block, until FROM burned"))


def accepted_until(data_dir: Path, adapter: str) -> dict[bytes, int]:
    """The same of the adapter holder's first version and epoch."""
    items = SqliteItems(data_dir / "items.db")
    found = items.query(Epoch(adapter, 1, 1).block(b"\0").partition, limit=10_000)
    items.close()
    return {bytes.fromhex(one.key.sort.partition("/")[2]): int(str(one.body["until"])) for one in found}


@pytest.mark.timeout(400)
def test_he_01_whoever_is_killed_no_index_is_used_twice_and_no_token_comes_without_encryption(
    own_service: Service, holder: HolderProcess, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", own_service.url)
    monkeypatch.setenv("TINKER_API_KEY", make_key(own_service, "killed"))
    client = tinker.ServiceClient()
    training = client.create_lora_training_client(MODEL_NAME, rank=8, seed=3, train_unembed=False).result()
    train(training, 6)
    path = training.save_weights_for_sampler("mine").result().path
    done = tensafe(
        *("adapters", "publish", path, "--private", "--yes", "--data-dir", str(own_service.data_dir)),
        *("--holder-dir", str(holder.data_dir), "--holder", f"unix:{holder.data_dir / 'tap'}"),
        *("--holder-tenant", "sampler", "--tokens-per-site", "50000"),
    )
    assert done.returncode == 0
    sampler = client.create_sampling_client(model_path=path).result()
    base = asked(client.create_sampling_client(base_model=MODEL_NAME).result())
    expected = asked(sampler)
    assert all(private != plain for private, plain in zip(expected, base, strict=True))
    draw, refused, answered = random.Random(8), 0, 3
    for victims in ROUNDS:
        sent = tap.sent()
        pending = [sampler.sample(prompt, 1, GREEDY) for prompt in PROMPTS]
        while tap.sent() == sent:  # they have begun
            time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        if "holder" in victims:
            holder.kill_watched()
        if "sampler" in victims:
            own_service.kill("sampler")
        deadline = time.monotonic() + RESUMES_S
        while True:
            found = [answer_or_code(one) for one in pending]
            answers = [tokens == wanted for tokens, wanted in zip(found, expected, strict=True)]
            # Exact or refused with a code, and nothing else: not the base model's tokens, for one.
            assert all(right or "he_" in str(tokens) for tokens, right in zip(found, answers, strict=True))
            answered, refused = answered + sum(answers), refused + answers.count(False)
            if all(answers):
                break
            assert time.monotonic() < deadline, (victims, found)  # it resumes by itself
            pending = [sampler.sample(prompt, 1, GREEDY) for prompt in PROMPTS]
    assert refused > 0

    sent_indices = indices_sent(tap)
    assert len(set(sent_indices)) == len(sent_indices) > 4 * 60 * answered
    burned = burned_until(own_service.data_dir / "burned.db")
    name = holder.command("list")["adapters"][0]["name"]
    accepted = accepted_until(holder.data_dir, name)
    assert accepted
    assert all(index < burned[block] for block, index in sent_indices)
    assert all(until <= burned.get(block, 0) for block, until in accepted.items())
    shown = holder.command("show", "--name", name)
    for tenants in shown["tokens_by_site_and_tenant"].values():
        assert tenants["sampler"] >= answered * (4 + 60 - 1)
