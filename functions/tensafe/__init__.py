"""TenSafe: private fine-tuning and inference for open-weight language models."""

__version__ = "0.1.0"
