"""The Tinker wire protocol (SDK 0.38.0) as thin translations onto operations."""

from __future__ import annotations

from tensafe.api.tinker import checkpoints, futures, sampling, sessions, training, weights

# A request is matched against one route after the other: those of every training step come first.
routes = [
    route
    for module in (futures, training, sampling, weights, sessions, checkpoints)
    for route in module.router.routes
]
"""Every route below /api/v1."""
