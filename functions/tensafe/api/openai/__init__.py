"""The OpenAI-compatible face: `/v1/models`, `/v1/completions`, `/v1/chat/completions`."""

from __future__ import annotations

from tensafe.api.openai import completions, models

routes = [*models.router.routes, *completions.router.routes]
