"""An example is hashed at home as the service will see it, in whichever form its owner has it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tinker import types
from tinker.proto import request_conv

from tensafe.client.domains import manifest_of
from tensafe.client.examples import as_datum
from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum
from tensafe.privacy.content import datum_digest, unit_content_hash
from tensafe.wire.forward_backward import decode_request
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tests.project_files import ROOT

KEY = bytes(range(32))
RECORDS = DomainTerms(unit="record", delta=1e-5, max_epsilon=3.0)
USERS = DomainTerms(unit="user", delta=1e-5, max_epsilon=3.0)
TOKENS = [5, 9, 301, 77]
TARGETS = [9, 301, 77, 2**31 + 5]
WEIGHTS = [0.0, 1.0, 0.1, 1.0]


def sdk_datum(**inputs) -> types.Datum:
    given = {"target_tokens": TARGETS, "weights": WEIGHTS, "dp_unit_id": np.array([7]), **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS), loss_fn_inputs=given)


def over_the_sdks_wire(datum: types.Datum) -> Datum:
    request = types.ForwardBackwardRequest(
        forward_backward_input=types.ForwardBackwardInput(data=[datum], loss_fn="cross_entropy"),
        model_id="s-1:train:0",
        seq_id=1,
    )
    message = request_conv.forward_backward_request_to_proto(request)
    return decode_request(message.SerializeToString()).request.data[0]


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"weights": torch.tensor(WEIGHTS, dtype=torch.bfloat16)},
        {"weights": np.array(WEIGHTS)},
        {"weights": np.array([1, 0, 1, 1], np.float32)},
        {"target_tokens": torch.tensor([[9, 1], [0, 0], [0, 0], [0, 4]])},
        {"target_tokens": torch.tensor([[0] * 30 + [8, 9], [0] * 32, [7] + [0] * 31, [0] * 32])},
        {"weights": torch.tensor([[0.0] * 30 + [0.25, 1.0], [0.0] * 32, [0.5] + [0.0] * 31, [0.0] * 32])},
    ],
    ids=["lists", "bfloat16", "float64", "float32", "dense", "sparse-int64", "sparse-float32"],
)
def test_an_sdk_example_is_what_the_service_decodes(inputs: dict) -> None:
    example = sdk_datum(**inputs)
    sparse = [name for name, data in example.loss_fn_inputs.items() if data.sparse_crow_indices is not None]
    assert sparse == (list(inputs) if next(iter(inputs.values()), np.ones(1)).shape[-1:] == (32,) else [])
    here, there = as_datum(example), over_the_sdks_wire(example)
    assert (here.unit_id, there.unit_id) == (7, 7)
    assert datum_digest(here) == datum_digest(there)


def test_a_plain_example_is_what_the_native_face_decodes() -> None:
    whole = {"target_tokens": [9, 301, 77, 4], "weights": [0, 1, 1, 1]}
    example = {"tokens": TOKENS, "loss_fn_inputs": whole, "dp_unit_id": -3}
    body = json.dumps({"data": [example], "loss_fn": "cross_entropy"}).encode()
    there = request_json_to_forward_backward(body).data[0]
    arrays = {
        name: np.array(values, np.int64 if name[0] == "t" else np.float32) for name, values in whole.items()
    }
    for form in (example, {**example, "loss_fn_inputs": arrays}, there):
        here = as_datum(form)
        assert here.unit_id == -3
        assert datum_digest(here) == datum_digest(there)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"tokens": []}, "one or more"),
        ({"tokens": [[1]]}, "one or more"),
        ({"tokens": [1.5]}, "one or more"),
        ({"tokens": [-1]}, "at least 0"),
        ({"tokens": [2**31]}, "below 2"),
        ({"tokens": [1], "loss_fn_inputs": {"target_tokens": [0.5]}}, "integers"),
        ({"tokens": [1], "loss_fn_inputs": {"weights": ["a"]}}, "numbers"),
        ({"tokens": [1], "loss_fn_inputs": {"dp_unit_id": [1, 2]}}, "one int64"),
        ({"tokens": [1], "dp_unit_id": 2**63}, "an int64"),
        ({"text": "x"}, "tokens and loss_fn_inputs"),
        (object(), "the SDK's Datum or a mapping"),
    ],
)
def test_what_is_no_example_is_refused(example: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        as_datum(example)


def test_units_are_named_by_the_examples_or_beside_them() -> None:
    plain = {"tokens": TOKENS, "loss_fn_inputs": {"target_tokens": [1, 2, 3, 4]}}
    beside = manifest_of(KEY, [plain, plain], RECORDS, unit_ids=[4, -4])
    named = manifest_of(KEY, [{**plain, "dp_unit_id": -4}, {**plain, "dp_unit_id": 4}], RECORDS)
    assert beside.root == named.root
    assert beside.ids.tolist() == [-4, 4]
    assert beside.content_hash(0) == unit_content_hash(KEY, -4, [as_datum(plain)])
    with pytest.raises(InvalidRequest, match=r"data\[0\]: the example names unit 4, and unit 5"):
        manifest_of(KEY, [{**plain, "dp_unit_id": 4}], RECORDS, unit_ids=[5])
    with pytest.raises(InvalidRequest, match="more data than unit_ids"):
        manifest_of(KEY, [plain, plain], RECORDS, unit_ids=[1])
    with pytest.raises(InvalidRequest, match="3 unit_ids and 2 data"):
        manifest_of(KEY, [plain, plain], RECORDS, unit_ids=[1, 2, 3])
    with pytest.raises(InvalidRequest, match="dp_unit_id") as caught:
        manifest_of(KEY, [plain], RECORDS)
    assert caught.value.field == "data[0]"


def test_a_record_is_one_datum_and_a_user_any_number() -> None:
    some = [{"tokens": [1, n], "loss_fn_inputs": {}, "dp_unit_id": 8} for n in range(3)]
    with pytest.raises(InvalidRequest, match="unit 8 has a second datum at position 1"):
        manifest_of(KEY, some, RECORDS)
    forwards, backwards = manifest_of(KEY, some, USERS), manifest_of(KEY, some[::-1], USERS)
    assert (forwards.root, forwards.units) == (backwards.root, 1)
    assert manifest_of(KEY, some[:2], USERS).root != forwards.root
    assert forwards.content_hash(0) == unit_content_hash(KEY, 8, [as_datum(one) for one in some])


def test_the_client_loads_neither_the_sdk_nor_the_service() -> None:
    program = (
        "import sys, tensafe.client.deals, tensafe.client.domains\n"
        "heavy = ('tinker', 'torch', 'fastapi', 'dp_accounting', 'scipy', 'boto3')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
