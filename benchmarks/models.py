"""Random-weight Qwen3 models of stated sizes: speed does not depend on what the weights say."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny_models import tiny_model


def smallest(folder: Path) -> Path:
    """Two layers, 0.3 million parameters: for operations whose computation should not count."""
    return _model(folder / "smallest", vocab=512, hidden=128, layers=2, intermediate=256, heads=4)


def four_million(folder: Path) -> Path:
    """4.1 million parameters."""
    return _model(folder / "four-million", vocab=4096, hidden=256, layers=4, intermediate=768, heads=8)


def eight_million(folder: Path) -> Path:
    """8.2 million parameters: what is compared takes seconds in the largest of many shapes."""
    return _model(folder / "eight-million", vocab=4096, hidden=384, layers=4, intermediate=1024, heads=6)


def thirty_million(folder: Path) -> Path:
    """31 million parameters: a training step takes long enough on two cores to be compared."""
    return _model(folder / "thirty-million", vocab=8192, hidden=512, layers=8, intermediate=1536, heads=8)


def sized(folder: Path, *, hidden: int, layers: int, intermediate: int, heads: int) -> Path:
    """Of these sizes, with a small vocabulary: what comes after the layers does not count."""
    sizes = {"hidden": hidden, "layers": layers, "intermediate": intermediate, "heads": heads}
    return _model(folder, vocab=2048, **sizes)


def _model(folder: Path, *, vocab: int, hidden: int, layers: int, intermediate: int, heads: int) -> Path:
    path = tiny_model(
        folder,
        "qwen3",
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        intermediate=intermediate,
        heads=heads,
        kv_heads=2,
        max_context=1024,
        tied=True,
        initializer_range=0.02,
    )
    return Path(path)
