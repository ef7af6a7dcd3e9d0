"""One step of tensafe_dp_sgd recomputed from the weights before it: the method of docs/privacy.md.

Nothing of the trainer's numerics is used: transformers, PEFT and autograd give each example's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from tensafe.contracts.training import Datum, ForwardBackward
from tensafe.privacy.noise import gaussian, round_to_grid
from tensafe_gpu.trainer.layout import Layout
from tests.support.peft_reference import flat_gradient, load_reference, reference_losses

Vector = npt.NDArray[np.float64]
MARGIN = 2.0**-10
"""By which a unit is clipped below the clip norm."""


def weights_of(files: dict[str, bytes], layout: Layout) -> Vector:
    """The matrices of a PEFT export as one vector, float64 [P] in the layout's order."""
    tensors = load(files["adapter_model.safetensors"])
    names = [f"base_model.model.{site.name}.lora_{letter}.weight" for site in layout.sites for letter in "AB"]
    return np.concatenate([tensors[name].ravel().astype(np.float64) for name in names])


def is_b(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which coordinates of that vector are of a B, bool [P]."""
    return np.concatenate([np.full(size, place % 2 == 1) for place, size in enumerate(layout.sizes)])


def clipped_sum(
    model_path: str,
    files: dict[str, bytes],
    layout: Layout,
    data: Sequence[Datum],
    clip_norm: float,
    *,
    b_alone: bool = False,
) -> Vector:
    """The sum over units of clipped gradients, one example at a time: float64 [P], or [Q] of B alone."""
    units: dict[int | None, Vector] = {}
    request = ForwardBackward(tuple(data), "cross_entropy", {}, forward_only=False)
    chosen = is_b(layout) if b_alone else slice(None)
    with TemporaryDirectory() as folder:
        model = load_reference(model_path, files, Path(folder), is_trainable=True)
    for datum, loss in zip(data, reference_losses(model, request), strict=True):
        model.zero_grad()
        loss.backward()
        gradient = flat_gradient(model, layout).double().numpy()[chosen]
        units[datum.unit_id] = units.get(datum.unit_id, 0.0) + gradient
    bound = clip_norm * (1 - MARGIN)
    return np.sum([g * min(1.0, bound / np.linalg.norm(g)) for g in units.values()], axis=0)


def noisy_mean(total: Vector, secret: bytes, seq: int, deviation: float, batch_size: int) -> Vector:
    """What the step adds to the weights, times minus the learning rate: the noise is regenerated."""
    noise = gaussian(secret, seq, total.size, deviation)
    return (round_to_grid(total, deviation) + noise) / batch_size
