"""`tensafe up`: checks everything that can be checked first, then hands over to the supervisor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.composition import check_directory, check_key, local_services, sqlite_items
from tensafe.local.deployment import check_installed, choose_threads, deployment
from tensafe.local.endpoint import Endpoint
from tensafe.local.kv_cache import ContextWish, with_contexts
from tensafe.local.liveness import LOOK_EVERY_S, Watch
from tensafe.local.lock import DirectoryLock
from tensafe.local.logs import log_to_file
from tensafe.local.maintenance import Duty, Maintenance, local_duties
from tensafe.local.model_registry import ModelRegistry
from tensafe.local.models import ModelSource
from tensafe.local.settings import LocalSettings, read_settings
from tensafe.local.status import all_workers_announced
from tensafe.local.supervisor import Events, Supervisor
from tensafe.privacy.anchoring import check_all


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What the operator asked for; `overrides` are settings given by hand, above the environment."""

    data_dir: Path
    models: Sequence[ModelSource]
    endpoint: Endpoint
    max_lora_rank: int | None = None
    context: ContextWish = field(default_factory=ContextWish)
    overrides: Mapping[str, object] = field(default_factory=dict)


def up(request: UpRequest, events: Events) -> None:
    """Serve until told to stop; `events.ready` gets the URL.

    Raises ConfigurationError before anything starts, or when a child cannot be kept alive; IntegrityError if
    the store was put back to an older copy.
    """
    data_dir = request.data_dir
    check_directory(data_dir)
    given = read_settings(data_dir=data_dir, models=(), **request.overrides)
    check_key(given)
    check_installed(private_adapters=given.private_adapters)
    with DirectoryLock(data_dir) as lock:
        endpoint = request.endpoint.checked()
        settings = _settings(request, endpoint, events)
        log_to_file(data_dir / "logs" / "supervisor.log", "supervisor", settings.log_level)
        lock.describe({"url": endpoint.url, "models": [model.name for model in settings.models]})
        with local_services(settings) as services:
            check_all(services.ports.items, services.ports.anchors)
            watch = Watch(services, endpoint.answers)
            duties = local_duties(services, sqlite_items(services), data_dir / "logs")
            Supervisor(
                lock,
                services,
                deployment(settings, endpoint),
                is_ready=lambda: all_workers_announced(services) and endpoint.answers_ready(),
                maintenance=Maintenance((*duties, Duty("liveness", LOOK_EVERY_S, watch.look))),
                events=events,
                url=endpoint.url,
                hung=watch.hung,
            ).run()


def _settings(request: UpRequest, endpoint: Endpoint, events: Events) -> LocalSettings:
    """The settings of all processes, with the models resolved and remembered."""
    names = [source.name for source in request.models]
    if len(set(names)) < len(names):
        raise ConfigurationError("two --model options have the same name; give each its own")
    if not names:
        raise ConfigurationError("no base model to serve: give --model NAME=FOLDER or NAME=HUB_ID")
    models = []
    for source in request.models:
        events.waiting(f"looking at {source.name}")
        models.append(source.resolve(max_lora_rank=request.max_lora_rank))
    given: dict[str, object] = {}
    if "TENSAFE_BASE_URL" not in os.environ:
        given["base_url"] = endpoint.url
    if "TENSAFE_THREADS" not in os.environ:
        given["threads"] = choose_threads(len(models), os.environ)
    given |= request.overrides
    settings = read_settings(data_dir=request.data_dir.resolve(), models=(), **given)
    fitted = with_contexts(models, request.context, settings, events.note)
    registry = ModelRegistry(request.data_dir)
    for model in fitted:
        registry.register(model)
    return settings.model_copy(update={"models": tuple(fitted)})
