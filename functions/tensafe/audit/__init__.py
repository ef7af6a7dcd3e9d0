"""Evidence about single answers that a third party checks offline: signed attestations."""
