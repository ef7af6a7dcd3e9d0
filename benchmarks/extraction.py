"""What a private adapter gives away through its answers: `python -m benchmarks.extraction`.

Whoever holds the base model sees inputs x of a site and the exact products A x of the adapter there, since
it needs them. From n tokens it can estimate A. This trains the demo's base model and a real adapter on
the demo's corpus, collects the inputs of every attention site, and solves for A by ridge regression with
the penalty that is best against the truth: no attacker knows it, so the curve is on the safe side.

Printed and saved (benchmarks/results/extraction.json, docs/extraction.svg, and the figures that publishing
prints, which are shipped with the adapter holder): the error of the stolen delta
on inputs of conversations that nobody has seen, relative to the delta's own size, by tokens seen per site.
The set-up is that of attack 3 of docs/threat-model.md; nothing here depends on how products are hidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.trained_adapter import BATCH, RANK, ROOT, SITES, STEPS, batches, trained_adapter

RESULT: Final = ROOT / "benchmarks" / "results" / "extraction.json"
PLOT: Final = ROOT / "docs" / "extraction.svg"
SHIPPED: Final = ROOT / "gpu_tasks/tensafe_gpu/adapter_holder/extraction.json"
SHARES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0, 1.5, 2.0)
"""Tokens seen, in units of the site's input width d."""
PENALTIES: Final = tuple(10.0**power for power in range(-12, 3))

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Site:
    """A layer input: A stacked float64 [R, d], B per module as (rows, [d_out, rows]), inputs [tokens, d]."""

    name: str
    a: Floats
    blocks: tuple[tuple[int, Floats], ...]
    seen: Floats
    fresh: Floats

    def delta(self, a: Floats, x: Floats) -> Floats:
        """B A x of every module of the site, side by side: [tokens, sum of d_out]."""
        u, first, parts = x @ a.T, 0, []
        for rows, b in self.blocks:
            parts.append(u[:, first : first + rows] @ b.T)
            first += rows
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, slots=True)
class Point:
    """Relative error of the stolen delta after `tokens` tokens: mean over sites, least and greatest."""

    tokens: int
    share_of_width: float
    mean: float
    least: float
    greatest: float


def stolen_error(site: Site, tokens: int) -> float:
    """|B A' x - B A x| / |B A x| over fresh inputs, with A' by the best ridge on `tokens` products."""
    x = site.seen[:tokens]
    true = site.delta(site.a, site.fresh)
    # A' = argmin |X A'^T - X A^T|^2 + p |A'|^2, through the singular vectors of X: one for all penalties.
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    products = u.T @ (x @ site.a.T)
    errors = []
    for penalty in PENALTIES:
        scaled = s / (s * s + penalty * s[0] ** 2)
        stolen = (vt.T @ (scaled[:, None] * products)).T
        errors.append(float(np.linalg.norm(site.delta(stolen, site.fresh) - true) / np.linalg.norm(true)))
    return min(errors)


def curve(sites: Sequence[Site]) -> list[Point]:
    """One point for each share of the width."""
    width = sites[0].a.shape[1]
    points = []
    for share in SHARES:
        tokens = max(1, round(share * width))
        errors = [stolen_error(site, tokens) for site in sites]
        points.append(Point(tokens, share, float(np.mean(errors)), min(errors), max(errors)))
    return points


def trained_sites() -> tuple[list[Site], dict[str, float]]:
    """The sites of an adapter that was really trained, and what its training did to held-out loss."""
    trained = trained_adapter()
    adapted, train, heldout = trained.model, trained.train, trained.heldout
    model = adapted.base_model.model
    seen, fresh = _inputs(adapted, train[::2]), _inputs(adapted, heldout)
    sites = []
    for layer, block in enumerate(model.model.layers):
        for site, modules in SITES.items():
            parts = [getattr(block.self_attn, module) for module in modules]
            a = torch.cat([part.lora_A["default"].weight for part in parts])
            blocks = tuple(
                (RANK, part.lora_B["default"].weight.detach().double().numpy() * part.scaling["default"])
                for part in parts
            )
            key = f"{layer}.{site}"
            sites.append(Site(key, a.detach().double().numpy(), blocks, seen[key], fresh[key]))
    return sites, {"heldout_loss_base": trained.before, "heldout_loss_adapter": trained.after}


