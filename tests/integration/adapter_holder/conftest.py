"""An adapter holder of this process, and the log of a key holder that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe_gpu.helora.burned import BurnLog
from tests.support.helora import Holder, adapter_holder


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with adapter_holder(tmp_path / "holder") as holder:
        yield holder


@pytest.fixture
def burn_log(tmp_path: Path) -> Iterator[BurnLog]:
    log = BurnLog(tmp_path / "burned.db")
    yield log
    log.close()
