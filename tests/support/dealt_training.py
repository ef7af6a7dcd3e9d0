"""A registered domain with tiny data, and the operations of runs that are dealt from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.training import Datum, DpAdamWConfig
from tensafe.operations.records import OpKind
from tensafe.privacy.content import unit_content_hash
from tensafe.privacy.domains import Domains
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tests.support.training_log import Step

UNITS = 24
DOMAIN = "dealt"


def dealt(**changes: Any) -> DpAdamWConfig:
    """Deals of 4 of 24 units on average, ten of them, at much noise."""
    settings: dict[str, Any] = {
        "type": "tensafe_dp_adamw",
        "mode": "dealt",
        "clip_norm": 0.5,
        "noise_multiplier": 4.0,
        "delta": 1e-5,
        "batch_size": 4,
        "max_steps": 10,
        "domain": DOMAIN,
    }
    return DpAdamWConfig.model_validate({**settings, **changes})


def rows_of(unit_id: int) -> list[dict[str, Any]]:
    """The data of one unit as the native face takes them."""
    return [
        {
            "tokens": text[:-1],
            "loss_fn_inputs": {"target_tokens": text[1:], "weights": [1.0] * (len(text) - 1)},
            "dp_unit_id": unit_id,
        }
        for text in texts_of(unit_id)
    ]


def texts_of(unit_id: int) -> list[list[int]]:
    """The token ids of a unit: one text, or two for units that 5 divides."""
    return [
        [(7 * unit_id + 3 * at + part) % 300 + 1 for at in range(4 + unit_id % 4)]
        for part in range(1 + (unit_id % 5 == 0))
    ]


def body(unit_ids: Iterable[int], **changes: Any) -> dict[str, Any]:
    """A forward_backward with all data of these units."""
    data = [row for unit_id in unit_ids for row in rows_of(unit_id)]
    return {"data": data, "loss_fn": "cross_entropy", **changes}


def send(unit_ids: Iterable[int], **changes: Any) -> Step:
    return OpKind.FORWARD_BACKWARD, json.dumps(body(unit_ids, **changes)).encode()


def data_of(unit_id: int) -> Sequence[Datum]:
    request = request_json_to_forward_backward(json.dumps(body([unit_id])).encode())
    return request.data


def register(
    domains: Domains, *, tenant: str = "acme", units: int = UNITS, name: str = DOMAIN, **terms: Any
) -> Mapping[int, Sequence[Datum]]:
    """Register `units` units, ids from 0 on; what each of them holds."""
    settings = {"unit": "user", "delta": 1e-5, "max_epsilon": 30.0, **terms}
    domain = domains.create(tenant, name, DomainTerms.model_validate(settings))
    key = domains.content_key(domain)
    owned = {unit_id: data_of(unit_id) for unit_id in range(units)}
    entries = b"".join(
        unit_id.to_bytes(8, "big", signed=True) + unit_content_hash(key, unit_id, data)
        for unit_id, data in owned.items()
    )
    domains.add_units(tenant, name, 0, entries)
    domains.finish(tenant, name)
    return owned
