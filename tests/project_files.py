"""The files of this checkout, for tests that read the project itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tensafe": ROOT / "functions", "tensafe_gpu": ROOT / "gpu_tasks"}
_GENERATED = ("_pb2.py",)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `target` is a dotted module, or module.name for `from module import name`."""

    importer: str
    target: str
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.importer} imports {self.target}"


def serving_files() -> list[Path]:
    """Every hand-written module of both packages."""
    found = [path for source in PACKAGES.values() for path in sorted(source.rglob("*.py"))]
    return [path for path in found if not path.name.endswith(_GENERATED)]


def module_name(path: Path) -> str:
    """`functions/tensafe/storage/ports.py` -> `tensafe.storage.ports`."""
    (source,) = (root for root in PACKAGES.values() if path.is_relative_to(root))
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> tuple[Import, ...]:
    """All imports of both packages, those inside functions and under TYPE_CHECKING included."""
    return tuple(found for path in serving_files() for found in _imports_of(path))


def _imports_of(path: Path) -> Iterator[Import]:
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, path, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(module, f"{base}.{alias.name}", path, node.lineno)
