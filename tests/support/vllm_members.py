"""Whether a class or module has a member, read off it without making an object of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "vllm.md"


def owner_of(path: str) -> tuple[Any, list[str]]:
    """What a dotted path names, a module or a class of one, and what is left of it: members of its objects.

    Raises ImportError, AttributeError.
    """
    words = path.split(".")
    names = [index for index, word in enumerate(words) if word[0].isupper()]
    of_module = names[0] if names else len(words)
    found = importlib.import_module(".".join(words[:of_module]))
    if not names:
        return found, []
    return getattr(found, words[of_module]), words[of_module + 1 :]


def has(owner: Any, name: str, below: list[str]) -> bool:
    """A member of the owner (itself, or of its classes), one of its fields, or what a method of it sets.

    With `below`, what a method sets on that attribute of its object: ["model"] for `self.model.name = ...`.
    """
    if inspect.ismodule(owner):
        return hasattr(owner, name)
    if not below and (hasattr(owner, name) or name in fields(owner)):
        return True
    return ".".join(["self", *below, name]) in assigned(owner)


def fields(owner: type) -> set[str]:
    """Annotated in the class or one that it is derived from."""
    return {name for one in inspect.getmro(owner) for name in vars(one).get("__annotations__", {})}


def assigned(owner: type) -> set[str]:
    """Dotted targets of all assignments in the class and what it is derived from, except of PyTorch's."""
    found = set[str]()
    for one in inspect.getmro(owner):
        if one.__module__.partition(".")[0] == "torch":
            continue
        try:
            text = inspect.getsource(one)
        except (OSError, TypeError):
            continue  # compiled: what it has is found as members
        for node in ast.walk(ast.parse(textwrap.dedent(text))):
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                targets = [node.target]
            else:
                continue
            for target in targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                found |= {ast.unparse(part) for part in parts}
    return found
