"""What a training run is made of: adapter shape, optimizer, privacy mechanism, data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, model_validator

from tensafe.contracts.base_models import MAX_RANK as MAX_RANK  # noqa: PLC0414 - these three from here too
from tensafe.contracts.base_models import ModelInfo as ModelInfo  # noqa: PLC0414
from tensafe.contracts.base_models import Strict as Strict  # noqa: PLC0414

if TYPE_CHECKING:  # most of who reads this has no tensors, and a cold start would wait for numpy
    import numpy as np
    import numpy.typing as npt

    Tensor = npt.NDArray[np.float32] | npt.NDArray[np.int64]

LORA_ALPHA: Final = 32.0
"""LoRA scale numerator: delta W = (LORA_ALPHA / rank) B A, as the Tinker service uses."""
WEAK_EPSILON: Final = 100.0
"""A mechanism whose epsilon passes this is refused unless the caller accepts it by name."""
BISR_MAX_STEPS: Final = 1_000_000
"""Steps of a run with correlated noise: its sensitivity is computed from all of them."""
BISR_MAX_BANDWIDTH: Final = 256

_FOREIGN: Final[Mapping[str, Mapping[str, object]]] = {
    "bounded": {"sampling_probability": None, "batch_cap": None, "reveal_non_dp": False},
    "dealt": {"max_participations": 1, "min_separation": 1, "noise": "independent", "bisr_bandwidth": None},
    "attested": {"noise": "independent", "bisr_bandwidth": None, "batch_cap": None, "reveal_non_dp": False},
}
"""Fields that are of other modes, with their defaults: another value is refused by name."""

LossName = Literal["cross_entropy", "importance_sampling", "ppo", "cispo", "dro"]


class LoraSpec(Strict):
    """Shape and initialisation of an adapter. `seed` is always set once a run exists."""

    rank: int = Field(ge=1, le=MAX_RANK)
    seed: int = Field(ge=0, lt=2**63)
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    @model_validator(mode="after")
    def _something_to_train(self) -> LoraSpec:
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ValueError("one of train_attn, train_mlp, train_unembed must be true")
        return self


class AdamWConfig(Strict):
    """The non-private optimizer."""

    type: Literal["adamw"] = "adamw"


class PrivateConfig(Strict):
    """What every private optimizer is given: who chooses the batches, and the noise; frozen at creation.

    Neighbouring relation: add or remove one unit (all examples that carry its `dp_unit_id`), or zero it
    out. Give `noise_multiplier`, or `target_epsilon` with `max_steps`.

    `mode="bounded"`: the client chooses; each unit takes part in at most `max_participations` steps, and
    each step releases one Gaussian mechanism of sensitivity `clip_norm` and noise multiplier sigma. No
    amplification by sampling is claimed.

    `mode="dealt"`: the service draws every step's units from the manifest of a registered domain, each with
    `sampling_probability` (`batch_size` over the number of units unless given), at most `batch_cap` of
    them; the run is charged whole, `max_steps` deals, when it is created.

    `mode="attested"`: bounded, and the client states that it draws every step's units independently, each
    with `sampling_probability`. Nobody checks that: budgets bind on the epsilon of bounded participation,
    and the one that holds if the statement is true is told beside it.

    Two steps of one unit are at least `min_separation` steps apart. `noise="bisr"` correlates the noise of
    the steps (privacy/bisr.py) over `bisr_bandwidth` of them; the run is then one Gaussian mechanism, and
    needs `max_steps`.
    """

    mode: Literal["bounded", "dealt", "attested"] = "bounded"
    clip_norm: float = Field(ge=1e-12, le=1e6)
    noise_multiplier: float | None = Field(default=None, ge=1e-3, le=1e6)
    target_epsilon: float | None = Field(default=None, gt=0, le=1e4)
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    delta: float = Field(gt=0, le=1e-2)
    batch_size: int = Field(ge=1, le=10_000_000)
    max_participations: int = Field(default=1, ge=1, le=1_000_000)
    min_separation: int = Field(default=1, ge=1, le=10_000_000)
    noise: Literal["independent", "bisr"] = "independent"
    bisr_bandwidth: int | None = Field(default=None, ge=2, le=BISR_MAX_BANDWIDTH)
    max_epsilon: float | None = Field(default=None, gt=0, le=1e6)
    domain: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    sampling_probability: float | None = Field(default=None, gt=0, le=1)
    batch_cap: int | None = Field(default=None, ge=1, le=10_000_000)
    """The most units of one deal; by default so many that it practically never cuts."""
    reveal_non_dp: bool = False
    """A dealt run returns losses, logprobs and counts of training data, tagged `non_dp`, to their owner."""
    fixed_in_advance: bool = False
    """The owner declares that nothing the domain has released had a part in choosing this run."""
    allow_weak_privacy: bool = False
    allow_nonprivate_weights: bool = False
    """The owner declares that weights loaded from a run without privacy hold nothing of the domain's data."""
    freeze_lora_a: bool = False
    """Train B alone, with A as the run began (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313).

    The clip norm bounds B's gradient, and noise falls on B alone: the product of noise on A with noise on
    B, which grows with the square of its deviation, is gone.
    """

    @model_validator(mode="after")
    def _one_way_to_set_the_noise(self) -> PrivateConfig:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("give exactly one of noise_multiplier and target_epsilon")
        if self.target_epsilon is not None and self.max_steps is None:
            raise ValueError("target_epsilon needs max_steps")
        return self

    @model_validator(mode="after")
    def _fields_of_the_mode(self) -> PrivateConfig:
        for name, default in _FOREIGN[self.mode].items():
            if getattr(self, name) != default:
                raise ValueError(f"{name} does not go with mode={self.mode!r}; leave it out")
        if self.mode == "dealt" and self.max_steps is None and self.max_epsilon is None:
            raise ValueError("mode='dealt' needs max_steps, or max_epsilon from which it is found")
        if self.mode == "attested" and self.sampling_probability is None:
            raise ValueError("mode='attested' needs the sampling_probability that is attested")
        return self

    @model_validator(mode="after")
    def _correlated_noise_is_complete(self) -> PrivateConfig:
        if self.noise == "independent":
            if self.bisr_bandwidth is not None:
                raise ValueError("bisr_bandwidth goes with noise='bisr'")
            return self
        if self.bisr_bandwidth is None or self.max_steps is None:
            raise ValueError("noise='bisr' needs bisr_bandwidth and max_steps")
        if not self.bisr_bandwidth <= self.max_steps <= BISR_MAX_STEPS:
            raise ValueError(f"noise='bisr' needs max_steps from bisr_bandwidth to {BISR_MAX_STEPS}")
        return self


