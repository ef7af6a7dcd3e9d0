"""The running service's rooms, opened over its data directory as one more process would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tensafe.contracts.training import ModelInfo
from tensafe.local.composition import local_services
from tensafe.local.settings import LocalSettings
from tensafe.services import Services
from tests.support.aws_service import AwsService
from tests.support.service import Service


@contextmanager
def services_of(service: Service | AwsService) -> Iterator[Services]:
    """Its services; every cache begins empty."""
    if isinstance(service, AwsService):
        with service.services() as services:
            yield services
        return
    model = ModelInfo(
        name=service.model_name,
        path=str(service.model_path),
        arch="qwen3",
        vocab_size=1,
        max_context_tokens=1,
    )
    settings = LocalSettings(data_dir=service.data_dir, models=(model,))
    with local_services(settings) as services:
        yield services
