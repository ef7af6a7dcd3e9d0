"""One audited run of the real mechanism: Ledger.reserve, ClippedSum and noisy_mean over Dirac canaries.

The functions are looked up when they are called, so that a planted bug is what runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import lfilter

from tensafe.privacy import bisr, release
from tensafe.privacy import ledger as ledger_module
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import noise_key_id
from tensafe.storage.ports import Blobs
from tensafe.vault.vault import Vault
from tensafe_gpu.trainer import accumulate
from tensafe_gpu.trainer.layout import Layout, Pair, Site
from tests.fakes import MemoryAnchors, MemoryItems, MemoryKeyRing, memory_signer

CLIP_NORM = 0.5
LOUDNESS = 10.0
"""Norm of a canary before clipping, over the clip norm: clipping has something to do."""
CALL_UNITS = 250
BACKGROUND_UNITS = 9
"""Ordinary units beside the canaries; the first is an outlier of norm 10^6."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is audited: every canary takes part in `participations` of `steps` steps, at a given noise.

    `runs` of one domain see the same canaries (forks, reruns). `attempts` are how often a crashed step
    is released again; the adversary averages them. With a `bandwidth` the noise is correlated, and all
    units take part in the schedule that leaks most: step 0 and every `min_separation` steps after it.
    """

    steps: int
    participations: int
    noise_multiplier: float
    canaries: int = 4000
    batch_size: int = 2000
    delta: float = 1e-5
    runs: int = 1
    attempts: int = 1
    bandwidth: int | None = None
    min_separation: int = 1


@dataclass(frozen=True, slots=True)
class Audited:
    """What the adversary has, and the claim: the ledger's epsilon after the last step.

    `scores` float64 [m]: what was released on the canary's coordinate in the steps that it could be in, the
    correlation of the noise undone.
    `included` bool [m]. `releases_differ`: whether some step was released as two different vectors.
    """

    claimed_epsilon: float
    delta: float
    scores: npt.NDArray[np.float64]
    included: npt.NDArray[np.bool_]
    releases_differ: bool


def audit(setting: Setting, *, seed: int) -> Audited:
    """Run the mechanism once over canaries that `seed` includes or not."""
    m = setting.canaries
    rng = np.random.default_rng(seed)
    included = rng.random(m) < 0.5
    schedule = _schedule(rng, setting)
    background = rng.normal(size=(BACKGROUND_UNITS, m)).astype(np.float32)
    background[0] *= 1e6
    items = MemoryItems()
    vault = Vault(items, cast(Blobs, None), MemoryKeyRing())
    ledger = ledger_module.Ledger(items, vault, memory_signer(), MemoryAnchors())
    scores = np.zeros(m)
    claimed, differ = 0.0, False
    for run in range(setting.runs):
        secret = hashlib.sha256(f"{seed} {run}".encode()).digest()
        ref = ledger.open_run("acme", f"run-{run}", _mechanism(setting), noise_key_id=noise_key_id(secret))
        released = np.zeros((setting.steps, m))
        for step in range(setting.steps):
            present = np.flatnonzero(schedule[step, :m] & included)
            beside = np.flatnonzero(schedule[step, m:])
            total = _clipped_sum(m, present, background[beside])
            units = {*present.tolist(), *(m + beside).tolist()}
            attempts = []
            for _ in range(setting.attempts):
                charge = ledger.reserve(ref, step, units)
                attempts.append(release.noisy_mean(charge, secret, total))
            differ |= any((other != attempts[0]).any() for other in attempts)
            released[step] = np.mean(attempts, axis=0) * setting.batch_size
            claimed = charge.epsilon
        scores += _matched(setting, schedule[:, :m], released)
    return Audited(claimed, setting.delta, scores, included, differ)


def _schedule(rng: np.random.Generator, setting: Setting) -> npt.NDArray[np.bool_]:
    """Whether a unit may be in a step, bool [steps, canaries + background]: the client's choice, known to
    the adversary."""
    if setting.bandwidth is not None:
        regular = np.zeros((setting.steps, setting.canaries + BACKGROUND_UNITS), dtype=bool)
        regular[:: setting.min_separation][: setting.participations] = True
        return regular
    keys = rng.random((setting.steps, setting.canaries + BACKGROUND_UNITS))
    return np.argsort(np.argsort(keys, axis=0), axis=0) < setting.participations


def _matched(
    setting: Setting, schedule: npt.NDArray[np.bool_], released: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The best statistic of a canary's coordinate, float64 [m], from what was released, [steps, m].

    Correlated noise is made white first, by the strategy matrix: a filter of 1 over the coefficients.
    """
    pattern = schedule.astype(np.float64)
    if setting.bandwidth is not None:
        weights = bisr.coefficients(setting.bandwidth)
        pattern, released = (lfilter([1.0], weights, series, axis=0) for series in (pattern, released))
    return np.einsum("tm,tm->m", pattern, released)


def _mechanism(setting: Setting) -> Mechanism:
    sensitivity = None
    if setting.bandwidth is not None:
        sensitivity = bisr.sensitivity(
            setting.bandwidth,
            steps=setting.steps,
            participations=setting.participations,
            min_separation=setting.min_separation,
        )
    return Mechanism(
        clip_norm=CLIP_NORM,
        noise_multiplier=setting.noise_multiplier,
        batch_size=setting.batch_size,
        max_participations=setting.participations,
        delta=setting.delta,
        domain="audited",
        max_steps=setting.steps,
        min_separation=setting.min_separation,
        bisr_bandwidth=setting.bandwidth,
        sensitivity=sensitivity,
    )


def _clipped_sum(
    m: int, present: npt.NDArray[np.int64], background: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The sum over the units of a step, in calls of CALL_UNITS, as the trainer makes it."""
    layout = Layout((Site("audited", m // 4, m // 4),), 2)
    assert layout.numel == m
    clipped = accumulate.ClippedSum(layout, CLIP_NORM, torch.device("cpu"))
    if not len(present) + len(background):
        return clipped.total.numpy()
    for gradients in _gradients(m, present, background):
        clipped.add_units(pairs_of(layout, gradients), range(len(gradients)), len(gradients))
    return clipped.total.numpy()


def _gradients(
    m: int, present: npt.NDArray[np.int64], background: npt.NDArray[np.float32]
) -> Iterator[torch.Tensor]:
    """Per-unit gradients float32 [U, m]: the background among the first canaries."""
    for first in range(0, max(1, len(present)), CALL_UNITS):
        coordinates = present[first : first + CALL_UNITS]
        canaries = torch.zeros(len(coordinates), m)
        canaries[torch.arange(len(coordinates)), torch.from_numpy(coordinates)] = LOUDNESS * CLIP_NORM
        yield torch.cat([torch.from_numpy(background), canaries]) if first == 0 else canaries


def pairs_of(layout: Layout, gradients: torch.Tensor) -> list[Pair]:
    """Per-unit gradients float32 [U, P] as the trainer holds them: [U, rank, in], [U, out, rank] by site."""
    pieces = torch.split(gradients, list(layout.sizes), dim=1)
    return [
        (
            pieces[2 * i].reshape(-1, layout.rank, site.in_features),
            pieces[2 * i + 1].reshape(-1, site.out_features, layout.rank),
        )
        for i, site in enumerate(layout.sites)
    ]
