"""What the sampler knows of a private adapter: where it is evaluated and under which policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tensafe.contracts.execution import BASE_MODEL, DEFAULT_PLAIN, DEFAULT_PRIVATE, ExecutionPolicy, Offer
from tensafe_gpu.sampler.adapters import Adapter

PREFIX: Final = "private:"
_NAME: Final = "tensafe_private_adapter"


@dataclass(frozen=True, slots=True)
class PrivateAdapter:
    """An adapter that an adapter holder evaluates. `version` changes whenever its weights do.

    `holder` says how it is reached and is passed to the key holder as it is: addresses, names and paths,
    no secrets. `digest` (SHA-256 hex of the quantised adapter) is compared with what the holder says it
    has; None takes what it has. `plain` are its weights in the clear, where the owner left them here, for
    HE_PREFERRED, and `plain_digest` is that of the quantised adapter which they are. `base_model` is the one
    that it must have been trained on; None takes any of its shapes.
    """

    name: str
    version: str
    holder: Mapping[str, str]
    policy: ExecutionPolicy = DEFAULT_PRIVATE
    digest: str | None = None
    plain: Adapter | None = None
    plain_digest: str | None = None
    base_model: str | None = None

    @property
    def identity(self) -> str:
        """What residency knows the adapter by; never a plain adapter's, nor one's that is held elsewhere."""
        where = json.dumps([sorted(self.holder.items()), self.digest, self.base_model])
        return f"{PREFIX}{self.name}@{self.version}~{hashlib.sha256(where.encode()).hexdigest()[:16]}"


def offer_of(adapter: Adapter | PrivateAdapter | None) -> Offer:
    """What there is of an adapter to compute with; None is the base model."""
    if adapter is None:
        return BASE_MODEL
    if isinstance(adapter, Adapter):
        return Offer(DEFAULT_PLAIN, encrypted=False, plaintext=True)
    return Offer(adapter.policy, encrypted=True, plaintext=adapter.plain is not None)


def vllm_name(adapter: PrivateAdapter, adapter_id: int) -> str:
    """The name inside vLLM: new with every opening, so that no cache block of a failed one is reused."""
    return f"{adapter.identity}#{adapter_id}"


def naming(name: str | None) -> dict[str, Any] | None:
    """What a request of vLLM carries (`SamplingParams.extra_args`), so that its rows have this name."""
    return None if name is None else {_NAME: name}


def name_in(extra_args: Mapping[str, Any] | None) -> str | None:
    """The name that a request of vLLM carries, if it is one of a private adapter."""
    name: str | None = None if extra_args is None else extra_args.get(_NAME)
    return name


def cache_salt(name: str, salt: str) -> str:
    """vLLM's salt of a private request: its cache blocks are those of this opening and scope alone."""
    return json.dumps([name, salt])


def held_as(identity: str) -> tuple[str, str]:
    """Name and version of a private adapter from its identity."""
    name, _, version = identity.removeprefix(PREFIX).rpartition("~")[0].rpartition("@")
    return name, version


def is_private(lora_name: str) -> bool:
    """Whether vLLM's name of an adapter is a private one's."""
    return lora_name.startswith(PREFIX)


def external_id(request_id: str) -> str:
    """The sampler's id of a request from vLLM's, which appends `-` and eight random characters."""
    return request_id.split("-", 1)[0]