@torch.no_grad()
def _inputs(model: PreTrainedModel, examples: list[Any]) -> dict[str, Floats]:
    """What enters every site, float64 [tokens, d], without padding, in a fixed random order."""
    kept: dict[str, list[torch.Tensor]] = {}
    lengths: list[int] = []
    hooks = []
    for layer, block in enumerate(model.base_model.model.model.layers):
        for site, modules in SITES.items():

            def keep(_: torch.nn.Module, args: tuple[torch.Tensor], key: str = f"{layer}.{site}") -> None:
                kept.setdefault(key, []).extend(row[:n] for row, n in zip(args[0], lengths, strict=True))

            hooks.append(getattr(block.self_attn, modules[0]).register_forward_pre_hook(keep))
    for first in range(0, len(examples), BATCH):
        chunk = examples[first : first + BATCH]
        lengths[:] = [len(one.tokens) for one in chunk]
        model(input_ids=batches(chunk, BATCH)[0][0])
    for hook in hooks:
        hook.remove()
    shuffled = {}
    for key, rows in kept.items():
        stacked = torch.cat(rows).double().numpy()
        shuffled[key] = stacked[np.random.default_rng(7).permutation(len(stacked))]
    return shuffled


def plot(points: Sequence[Point], width: int) -> str:
    """The curve as SVG: error over tokens per site, logarithmic; the band spans the sites."""
    left, right, top, bottom, wide, high = 60, 20, 30, 50, 640, 340
    low, up = math.log2(points[0].tokens), math.log2(points[-1].tokens)

    def at(tokens: float, error: float) -> str:
        x = left + (math.log2(tokens) - low) / (up - low) * (wide - left - right)
        return f"{x:.1f},{high - bottom - min(error, 1.0) * (high - top - bottom):.1f}"

    band = [at(p.tokens, p.greatest) for p in points] + [at(p.tokens, p.least) for p in reversed(points)]
    line = " ".join(at(p.tokens, p.mean) for p in points)
    marks = []
    for p in points:
        x = at(p.tokens, 0).split(",")[0]
        marks.append(f'<text x="{x}" y="{high - bottom + 16}" text-anchor="middle">{p.tokens}</text>')
    for error in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(points[0].tokens, error).split(",")[1]
        marks.append(
            f'<line x1="{left}" x2="{wide - right}" y1="{y}" y2="{y}" stroke="#8884"/>'
            f'<text x="{left - 8}" y="{float(y) + 4}" text-anchor="end">{error:g}</text>'
        )
    d = at(width, 0).split(",")[0]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" '
        'font-size="11" fill="#555" role="img" aria-label="Error of a stolen adapter by tokens seen">'
        f"<title>Error of a stolen adapter on fresh inputs, by tokens seen per site (width {width})</title>"
        f'<text x="{left}" y="18" font-size="13">relative error of the stolen delta on fresh inputs</text>'
        f"{''.join(marks)}"
        f'<line x1="{d}" x2="{d}" y1="{top}" y2="{high - bottom}" stroke="#a33" stroke-dasharray="4 3"/>'
        f'<text x="{float(d) - 6}" y="{top + 12}" text-anchor="end" fill="#a33">width d = {width}</text>'
        f'<polygon points="{" ".join(band)}" fill="#36c" opacity="0.18"/>'
        f'<polyline points="{line}" fill="none" stroke="#36c" stroke-width="2"/>'
        f'<text x="{(left + wide - right) / 2}" y="{high - 12}" text-anchor="middle">tokens seen per site '
        "(line: mean over sites; band: least and greatest)</text></svg>\n"
    )


def shipped(result: Mapping[str, Any]) -> str:
    """What the adapter holder tells a publisher: the points, and which adapter they are of."""
    adapter = (
        f"a trained adapter of rank {result['rank']} with {result['sites']} sites of width {result['width']} "
        f"(the demo's base model and corpus, {result['training_steps']} steps, held-out loss "
        f"{result['heldout_loss_base']:.2f} to {result['heldout_loss_adapter']:.2f})"
    )
    told = {
        "source": "python -m benchmarks.extraction",
        "adapter": adapter,
        "width": result["width"],
        "points": result["points"],
    }
    return json.dumps(told, indent=1) + "\n"


def main() -> None:
    """Train, attack, print, save."""
    sites, facts = trained_sites()
    points, width = curve(sites), sites[0].a.shape[1]
    print(f"sites {len(sites)}, width {width}, rank {RANK}; {facts}")
    print("tokens  share   mean   least  greatest")
    for p in points:
        print(f"{p.tokens:6d}  {p.share_of_width:5.3f}  {p.mean:.3f}  {p.least:.3f}  {p.greatest:.3f}")
    result = {
        "width": width,
        "rank": RANK,
        "sites": len(sites),
        "training_steps": STEPS,
        **facts,
        "points": [asdict(p) for p in points],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PLOT.write_text(plot(points, width))
    SHIPPED.write_text(shipped(result))


if __name__ == "__main__":
    main()
