"""Imports point one way: the layers of docs/architecture.md, read from the document itself."""

from __future__ import annotations

import re

import pytest

from tests.project_files import ROOT, Import, imports, serving_files

FORBIDDEN_IN_TENSAFE = ("torch", "vllm", "tenseal", "tensafe_gpu", "transformers", "peft", "opacus")


def _layers() -> dict[str, int]:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    return {name: int(level) for level, names in rows for name in re.findall(r"`(\w+)`", names)}


LAYERS = _layers()


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "tensafe" and len(parts) > 1 else None


def _back_edges(found: tuple[Import, ...]) -> list[str]:
    back = []
    for one in found:
        importer, target = _room(one.importer), _room(one.target)
        if importer == target or importer not in LAYERS or target not in LAYERS:
            continue
        if LAYERS[importer] <= LAYERS[target]:
            back.append(str(one))
    return back


def test_every_room_has_a_layer() -> None:
    rooms = {
        path.relative_to(ROOT / "functions/tensafe").parts[0]
        for path in serving_files()
        if "functions" in path.parts
    }
    rooms = {room.removesuffix(".py") for room in rooms} - {"__init__"}
    assert rooms <= set(LAYERS), f"give these a layer in docs/architecture.md: {sorted(rooms - set(LAYERS))}"


def test_imports_follow_the_layers() -> None:
    assert len(imports()) > 50
    assert _back_edges(imports()) == []


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("tensafe.vault.seal", "tensafe.storage.ports.Blobs", True),
        ("tensafe.storage.sqlite", "tensafe.vault.seal", False),
        ("tensafe.storage.sqlite", "tensafe.storage.ports", True),
        ("tensafe.audit.chain", "tensafe.privacy.ledger", False),
        ("tensafe.contracts.errors", "tensafe.storage.ports", False),
        ("tensafe.operations.log", "tensafe.__version__", True),
    ],
)
def test_the_rule_itself(importer: str, target: str, allowed: bool) -> None:
    edge = Import(importer, target, ROOT / "docs", 1)
    assert (_back_edges((edge,)) == []) is allowed


def test_tensafe_never_imports_what_needs_a_gpu_task() -> None:
    wrong = [
        str(one)
        for one in imports()
        if one.importer.split(".")[0] == "tensafe" and one.target.split(".")[0] in FORBIDDEN_IN_TENSAFE
    ]
    assert wrong == []


def test_the_package_root_imports_nothing_of_ours() -> None:
    wrong = [str(one) for one in imports() if one.importer == "tensafe" and one.target.startswith("tensafe")]
    assert wrong == []


def test_no_cycle_between_modules() -> None:
    modules = {one.importer for one in imports()}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for one in imports():
        target = one.target if one.target in modules else one.target.rpartition(".")[0]
        # A package's own __init__ is entered by importing any of its modules; that is not a cycle of modules.
        if target in modules and target != one.importer and not one.importer.startswith(f"{target}."):
            graph[one.importer].add(target)
    done: set[str] = set()
    for start in sorted(graph):
        assert _cycle_from(start, graph, done, []) == []


def _cycle_from(module: str, graph: dict[str, set[str]], done: set[str], path: list[str]) -> list[str]:
    if module in path:
        return [*path[path.index(module) :], module]
    if module in done:
        return []
    for target in sorted(graph[module]):
        found = _cycle_from(target, graph, done, [*path, module])
        if found:
            return found
    done.add(module)
    return []
