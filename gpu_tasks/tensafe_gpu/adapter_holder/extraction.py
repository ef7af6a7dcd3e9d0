"""What a budget of answers gives away, for the publisher: the curve measured on a trained adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

DATA: Final = "extraction.json"
"""The figures of `python -m benchmarks.extraction`, which writes this file; docs/threat-model.md has them."""


@dataclass(frozen=True, slots=True)
class Point:
    """After `tokens` answers at each site: the error of the delta that ridge regression rebuilds.

    Relative to the delta, on inputs that nobody has seen: mean over the sites, least and greatest.
    """

    tokens: int
    share_of_width: float
    mean: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The points in rising order, and which adapter they were measured on."""

    source: str
    adapter: str
    width: int
    points: tuple[Point, ...]


@cache
def measured() -> Curve:
    """The curve that this release ships."""
    told = json.loads(files("tensafe_gpu.adapter_holder").joinpath(DATA).read_text(encoding="utf-8"))
    points = tuple(Point(**point) for point in told["points"])
    return Curve(told["source"], told["adapter"], told["width"], points)


def extraction_note(tokens_per_site: int, width: int) -> str:
    """How much of an adapter whose narrowest site has `width` inputs a budget gives away, by the curve.

    Between two points the one with more tokens is told: what was seen gives away no more than that.
    """
    curve = measured()
    share = tokens_per_site / width
    point = next((one for one in curve.points if one.share_of_width >= share), curve.points[-1])
    if share >= 1:
        told = (
            f"{tokens_per_site} tokens per site are at least the {width} inputs of the narrowest site: a key "
            "holder that keeps every answer can compute that site's weights exactly. The budget meters use; "
            "it keeps no secret"
        )
    else:
        told = (
            f"{tokens_per_site} tokens per site are {share:.0%} of the {width} inputs of the narrowest site, "
            "and a key holder that keeps every answer can rebuild much of the delta"
        )
    return (
        f"{told}. Measured on {curve.adapter} by `{curve.source}`: after {point.tokens} answers, "
        f"{point.share_of_width:.3g} times its {curve.width} inputs, the stolen delta had a relative error "
        f"of {point.mean:.2g} on average over its sites, {point.least:.1g} at the best known one and "
        f"{point.greatest:.2g} at the least known. A malicious key holder, which packs several weights into "
        "one answer, needs about three times fewer"
    )
