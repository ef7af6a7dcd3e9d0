"""The page of the comparison: every run in it, and names that do not cover one another."""

from __future__ import annotations

import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from compare_privacy import EPSILONS, MODES, Plan, parse
from comparison_chart import Level, ModeCurve, epsilon_chart
from comparison_page import Comparison, render
from corpus import load_corpus

HOSTILE = "<script>alert('x')</script>"


def measured(**changes: Any) -> Comparison:
    runs = [
        {
            "mode": mode,
            "target_epsilon": epsilon,
            "epsilon": epsilon - 1e-5,
            "noise_multiplier": 2.0,
            "heldout": 4.5 - epsilon / 100 - at / 10,
            "train_s": 12.0,
        }
        for at, mode in enumerate(MODES)
        for epsilon in EPSILONS
    ]
    data = {
        "title": HOSTILE,
        "generated_at": "2026-01-02T03:04:05+00:00",
        "base_model": HOSTILE,
        "conversations": 676,
        "heldout_conversations": 124,
        "heldout_tokens": 1500,
        "delta": 1e-4,
        "steps": 28,
        "batch_size": 169,
        "base": 5.25,
        "not_private": 3.5,
        "runs": runs,
        "facts": [["model", HOSTILE]],
        "notes": [HOSTILE],
    }
    return Comparison.model_validate({**data, **changes})


def test_every_run_is_drawn_and_in_the_table() -> None:
    page = render(measured())
    assert HOSTILE not in page
    assert (
        "without privacy: 3.50; the best of each mode: bounded 4.18; bounded, correlated 4.08; dealt 3.98"
        in page
    )
    (drawing,) = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    tree = ElementTree.fromstring(drawing)
    titles = [title.text or "" for title in tree.iter("title")]
    for name in ("bounded", "bounded, correlated", "dealt"):
        assert len([title for title in titles if title.startswith(f"{name}, ε")]) == len(EPSILONS)
    assert {"base model: 5.25", "not private: 3.5"} <= set(titles)
    assert page.count("<tr>") == 1 + 1 + 9 + 1 + 1
    assert "4.180</td>" in page


def test_equal_results_have_names_that_can_be_read() -> None:
    curves = [ModeCurve(name, [2.0, 8.0], [4.0, 4.0], n) for n, name in enumerate("abc", start=1)]
    drawing = epsilon_chart("k", "t", curves, [Level("base", 4.0), Level("none", 4.0)])
    places = [
        float(text.attrib["y"])
        for text in ElementTree.fromstring(drawing).iter("text")
        if text.attrib["class"].startswith("name")
    ]
    assert len(places) == 5
    assert min(b - a for a, b in itertools.pairwise(places)) >= 15
    assert max(places) < 300


def test_one_epsilon_is_a_chart_and_none_is_not() -> None:
    ElementTree.fromstring(epsilon_chart("k", "t", [ModeCurve("a", [8.0], [4.0], 1)], []))
    with pytest.raises(ValueError, match="a: 0 epsilons and 0 losses"):
        epsilon_chart("k", "t", [ModeCurve("a", [], [], 1)], [])


def test_what_was_not_measured_cannot_be_written() -> None:
    with pytest.raises(ValidationError, match="not_private"):
        measured(not_private=float("nan"))
    with pytest.raises(ValidationError, match="runs"):
        measured(runs=[])


def test_a_fixed_order_holds_units_a_whole_pass_apart() -> None:
    """What min_separation and max_participations promise is what the batches do."""
    for conversations, steps in ((676, 28), (675, 27), (9, 6)):
        plan = Plan(conversations=conversations, steps=steps)
        settings = plan.optimizer("correlated", 8.0, "d").model_dump()
        batches = list(plan.fixed_order(list(range(conversations))))  # type: ignore[arg-type]
        assert [len(batch) for batch in batches] == [plan.batch_size] * steps
        for unit in range(conversations):
            taken = [step for step, batch in enumerate(batches) if unit in batch]
            assert len(taken) <= settings["max_participations"]
            apart = [after - before for before, after in itertools.pairwise(taken)]
            assert min(apart, default=steps) >= settings["min_separation"]


def test_only_batches_and_noise_differ_between_modes() -> None:
    plan = Plan(conversations=len(load_corpus().train))
    told = {mode: plan.optimizer(mode, 8.0, "d").model_dump() for mode in MODES}
    same = {"type", "domain", "clip_norm", "delta", "batch_size", "target_epsilon", "max_steps"}
    assert len({tuple(sorted((name, told[mode][name]) for name in same)) for mode in MODES}) == 1
    assert told["dealt"]["mode"] == "dealt"
    assert set(told["correlated"]) - set(told["bounded"]) == {"noise", "bisr_bandwidth"}
    assert parse([]).epsilons == list(EPSILONS)
