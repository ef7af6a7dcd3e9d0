"""`SamplingEngine`: concurrent sampling from one base model and many adapters, on vLLM's AsyncLLM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensafe.contracts.errors import HeRefused, InvalidRequest, TensafeError, Unavailable
from tensafe.contracts.execution import ExecutionMode, ExecutionPolicy, decide, effective
from tensafe.contracts.sampling import SampleRequest, SampleResult
from tensafe_gpu.sampler.adapters import Adapter, BaseShapes, read_base_shapes
from tensafe_gpu.sampler.launch import Dtype, EngineSettings, launch, repair
from tensafe_gpu.sampler.loading import AdapterLoading, lora_request
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, cache_salt, naming, offer_of
from tensafe_gpu.sampler.private.budget import PASS_S
from tensafe_gpu.sampler.private.serving import GONE_ON, OF_ONE_REQUEST, NeverBegun, PrivateServing
from tensafe_gpu.sampler.private_files import DEFAULT_ROOT, PrivateDirectory
from tensafe_gpu.sampler.residency import AnyAdapter, ResidentAdapters
from tensafe_gpu.sampler.translate import Limits, check_request, in_the_clear, sampling_arguments, to_result
from tensafe_gpu.sampler.warmup import warmup_requests

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

_LOG: Final = logging.getLogger(__name__)

OnTokens = Callable[[int, Sequence[int]], None]
"""Told after each step: the number of a continuation, and all of its tokens so far."""
_HEALTH_INTERVAL_S: Final = 0.25
_SHUTDOWN_S: Final = 1.0
"""Grace for vLLM's process before it is killed; it holds nothing that has to be saved."""


