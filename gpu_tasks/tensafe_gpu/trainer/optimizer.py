"""AdamW and SGD with decoupled weight decay (Loshchilov and Hutter 2019) on flat fp32 vectors.

The operations and their order are those of the single-tensor paths of torch.optim.AdamW and, without
weight decay, of torch.optim.SGD, so that each agrees with its model bit for bit on the CPU.
"""

from __future__ import annotations

import torch

from tensafe.contracts.training import AdamParams, SgdParams


def adamw_step(
    params: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    gradient: torch.Tensor,
    step: int,
    hyper: AdamParams,
) -> None:
    """Update `params` and both moments in place (algorithm 2).

    `step` counts from 1; all tensors are float32 [P].
    """
    params.mul_(1 - hyper.learning_rate * hyper.weight_decay)
    exp_avg.lerp_(gradient, 1 - hyper.beta1)
    exp_avg_sq.mul_(hyper.beta2).addcmul_(gradient, gradient, value=1 - hyper.beta2)
    step_size = hyper.learning_rate / (1 - hyper.beta1**step)
    correction = (1 - hyper.beta2**step) ** 0.5
    denominator = exp_avg_sq.sqrt().div_(correction).add_(hyper.eps)
    params.addcdiv_(exp_avg, denominator, value=-step_size)


def sgd_step(params: torch.Tensor, gradient: torch.Tensor, hyper: SgdParams) -> None:
    """Update `params` in place (algorithm 1 without momentum); both tensors are float32 [P]."""
    params.mul_(1 - hyper.learning_rate * hyper.weight_decay)
    params.add_(gradient, alpha=-hyper.learning_rate)


def clip_by_global_norm(gradient: torch.Tensor, norm: float, max_norm: float) -> None:
    """Scale `gradient` in place so that its norm is at most `max_norm`; 0 means no clipping.

    As torch.nn.utils.clip_grad_norm_, including its 1e-6 in the denominator.
    """
    if max_norm > 0 and norm + 1e-6 > max_norm:
        gradient.mul_(max_norm / (norm + 1e-6))
