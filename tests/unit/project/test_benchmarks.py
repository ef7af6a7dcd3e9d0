"""The registry of benchmarks and the shape of what they save; nothing is measured here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import results_file
from benchmarks.harness import (
    Bench,
    Benchmark,
    Goal,
    Measure,
    NotRun,
    at_most,
    execute,
    interleaved,
    pinned,
    two_cores,
)
from benchmarks.helora_floor import Primitives, site_token_s
from benchmarks.peer import Handler, Peer
from benchmarks.raw_client import Timings, rate
from benchmarks.registry import BENCHMARKS, chosen, measure_names
from benchmarks.results_file import Result
from benchmarks.spent import Spent, spent
from tests.project_files import ROOT

FIELDS = ["name", "value", "unit", "goal", "met", "device"]


def a_benchmark(value: float | None) -> Benchmark:
    def run(_: Bench) -> dict[str, float]:
        if value is None:
            raise NotRun("no such device")
        return {"time": value, "rate": 10 * value}

    measures = (Measure("time", "s", at_most(2)), Measure("rate", "1/s"))
    return Benchmark("a", "", measures, run, lambda: "abacus")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, lambda _: None)


def test_names_are_unique_and_every_goal_of_the_service_has_a_measure() -> None:
    names = measure_names()
    assert len(set(names)) == len(names)
    goals = {m.name: str(m.goal) for b in BENCHMARKS for m in b.measures if m.goal}
    assert goals == {
        "operation_p50": "<= 10",
        "operations_per_s": ">= 300",
        "get_info_per_s": ">= 1000",
        "one_token_forward_p50": "<= 20",
        "one_token_forwards_per_s": ">= 60",
        "training_step_ratio": "<= 1.05",
        "training_step_ratio_cuda": "<= 1.05",
        "private_step_ratio_engine": "<= 1.05",
        "private_step_ratio_service": "<= 1.05",
        "private_step_ratio_engine_cuda": "<= 1.05",
        "private_step_ratio_service_cuda": "<= 1.05",
        "dp_table_private_b8_t32": "<= 1.05",
        "dp_table_private_b8_t256": "<= 1.05",
        "dp_table_private_b32_t32": "<= 1.05",
        "dp_table_private_b32_t256": "<= 1.05",
        "dp_table_memory": "<= 1",
        "noise": "<= 20",
        "admission": "<= 0.2",
        "deal": "<= 0.5",
        "deal_peak": "<= 200",
        "deal_admission": "<= 0.2",
        "manifest": "<= 30",
        "sampling_ratio": ">= 0.95",
        "api_resident": "<= 200",
        "api_ready": "<= 2",
        "trainer_ready_beyond_load": "<= 10",
        "function_zipped": "<= 30",
        "function_cold_ratio": "<= 1.25",
        "function_warm_p50": "<= 5",
        "ledger_verify_rows_per_s": ">= 10000",
        "helora_online_module": "<= 50",
        "helora_online_service": "<= 50",
        "helora_sustained_05b": ">= 50",
        "helora_sustained_05b_b16": ">= 50",
        "helora_sustained_15b": ">= 25",
        "helora_sustained_15b_b16": ">= 25",
        "private_added_b1": "<= 15",
        "private_added_b16": "<= 1.5",
    }


def test_one_is_chosen_by_its_name_or_by_a_result() -> None:
    assert [b.name for b in chosen("operation")] == ["operation"]
    assert [b.name for b in chosen("operations_per_s")] == ["operation"]
    assert chosen(None) == BENCHMARKS
    with pytest.raises(KeyError):
        chosen("nothing")


def test_the_document_names_every_benchmark_and_every_goal() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text()
    missing = [
        name
        for b in BENCHMARKS
        for name in (b.name, *(m.name for m in b.measures))
        if f"`{name}`" not in text
    ]
    assert missing == []


def test_every_measure_has_a_committed_result_or_the_reason_why_not() -> None:
    saved = json.loads((ROOT / "benchmarks/results/latest.json").read_text())
    assert set(measure_names()) - {one["name"] for one in saved} == set()
    assert [
        one["name"] for one in saved if one["value"] is None and not one["device"].startswith("not run: ")
    ] == []


def test_a_goal_is_met_at_its_bound_and_on_its_good_side() -> None:
    assert [Goal("<=", 2).met_by(v) for v in (1.9, 2, 2.1)] == [True, True, False]
    assert [Goal(">=", 2).met_by(v) for v in (1.9, 2, 2.1)] == [False, True, True]


def test_a_result_has_exactly_the_six_fields(bench: Bench, tmp_path: Path) -> None:
    results = execute(a_benchmark(2.00001), bench)
    results_file.save(results, tmp_path / "latest.json")
    saved = json.loads((tmp_path / "latest.json").read_text())
    assert [list(entry) for entry in saved] == [FIELDS, FIELDS]
    # What is judged is the figure measured, not the rounded one.
    assert saved[0] == {
        "name": "time", "value": 2.0, "unit": "s", "goal": "<= 2", "met": False, "device": "abacus",
    }  # fmt: skip
    assert saved[1] == {
        "name": "rate", "value": 20.0, "unit": "1/s", "goal": None, "met": None, "device": "abacus",
    }  # fmt: skip
    assert results_file.load(tmp_path / "latest.json") == results


def test_what_cannot_run_has_no_value(bench: Bench) -> None:
    results = execute(a_benchmark(None), bench)
    assert {(r.value, r.met, r.device) for r in results} == {(None, None, "not run: no such device")}


def test_a_measure_that_is_missing_is_an_error(bench: Bench) -> None:
    half = dataclasses.replace(a_benchmark(1), run=lambda _: {"time": 1.0})
    with pytest.raises(AssertionError, match="rate"):
        execute(half, bench)


def test_running_one_keeps_the_other_results() -> None:
    old = [Result(name, 1.0, "s", None, None, "x") for name in ("a", "b", "gone")]
    new = [Result("b", 2.0, "s", None, None, "x"), Result("c", 3.0, "s", None, None, "x")]
    merged = results_file.merged(old, new, ["a", "b", "c", "d"])
    assert [(r.name, r.value) for r in merged] == [("a", 1.0), ("b", 2.0), ("c", 3.0)]


def test_figures_of_another_device_stay_beside_the_new_ones() -> None:
    def result(value: float | None, device: str) -> Result:
        return Result("a", value, "s", None, None, device)

    old = [result(1.0, "x"), result(2.0, "y")]
    assert results_file.merged(old, [result(3.0, "y"), result(4.0, "z")], ["a"]) == [
        result(1.0, "x"), result(3.0, "y"), result(4.0, "z"),
    ]  # fmt: skip
    unable = result(None, "not run: no such device")
    assert results_file.merged(old, [unable], ["a"]) == old
    assert results_file.merged([unable], [result(None, "not run: it broke")], ["a"]) == [
        result(None, "not run: it broke")
    ]
    assert results_file.merged([unable], old, ["a"]) == old


def test_sides_take_turns_in_alternating_order() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str):
        def do(index: int) -> float:
            calls.append((name, index))
            return float(index)

        return do

    seconds = interleaved({"ours": side("ours"), "theirs": side("theirs")}, rounds=2, warm_rounds=1)
    assert calls == [("ours", 0), ("theirs", 0), ("theirs", 1), ("ours", 1), ("ours", 2), ("theirs", 2)]
    assert seconds == {"ours": [1.0, 2.0], "theirs": [1.0, 2.0]}


def test_the_rate_counts_only_while_every_client_is_busy() -> None:
    quick = Timings([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    slow = Timings([2.0, 2.0], [2.0, 4.0])
    assert rate([quick, slow]) == pytest.approx(4 / 3)  # until 3 s: three of one, one of the other


def test_what_is_started_while_pinned_stays_on_its_core() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with pinned(core):
        said = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"],
            capture_output=True,
            check=True,
        )
    assert said.stdout.decode().strip() == str({core})
    assert os.sched_getaffinity(0) == before
    assert set(two_cores()) <= before


def test_processor_time_and_the_wall_are_two_clocks() -> None:
    asleep = spent(lambda: time.sleep(0.05))
    assert asleep.wall_s >= 0.05 > 10 * asleep.cpu_s
    assert Spent(1, 2) + Spent(1, 3).times(2) == Spent(3, 8)
    assert Spent(2, 4).named("a", 1e3) == {"a": 2000, "a_wall": 4000}
    assert Spent(2, 4).rates("a") == {"a": 0.5, "a_wall": 0.25}


def test_the_floor_counts_transforms_products_and_keystreams() -> None:
    """A site of 896 inputs and 48 rows, whose replies are hidden under three keys."""
    transforms = 3 * (896 + 48 + 3 * 3 * 48)
    assert site_token_s(896, 48, Primitives(1, 0, 0)) == pytest.approx(transforms / 4096)
    assert site_token_s(896, 48, Primitives(0, 1, 0)) == pytest.approx(7 * 896 * 48)
    assert site_token_s(896, 48, Primitives(0, 0, 1)) == pytest.approx(4 * (7 * 896 + 896 + 48))


def leaving_a_child() -> Handler:
    """Starts a process in a session of its own, as vLLM does, and ends without it."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return lambda _: child.pid