class DpAdamWConfig(PrivateConfig):
    """AdamW on the noisy mean of clipped gradients."""

    type: Literal["tensafe_dp_adamw"]


class DpSgdConfig(PrivateConfig):
    """Plain SGD on the noisy mean of clipped gradients (Abadi et al. 2016, algorithm 1), without momentum.

    A step can be recomputed from the weights before and after it: see docs/privacy.md.
    """

    type: Literal["tensafe_dp_sgd"]


OptimizerConfig = Annotated[AdamWConfig | DpAdamWConfig | DpSgdConfig, Field(discriminator="type")]
PRIVATE_OPTIMIZERS: Final = ("tensafe_dp_adamw", "tensafe_dp_sgd")
"""Types of the optimizers whose runs release nothing but what differential privacy protects."""


class AdamParams(Strict):
    """Hyper-parameters of one step, with the Tinker SDK's defaults. Weight decay is decoupled."""

    learning_rate: float = Field(default=1e-4, ge=0, le=1e3)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, ge=1e-30, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1e3)
    grad_clip_norm: float = Field(default=0.0, ge=0)
    """Global norm to which the gradient of the step is clipped; 0 means no clipping."""


class SgdParams(Strict):
    """Hyper-parameters of one step w <- (1 - learning_rate * weight_decay) w - learning_rate * gradient.

    Weight decay is decoupled (Loshchilov and Hutter 2019, algorithm 1 without momentum).
    """

    type: Literal["tensafe_dp_sgd"] = "tensafe_dp_sgd"
    """Kept with the step, so that the log says what its parameters mean."""
    learning_rate: float = Field(ge=0, le=1e3)
    weight_decay: float = Field(default=0.0, ge=0, le=1e3)


StepParams = AdamParams | SgdParams


@dataclass(frozen=True, slots=True)
class Datum:
    """One training example: `tokens` is int32 [T]; `inputs` maps a loss input to float32 or int64.

    `target_tokens`, `weights`, `logprobs`, `advantages` are [T], or [T, K] for cross_entropy's
    targets and weights. `unit_id` comes from the int64 [1] input `dp_unit_id` and is not in `inputs`.
    """

    tokens: npt.NDArray[np.int32]
    inputs: Mapping[str, Tensor]
    unit_id: int | None = None


@dataclass(frozen=True, slots=True)
class ForwardBackward:
    """A validated forward (or forward and backward) request."""

    data: tuple[Datum, ...]
    loss_fn: LossName
    loss_config: Mapping[str, float]
    forward_only: bool
