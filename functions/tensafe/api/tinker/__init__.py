"""The Tinker wire protocol (SDK 0.38.0) as thin translations onto operations."""

from __future__ import annotations

from fastapi import APIRouter

from tensafe.api.openapi import ERRORS
from tensafe.api.tinker import checkpoints, futures, sampling, sessions, training, weights

router = APIRouter(prefix="/api/v1", tags=["tinker"], responses=ERRORS)
# A request is matched against one route after the other: those of every training step come first.
for _module in (futures, training, sampling, weights, sessions, checkpoints):
    router.include_router(_module.router)
"""Every route below /api/v1."""
