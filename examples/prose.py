"""English prose that is already on the machine: the documentation strings of installed packages.

The demo's base model is pre-trained on it, so nothing has to be downloaded and the fine-tuning corpus
stays unseen. Every package named in SOURCES comes with requirements/lock.txt, under the licence given.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCES: Final = {
    "networkx": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "hypothesis": "MPL-2.0",
    "pydantic": "MIT",
    "werkzeug": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "anthropic": "MIT",
    "openai": "Apache-2.0",
    "huggingface_hub": "Apache-2.0",
    "peft": "Apache-2.0",
    "accelerate": "Apache-2.0",
    "opacus": "Apache-2.0",
    "mpmath": "BSD-3-Clause",
    "setuptools": "MIT",
}
"""Import name -> licence of the packages whose documentation strings are read."""
STDLIB: Final = "PSF-2.0"
"""Licence of the standard library, whose documentation strings and language reference are read too."""
HELDOUT_PER_MILLE: Final = 40

# A triple-quoted string that begins a statement; parsing files for the same strings takes ten times as long.
_DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.+?)"""', flags=re.MULTILINE | re.DOTALL)
_MIN_CHARS, _MAX_CHARS = 60, 1500
_NOT_PROSE = re.compile(r">>>|::|[{}=<>\\|_`*\[\]]|https?:|\w\(|\d\.\d")
_MIN_LETTERS = 0.94


@dataclass(frozen=True, slots=True)
class Prose:
    """Documents (one or more paragraphs each) for training and for the held-out loss."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def source_versions() -> dict[str, str]:
    """What the text depends on: each source's version, Python's first."""
    python = ".".join(map(str, sys.version_info[:3]))
    packages = importlib.metadata.packages_distributions()
    return {"python": python, **{name: importlib.metadata.version(packages[name][0]) for name in SOURCES}}


def load_prose() -> Prose:
    """Read every source; a paragraph that occurs twice is kept once, so none is in both halves."""
    seen: set[bytes] = set()
    train: list[str] = []
    heldout: list[str] = []
    for docstring in _docstrings():
        fresh = []
        for paragraph in _paragraphs(docstring):
            digest = hashlib.sha256(paragraph.encode()).digest()
            if digest not in seen:
                seen.add(digest)
                fresh.append(paragraph)
        if fresh:
            document = "\n\n".join(fresh)
            bucket = int.from_bytes(hashlib.sha256(document.encode()).digest()[:4]) % 1000
            (heldout if bucket < HELDOUT_PER_MILLE else train).append(document)
    return Prose(tuple(train), tuple(heldout))


def _docstrings() -> Iterator[str]:
    for path in _modules():
        yield from _DOCSTRING.findall(path.read_text(encoding="utf-8", errors="replace"))
    from pydoc_data import topics  # noqa: PLC0415

    yield from (topics.topics[name] for name in sorted(topics.topics))


def _modules() -> Iterator[Path]:
    """Every module of the sources in a fixed order, without their tests."""
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in SOURCES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{name} is not installed; run `make install`")
        roots.append(Path(spec.origin).parent)
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if not {"tests", "test", "_vendor", "site-packages", "lib2to3", "vendored"} & set(parts):
                yield path


def _paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs that read as English: sentences, nearly all letters, no code or markup."""
    for block in re.split(r"\n\s*\n", docstring):
        text = " ".join(block.split())
        if not _MIN_CHARS <= len(text) <= _MAX_CHARS or not text[0].isupper() or text[-1] not in ".?!":
            continue
        letters = sum(char.isalpha() or char == " " for char in text) / len(text)
        if letters >= _MIN_LETTERS and not _NOT_PROSE.search(text):
            yield text
