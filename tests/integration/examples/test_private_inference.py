"""The example of private inference, from its command to its last line, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from private_finetune import PROMPTS
from tests.support.example import example
from tests.support.tiny_models import tiny_model


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_adapter_is_trained_moved_and_answers_encrypted(tmp_path: Path) -> None:
    tiny_model(tmp_path / "my model", "qwen3", hidden=64, heads=2, kv_heads=1, layers=1, max_context=512)
    done = example("private_inference.py", "--model", "./my model", folder=tmp_path)
    said = done.stdout
    assert done.returncode == 0, said[-3000:] + done.stderr[-3000:]
    count = len(PROMPTS)
    assert "published: HE_REQUIRED" in said
    assert f"{count} of {count} encrypted answers are the quantised adapter's in every token" in said
    assert f"{count} attestations verified" in said
    assert all(prompt in said for prompt in PROMPTS)
    assert [said.count(f"  {kind}: ") for kind in ("plain", "private")] == [count] * 2
    assert "can compute that site's weights exactly" in said.replace("\n", " ")  # what the budget gives away
    assert re.search(r"other copies here: none: run s-[0-9a-f]+:train:\d+ is erased", said)