class SamplingEngine:
    """Samples from a base model and its adapters; every method runs in the loop that called `start`.

    Returned logprobs, sampled, top-k and prompt alike, are those of the model itself: temperature 1,
    before top_k and top_p.
    """

    def __init__(
        self, llm: AsyncLLM, settings: EngineSettings, base: BaseShapes, private: PrivateDirectory
    ) -> None:
        """Used by `start`."""
        self._llm = llm
        self._private = private
        self.limits = Limits(llm.model_config.get_vocab_size(), settings.max_context_tokens)
        self._serving = PrivateServing(self._ask_worker) if settings.key_holder else None
        self._loading = loading = AdapterLoading(llm, base, private, settings.rank_limit, self._serving)
        self._adapters = ResidentAdapters(settings.max_resident_adapters, loading.load, loading.unload)
        self._request_ids = itertools.count(1)
        self._closed = False

    @classmethod
    async def start(  # noqa: PLR0913 - one argument per setting
        cls,
        model_path: str | Path,
        *,
        dtype: Dtype = "auto",
        max_context_tokens: int,
        max_loras: int = 4,
        max_lora_rank: int = 32,
        max_resident_adapters: int = 16,
        max_sequences: int = 64,
        kv_cache_bytes: int | None = None,
        key_holder: str | None = None,
        private_pass_s: float = PASS_S,
        private_root: Path = DEFAULT_ROOT,
    ) -> SamplingEngine:
        """Load the model and warm up. `configure_environment` must have run; blocks the loop meanwhile.

        `max_loras` adapters can run in one step, `max_resident_adapters` are kept loaded and at most
        `max_sequences` continuations run at once; what comes on top waits. `key_holder` names the function
        (`module:function`) that reaches adapter holders; without it private adapters are refused. Each may
        take `private_pass_s` of a step, and 10 ms for each of its tokens in it (`private.budget`).
        Raises ConfigurationError.
        """
        settings = EngineSettings(
            model_path=Path(model_path),
            dtype=dtype,
            max_context_tokens=max_context_tokens,
            max_loras=max_loras,
            max_lora_rank=max_lora_rank,
            max_resident_adapters=max(max_resident_adapters, max_loras),
            max_sequences=max_sequences,
            kv_cache_bytes=kv_cache_bytes,
            key_holder=key_holder,
            private_pass_s=private_pass_s,
        )
        began = time.monotonic()
        private = PrivateDirectory(private_root)
        llm: AsyncLLM | None = None
        try:
            llm = launch(settings, private.path)
            await repair(llm, private_pass_s=None if key_holder is None else private_pass_s)
            engine = cls(llm, settings, read_base_shapes(str(model_path)), private)
            await asyncio.gather(*(engine.sample(request) for request in warmup_requests()))
        except BaseException:
            if llm is not None:
                llm.shutdown(timeout=_SHUTDOWN_S)
            private.close()
            raise
        _LOG.info("sampling engine ready", extra={"start_s": round(time.monotonic() - began, 1)})
        return engine

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered; once false it stays false and the process should end."""
        return not self._closed and not self._llm.errored

    async def wait_until_dead(self) -> None:
        """Return once the engine has died or was closed."""
        while self.healthy:
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    def is_resident(self, identity: str) -> bool:
        """Whether the adapter `name@version` is loaded now; it may be evicted at any await."""
        return identity in self._adapters

    def resident(self) -> list[str]:
        """What is loaded now, as `name@version`."""
        return list(self._adapters)

    async def forget(self, identity: str) -> None:
        """Take the adapter `name@version` out of vLLM unless a request is using it."""
        self._require_healthy()
        await self._adapters.forget(identity)

    async def ensure_adapter(self, adapter: AnyAdapter) -> None:
        """Load the adapter ahead of its requests. Raises as `sample` does."""
        self._require_healthy()
        async with self._adapters.lease(adapter):
            pass

    async def sample(
        self,
        request: SampleRequest,
        adapter: AnyAdapter | None = None,
        *,
        cache_scope: str | None = None,
        policy: ExecutionPolicy | None = None,
        on_tokens: OnTokens | None = None,
    ) -> SampleResult:
        """Draw `request.num_samples` continuations. Cancelling it aborts them in vLLM.

        Requests with the same `cache_scope` (a tenant, say) may reuse each other's prompt
        computation, which shows in `prompt_cache_hit_tokens` and in the time taken; without a scope
        nothing is shared. The same seed, prompt, parameters and weights give the same tokens.
        `policy` can strengthen the adapter's own. `on_tokens` hears nothing of what is evaluated under
        encryption, which is given out only when all of it has been vouched for. Raises InvalidRequest (with
        `field`) for a request or adapter that cannot be served, HeRefused where only encryption may answer
        and cannot, and Unavailable when the engine is dead or gave up.
        """
        self._require_healthy()
        check_request(request, self.limits)
        salt = secrets.token_hex(16) if cache_scope is None else f"scope:{cache_scope}"
        offer = offer_of(adapter)
        holds = effective(offer.policy, policy)
        failed: str | None = None
        if decide(offer, holds) is ExecutionMode.HE and isinstance(adapter, PrivateAdapter):
            try:
                return await self._sample_private(request, adapter, salt)
            except HeRefused as error:
                failed = error.code
        if decide(offer, holds, failed=failed) is ExecutionMode.NONE:
            outputs = await self._generate_all(request, salt, None, on_tokens)
            return to_result(request, outputs, in_the_clear(outputs))
        private = adapter if isinstance(adapter, PrivateAdapter) else None
        plain = private.plain if private is not None else adapter
        assert isinstance(plain, Adapter)  # noqa: S101 - or `decide` had raised
        async with self._adapters.lease(plain) as resident:
            lora = lora_request(resident.identity, resident.adapter_id, resident.path)
            digest = self._loading.digest(resident)
            outputs = await self._generate_all(request, salt, lora, on_tokens)
        if private is None:
            return to_result(request, outputs, in_the_clear(outputs, plain.identity, digest=digest))
        _LOG.warning("private adapter applied in the clear", extra={"code": failed})
        name = f"{private.name}@{private.version}"
        execution = in_the_clear(outputs, name, digest=private.plain_digest, fallback=failed)
        return to_result(request, outputs, execution)

    async def _sample_private(
        self, request: SampleRequest, adapter: PrivateAdapter, salt: str
    ) -> SampleResult:
        """As `sample`, evaluated by the adapter's holder, all of it or HeRefused."""
        idle = adapter.identity in self._adapters
        try:
            return await self._evaluated(request, adapter, salt)
        except HeRefused as error:
            if not idle or error.code not in GONE_ON:
                raise
        # While nobody used it, the connection may have died, or another epoch begun.
        return await self._evaluated(request, adapter, salt)

    async def _evaluated(self, request: SampleRequest, adapter: PrivateAdapter, salt: str) -> SampleResult:
        serving = self._serving
        if serving is None:
            raise HeRefused("he_not_configured")
        async with self._adapters.lease(adapter) as resident:
            name = resident.path
            ids = [self._next_id() for _ in range(request.num_samples)]
            work = self._generate_all(request, cache_salt(name, salt), None, None, ids, private=name)
            try:
                try:
                    prompt = len(request.prompt)
                    outputs = await serving.run(name, work, prompt * request.num_samples, prompt)
                except BaseException:
                    # Their accounts are closed even if the caller has gone.
                    with contextlib.suppress(TensafeError):
                        await asyncio.shield(serving.reports(ids))
                    raise
                return to_result(request, outputs, await serving.vouch(adapter, name, ids, outputs))
            except HeRefused as error:
                # Its cache blocks may hold what was computed without it: whoever comes next opens it anew.
                # Where activations were no numbers they hold none either: who reads them is refused too.
                if error.code not in OF_ONE_REQUEST and not isinstance(error, NeverBegun):
                    await self._adapters.retire(resident)
                raise

    async def close(self) -> None:
        """End vLLM's processes and remove the private directory; pending samples raise Unavailable."""
        if self._closed:
            return
        self._closed = True
        self._llm.shutdown(timeout=_SHUTDOWN_S)
        self._private.close()

    def _require_healthy(self) -> None:
        if not self.healthy:
            raise Unavailable("the sampling engine is not running")

    def _next_id(self) -> str:
        return f"s{next(self._request_ids)}"

    async def _ask_worker(self, method: str, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - its answer
        """Call a method of the worker extension; there is one worker. Raises Unavailable."""
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415 - as in _generate

        try:
            return (await self._llm.collective_rpc(method, args=arguments))[0]
        except EngineDeadError as error:
            raise Unavailable("the sampling engine failed; try again") from error

    async def _generate_all(
        self,
        request: SampleRequest,
        salt: str,
        lora: LoRARequest | None,
        on_tokens: OnTokens | None,
        ids: list[str] | None = None,
        *,
        private: str | None = None,
    ) -> list[RequestOutput]:
        """One vLLM request per continuation, each with its own seed; one failure aborts the others."""
        ids = ids or [self._next_id() for _ in range(request.num_samples)]
        each = partial(self._generate, request, salt, lora, on_tokens, private)
        if request.num_samples == 1:
            return [await each(0, ids[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each(index, request_id)) for index, request_id in enumerate(ids)]
        except* TensafeError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _generate(
        self,
        request: SampleRequest,
        salt: str,
        lora: LoRARequest | None,
        on_tokens: OnTokens | None,
        private: str | None,
        index: int,
        request_id: str,
    ) -> RequestOutput:
        from vllm import SamplingParams  # noqa: PLC0415 - only after launch has imported vLLM
        from vllm.exceptions import VLLMClientError, VLLMError  # noqa: PLC0415
        from vllm.inputs import TokensPrompt  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        arguments = sampling_arguments(request, self.limits, index)
        kind = RequestOutputKind.FINAL_ONLY if on_tokens is None else RequestOutputKind.CUMULATIVE
        extra = naming(private)
        params = SamplingParams(output_kind=kind, skip_clone=True, extra_args=extra, **arguments)
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt), cache_salt=salt)
        last: RequestOutput | None = None
        try:
            async for output in self._llm.generate(prompt, params, request_id, lora_request=lora):
                last = output
                if on_tokens is not None:
                    on_tokens(index, output.outputs[0].token_ids)
        except VLLMClientError as error:
            _LOG.error("vLLM refused a checked request", extra={"error": type(error).__name__})
            raise InvalidRequest("the engine does not accept this request") from error
        except VLLMError as error:
            raise Unavailable("the sampling engine failed; try again") from error
        if last is None:
            raise Unavailable("the sampling engine stopped; try again")
        return last


def _first(errors: ExceptionGroup[TensafeError]) -> TensafeError:
    """One error of a group; they all ended the same request."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
