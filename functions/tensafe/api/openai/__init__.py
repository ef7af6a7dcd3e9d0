"""The OpenAI-compatible face: `/v1/models`, `/v1/completions`, `/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter

from tensafe.api.openai import completions, models

router = APIRouter()
router.include_router(models.router)
router.include_router(completions.router)
