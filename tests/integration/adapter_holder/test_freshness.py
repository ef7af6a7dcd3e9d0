"""What is drawn once for each block, each direct request and each connection, and never again."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from tensafe_gpu.helora import key_holder, preparation
from tensafe_gpu.helora.direct import DirectRequest, layout_of
from tensafe_gpu.helora.direct_messages import unpack_direct
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.frames import Kind
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.messages import Welcome, parsed
from tensafe_gpu.helora.parameters import N
from tests.support.helora_attacks import ternary_key
from tests.support.helora_party import QK, Party, parties

D, ROWS = 64, 8
LAYOUT = layout_of(D, ROWS)


class RememberedBlock(PreparingBlock):
    secrets: list[np.ndarray]

    def __init__(self, d_in: int, rows: int) -> None:
        super().__init__(d_in, rows)
        self.secrets.append(ternary_key(self))


class RememberedRequest(DirectRequest):
    secrets: list[np.ndarray]

    def __init__(self) -> None:
        super().__init__()
        self.secrets.append(ternary_key(self))


@pytest.fixture
def party(monkeypatch: pytest.MonkeyPatch) -> Iterator[Party]:
    for cls in (RememberedBlock, RememberedRequest):
        monkeypatch.setattr(cls, "secrets", [], raising=False)
    with (
        mock.patch.object(preparation, "PreparingBlock", RememberedBlock),
        mock.patch.object(key_holder, "DirectRequest", RememberedRequest),
        parties(BlockEvaluation, D, ROWS) as party,
    ):
        yield party


def have_nothing_in_common(one: np.ndarray, other: np.ndarray) -> bool:
    """Of ternary keys: of two that are drawn apart a third of the coefficients meet, within 9 deviations."""
    return abs(float((one == other).mean()) - 1 / 3) < 9 * (2 / 9 / N) ** 0.5


def test_each_block_has_its_own_key_id_and_masks(party: Party) -> None:
    for _ in range(2):
        party.private.prepare(QK)
    one, other = (cursor.block for cursor in party.private._supplies[QK]._cursors)
    assert have_nothing_in_common(*RememberedBlock.secrets)
    assert one.block_id != other.block_id
    assert one.rho_key != other.rho_key
    assert not np.array_equal(party.shares(one.block_id, 0, N), party.shares(other.block_id, 0, N))


def test_each_direct_request_has_its_own_key_and_key_id(party: Party) -> None:
    for _ in range(2):
        party.private.direct_products([(QK, np.ones((1, D), dtype=np.float32))])
    key_ids = [unpack_direct(body, [LAYOUT])[0] for body in party.sent(Kind.DIRECT)]
    assert have_nothing_in_common(*RememberedRequest.secrets)
    assert len(set(key_ids)) == 2


def test_each_connection_has_its_own_nonce(party: Party) -> None:
    """A key holder has two, and greets anew: the adapter and its epoch are the same."""
    party.private.prepare(QK)
    party.private._online.close()
    party.private.connect_again()
    welcomes = [parsed(Welcome, body) for body in party.answered(Kind.WELCOME)]
    assert len({one.model_copy(update={"nonce": ""}).model_dump_json() for one in welcomes}) == 1
    assert len({one.nonce for one in welcomes}) == len(welcomes) == 3
