"""`privacy plan` prints a table, a chart and an advice that is honest for the loop."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.unit.cli.conftest import Tensafe

ASKED = ("privacy", "plan", "--units", 400, "--batch-size", 40, "--epochs", 2, "--epsilon", 4)


def test_a_plan_is_a_table_a_chart_and_an_advice(tensafe: Tensafe) -> None:
    told = tensafe(*ASKED)
    assert told.code == 0
    lines = told.out.splitlines()
    for name, bars in (
        ("bounded, independent", "█"),
        ("bounded, bisr, fixed order", "░"),
        ("dealt Poisson", "░"),
    ):
        row, noise, error = (line for line in lines if line.startswith(name))
        assert "█" not in row
        assert "░" not in row
        assert {char for char in noise + error if char in "█░"} == {bars}
    assert "Advised for your loop: bounded, bisr, reshuffled" in told.out
    said = " ".join(told.out.split())
    assert "Shuffling must not be billed as Poisson sampling" in said
    assert 'mode="bounded"' in lines[-1]
    assert 'noise="bisr"' in lines[-1]


def test_a_fixed_order_is_advised_to_who_has_one_and_poisson_to_who_is_dealt(tensafe: Tensafe) -> None:
    """A client's own sampling is advised what any loop is; only who is dealt to is advised that."""
    for loop, advised, honest in (
        ("reshuffled", "bounded, bisr, reshuffled", [True, True, False, False, False]),
        ("fixed", "bounded, bisr, fixed order", [True, True, True, False, False]),
        ("sampled", "bounded, bisr, reshuffled", [True, True, False, True, False]),
        ("dealt", "dealt Poisson", [False, False, False, False, True]),
    ):
        told = tensafe(*ASKED, "--loop", loop, "--json").json
        assert (told["loop"], told["advised"]) == (loop, advised)
        assert [option["honest_here"] for option in told["options"]] == honest
        assert (told["steps"], told["warning"]) == (20, None)
        assert [option["served"] for option in told["options"]] == [True] * 5


def test_a_loop_that_the_service_deals_is_advised_its_own_mode(tensafe: Tensafe) -> None:
    told = tensafe(*ASKED, "--loop", "dealt")
    assert told.code == 0
    assert "Advised for your loop: dealt Poisson." in told.out
    assert 'mode="dealt", noise_multiplier=' in told.out.splitlines()[-1]
    assert told.out.endswith("batch_size=40, max_steps=20\n")


def test_the_chart_is_drawn_into_a_file(tensafe: Tensafe, tmp_path: Path) -> None:
    """Two bars for each mode, in one colour if it is honest for the loop; lengths are the numbers'."""
    file = tmp_path / "plan.svg"
    told = tensafe(*ASKED, "--json", "--svg", file).json
    names = {"svg": "http://www.w3.org/2000/svg"}
    drawn = ElementTree.parse(file)
    texts = [text.text for text in drawn.iterfind(".//svg:text", names)]
    bars = [bar for bar in drawn.iterfind("svg:rect[@rx]", names) if bar.get("height") == "20"]
    options = told["options"]
    assert len(bars) == 2 * len(options)
    for column, field in enumerate(("noise_multiplier", "relative_error")):
        mine = bars[column * len(options) : (column + 1) * len(options)]
        largest = max(option[field] for option in options)
        for bar, option in zip(mine, options, strict=True):
            assert float(bar.attrib["width"]) == pytest.approx(250 * option[field] / largest, abs=0.1)
            assert {option["name"], f"{option[field]:.3g}"} <= set(texts)
        colours = {
            (option["honest_here"], bar.get("fill")) for bar, option in zip(mine, options, strict=True)
        }
        assert len(colours) == 2
    assert "400 units, batches of 40, 2 epochs, epsilon 4, delta 1e-05, loop: reshuffled" in texts


def test_a_chart_that_cannot_be_written_ends_in_one_sentence(tensafe: Tensafe, tmp_path: Path) -> None:
    told = tensafe(*ASKED, "--svg", tmp_path / "nowhere" / "plan.svg")
    assert told.code != 0
    assert len(told.err.splitlines()) == 1


def test_a_delta_of_one_over_the_units_is_warned_of(tensafe: Tensafe) -> None:
    assert "1 / units" in tensafe(*ASKED, "--delta", 0.0025, "--json").json["warning"]


def test_what_cannot_be_planned_ends_in_one_sentence(tensafe: Tensafe) -> None:
    told = tensafe("privacy", "plan", "--units", 4, "--batch-size", 40, "--epochs", 2, "--epsilon", 4)
    assert (told.code, told.err) == (2, "tensafe: batch_size must be from 1 to the number of units\n")
