"""Whatever bytes arrive: an error of ours or a decoded request, and no memory beyond the caps."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe.contracts.errors import TensafeError
from tensafe.wire.forward_backward import address_of, decode_request
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tensafe.wire.json_body import parse_json
from tensafe.wire.limits import WireLimits
from tensafe.wire.tinker_requests.models import CreateModelBody, OptimStepBody
from tensafe.wire.tinker_requests.sampling import SampleBody
from tensafe.wire.tinker_requests.weights import LoadWeightsBody, SaveWeightsExternalBody
from tests.unit.wire.messages import request, sparse
from tests.unit.wire.test_requests import VALID, convert

LIMITS = WireLimits(body_bytes=5_000, examples=8, elements=2_000, fields=500)


def valid() -> bytes:
    message = request(2)
    message.data[0].loss_fn_inputs["weights"].CopyFrom(sparse([1, 2], [0, 1, 1, 2], [0, 1], [3, 2]))
    message.loss_fn_config["beta"] = 0.5
    message.loss_fn_config_v2["beta"].number = 0.5
    span = message.data[1].model_input_spans.add().prompt_tokens
    span.sequence_id, span.length = "s", 3
    return message.SerializeToString()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=6_000))
def test_random_bytes(raw: bytes) -> None:
    address_of(raw)
    with contextlib.suppress(TensafeError):
        decode_request(raw, LIMITS)
    with contextlib.suppress(TensafeError):
        request_json_to_forward_backward(raw, LIMITS)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_protobuf(data: Any) -> None:
    raw = bytearray(valid())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                raw[at] = data.draw(st.integers(0, 255))
            case 1:
                del raw[at : at + data.draw(st.integers(1, 8))]
                raw = raw or bytearray(b"\0")
            case _:
                raw[at:at] = data.draw(st.binary(max_size=8))
    address_of(bytes(raw))
    with contextlib.suppress(TensafeError):
        decoded = decode_request(bytes(raw), LIMITS).request
        arrays = [array for one in decoded.data for array in (one.tokens, *one.inputs.values())]
        assert sum(array.size for array in arrays) <= LIMITS.elements


BODIES = (CreateModelBody, OptimStepBody, SampleBody, LoadWeightsBody, SaveWeightsExternalBody)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_json(data: Any) -> None:
    model = data.draw(
        st.sampled_from(
            [CreateModelBody, OptimStepBody, SampleBody, LoadWeightsBody, SaveWeightsExternalBody]
        )
    )
    values = dict(VALID[model])
    for name in data.draw(st.lists(st.sampled_from(sorted(model.model_fields)), min_size=1, max_size=3)):
        values[name] = data.draw(json_values)
    with contextlib.suppress(TensafeError):
        convert(parse_json(model, json.dumps(values).encode(), max_bytes=100_000))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_training_json(data: Any) -> None:
    example: dict[str, Any] = {
        "tokens": [1, 2],
        "loss_fn_inputs": {"target_tokens": [2, 3], "weights": [1.0, 0.0]},
    }
    values: dict[str, Any] = {"data": [example], "loss_fn": "cross_entropy", "loss_fn_config": {}}
    target = data.draw(
        st.sampled_from([values, example, example["loss_fn_inputs"], values["loss_fn_config"]])
    )
    target[data.draw(st.sampled_from(sorted(target) or ["beta"]))] = data.draw(json_values)
    with contextlib.suppress(TensafeError):
        request_json_to_forward_backward(json.dumps(values).encode(), LIMITS)


BOMBS = {
    "empty examples": r"b'\x1a\x00' * 8_000_000",
    "empty chunks": r"b'\x1a\x80\x80\x80\x04' + b'\x0a\x00' * 4_194_304",
    "empty settings": r"b'\x2a\x00' * 8_000_000",
    "long packed shape": "shape(b'\\x01' * 4_000_000)",
    "sparse, dense 32 TB": "tensor(sparse([1.0], [0] + [1] * 3, [0], [3, 2**40]))",
    "sparse, dense 1 GB": "tensor(sparse([1.0], [0] + [1] * 100_000, [0], [100_000, 2_684]))",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_the_memory_of_its_body(name: str) -> None:
    """Measured in a process of its own: protobuf's memory is not Python's to count."""
    script = f"""
        import resource
        from tensafe.contracts.errors import TensafeError
        from tensafe.wire.forward_backward import address_of, decode_request
        from tensafe.wire import tinker_v0_38_pb2 as pb
        from tests.unit.wire.messages import request, sparse

        def tensor(value):
            message = request(1)
            message.data[0].loss_fn_inputs["weights"].CopyFrom(value)
            return message.SerializeToString()

        def shape(packed):
            return tensor(pb.Tensor(dense=b"1234", dtype=1, shape=[1] * len(packed)))

        raw = {BOMBS[name]}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode_request(raw)
            print("accepted")
        except TensafeError as error:
            address_of(raw)  # what the edge does with a body that it refused
            print(error.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    code, grown_kb = done.stdout.split()
    assert code == "payload_too_large"
    assert int(grown_kb) < 32 * 1024
