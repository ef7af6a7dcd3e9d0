"""A missing library is an error of the tests that need it, never a reason to skip them."""

from __future__ import annotations

import ast

import pytest

from tests.project_files import ROOT

LIBRARIES = ("vllm", "tenseal", "torch")


def excuses(source: str) -> list[str]:
    """Lines that would turn the absence of one of these into anything but an ImportError."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            names = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            asked = [str(name).partition(".")[0] for name in names]
            if called in ("importorskip", "find_spec") and any(name in LIBRARIES for name in asked):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = ast.unparse(node.type)
            if "ImportError" in caught or "ModuleNotFoundError" in caught:
                found.append(f"{node.lineno}: except {caught}")
    return found


def test_no_test_is_skipped_where_vllm_tenseal_or_torch_is_missing() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 300
    wrong = [f"{path.relative_to(ROOT)}:{one}" for path in files for one in excuses(path.read_text("utf-8"))]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        'pytest.importorskip("vllm", reason="none here")',
        'vllm = importorskip("vllm.lora")',
        'pytest.importorskip(modname="tenseal")',
        'skip = pytest.mark.skipif(find_spec("torch") is None, reason="none here")',
        "try:\n    import tenseal\nexcept ImportError:\n    pytest.skip()",
        "try:\n    import vllm\nexcept (OSError, ModuleNotFoundError):\n    vllm = None",
    ],
)
def test_each_way_of_skipping_is_seen(source: str) -> None:
    assert excuses(source) != []


def test_plain_imports_are_none() -> None:
    assert excuses('import vllm\nfind_spec("tensafe")\npytest.importorskip("moto")') == []
