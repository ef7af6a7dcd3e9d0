"""Where the packages under test come from, and what this machine cannot run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.no_sockets import NAME, NoSockets
from tools import docker_engine

# Deterministic, and without a deadline: a machine may be busy.
settings.register_profile("suite", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = (ROOT / "functions", ROOT / "gpu_tasks")
SLOW_MODULES = frozenset(
    {
        "tests/contract/test_budget_races.py",
        "tests/contract/test_dynamodb_outages.py",
        "tests/contract/test_limits.py",
        "tests/contract/test_publishing_on_aws.py",
        "tests/contract/test_s3_blobs.py",
        "tests/contract/test_sqs_queues.py",
        "tests/unit/helora/test_exactness.py",
        "tests/unit/privacy/test_amplified.py",
        "tests/unit/privacy/test_bounded_model.py",
        "tests/unit/privacy/test_distribution_cache.py",
        "tests/unit/privacy/test_planner.py",
        "tests/unit/project/test_benchmarks.py",
    }
)
"""Left out of `make test-fast` as a whole: together they take as long as all the rest."""


def pytest_configure(config: pytest.Config) -> None:
    """`make test` sets TENSAFE_REQUIRE_INSTALLED: then the source tree must not be what is imported."""
    config.pluginmanager.register(NoSockets(ROOT), NAME)
    if os.environ.get("TENSAFE_REQUIRE_INSTALLED") != "1":
        return
    for package in ("tensafe", "tensafe_gpu"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise pytest.UsageError(f"{package} is not installed; run `make install`")
        if any(Path(spec.origin).is_relative_to(root) for root in SOURCE_ROOTS):
            raise pytest.UsageError(
                f"{package} comes from the source tree ({spec.origin}), not from the wheel"
            )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow as a whole, and skip, with the reason, what this machine cannot run."""
    for item in items:
        if item.path.is_relative_to(ROOT) and item.path.relative_to(ROOT).as_posix() in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)
    wanted = {mark for mark in ("docker", "gpu") for item in items if item.get_closest_marker(mark)}
    missing = {}
    no_engine = docker_engine.why_not() if "docker" in wanted else None
    if no_engine:
        missing["docker"] = no_engine
    if "gpu" in wanted and not _has_cuda():
        missing["gpu"] = "no CUDA device on this machine"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
