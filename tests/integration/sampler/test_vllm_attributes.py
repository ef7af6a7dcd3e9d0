"""VLLM-01: every attribute that docs/vllm.md lists, each probed on the installed one by name."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

from tests.support.vllm_members import DOCUMENT, has, owner_of

pytestmark = pytest.mark.slow


def listed() -> list[tuple[str, str]]:
    """(owner, attribute) of the table's rows."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("Not public, but for two.") : text.index("Besides these the names")]
    rows = re.findall(r"^\| (`.+?) \| `([\w.]+)` \| .+ \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| ") - 1  # all of them, the head's apart
    return [(owner, name) for names, owner in rows for name in re.findall(r"`(\w+)`", names)]


@pytest.mark.parametrize(("owner", "name"), listed(), ids=lambda part: part.rpartition(".")[2])
def test_vllm_01_it_is_there(owner: str, name: str) -> None:
    found, below = owner_of(owner)
    assert has(found, name, below), f"vLLM has no {owner}.{name} any more: docs/vllm.md says what it is for"


def test_vllm_01_as_many_are_listed_as_are_touched() -> None:
    assert len(listed()) == len(set(listed())) > 65


class Planted:
    field: int

    def __init__(self, model: Any) -> None:
        self.plain = self.first = 1
        self.one, self.two = 1, 2
        self.typed: int = 1
        self.only_declared: int
        self.model = model
        self.model.set_on_it = self

    def method(self) -> None:
        self.read = self.not_set  # type: ignore[attr-defined]

    @property
    def computed(self) -> int:
        return 1


class Derived(Planted):
    pass


@pytest.mark.parametrize("owner", [Planted, Derived])
def test_a_probe_finds_what_is_there_and_misses_what_is_not(owner: type) -> None:
    there = ("field", "plain", "first", "one", "two", "typed", "model", "method", "read", "computed")
    assert [name for name in there if not has(owner, name, [])] == []
    assert [name for name in ("not_set", "only_declared", "set_on_it", "plai") if has(owner, name, [])] == []
    assert has(owner, "set_on_it", ["model"])
    assert not has(owner, "plain", ["model"])


def test_a_probe_of_vllm_s_own_misses_what_it_has_not() -> None:
    for owner in {owner for owner, _ in listed()}:
        assert not has(*owner_of(owner)[:1], "no_such_attribute", owner_of(owner)[1]), owner
    with pytest.raises(AttributeError):
        owner_of("vllm.v1.worker.gpu_worker.NoSuchWorker")
    assert owner_of("vllm.envs") == (importlib.import_module("vllm.envs"), [])
