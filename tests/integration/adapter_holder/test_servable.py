"""What could never be served is refused before it is published: its run is erased afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe_gpu.adapter_holder import servable
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.frames import TO_KEY_HOLDER, Kind
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tests.support.helora import Holder, peft_files, policy

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}


def tensors(
    a: tuple[int, int] = (4, 64),
    b: tuple[int, int] = (64, 4),
    *,
    layer: str = "0",
    leaf: str = "o",
    value: float = 1.0,
) -> dict[str, Any]:
    name = f"base_model.model.model.layers.{layer}.self_attn.{leaf}_proj.lora_%s.weight"
    return {
        name % "A": np.full(a, value, dtype=np.float32),
        name % "B": np.full(b, value, dtype=np.float32),
    }


def files(weights: dict[str, Any]) -> dict[str, bytes]:
    return {WEIGHTS_FILE: save(weights), CONFIG_FILE: json.dumps(CONFIG).encode()}


def many_sites() -> dict[str, Any]:
    found = dict[str, Any]()
    for layer in range(2049):
        for leaf in "qo":
            found |= tensors((4, 1), (1, 4), layer=str(layer), leaf=leaf)
    return found


NEVER_SERVED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a delta beyond float32": (lambda: tensors(value=1e30), "leave float32"),
    "no inputs": (lambda: tensors(a=(4, 0)), "do not fit together"),
    "no outputs": (lambda: tensors(b=(0, 4)), "do not fit together"),
    "outputs beyond the protocol": (lambda: tensors(b=((1 << 20) + 1, 4)), "beyond the protocol at d_out"),
    "a layer of many digits": (lambda: tensors(layer="9" * 5000), "cannot be served privately"),
    "a layer named twice": (lambda: tensors() | tensors(layer="00"), "cannot be served privately"),
    "digits of another script": (lambda: tensors(layer="\u0663"), "cannot be served privately"),
    "too many sites": (many_sites, "beyond the protocol at sites"),
}


@pytest.mark.parametrize(("given", "words"), NEVER_SERVED.values(), ids=NEVER_SERVED)
def test_what_could_never_be_served_is_not_published(
    holder: Holder, given: Callable[[], dict[str, Any]], words: str
) -> None:
    with pytest.raises((InvalidRequest, Unsupported), match=words) as refused:
        holder.store.publish("a", files(given()), base_model="base", policy=policy())
    assert len(refused.value.message) < 500
    assert holder.store.names() == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Kind.WELCOME, "more sites than a greeting"), (Kind.B_REPLY, "larger than an answer")],
    ids=lambda one: one.name if isinstance(one, Kind) else "",
)
def test_nor_what_is_longer_than_its_frame(
    holder: Holder, monkeypatch: pytest.MonkeyPatch, kind: Kind, words: str
) -> None:
    monkeypatch.setattr(servable, "TO_KEY_HOLDER", {**TO_KEY_HOLDER, kind: 600})
    with pytest.raises(InvalidRequest, match=words):
        holder.store.publish("a", peft_files(64, 4), base_model="base", policy=policy())
    assert holder.store.names() == []


def test_a_base_model_s_name_is_one_that_a_greeting_can_hold(holder: Holder, burn_log: BurnLog) -> None:
    weights = peft_files(64, 4, leaves=("o",))
    with pytest.raises(InvalidRequest, match="beyond the protocol at base_model"):
        holder.store.publish("a", weights, base_model="b" * 201, policy=policy())
    holder.store.publish("a", weights, base_model="b" * 200, policy=policy())
    private = holder.key_holder(burn_log)
    assert private.info().base_model == "b" * 200
    private.close()


def test_no_epoch_is_begun_that_could_not_be_served(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another basis gives B' other magnitudes, and the epoch before would be gone."""
    holder.store.publish("a", peft_files(64, 4), base_model="base", policy=policy())
    monkeypatch.setattr(servable, "TO_KEY_HOLDER", {**TO_KEY_HOLDER, Kind.B_REPLY: 600})
    with pytest.raises(InvalidRequest, match="larger than an answer"):
        holder.store.rotate("a")
    assert holder.store.load("a").published.epoch == 1
