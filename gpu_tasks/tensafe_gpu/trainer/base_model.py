"""A frozen base model whose projections take the LoRA matrices of whichever run is bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from tensafe.contracts.errors import ConfigurationError, Unsupported
from tensafe.contracts.training import LoraSpec, ModelInfo
from tensafe_gpu.trainer.layout import ATTENTION, MLP, UNEMBED, Layout, Site, wanted
from tensafe_gpu.trainer.lora import Binding, GradientSink, LoraLinear
from tensafe_gpu.trainer.state import RunState

FAMILIES = ("llama", "qwen2", "qwen3")
"""Values of `model_type` in config.json whose layers have the seven projections under the same names."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Others scale positions by the padded length of the batch: an example would depend on those beside it."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BaseModel:
    """Weights, shapes and the decoder's forward pass. Not for use by two threads at once."""

    def __init__(self, model: Any, info: ModelInfo) -> None:  # noqa: ANN401 - a class for each family
        """Take over a transformers causal language model; `load` is the usual way."""
        model.eval().requires_grad_(False)
        self.info = info
        self.device: torch.device = model.lm_head.weight.device
        self.dtype: torch.dtype = model.lm_head.weight.dtype
        self._binding = Binding()
        self._layers = _replace_projections(model, self._binding)
        self._decoder: Any = model.model
        for layer in self._decoder.layers:
            _make_recomputable(layer, self._binding)
        self.head: LoraLinear = self._layers[UNEMBED]

    @classmethod
    def load(
        cls,
        path: str,
        *,
        name: str | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> BaseModel:
        """Load a local folder or hub id with sdpa attention; `name` is how clients call it.

        Raises Unsupported for another family or a quantised model, ConfigurationError when the files
        cannot be read or lack weights.
        """
        model = _load_frozen(path, _DTYPES[dtype])
        info = ModelInfo(
            name=name or path,
            path=path,
            arch=type(model).__name__,
            vocab_size=model.get_input_embeddings().weight.shape[0],
            max_context_tokens=model.config.max_position_embeddings,
        )
        return cls(model.to(device), info)

    def layout(self, spec: LoraSpec) -> Layout:
        """Order and shapes of the parameters that a run of this spec trains."""
        sites = (
            Site(name, layer.weight.shape[1], layer.weight.shape[0])
            for name, layer in self._layers.items()
            if wanted(spec, name)
        )
        return Layout(tuple(sites), spec.rank)

    @contextmanager
    def bound(self, state: RunState) -> Iterator[Binding]:
        """Apply this run's adapter within the block: pointers are set, nothing is copied."""
        self._binding.scale = state.layout.scale
        for index, (site, pair) in enumerate(zip(state.layout.sites, state.pairs, strict=True)):
            slot = self._layers[site.name].slot
            slot.pair, slot.site = pair, index
        try:
            yield self._binding
        finally:
            self._binding.sink = None
            for layer in self._layers.values():
                layer.slot.pair = None

    def hidden(
        self, token_ids: torch.Tensor, *, sink: GradientSink | None, recompute: bool = False
    ) -> torch.Tensor:
        """Last hidden states [B, T, H] of token_ids int64 [B, T], padded on the right.

        No attention mask: causal attention keeps padding out of the real positions. With a sink, a
        graph is kept and its backward pass fills the sink; without, none is. `recompute` trades a
        second forward pass for the memory of the layers' activations (Chen et al. 2016, section 4).
        """
        self._binding.sink = sink
        self._binding.recompute = recompute and sink is not None
        with torch.set_grad_enabled(sink is not None):
            output = self._decoder(input_ids=token_ids, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]


def _load_frozen(path: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 - a class for each family
    """The transformers model on the CPU with every weight read from its files."""
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"no readable model configuration at {path!r}: {error}") from error
    _check_config(config, path)
    loader: Any = transformers.AutoModelForCausalLM
    try:
        model, loading = loader.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"the model at {path!r} cannot be loaded: {error}") from error
    absent = sorted({*loading["missing_keys"], *map(str, loading["mismatched_keys"])})
    if absent:
        raise ConfigurationError(f"the model at {path!r} lacks weights, among them {absent[:3]}")
    return model


def _check_config(config: Any, path: str) -> None:  # noqa: ANN401 - a class for each family
    if config.model_type not in FAMILIES:
        raise Unsupported(
            f"{path!r} is a {config.model_type!r} model; supported families: {', '.join(FAMILIES)}",
            field="base_model",
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise Unsupported(
            f"{path!r} has rotary embeddings of type {rope!r}; supported: {', '.join(ROPE_TYPES)}",
            field="base_model",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"{path!r} is quantised; use the float32 or bfloat16 weights", field="base_model")


def _make_recomputable(layer: nn.Module, binding: Binding) -> None:
    """Let the layer's forward run under torch's checkpointing while `binding.recompute` is set."""
    plain = layer.forward

    def forward(hidden_states: torch.Tensor, **settings: Any) -> Any:  # noqa: ANN401 - the layer's own
        if not binding.recompute:
            return plain(hidden_states, **settings)
        return checkpoint(plain, hidden_states, use_reentrant=False, preserve_rng_state=False, **settings)

    layer.forward = forward


def _replace_projections(model: nn.Module, binding: Binding) -> dict[str, LoraLinear]:
    """Put a LoraLinear in place of every projection; by module path, in the layout's order."""
    layers: dict[str, LoraLinear] = {}
    count = len(model.model.layers)  # type: ignore[union-attr,arg-type]
    names = [f"model.layers.{i}.{leaf}" for i in range(count) for leaf in (*ATTENTION, *MLP)]
    for name in (*names, UNEMBED):
        base = model.get_submodule(name)
        if type(base) is not nn.Linear or (name == UNEMBED and base.bias is not None):
            raise Unsupported(f"{name} is not a plain linear layer", field="base_model")
        layers[name] = LoraLinear(base, binding)
        model.set_submodule(name, layers[name])
    return layers
