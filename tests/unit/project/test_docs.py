"""The documents say what is there: targets, files and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.project_files import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "infra").rglob("*.md")),
]


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    named = set(re.findall(r"(?:^|`|\s)make ([a-z][a-z-]*)(?=[\s`]|$)", _code(document), flags=re.MULTILINE))
    assert named <= _targets()


def _code(document: Path) -> str:
    """Only what stands in backticks or code blocks: prose may say "make it so"."""
    text = document.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))


def test_the_readme_opens_with_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:16])
    assert "make demo" in first_screen
    assert "make test" in first_screen


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_backticks_exist(document: Path) -> None:
    named = re.findall(
        r"`((?:functions|gpu_tasks|tests|examples|benchmarks|docs|requirements|tools|infra|localstack)/[\w./-]*)`",
        document.read_text(),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_makefile_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert phony
    for target in phony.group(1).split():
        assert re.search(rf"^{target}:.*## \w", makefile, flags=re.MULTILINE), target


def test_the_version_of_vllm_that_is_named_is_the_one_that_is_pinned() -> None:
    pinned = set(re.findall(r'"vllm(?:-cpu)?==([0-9.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert len(pinned) == 1
    (version,) = pinned
    text = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[Vv]ersion (\d+\.\d+\.\d+)|with their parameters in vLLM (\d+\.\d+)", text))
    assert {one for pair in named for one in pair if one} == {version, version.rpartition(".")[0]}
