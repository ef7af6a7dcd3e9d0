"""`privacy plan` prints a table, a chart and an advice that is honest for the loop."""

from __future__ import annotations

from tests.unit.cli.conftest import Tensafe

ASKED = ("privacy", "plan", "--units", 400, "--batch-size", 40, "--epochs", 2, "--epsilon", 4)


def test_a_plan_is_a_table_a_chart_and_an_advice(tensafe: Tensafe) -> None:
    told = tensafe(*ASKED)
    assert told.code == 0
    lines = told.out.splitlines()
    for name in ("bounded, independent", "bounded, bisr, fixed order", "dealt Poisson (not served yet)"):
        row, bar = (line for line in lines if line.startswith(name))
        assert "█" not in row
        assert "█" in bar
    assert "Advised for your loop: bounded, bisr, reshuffled" in told.out
    assert "Shuffling must not be billed so" in told.out


def test_a_fixed_order_is_advised_to_who_has_one_and_poisson_to_nobody(tensafe: Tensafe) -> None:
    for loop, advised in (
        ("reshuffled", "bounded, bisr, reshuffled"),
        ("fixed", "bounded, bisr, fixed order"),
    ):
        told = tensafe(*ASKED, "--loop", loop, "--json").json
        assert (told["loop"], told["advised"]) == (loop, advised)
        assert (told["steps"], told["warning"]) == (20, None)
        assert [option["served"] for option in told["options"]] == [True, True, True, False]


def test_a_delta_of_one_over_the_units_is_warned_of(tensafe: Tensafe) -> None:
    assert "1 / units" in tensafe(*ASKED, "--delta", 0.0025, "--json").json["warning"]


def test_what_cannot_be_planned_ends_in_one_sentence(tensafe: Tensafe) -> None:
    told = tensafe("privacy", "plan", "--units", 4, "--batch-size", 40, "--epochs", 2, "--epsilon", 4)
    assert (told.code, told.err) == (2, "tensafe: batch_size must be from 1 to the number of units\n")
