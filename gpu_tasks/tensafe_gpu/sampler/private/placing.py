"""Which of vLLM's layers an adapter's sites belong to.

vLLM fuses projections that read the same input (q, k and v; gate and up) into one layer. A site of an
adapter is such an input, so each site belongs to exactly one layer and fills slices of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensafe_gpu.helora.parameters import MAX_RANK
from tensafe_gpu.helora.ports import AdapterInfo, SiteShape


class DoesNotFit(Exception):
    """A site of the adapter is not one of this model's, so it could never be evaluated."""

    code = "does_not_fit"


@dataclass(frozen=True, slots=True)
class Slice:
    """Output columns [start, stop) of a fused layer belong to one projection."""

    layer: str
    start: int
    stop: int
    width_in: int


@dataclass(frozen=True, slots=True)
class Target:
    """Output columns [start, stop) of a layer get the delta of `module`, from its rows of the products."""

    module: str
    start: int
    stop: int
    rows: slice


@dataclass(frozen=True, slots=True)
class Placed:
    """A site in its layer: products of `rank_rows` columns feed the targets."""

    site: str
    rank_rows: int
    targets: tuple[Target, ...]


def place(info: AdapterInfo, modules: Mapping[str, Slice]) -> dict[str, Placed]:
    """Layer name -> the adapter's site there; `modules` maps projections to slices of layers.

    Raises DoesNotFit for a site that the model has not, or has in another shape, so that every site of an
    admitted adapter is evaluated, and none takes more memory than the model's own widths let it.
    """
    placed: dict[str, Placed] = {}
    for shape in info.sites:
        layer, site = _place_one(shape, modules)
        if layer in placed:
            raise DoesNotFit(f"two sites read the input of {layer}")
        placed[layer] = site
    if not placed:
        raise DoesNotFit("the adapter has no sites")
    return placed


def _place_one(shape: SiteShape, modules: Mapping[str, Slice]) -> tuple[str, Placed]:
    layers: set[str] = set()
    targets: list[Target] = []
    for module in shape.modules:
        found = modules.get(module.name)
        if found is None or found.width_in != shape.d_in or found.stop - found.start != module.d_out:
            raise DoesNotFit(f"the model has no module {module.name} of this shape")
        if module.rank > MAX_RANK:
            raise DoesNotFit(f"the rank of {module.name} is over {MAX_RANK}")
        layers.add(found.layer)
        targets.append(Target(module.name, found.start, found.stop, shape.rows(module.name)))
    if len(layers) != 1 or len({target.start for target in targets}) != len(targets):
        raise DoesNotFit(f"the modules of {shape.site} do not read one input")
    return layers.pop(), Placed(shape.site, shape.rank_rows, tuple(targets))
