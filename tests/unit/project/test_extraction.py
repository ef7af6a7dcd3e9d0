"""The attack behind the published curve, and that what is published is what was measured."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from benchmarks.extraction import PLOT, RESULT, SHIPPED, Point, Site, plot, shipped, stolen_error
from tensafe_gpu.adapter_holder.extraction import measured
from tests.project_files import ROOT


def site(*, spectrum: float, width: int = 32, rank: int = 4) -> Site:
    """Random A and B; inputs whose k-th direction has the size k**-spectrum."""
    rng = np.random.default_rng(3)
    scale = np.arange(1, width + 1) ** -spectrum
    inputs = [rng.standard_normal((256, width)) * scale for _ in range(2)]
    b = rng.standard_normal((8, rank))
    return Site("site", rng.standard_normal((rank, width)), ((rank, b),), inputs[0], inputs[1])


def test_as_many_tokens_as_the_width_give_the_adapter_away_and_one_does_not() -> None:
    white = site(spectrum=0.0)
    assert stolen_error(white, 32) < 1e-6
    assert stolen_error(white, 1) > 0.9


def test_structured_inputs_give_it_away_sooner() -> None:
    assert stolen_error(site(spectrum=1.5), 8) < 0.5 * stolen_error(site(spectrum=0.0), 8)


def test_the_published_table_and_plot_are_the_measured_ones() -> None:
    result = json.loads(RESULT.read_text())
    points = [Point(**point) for point in result["points"]]
    text = (ROOT / "docs/threat-model.md").read_text()
    for point in points:
        errors = f"{point.mean:.3f} | {point.least:.3f} | {point.greatest:.3f} |"
        row = f"| {point.tokens} ({point.share_of_width:.3g} d) | {errors}"
        assert row in text, row
    assert PLOT.read_text() == plot(points, result["width"])


def test_what_publishing_prints_is_what_was_measured() -> None:
    result = json.loads(RESULT.read_text())
    assert SHIPPED.read_text() == shipped(result)
    curve = measured()  # of the installed package
    assert [dataclasses.asdict(point) for point in curve.points] == result["points"]
    assert curve.width == result["width"]
    for words in (f"rank {result['rank']}", f"{result['sites']} sites", f"{result['training_steps']} steps"):
        assert words in curve.adapter


def test_what_is_claimed_is_private_activations_and_metered_use_and_never_secret_weights() -> None:
    """Wherever private adapters are described; two of the three with what the weights follow from."""
    said = {
        "README.md": (
            "activations stay private, and use is metered",
            "not that the weights cannot be learned",
        ),
        "docs/helora.md": (
            "**Metered use.**",
            "Not claimed: that the weights stay secret from enough answers",
        ),
        "docs/threat-model.md": ("its use is metered", "then A follows by linear algebra"),
    }
    for document, sentences in said.items():
        text = " ".join((ROOT / document).read_text().split())
        assert [one for one in sentences if one not in text] == [], document
