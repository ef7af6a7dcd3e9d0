"""Noise from the cryptographic generator, and the decision that admits a step of a bounded run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.harness import Bench, Benchmark, Measure, at_most, cpu
from tensafe.privacy import rules, units
from tensafe.privacy.bisr import coefficients
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import correlated_gaussian, gaussian
from tensafe.privacy.records import Head, RunRecord
from tensafe.privacy.units import ParticipationCounts

SAMPLES: Final = 4_000_000
BANDWIDTH: Final = 4
ROUNDS: Final = 7
RUNS: Final = 20
"""Runs of the domain, whose epsilon a decision computes anew."""
STEP_UNITS: Final = 256
DATASET: Final = 1024
"""Four steps an epoch: in one of them the largest count rises, and with it epsilon."""
ADMISSIONS: Final = 300


def run(bench: Bench) -> Mapping[str, float]:
    """Processor time of this thread for each float64 sample, of independent and of correlated noise (for
    each of its draws); and the time of one admission: units counted, epsilon of the domain, the row."""
    secret, weights = os.urandom(32), coefficients(BANDWIDTH)
    bench.note("noise")
    independent = _thread_s(lambda step: gaussian(secret, step, SAMPLES, 1.0))
    correlated = _thread_s(lambda step: correlated_gaussian(secret, BANDWIDTH + step, weights, SAMPLES, 1.0))
    bench.note("admission")
    return {
        "noise": independent / SAMPLES * 1e9,
        "noise_correlated": correlated / SAMPLES / len(weights) * 1e9,
        "admission": _admission_s(DATASET) * 1e3,
        "admission_new_epsilon": _admission_s(STEP_UNITS) * 1e3,
    }


def _thread_s(draw: Callable[[int], object]) -> float:
    """Median of the seconds that this thread computes, without those in which others have its core."""
    seconds = []
    for step in range(ROUNDS + 1):
        began = time.thread_time()
        draw(step)
        seconds.append(time.thread_time() - began)
    return statistics.median(seconds[1:])


def _admission_s(dataset: int) -> float:
    """Median of decisions on steps that go through so many units in order, again and again."""
    mechanism = Mechanism(
        clip_norm=1.0,
        noise_multiplier=20.0,
        batch_size=STEP_UNITS,
        max_participations=ADMISSIONS + 1,
        delta=1e-6,
        domain="bench",
        max_epsilon=8.0,
    )
    head = Head(1e-6, 0, "0" * 64, {f"run-{number}": (15.0 + number, 2) for number in range(RUNS)})
    counts, record = ParticipationCounts(mechanism.min_separation), RunRecord(mechanism, "0" * 32)
    seconds = []
    all_tags = units.unit_tags(b"t" * 32, range(dataset))
    for number in range(ADMISSIONS):
        first = number * STEP_UNITS % dataset
        tags = all_tags[first : first + STEP_UNITS]
        state = rules.State(head, record, counts)
        began = time.perf_counter()
        row = rules.next_row(state, rules.Step("run-0", number, tags, "0" * 64, ""), 0)
        seconds.append(time.perf_counter() - began)
        record, head = rules.advanced(state, row, "0" * 64)
        counts.add(tags)
    return statistics.median(seconds)


BENCHMARK = Benchmark(
    name="noise",
    summary="noise from the cryptographic generator, and the admission of a bounded step",
    measures=(
        Measure("noise", "ns", at_most(20)),
        Measure("noise_correlated", "ns"),
        Measure("admission", "ms", at_most(0.2)),
        Measure("admission_new_epsilon", "ms"),
    ),
    run=run,
    device=cpu,
)
