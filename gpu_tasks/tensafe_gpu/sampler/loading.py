"""Adapters into the engine and out of it: plain ones checked and handed to vLLM, private ones opened."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from tensafe.audit.attestation import files_digest
from tensafe.contracts.errors import HeRefused, InvalidRequest, TensafeError, Unavailable, Unsupported
from tensafe_gpu.sampler.adapters import BaseShapes, check_adapter
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, is_private, vllm_name
from tensafe_gpu.sampler.private.serving import PrivateServing
from tensafe_gpu.sampler.private_files import PrivateDirectory
from tensafe_gpu.sampler.residency import AnyAdapter, Resident

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

_LOG: Final = logging.getLogger(__name__)

_REFUSED: Final = (
    "vLLM cannot load this adapter; for some model families it takes no LoRA on lm_head "
    "(train_unembed=False leaves it out)"
)


_COMPILED: Final = (
    "this sampler compiles its passes (TENSAFE_COMPILE_DIR), and on CPU vLLM takes no ordinary adapters "
    "then; start it without that setting to sample from one"
)


class AdapterLoading:
    """`load` and `unload` of `residency.ResidentAdapters`.

    `max_rank` None refuses ordinary adapters, `serving` None private ones.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        base: BaseShapes,
        private: PrivateDirectory,
        max_rank: int | None,
        serving: PrivateServing | None,
    ) -> None:
        self._llm = llm
        self._base = base
        self._private = private
        self._max_rank = max_rank
        self._serving = serving
        self._digests: dict[str, str] = {}
        """Of what vLLM was given, by its path."""

    def digest(self, resident: Resident) -> str:
        """The SHA-256 of an ordinary adapter as it was loaded; see `files_digest`."""
        return self._digests[resident.path]

    async def load(self, adapter_id: int, adapter: AnyAdapter) -> str:
        """Check the adapter, hand it to vLLM through memory-backed files, and check what vLLM made of it."""
        if isinstance(adapter, PrivateAdapter):
            return await self._load_private(adapter_id, adapter)
        if self._max_rank is None:
            raise Unsupported(_COMPILED, field="adapter")
        files = await asyncio.to_thread(check_adapter, adapter.files, self._base, self._max_rank)
        digest = await asyncio.to_thread(files_digest, files)
        path = await self._load_files(adapter_id, adapter.identity, files)
        self._digests[path] = digest
        return path

    async def _load_private(self, adapter_id: int, adapter: PrivateAdapter) -> str:
        """Open the adapter where it is evaluated; vLLM hears its name from each request."""
        if self._serving is None:
            raise HeRefused("he_not_configured")
        await self._serving.open(adapter, adapter_id)
        return vllm_name(adapter, adapter_id)

    async def _load_files(self, adapter_id: int, name: str, files: dict[str, bytes]) -> str:
        began = time.monotonic()
        directory = self._private.write(files)
        try:
            await self._add_to_vllm(lora_request(name, adapter_id, str(directory)))
        finally:
            self._private.remove(directory)
        size_bytes = sum(map(len, files.values()))
        load_ms = round(1000 * (time.monotonic() - began), 1)
        _LOG.info(
            "adapter loaded",
            extra={"adapter_id": adapter_id, "size_bytes": size_bytes, "load_ms": load_ms},
        )
        return str(directory)

    async def _add_to_vllm(self, lora: LoRARequest) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415 - as in _generate

        try:
            await self._llm.add_lora(lora)
            unapplied = await self._llm.collective_rpc("tensafe_unapplied", args=(lora.lora_int_id,))
            missing = sorted({name for names in unapplied for name in names})
            if missing:
                raise Unsupported(
                    f"vLLM takes no LoRA on {', '.join(missing[:4])} of this model", field="adapter"
                )
        except EngineDeadError as error:
            raise Unavailable("the sampling engine failed; try again") from error
        except Exception as error:
            # vLLM may have kept a half of it. It raises bare exceptions for whatever went wrong.
            await self._llm.remove_lora(lora.lora_int_id)
            if isinstance(error, TensafeError):
                raise
            raise InvalidRequest(_REFUSED, field="adapter") from error

    async def unload(self, resident: Resident) -> None:
        """Close an idle private adapter, or take an ordinary one out of vLLM.

        A request that ended at a stop string still runs in vLLM until an abort arrives there, and it
        would load its adapter again. The question beforehand makes a round trip behind that abort.
        """
        if self._serving is not None and is_private(resident.identity):
            await self._serving.close(resident.path)
            return
        await self._llm.list_loras()
        await self._llm.remove_lora(resident.adapter_id)
        self._digests.pop(resident.path, None)


def lora_request(identity: str, adapter_id: int, path: str) -> LoRARequest:
    """What vLLM calls an adapter."""
    from vllm.lora.request import LoRARequest  # noqa: PLC0415 - only after launch has imported vLLM

    return LoRARequest(lora_name=identity, lora_int_id=adapter_id, lora_path=path)
