"""What the owner of a data set fixes when its manifest is registered."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from tensafe.contracts.training import Strict

MAX_MANIFEST_UNITS: Final = 10_000_000
"""A manifest of this many units is a blob of 400 MB."""
MAX_PAGE_UNITS: Final = 8192
"""Entries of one page of units, 40 bytes each: sealed, it is one item of at most 400 KB."""
MAX_PAGES: Final = 10_000


class DomainTerms(Strict):
    """Terms of a privacy domain with a manifest; they never change once it is registered.

    `unit`: what one id stands for, a record (one datum) or a user (all data that carry the id).
    `adjacency`: what neighbouring data sets are. Zero-out: one unit's data contribute nothing and its
    place stays, so that the number of units N is public. Add-or-remove: the unit is absent altogether;
    the accountant's N is then the larger of the two, and N itself is published all the same.
    `max_epsilon`: the budget at `delta` of everything that all runs of the domain release.
    """

    unit: Literal["record", "user"]
    adjacency: Literal["zero_out_one_unit", "add_or_remove_one_unit"] = "zero_out_one_unit"
    delta: float = Field(gt=0, le=1e-2)
    max_epsilon: float = Field(gt=0, le=1e6)
