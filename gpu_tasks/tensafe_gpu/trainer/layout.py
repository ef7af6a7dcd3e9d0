"""Where each LoRA matrix lies in a run's flat parameter vector.

The order is part of the snapshot format and of the noise stream, so it never changes: decoder layers
from the first to the last; in each q, k, v, o, gate, up, down projection (those that the run trains);
then lm_head. Each site holds A [rank, in_features], then B [out_features, rank], both row-major. What a
run does not train is left out of its gradients, moments and noise, whose vectors are then shorter.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import torch

from tensafe.contracts.training import LORA_ALPHA, LoraSpec

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
UNEMBED = "lm_head"

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in_features] and B [out_features, rank], or their gradients."""
Trained = tuple[torch.Tensor, ...]
"""Of a site, what is trained of it or the gradients of that: A and B, or B alone."""


@dataclass(frozen=True, slots=True)
class Site:
    """A linear map that an adapter can change; `name` is its module path in the base model."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Layout:
    """The sites that a run trains, in order, and the split of a flat vector into their pairs.

    P is the number of parameters, Q that of the trained ones: all, or with `freeze_a` those of the Bs.
    """

    sites: tuple[Site, ...]
    rank: int
    freeze_a: bool = False

    @property
    def scale(self) -> float:
        """s of y = xW + s (x A^T) B^T."""
        return LORA_ALPHA / self.rank

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of A and B of each site, alternating."""
        return tuple(
            n for site in self.sites for n in (self.rank * site.in_features, site.out_features * self.rank)
        )

    @cached_property
    def numel(self) -> int:
        """P, the length of the vector of all parameters."""
        return sum(self.sizes)

    @cached_property
    def trained_numel(self) -> int:
        """Q, the length of a vector of gradients, moments or noise."""
        return sum(self._trained_sizes)

    @cached_property
    def _trained_sizes(self) -> tuple[int, ...]:
        return self.sizes[1::2] if self.freeze_a else self.sizes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and order: equal if and only if vectors [P] mean the same."""
        text = json.dumps([self.rank, [[s.name, s.in_features, s.out_features] for s in self.sites]])
        return hashlib.sha256(text.encode()).hexdigest()

    def pairs(self, flat: torch.Tensor) -> list[Pair]:
        """Views of A and B of each site in `flat` [numel]; writing to them writes to `flat`."""
        pieces = torch.split(flat, list(self.sizes))
        return [
            (pieces[2 * i].view(self.rank, s.in_features), pieces[2 * i + 1].view(s.out_features, self.rank))
            for i, s in enumerate(self.sites)
        ]

    def trained(self, flat: torch.Tensor) -> list[Trained]:
        """Views of what is trained of each site in `flat` [Q], such as a sum of gradients."""
        if not self.freeze_a:
            return [*self.pairs(flat)]
        pieces = torch.split(flat, list(self._trained_sizes))
        return [(b.view(s.out_features, self.rank),) for b, s in zip(pieces, self.sites, strict=True)]

    def gather(self, params: torch.Tensor) -> torch.Tensor:
        """The trained ones of all parameters [P], as a vector [Q]: `params` itself, or a copy of the Bs."""
        return torch.cat([b.flatten() for _, b in self.pairs(params)]) if self.freeze_a else params

    def scatter(self, trained: torch.Tensor, params: torch.Tensor) -> None:
        """Write a vector [Q] that `gather` gave back into `params` [P]; nothing else of them is touched."""
        if not self.freeze_a:
            return
        for (b,), (_, target) in zip(self.trained(trained), self.pairs(params), strict=True):
            target.copy_(b)


def wanted(spec: LoraSpec, site_name: str) -> bool:
    """Whether a run of this spec trains the site."""
    if site_name == UNEMBED:
        return spec.train_unembed
    return spec.train_attn if site_name.endswith(ATTENTION) else spec.train_mlp
