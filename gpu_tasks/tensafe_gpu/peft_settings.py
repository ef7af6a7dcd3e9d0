"""Settings of a PEFT adapter that every reader here refuses; without torch, for the adapter holder too."""

from __future__ import annotations

from typing import Final

MUST_BE_OFF: Final = (
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
)
"""They change what the two matrices mean; set, they are refused by name."""
