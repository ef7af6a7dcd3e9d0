"""`python -m tensafe_gpu.sampler --model NAME`: a sampler process for one base model."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import threading
import time

from tensafe.contracts.errors import ConfigurationError, TensafeError
from tensafe.contracts.training import ModelInfo
from tensafe.observability import configure_logging
from tensafe.services import Services
from tensafe_gpu.composition import TaskSettings, open_task_services, read_task_settings
from tensafe_gpu.healthcheck import mark_alive
from tensafe_gpu.process import announce_forever, die_with_parent, owner_name, stop_on_signals
from tensafe_gpu.protection import protected_while
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.holder_files import HolderFiles

log = logging.getLogger(__name__)


async def serve(
    services: Services, info: ModelInfo, settings: TaskSettings, owner: str, stop: threading.Event
) -> None:
    """Start the engine, announce it, serve until `stop`."""
    mark_alive(settings.load_limit_s)
    key_holder: str | None = None
    if settings.private_adapters:  # first: without SEAL nothing else is worth its time
        from tensafe_gpu.sampler.private.connecting import CONNECT  # noqa: PLC0415 - only then is it needed

        key_holder = CONNECT
    # vLLM reads its environment when it is imported, so not before configure_environment has run.
    from tensafe_gpu.sampler.engine import SamplingEngine  # noqa: PLC0415
    from tensafe_gpu.sampler.text import Texts  # noqa: PLC0415
    from tensafe_gpu.sampler.weights import forget_gone  # noqa: PLC0415
    from tensafe_gpu.sampler.worker import SamplerWorker  # noqa: PLC0415

    began = time.monotonic()
    engine = await SamplingEngine.start(
        info.path,
        dtype=settings.dtype,
        max_context_tokens=info.max_context_tokens,
        max_lora_rank=info.max_lora_rank,
        kv_cache_bytes=info.kv_cache_bytes,
        key_holder=key_holder,
        private_pass_s=settings.private_pass_s,
    )
    log.info("sampler ready", extra={"base_model": info.name, "load_s": round(time.monotonic() - began, 2)})
    announce_forever(services, "sampler", info.name, owner, stop)
    forgetting = asyncio.create_task(forget_gone(services, engine))
    private = HolderFiles(settings, services)
    try:
        texts = Texts(info.path)
        worker = SamplerWorker(services, info.name, engine, owner=owner, texts=texts, private=private)
        with protected_while(lambda: worker.busy):
            await worker.run(stop)
    finally:
        forgetting.cancel()
        private.close()
        await engine.close()


def main() -> None:
    """Read the environment, load the model, serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    die_with_parent()
    stop = stop_on_signals()
    try:
        settings = read_task_settings()
        configure_environment(
            device=settings.device, threads=settings.threads or 1, compile_dir=settings.compile_dir
        )
        # torch reads that environment when it is imported, as vLLM does.
        from tensafe_gpu.device import require_device  # noqa: PLC0415

        require_device(settings.device)
        configure_logging("sampler", settings.log_level)
        services = open_task_services(settings)
    except ConfigurationError as error:
        sys.exit(error.message)
    info = services.model(arguments.model)
    owner = owner_name("sampler")
    try:
        asyncio.run(serve(services, info, settings, owner, stop))
    except TensafeError as error:
        log.error("sampler stopped: %s", error.code, exc_info=error)
        sys.exit(error.message)
    except ImportError as error:  # a library is not there: its message says how to install it
        log.error("sampler stopped: a library is missing", exc_info=error)
        sys.exit(f"ImportError: {error}")
    finally:
        services.workers.withdraw(owner)


if __name__ == "__main__":
    main()
