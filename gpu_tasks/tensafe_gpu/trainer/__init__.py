"""The trainer: LoRA runs on a frozen base model, with per-example gradients.

`Engine` computes and knows nothing of storage, queues or HTTP.
"""
