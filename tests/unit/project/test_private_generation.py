"""That the published table of encrypted generations is the measured one."""

from __future__ import annotations

import json

from benchmarks.private_generation import RESULT, Result, rows
from tests.project_files import ROOT


def test_the_published_table_is_the_measured_one_and_every_generation_was_exact() -> None:
    result = Result(**json.loads(RESULT.read_text()))
    text = (ROOT / "docs/helora.md").read_text()
    for label, value in rows(result):
        assert f"| {label} | {value} |" in text, label
    assert result.equal_to_quantised == result.prompts >= 200
