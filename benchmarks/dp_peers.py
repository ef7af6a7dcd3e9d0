"""Private steps as one would take them without the service: PEFT with Opacus, in its three ways."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.batches import BatchShape
from benchmarks.memory import rise_mb
from benchmarks.peer import Handler

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

CLIP_NORM: Final = 1.0
NOISE_MULTIPLIER: Final = 1.0
MICROBATCH_TOKENS: Final = 1024
"""What the engine takes at a time on a CPU; every side does, or their memory could not be compared."""
What = Literal["step", "peak", "sum"]
Request = tuple[What, BatchShape, int]
"""Seconds of a step, the rise of memory in one in MB, or the clipped sum without its noise."""


def peft_steps(model_path: str, adapter: str, way: str | None, threads: int) -> Handler:
    """Steps of the adapter in the folder `adapter`. `way`: hooks, functorch or ghost; None: not private.

    All keep AdamW, the summed cross entropy and Opacus' own noise (`torch.normal`, no CSPRNG).
    """
    import torch  # noqa: PLC0415 - in the peer alone
    from peft import PeftModel  # noqa: PLC0415
    from torch.nn.functional import cross_entropy  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation="sdpa", use_cache=False
    )
    peft = PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
    model, optimizer = (peft, adamw) if way is None else _private(peft, adamw, way)

    def losses(rows: torch.Tensor) -> torch.Tensor:
        """Summed cross entropy of each example."""
        logits = model(input_ids=rows[:, :-1]).logits
        each = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        return each.view(len(rows), -1).sum(1)

    def gradient(shape: BatchShape, index: int) -> None:
        """The batch, a microbatch at a time; all but the last are what Opacus calls a virtual step."""
        parts = torch.from_numpy(shape.batch(index)).split(max(1, MICROBATCH_TOKENS // shape.tokens))
        for number, rows in enumerate(parts, start=1):
            _backward(model, optimizer, losses(rows), way)
            if way is not None and number < len(parts):
                optimizer.signal_skip_step(do_skip=True)
                optimizer.step()
                optimizer.zero_grad()
        if way is not None:
            optimizer.signal_skip_step(do_skip=False)

    def step(shape: BatchShape, index: int) -> float:
        began = time.perf_counter()
        if way is not None:
            optimizer.expected_batch_size = shape.examples
        gradient(shape, index)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    def clipped_sum(shape: BatchShape, index: int) -> npt.NDArray[np.float32]:
        optimizer.expected_batch_size, optimizer.noise_multiplier = 1, 0.0
        gradient(shape, index)
        optimizer.pre_step()
        found = _flat(peft)
        optimizer.zero_grad(set_to_none=True)
        optimizer.noise_multiplier = NOISE_MULTIPLIER
        return found

    return answering(step, clipped_sum)


def answering(
    step: Callable[[BatchShape, int], float],
    clipped_sum: Callable[[BatchShape, int], npt.NDArray[np.float32]],
) -> Handler:
    """The handler of requests for either side."""

    def answer(request: Request) -> object:
        what, shape, index = request
        if what == "peak":
            return rise_mb(lambda: step(shape, index))
        return step(shape, index) if what == "step" else clipped_sum(shape, index)

    return answer


def _private(model: nn.Module, adamw: optim.Optimizer, way: str) -> tuple[Any, Any]:
    """The model and the optimizer as Opacus wraps them."""
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415 - in the peer alone
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (  # noqa: PLC0415
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping  # noqa: PLC0415

    settings = {"noise_multiplier": NOISE_MULTIPLIER, "max_grad_norm": CLIP_NORM, "expected_batch_size": 1}
    if way == "ghost":
        ghost = GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", strict=False, max_grad_norm=CLIP_NORM
        )
        return ghost, DPOptimizerFastGradientClipping(adamw, **settings)
    functorch = {"hooks": False, "functorch": True}[way]
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False, force_functorch=functorch)
    return wrapped, DPOptimizer(adamw, **settings)


def _backward(model: nn.Module, optimizer: optim.Optimizer, losses: Tensor, way: str | None) -> None:
    if way != "ghost":
        losses.sum().backward()
        return
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping  # noqa: PLC0415

    DPTensorFastGradientClipping(model, optimizer, losses, loss_reduction="sum").backward()


def _flat(model: nn.Module) -> npt.NDArray[np.float32]:
    """The gradients in the order of the service's layout: by layer and projection, A before B."""
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    parts: dict[tuple[int, int, str], npt.NDArray[np.float32]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            words = name.split(".")
            layer = int(words[words.index("layers") + 1])
            projection = next(order.index(word) for word in words if word in order)
            which = next(word for word in words if word.startswith("lora_"))
            parts[layer, projection, which] = parameter.grad.numpy().ravel()
    return np.concatenate([parts[key] for key in sorted(parts)])
