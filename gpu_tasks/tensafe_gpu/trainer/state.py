"""A run's numbers: parameters, Adam moments, gradient sum and step, and their serialised forms.

Both forms are safetensors files with one metadata entry, `tensafe`, that holds JSON. A *state* has all
that is needed to go on bit for bit; *weights* have the parameters alone. Tensors that are zero by
definition (moments before the first step and those of SGD, a sum to which nothing was added) are left out.

Format 1, of earlier releases, has no `method`: its runs are trained by AdamW. It is read, not written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import LoraSpec
from tensafe_gpu.trainer.layout import Layout, Pair
from tensafe_gpu.trainer.method import ADAMW, Method

FORMAT = 2
_METADATA = "tensafe"


class Shapes(Protocol):
    """What a run needs to know of its base model."""

    device: torch.device
    dtype: torch.dtype

    def layout(self, spec: LoraSpec) -> Layout:
        """Order and shapes of the parameters that a run of this spec trains."""


@dataclass(frozen=True, slots=True)
class _Header:
    """The metadata of a serialised run."""

    spec: LoraSpec
    method: Method
    fingerprint: str
    step: int
    pending_data: int


class RunState:
    """One run's adapter and optimizer, float32 in the order of `layout`.

    `params` is [P], the gradient sum [Q], and so are the moments, empty where `method` has none.
    """

    def __init__(self, spec: LoraSpec, base: Shapes, params: torch.Tensor, method: Method = ADAMW) -> None:
        self.spec = spec
        self.method = method
        self.layout = _layout(spec, method, base)
        self.params = params
        trained = self.layout.trained_numel
        moments = trained if method.rule == "adamw" else 0
        self.exp_avg = torch.zeros(moments, device=params.device)
        self.exp_avg_sq = torch.zeros(moments, device=params.device)
        self.grad_sum = torch.zeros(trained, device=params.device)
        self.step = 0
        self.pending_data = 0
        """Data whose gradients are in `grad_sum` since the last step."""
        self._compute = params if base.dtype == torch.float32 else params.to(base.dtype)
        # Leaves that require a gradient make autograd run the backward of the first layer.
        self.pairs: list[Pair] = [
            (a.detach().requires_grad_(), b.detach()) for a, b in self.layout.pairs(self._compute)
        ]
        """A and B of each site in the base model's dtype, as the forward pass reads them."""

    @property
    def size_bytes(self) -> int:
        """Memory of all vectors."""
        vectors = (self.params, self.exp_avg, self.exp_avg_sq, self.grad_sum)
        copy = 0 if self._compute is self.params else self._compute.nbytes
        return copy + sum(vector.nbytes for vector in vectors)

    def refresh(self) -> None:
        """Bring `pairs` up to date after `params` changed."""
        if self._compute is not self.params:
            self._compute.copy_(self.params)

    def dump(self) -> bytes:
        """Everything, bit exact; equal states give equal bytes."""
        tensors = {"params": self.params}
        if self.step and self.method.rule == "adamw":
            tensors |= {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        if self.pending_data:
            tensors["grad_sum"] = self.grad_sum
        return self._save(tensors, step=self.step, pending_data=self.pending_data)

    def dump_weights(self) -> bytes:
        """The parameters alone."""
        return self._save({"params": self.params}, step=0, pending_data=0)

    @classmethod
    def load(cls, data: bytes, base: Shapes) -> RunState:
        """The state that `dump` wrote.

        Raises IntegrityError for bytes that `dump` did not write, InvalidRequest for another base model.
        """
        header, tensors = _read(data, base)
        state = cls(header.spec, base, tensors["params"], header.method)
        state.step, state.pending_data = header.step, header.pending_data
        wanted = ("exp_avg", "exp_avg_sq") if header.step and header.method.rule == "adamw" else ()
        for name in (*wanted, *(("grad_sum",) if header.pending_data else ())):
            if name not in tensors:
                raise IntegrityError(f"the run state lacks {name}; it is damaged")
            setattr(state, name, tensors[name])
        return state

    @classmethod
    def load_weights(cls, data: bytes, base: Shapes, method: Method = ADAMW) -> RunState:
        """The parameters of `dump_weights` or `dump`, with a fresh optimizer at step 0. Raises as `load`."""
        header, tensors = _read(data, base)
        return cls(header.spec, base, tensors["params"], method)

    def _save(self, tensors: dict[str, torch.Tensor], *, step: int, pending_data: int) -> bytes:
        header = {
            "format": FORMAT,
            "spec": self.spec.model_dump(),
            "method": asdict(self.method),
            "layout": self.layout.fingerprint,
            "step": step,
            "pending_data": pending_data,
        }
        cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
        return save_tensors(cpu, metadata={_METADATA: json.dumps(header, sort_keys=True)})


def _read(data: bytes, base: Shapes) -> tuple[_Header, dict[str, torch.Tensor]]:
    """Header and float32 tensors on the base model's device, checked against its shapes."""
    try:
        header = _header(data)
        loaded = load_tensors(data)
    except (safetensors.SafetensorError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("not a run state or weights file of this format") from error
    layout = _layout(header.spec, header.method, base)
    if header.fingerprint != layout.fingerprint:
        raise InvalidRequest("these weights belong to a base model of another shape", field="path")
    tensors = dict(_checked(loaded, layout, base.device))
    if "params" not in tensors:
        raise IntegrityError("the file lacks params; it is damaged")
    return header, tensors


def _layout(spec: LoraSpec, method: Method, base: Shapes) -> Layout:
    return replace(base.layout(spec), freeze_a=method.freeze_a)


def _header(data: bytes) -> _Header:
    """Parse the metadata entry; ValueError, KeyError or TypeError if it is not ours."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("header is longer than the file")
    fields = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA])
    if fields["format"] not in (1, FORMAT):
        raise ValueError(f"format {fields['format']!r}")
    return _Header(
        spec=LoraSpec.model_validate(fields["spec"]),
        method=ADAMW if fields["format"] == 1 else Method.from_json(fields["method"]),
        fingerprint=str(fields["layout"]),
        step=int(fields["step"]),
        pending_data=int(fields["pending_data"]),
    )


def _checked(
    loaded: dict[str, torch.Tensor], layout: Layout, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in loaded.items():
        size = layout.numel if name == "params" else layout.trained_numel
        if tensor.dtype != torch.float32 or tensor.shape != (size,):
            raise IntegrityError(f"{name} is not float32 [{size}]; the file is damaged")
        # A copy: memory from the allocator has the alignment that it had before the dump. On the file's own
        # bytes matrix products may differ in the last bit, and a resumed run from an uninterrupted one.
        yield name, tensor.to(device, copy=True)