def test_what_a_peer_started_ends_with_it() -> None:
    with Peer(leaving_a_child) as peer:
        pid = peer(None)
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_what_the_document_says_of_sustained_rates_is_what_was_measured() -> None:
    """In its order: 0.5B one at a time on Xeon and EPYC, 16 at once on both, and the same of 1.5B."""
    latest = json.loads((ROOT / "benchmarks/results/latest.json").read_text())

    def measured(name: str, processor: str) -> str:
        (value,) = [one["value"] for one in latest if one["name"] == name and processor in one["device"]]
        return f"{value:.0f}"

    figures = {
        f"{shape}{batch}": [measured(f"helora_sustained_{shape}{batch}", of) for of in ("Xeon", "EPYC")]
        for shape in ("05b", "15b")
        for batch in ("", "_b16")
    }
    one, many, wide, wide_many = (figures[name] for name in ("05b", "05b_b16", "15b", "15b_b16"))
    said = " ".join((ROOT / "docs/benchmarks.md").read_text().split())
    assert f"is {one[0]} tokens/s of 50 there and {one[1]} on the EPYC" in said
    assert f"with 16 sequences at once {many[0]} and {many[1]};" in said
    assert f"at 1536 x 28, {wide[0]} and {wide[1]}, and {wide_many[0]} and {wide_many[1]} (goal 25)" in said
