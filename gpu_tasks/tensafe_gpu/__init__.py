"""TenSafe GPU tasks: what runs beside an accelerator (or a CPU) and imports torch."""

import os

# Read when torch is imported. It overrides some of its CUDA operators, the batched product of every rotary
# embedding among them, by Triton kernels that it compiles at their first use: an image has no compiler
# (pytorch/pytorch#196977).
os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")
