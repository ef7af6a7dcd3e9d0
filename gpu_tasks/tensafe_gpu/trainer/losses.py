"""The five losses per token, with their derivative to the token's logprob in closed form.

All are sums over tokens without averaging; the caller scales its weights. lp is the logprob of the
target under the adapter, q the caller's `logprobs`, A its `advantages`, r = exp(lp - q):

    cross_entropy          -w lp                              d = -w
    importance_sampling    -r A                               d = -r A
    ppo                    -min(r A, clip(r, low, high) A)    d = -r A where r A is the smaller, else 0
    cispo                  -sg(clip(r, low, high)) lp A       d = -clip(r, low, high) A
    dro                    -(lp A - beta/2 (lp - q)^2)        d = -(A - beta (lp - q))

Names and formulas are those of the Tinker service; dro's quadratic term is TuFT's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from tensafe.contracts.data_checks import CLIP_HIGH, CLIP_LOW
from tensafe.contracts.training import LossName

Tensors = Mapping[str, torch.Tensor]
Floats = npt.NDArray[np.float32]


def loss_and_slope(
    loss_fn: LossName, logprobs: torch.Tensor, inputs: Tensors, config: Mapping[str, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and d loss / d logprob per target; all tensors are float32 [N, K]."""
    if loss_fn == "cross_entropy":
        slope = -inputs["weights"]
        return logprobs * slope, slope
    advantages, difference = inputs["advantages"], logprobs - inputs["logprobs"]
    if loss_fn == "dro":
        beta = config["beta"]
        loss = -(logprobs * advantages - 0.5 * beta * difference.square())
        return loss, beta * difference - advantages
    ratio = difference.exp()
    if loss_fn == "importance_sampling":
        loss = -ratio * advantages
        return loss, loss
    clipped = ratio.clamp(config[CLIP_LOW], config[CLIP_HIGH])
    if loss_fn == "cispo":
        slope = -clipped * advantages
        return logprobs * slope, slope
    plain, bounded = -ratio * advantages, -clipped * advantages
    # At a tie the ratio lies within the bounds (or A is 0), where both branches have the same slope.
    return torch.maximum(plain, bounded), torch.where(plain >= bounded, plain, torch.zeros_like(plain))


def loss_metrics(
    loss_fn: LossName, logprobs: Floats, inputs: Mapping[str, Floats], config: Mapping[str, float]
) -> dict[str, float]:
    """Metrics of a call over its flattened targets [n]; each name ends in how chunks of a batch combine.

    `tokens:sum` counts targets, `weights:sum` adds the weights. For sampled losses `ratio:max` is the
    largest exp(lp - q) of a token with an advantage (and a finite logprob), `kl_sample:sum` adds q - lp over
    those tokens and `clipped_tokens:sum` counts those whose ratio left the bounds.
    """
    metrics = {"tokens:sum": float(logprobs.size)}
    if loss_fn == "cross_entropy":
        metrics["weights:sum"] = float(inputs["weights"].sum(dtype=np.float64))
        return metrics
    active = (inputs["advantages"] != 0) & np.isfinite(logprobs)
    difference = (logprobs[active] - inputs["logprobs"][active]).astype(np.float64)
    ratio = np.exp(np.minimum(difference, 700.0))
    metrics["ratio:max"] = float(ratio.max(initial=0.0))
    metrics["kl_sample:sum"] = float(-difference.sum())
    if CLIP_LOW in config:
        outside = (ratio < config[CLIP_LOW]) | (ratio > config[CLIP_HIGH])
        metrics["clipped_tokens:sum"] = float(outside.sum())
    return metrics
