"""Whether what is about to be published can be told to a key holder, and given to it, at all."""

from __future__ import annotations

import numpy as np
from pydantic import ValidationError

from tensafe.contracts.errors import InvalidRequest
from tensafe_gpu.helora.adapter import ServedAdapter
from tensafe_gpu.helora.frames import TO_KEY_HOLDER, Kind
from tensafe_gpu.helora.messages import Welcome, b_bytes, packed
from tensafe_gpu.helora.public_keys import NONCE_BYTES


def check_servable(adapter: ServedAdapter) -> None:
    """Raise InvalidRequest for what every greeting, or every request for B, would be refused.

    Before it is stored: whoever publishes erases the weights afterwards.
    """
    for site in adapter.sites.values():
        for name, b in site.b.items():
            if not np.isfinite(b).all():
                raise InvalidRequest(
                    f"the weights of {name[:200]} times lora_alpha leave float32: no delta can be computed",
                    field="lora_B",
                )
    try:
        size_bytes = len(packed(Welcome.of(adapter.info, bytes(NONCE_BYTES))))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"])
        raise InvalidRequest(
            f"the adapter is beyond the protocol at {where}: {first['msg']}", field=where or "adapter"
        ) from error
    if size_bytes > TO_KEY_HOLDER[Kind.WELCOME]:
        raise InvalidRequest("the adapter has more sites than a greeting can list", field="sites")
    for shape in adapter.info.sites:
        if b_bytes(shape) > TO_KEY_HOLDER[Kind.B_REPLY]:
            raise InvalidRequest(f"B of {shape.site[:200]} is larger than an answer may be", field="lora_B")
