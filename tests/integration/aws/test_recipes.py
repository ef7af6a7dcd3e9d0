"""Recipes of the tinker cookbook over template.yaml: those of one machine, with another `service`.

Here are the ones that every `make test` cooks; the others are in test_all.py.
"""

from __future__ import annotations

from tests.integration.service.test_cookbook import (
    kitchen,
    test_reinforcement_learning_on_arithmetic,
    test_supervised_loop,
)

__all__ = [
    "kitchen",
    "test_reinforcement_learning_on_arithmetic",
    "test_supervised_loop",
]
