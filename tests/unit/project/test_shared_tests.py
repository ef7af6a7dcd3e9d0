"""Every test of the service on one machine runs on AWS too, or its mark `one_machine` says why it cannot."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project_files import ROOT

INTEGRATION = ROOT / "tests/integration"
MODULES = sorted(path.name for path in (INTEGRATION / "service").glob("test_*.py"))


def reasons(nodes: list[ast.expr]) -> list[str]:
    """What is given to `one_machine` in decorators, or in what `pytestmark` is."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.one_machine"]
    return [ast.literal_eval(call.args[0]) for call in marks]


def module_marks(module: ast.Module) -> list[ast.expr]:
    assigned = [node for node in module.body if isinstance(node, ast.Assign)]
    values = [node.value for node in assigned if ast.unparse(node.targets[0]) == "pytestmark"]
    return [one for value in values for one in (value.elts if isinstance(value, ast.List) else [value])]


def unmarked(module: ast.Module) -> list[str]:
    """Tests that nothing keeps on one machine."""
    if reasons(module_marks(module)):
        return []
    tests = [
        node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return [test.name for test in tests if not reasons(test.decorator_list)]


def not_on_aws(folder: Path, name: str) -> list[str]:
    """Those of a module of `folder`/service that `folder`/aws neither runs nor may leave out."""
    kept = unmarked(ast.parse((folder / "service" / name).read_text()))
    there = folder / "aws" / name
    imported = f"from tests.integration.service.{Path(name).stem} import *"
    lines = there.read_text().splitlines() if there.exists() else []
    return [] if any(line.partition("  #")[0] == imported for line in lines) else kept


def hidden_from_a_star(module: ast.Module) -> Iterator[str]:
    """What `import *` would leave behind unseen: `__all__`, and fixtures whose name begins with _."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield "__all__"
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_"):
            yield from [node.name for one in node.decorator_list if "fixture" in ast.unparse(one)]


@pytest.mark.parametrize("name", MODULES)
def test_nobody_forgets_a_test(name: str) -> None:
    assert not_on_aws(INTEGRATION, name) == []
    module = ast.parse((INTEGRATION / "service" / name).read_text())
    if unmarked(module):
        assert list(hidden_from_a_star(module)) == []
    given = reasons(module_marks(module))
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            given += reasons(node.decorator_list)
    assert all(len(reason.split()) > 3 for reason in given)


def test_one_that_is_forgotten_is_found(tmp_path: Path) -> None:
    for folder in ("service", "aws"):
        (tmp_path / folder).mkdir()
    (tmp_path / "service/test_new.py").write_text(
        "@pytest.mark.one_machine('it reads its files')\ndef test_a(): ...\n\n\ndef test_b(): ...\n"
    )
    assert not_on_aws(tmp_path, "test_new.py") == ["test_b"]
    there = tmp_path / "aws/test_new.py"
    there.write_text("from tests.integration.service.test_new import test_a\n")
    assert not_on_aws(tmp_path, "test_new.py") == ["test_b"]
    there.write_text("from tests.integration.service.test_new import *  # noqa: F403\n")
    assert not_on_aws(tmp_path, "test_new.py") == []
