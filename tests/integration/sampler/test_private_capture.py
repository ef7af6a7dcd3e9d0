"""All that a sampler sends an adapter holder in whole generations, searched for what it must not have."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.sampling import SampleResult
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, Kind
from tensafe_gpu.helora.messages import unpack_ranges
from tensafe_gpu.helora.parameters import T_BITS
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.integration.sampler.conftest import AdapterFactory, Harness
from tests.support.holder_process import HolderProcess
from tests.support.leaks import leaks, number_forms, runs_of, token_forms
from tests.support.private_requests import greedy, tokens_of
from tests.support.recording_key_holder import recorded
from tests.support.tap import Tap, split

pytestmark = pytest.mark.slow

NEW = 24
PROMPTS = tuple(tuple(range(first, first + 12)) for first in (40, 140, 240))


@pytest.fixture(scope="module")
def holder(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    _, folder = make_adapter("C", seed=17, modules=("q_proj", "v_proj", "down_proj"))
    process = HolderProcess(tmp_path_factory.mktemp("c"))
    process.command(
        "publish",
        *("--name", "C", "--peft", str(folder), "--base-model", "tiny", "--tenants", "t"),
        *("--tokens-per-site", "4000"),
    )
    yield process
    process.kill()


def captured(holder: HolderProcess, folder: Path, **more: str) -> tuple[Tap, Path, PrivateAdapter]:
    """A tap in front of the adapter holder, what the key holder writes down, and the adapter by that way."""
    tap, record = Tap(folder / "tap", holder.socket), folder / "record"
    where = {
        "address": f"unix:{folder / 'tap'}",
        "tenant": "t",
        "adapter": "C",
        "version": "1",
        "burn_log": str(holder.data_dir / "burned.db"),
        "record": str(record),
    }
    return tap, record, PrivateAdapter("C", "1", where | more)


def needles(record: Path, texts: list[list[int]]) -> dict[str, list[bytes]]:
    """By kind and form: what the key holder wrote down in the engine, and the tokens of the generations."""
    found: dict[str, list[bytes]] = defaultdict(list)
    for kind, value in recorded(record):
        if isinstance(value, bytes):
            found[kind].append(value)
            continue
        for row in np.atleast_2d(value):
            for form, data in number_forms(row).items():
                found[f"{kind} as {form}"].append(data)
    for tokens in texts:
        for form, data in token_forms(tokens).items():
            found[f"tokens as {form}"].append(data)
    return found


def test_he_01_a_capture_of_whole_generations_holds_no_activation_token_or_key(
    harness: Harness, holder: HolderProcess, tmp_path: Path
) -> None:
    tap, record, adapter = captured(holder, tmp_path)
    results = harness.together(
        *(harness.engine.sample(greedy(prompt, NEW), adapter) for prompt in PROMPTS),
        harness.engine.sample(greedy((5, 6, 7), NEW)),
    )
    harness.run(harness.engine.forget(adapter.identity))
    streams = [up for up, _ in tap.streams()]
    tap.close()
    evaluated = sum(r.execution.evaluated for r in results if isinstance(r, SampleResult) and r.execution)
    assert evaluated >= 3 * 4 * (len(PROMPTS[0]) + NEW - 1)

    wanted = needles(record, [list(p) + tokens_of(r) for p, r in zip(PROMPTS, results, strict=False)])
    assert {
        "activations as float32",
        "activations as bfloat16",
        "quantised as integers <i4",
        "secret key as integers <i4",
        "key of the masks",
        "tokens as integers <i8",
    } <= set(wanted)
    assert sum(len(data) for data in wanted["activations as float32"]) >= 4 * 128 * evaluated
    capture = b"".join(streams)
    assert len(capture) > 30_000_000
    assert leaks(capture, wanted) == []
    # The search itself: each form is found where it does stand, at an odd place, and be it one run of it.
    for name, data in wanted.items():
        planted = next((run for one in reversed(data) for run in runs_of(one)), None)
        if planted is not None:  # of single numbers there is no run
            assert leaks(b"\x01" * 4099 + planted + b"\x02" * 99, {name: data}) == [name]

    # Nothing else is in it: known frames of exact sizes, and words that look like noise.
    words = []
    for stream in streams:
        for kind, payload in split(stream, TO_ADAPTER_HOLDER, cut=True):
            if kind is Kind.HELLO:
                assert set(json.loads(payload)) == {"parameters", "tenant", "adapter", "version"}
            if kind is Kind.PRODUCTS:
                words.append(np.frombuffer(unpack_ranges(memoryview(payload))[1], dtype="<u4"))
    z = np.concatenate(words)
    assert z.size >= 128 * evaluated
    assert int(z.max()) < 1 << T_BITS
    for shift in (T_BITS - 4, 12, 0):  # high, middle and low bits
        counts = np.bincount((z >> shift) & 15, minlength=16)
        assert float(((counts - z.size / 16) ** 2 / (z.size / 16)).sum()) < 60  # 15 degrees: p about 2e-7


def test_he_01_a_capture_of_the_direct_way_holds_none_of_them_either(
    harness: Harness, holder: HolderProcess, tmp_path: Path
) -> None:
    """Nothing is prepared: every token goes in ciphertexts of its own, under a key of its request."""
    tap, record, adapter = captured(holder, tmp_path, unprepared="yes")
    results = [harness.run(harness.engine.sample(greedy(prompt, 6), adapter)) for prompt in PROMPTS]
    harness.run(harness.engine.forget(adapter.identity))
    streams = [up for up, _ in tap.streams()]
    tap.close()
    evaluated = sum(result.execution.evaluated for result in results if result.execution)
    assert evaluated >= 3 * 4 * (len(PROMPTS[0]) + 6 - 1)
    wanted = needles(record, [list(p) + tokens_of(r) for p, r in zip(PROMPTS, results, strict=True)])
    assert {"activations as float32", "quantised as integers <i4", "secret key as integers <i4"} <= set(
        wanted
    )
    assert sum(len(data) for data in wanted["activations as float32"]) >= 4 * 128 * evaluated
    kinds = {kind for stream in streams for kind, _ in split(stream, TO_ADAPTER_HOLDER, cut=True)}
    assert kinds == {Kind.HELLO, Kind.B_REQUEST, Kind.DIRECT}
    assert leaks(b"".join(streams), wanted) == []
