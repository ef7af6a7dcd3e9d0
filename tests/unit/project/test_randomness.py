"""What hides something in HE-LoRA is drawn by one module, `keystream`, or by the operating system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.project_files import Import, imports, serving_files

ROOMS = ("tensafe_gpu.helora", "tensafe_gpu.adapter_holder", "tensafe_gpu.sampler.private")
FOLDERS = tuple(room.replace(".", "/") for room in ROOMS)
GENERATORS = ("random", "numpy.random", "torch.random", "scipy.stats")
DRAWING = {
    "default_rng",
    "RandomState",
    "Generator",
    "manual_seed",
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal_",
    "uniform_",
    "random_",
}
"""Of numpy's and torch's generators, whatever they were imported as."""


def imported(found: tuple[Import, ...]) -> list[str]:
    """Imports of a generator that can be seeded or predicted."""
    return [
        str(one)
        for one in found
        if one.importer.startswith(ROOMS) and f"{one.target}.".startswith(tuple(f"{g}." for g in GENERATORS))
    ]


def drawn(source: str) -> list[str]:
    """Uses of one by way of a package that is imported for other things."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (
            node.attr in DRAWING or ast.unparse(node) in ("np.random", "numpy.random", "torch.random")
        ):
            wrong.append(f"{node.lineno}: {ast.unparse(node)}")
    return wrong


def guarded() -> list[Path]:
    return [path for path in serving_files() if any(folder in path.as_posix() for folder in FOLDERS)]


def test_nothing_in_these_rooms_can_be_seeded() -> None:
    assert len(guarded()) > 40
    assert imported(imports()) == []
    wrong = [f"{path.name}:{use}" for path in guarded() for use in drawn(path.read_text(encoding="utf-8"))]
    assert wrong == []


@pytest.mark.parametrize("target", ["random", "random.Random", "numpy.random", "numpy.random.default_rng"])
def test_a_generator_that_is_imported_is_seen(target: str) -> None:
    path = guarded()[0]
    assert imported((Import("tensafe_gpu.helora.keystream", target, path, 1),)) != []
    assert imported((Import("tensafe_gpu.trainer.engine", target, path, 1),)) == []


@pytest.mark.parametrize(
    "line",
    [
        "np.random.bytes(4)",
        "numpy.random.default_rng(1)",
        "rng = r.default_rng()",
        "torch.rand(3)",
        "x.normal_()",
    ],
)
def test_a_generator_that_is_used_is_seen(line: str) -> None:
    assert drawn(line) != []


def test_the_operating_system_s_is_none_of_them() -> None:
    assert drawn("os.urandom(32)\nsecrets.token_bytes(4)\nkeystream.floods(4)") == []
