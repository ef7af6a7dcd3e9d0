"""What a refusal says of the budget: every error of the caller's ends with what the request has charged.

Said once, around whatever decides before it charges, so that no single message can forget it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensafe.contracts.errors import TensafeError

NOTHING_CHARGED: Final = "Nothing was charged"
NOTHING_MORE_CHARGED: Final = "Nothing more was charged"
"""Of a run that has been charged already."""
FROZEN: Final = f"The run stays as it was created. {NOTHING_MORE_CHARGED}"


@contextmanager
def telling(charge: str) -> Iterator[None]:
    """Every error of the caller's that is raised inside ends with the sentence `charge`, said once."""
    try:
        yield
    except TensafeError as error:
        if error.category == "user" and not error.message.endswith(charge):
            error.message = f"{error.message}. {charge}"
            error.args = (error.message,)
        raise


@contextmanager
def naming_fields_of(owner: str) -> Iterator[None]:
    """A field that is named inside by itself leaves as `owner.field`, as its request has it."""
    try:
        yield
    except TensafeError as error:
        if error.field is not None and not error.field.startswith(f"{owner}."):
            error.field = f"{owner}.{error.field}"
        raise
