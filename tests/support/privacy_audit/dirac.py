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

from tensafe.privacy import ledger as ledger_module
from tensafe.privacy import release
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import noise_key_id
from tensafe.storage.ports import Blobs
from tensafe.vault.vault import Vault
from tensafe_gpu.trainer import accumulate
from tensafe_gpu.trainer.layout import Layout, Pair, Site
from tests.fakes import MemoryItems, MemoryKeyRing

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
    is released again; the adversary averages them.
    """

    steps: int
    participations: int
    noise_multiplier: float
    canaries: int = 4000
    batch_size: int = 2000
    delta: float = 1e-5
    runs: int = 1
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Audited:
    """What the adversary has, and the claim: the ledger's epsilon after the last step.

    `scores` float64 [m]: what was released on the canary's coordinate in the steps that it could be in.
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
    ledger = ledger_module.Ledger(items, Vault(items, cast(Blobs, None), MemoryKeyRing()))
    scores = np.zeros(m)
    claimed, differ = 0.0, False
    for run in range(setting.runs):
        secret = hashlib.sha256(f"{seed} {run}".encode()).digest()
        ref = ledger.open_run("acme", f"run-{run}", _mechanism(setting), noise_key_id=noise_key_id(secret))
        for step in range(setting.steps):
            present = np.flatnonzero(schedule[step, :m] & included)
            beside = np.flatnonzero(schedule[step, m:])
            total = _clipped_sum(m, present, background[beside])
            units = {*present.tolist(), *(m + beside).tolist()}
            released = []
            for _ in range(setting.attempts):
                charge = ledger.reserve(ref, step, units)
                released.append(release.noisy_mean(charge, secret, total))
            differ |= any((other != released[0]).any() for other in released)
            scores += schedule[step, :m] * np.mean(released, axis=0) * setting.batch_size
            claimed = charge.epsilon
    return Audited(claimed, setting.delta, scores, included, differ)


def _schedule(rng: np.random.Generator, setting: Setting) -> npt.NDArray[np.bool_]:
    """Whether a unit may be in a step, bool [steps, canaries + background]: the client's choice, known to
    the adversary."""
    keys = rng.random((setting.steps, setting.canaries + BACKGROUND_UNITS))
    return np.argsort(np.argsort(keys, axis=0), axis=0) < setting.participations


def _mechanism(setting: Setting) -> Mechanism:
    return Mechanism(
        clip_norm=CLIP_NORM,
        noise_multiplier=setting.noise_multiplier,
        batch_size=setting.batch_size,
        max_participations=setting.participations,
        delta=setting.delta,
        domain="audited",
    )


def _clipped_sum(
    m: int, present: npt.NDArray[np.int64], background: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The sum over the units of a step, in calls of CALL_UNITS, as the trainer makes it."""
    layout = Layout((Site("audited", m // 4, m // 4),), 2)
    assert layout.numel == m
    clipped = accumulate.ClippedSum(layout, CLIP_NORM, torch.device("cpu"))
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
