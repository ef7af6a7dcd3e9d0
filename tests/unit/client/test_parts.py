"""Data are handed to the SDK in parts that it does not cut, so that no unit is split."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tinker import TrainingClient, types
from tinker.types.client_config_response import ClientConfigResponse

from tensafe.client.examples import as_datum
from tensafe.client.parts import SDK_MAX_BYTES, SDK_MAX_DATA, PartLimits, by_unit, parts_of, sent_bytes
from tensafe.contracts.errors import InvalidRequest


def datum(unit: int, length: int = 5, **inputs) -> types.Datum:
    tokens = [(unit + at) % 100 for at in range(length)]
    given = {
        "target_tokens": np.array(tokens),
        "weights": np.ones(length, np.float32),
        "dp_unit_id": np.array([unit]),
        **inputs,
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=given)


def chunks_of_the_sdk(data: list[types.Datum]) -> list[list[types.Datum]]:
    """As the official client cuts them before it sends anything."""
    client = SimpleNamespace(holder=SimpleNamespace(_client_config=ClientConfigResponse()))
    cut = TrainingClient._chunked_requests_generator
    return [chunk.data for chunk in cut(client, data)]  # type: ignore[arg-type]


def test_the_limits_are_those_of_the_sdk() -> None:
    config = ClientConfigResponse()
    limits = (config.fwdbwd_max_chunk_len, config.fwdbwd_max_chunk_bytes_count)
    assert limits == (SDK_MAX_DATA, SDK_MAX_BYTES)


@pytest.mark.parametrize(
    ("units", "data_each", "length"),
    [(1, 1, 5), (700, 3, 2), (40, 7, 2000), (3, 1024, 1), (1025, 1, 1)],
    ids=["one", "many data", "long data", "full requests", "one too many"],
)
def test_the_sdk_cuts_no_part(units: int, data_each: int, length: int) -> None:
    owned = {unit: [datum(unit, length)] * data_each for unit in range(units)}
    parts = parts_of(owned.items())
    assert [len(chunks_of_the_sdk(part)) for part in parts] == [1] * len(parts)
    seen = [{int(one.loss_fn_inputs["dp_unit_id"].to_numpy()[0]) for one in part} for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen)) == units, "no unit is in two parts"
    assert sum(map(len, parts)) == units * data_each
    whole = [one for examples in owned.values() for one in examples]
    assert len(parts) <= len(chunks_of_the_sdk(whole)) * 2


def test_the_bytes_are_those_that_the_sdk_counts() -> None:
    dense = datum(1, 7)
    sparse = datum(2, 4, target_tokens=torch.tensor([[0] * 30 + [8, 9], [0] * 32, [7] + [0] * 31, [0] * 32]))
    assert sparse.loss_fn_inputs["target_tokens"].sparse_crow_indices is not None
    from tinker.lib.public_interfaces.training_client import _estimate_datum_bytes_count_proto

    for one in (dense, sparse):
        assert sent_bytes(one) == _estimate_datum_bytes_count_proto(one)
    mapping = {"tokens": [1, 2], "loss_fn_inputs": {"target_tokens": [2, 3], "weights": [1.0, 1.0]}}
    assert sent_bytes(mapping) == 2 * 4 + 2 * 8 + 2 * 8
    assert sent_bytes(as_datum(mapping)) == 2 * 4 + 2 * 8 + 2 * 4


def test_a_unit_that_fits_in_no_request_is_refused_with_what_to_do() -> None:
    limits = PartLimits(data=2, bytes=1000)
    assert [len(part) for part in parts_of([(1, [datum(1)] * 2), (2, [datum(2)])], limits)] == [2, 1]
    with pytest.raises(InvalidRequest, match=r"unit 3 has 3 data .* register it as several units"):
        parts_of([(3, [datum(3)] * 3)], limits)
    with pytest.raises(InvalidRequest, match=r"unit 4 has 1 data of 1\d{3} bytes"):
        parts_of([(4, [datum(4, 70)])], limits)
    with pytest.raises(InvalidRequest, match="unit 5 has no data"):
        parts_of([(5, [])], limits)


def test_no_units_are_no_parts() -> None:
    assert parts_of([]) == []


def test_data_are_gathered_by_the_unit_that_they_name() -> None:
    first, second, other = datum(3), datum(3, 6), datum(-4)
    assert by_unit([first, other, second]) == {3: [first, second], -4: [other]}
    with pytest.raises(InvalidRequest) as caught:
        by_unit([first, {"tokens": [1], "loss_fn_inputs": {}}])
    assert caught.value.field == "data[1]"
