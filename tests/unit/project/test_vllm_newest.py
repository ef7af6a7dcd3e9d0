"""What `make vllm-newest` says of a report; the download itself is no test's."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest
import yaml

from tests.project_files import ROOT

REPORT = """<?xml version="1.0"?><testsuites><testsuite tests="3">
<testcase name="test_model_runner"/>
<testcase name="test_punica"><failure message="AttributeError: add_shrink&#10;more">trace</failure></testcase>
<testcase name="test_the_installed_version_is_the_one_that_was_examined"><failure message="x"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def newest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_newest", ROOT / "tools" / "vllm_newest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vllm_newest"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_vllm_01_what_would_break_is_named_and_the_version_itself_does_not_count(newest: ModuleType) -> None:
    found = newest.read(REPORT)
    lines = newest.summary("0.99.0", "0.32.0", found)
    assert lines[1:] == [
        "1 contract tests pass, 1 would break:",
        "  test_punica: AttributeError: add_shrink",
    ]
    assert "0.99.0 is the newest" in lines[0]
    only_version = newest.Found(found.passed, {newest.EXPECTED: "x"})
    assert newest.summary("0.99.0", "0.32.0", only_version)[1].startswith("all 1 contract tests")
    assert "would break" in newest.summary("0.32.0", "0.32.0", only_version)[1]


def test_the_pinned_version_and_the_contract_tests_are_where_it_looks(newest: ModuleType) -> None:
    assert newest.pinned((ROOT / "requirements" / "lock.txt").read_text())[0].isdigit()
    assert newest.EXPECTED in (ROOT / newest.TESTS).read_text()


def test_vllm_01_a_scheduled_job_reports_it_and_never_fails_the_build() -> None:
    """And what the workflow runs is a target of the Makefile, or what every change has to pass."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    triggers, jobs = workflow[True], workflow["jobs"]  # YAML 1.1 reads `on` as true
    assert triggers["schedule"][0]["cron"]
    newest = jobs["vllm-newest"]
    assert newest["continue-on-error"] is True
    assert "'schedule'" in newest["if"]
    assert "schedule" in jobs["test"]["if"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert any(command.startswith("make vllm-newest") for command in commands["vllm-newest"])
    assert ".ci/run" in commands["test"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in (command for some in commands.values() for command in some):
        words = command.split()
        assert command == ".ci/run" or (words[0] == "make" and words[1] in targets), command
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
