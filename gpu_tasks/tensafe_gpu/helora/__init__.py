"""HE-LoRA: the two-party protocol by which an adapter is used without its holder seeing activations."""
