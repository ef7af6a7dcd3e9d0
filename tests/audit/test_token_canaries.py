"""End to end: random token sequences through a real LoRA model, a worker and a ledger.

Each canary is one unit with one random text. The adversary sees every canary's logprobs before and after,
and the adapter. Training without privacy gives the canaries away; the same training at epsilon 1 does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.training import LoraSpec, OptimizerConfig
from tensafe.operations.records import OpKind, OpState
from tensafe.privacy import release
from tensafe.privacy.content import unit_content_hash
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine, accumulated_sum
from tensafe_gpu.trainer.state import RunState
from tests.support.dealt_training import dealt
from tests.support.privacy_audit import planted
from tests.support.privacy_audit.one_run import epsilon_lower_bound
from tests.support.tiny_models import tiny_model
from tests.support.training_log import ADAMW, VOCAB, Step, create, optim_step, private
from tests.unit.operations.world import BASE, TENANT
from tests.unit.trainer_worker.rig import RUN, Rig

CANARIES, TOKENS, STEPS, GUESSES = 800, 6, 15, 100
DELTA = 1e-5
LORA = LoraSpec(rank=8, seed=7)
PRIVATE = private(
    clip_norm=1.0,
    noise_multiplier=None,
    target_epsilon=1.0,
    max_steps=STEPS,
    max_participations=STEPS,
    batch_size=CANARIES // 2,
)
DEALT = dealt(
    domain="canaries",
    clip_norm=1.0,
    noise_multiplier=None,
    target_epsilon=1.0,
    delta=DELTA,
    max_steps=STEPS,
    batch_size=CANARIES // 2,
)
"""Each unit is dealt in half of the steps."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Wide enough to memorise a text per canary."""
    path = tmp_path_factory.mktemp("wide")
    shape = {"vocab": VOCAB, "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "max_context": 64}
    return BaseModel.load(tiny_model(path, **shape), name=BASE)


@dataclass(frozen=True)
class Attack:
    """Lower bounds of epsilon from the gain in logprob and from the adapter, and what was claimed."""

    by_loss: float
    by_weights: float
    claimed: float

    @property
    def strongest(self) -> float:
        return max(self.by_loss, self.by_weights)


def call_of(
    texts: npt.NDArray[np.int64],
    ids: Sequence[int],
    *,
    units: bool,
    forward_only: bool,
    included: npt.NDArray[np.bool_] | None = None,
) -> Step:
    """With `included`, the data of who is not are there with weight 0: zeroed out."""
    weights = {} if included is None else {unit: [float(included[unit])] * (TOKENS - 1) for unit in ids}
    data = [
        {
            "tokens": texts[unit, :-1].tolist(),
            "loss_fn_inputs": {
                "target_tokens": texts[unit, 1:].tolist(),
                **({"weights": weights[unit]} if unit in weights else {}),
            },
            **({"dp_unit_id": int(unit)} if units else {}),
        }
        for unit in ids
    ]
    body = {"data": data, "loss_fn": "cross_entropy", "forward_only": forward_only}
    return OpKind.FORWARD_BACKWARD, json.dumps(body).encode()


def attack(rig: Rig, optimizer: OptimizerConfig, *, seed: int) -> Attack:
    """Train on a random half of the canaries, then guess which half it was."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, VOCAB, (CANARIES, TOKENS))
    included = rng.random(CANARIES) < 0.5
    is_private = optimizer is not ADAMW

    def do(seq: int, step: Step) -> None:
        assert rig.do(seq, step).state is OpState.COMPLETED, rig.op(seq).failure

    def logprobs(seq: int) -> npt.NDArray[np.float64]:
        do(seq, call_of(texts, range(CANARIES), units=False, forward_only=True))
        outputs = rig.result(seq)["loss_fn_outputs"]
        return np.array([np.sum(output["logprobs"]) for output in outputs])

    is_dealt = optimizer == DEALT
    if is_dealt:
        register(rig, texts, included)
    rig.begin(step=create(LORA, optimizer), optimizer=optimizer)
    rig.drain()
    before = logprobs(1)
    batch = call_of(texts, np.flatnonzero(included).tolist(), units=is_private, forward_only=False)
    for step in range(STEPS):
        if is_dealt:
            unit_ids = rig.services.deals.issue(rig.world.stream(RUN), step).unit_ids
            batch = call_of(texts, unit_ids, units=True, forward_only=False, included=included)
        do(2 + 2 * step, batch)
        do(3 + 2 * step, optim_step(3e-2))
    gain = logprobs(2 + 2 * STEPS) - before
    metrics = rig.result(1 + 2 * STEPS)["metrics"]
    moved = RunState.load(rig.final()[0], rig.base).params.numpy()
    along = -(canary_gradients(rig.base, texts) @ (moved - Engine(rig.base).create(LORA).params.numpy()))
    return Attack(
        epsilon_lower_bound(gain, included, DELTA, guesses=GUESSES),
        epsilon_lower_bound(along.astype(np.float64), included, DELTA, guesses=GUESSES),
        metrics.get("dp/epsilon", float("inf")),
    )


def register(rig: Rig, texts: npt.NDArray[np.int64], included: npt.NDArray[np.bool_]) -> None:
    """Every canary is a unit of the domain, with its data or with none that count."""
    domains = rig.services.domains
    terms = DomainTerms(unit="record", delta=DELTA, max_epsilon=1.0)
    domain = domains.create(TENANT, DEALT.domain, terms)
    key = domains.content_key(domain)
    _, payload = call_of(texts, range(CANARIES), units=True, forward_only=False, included=included)
    entries = b"".join(
        unit.to_bytes(8, "big") + unit_content_hash(key, unit, [datum])
        for unit, datum in enumerate(request_json_to_forward_backward(payload).data)
    )
    domains.add_units(TENANT, DEALT.domain, 0, entries)
    domains.finish(TENANT, DEALT.domain)


def canary_gradients(base: BaseModel, texts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Each canary's gradient at the first step, at norm 1: float32 [m, P]."""
    engine = Engine(base)
    rows = []
    for unit in range(len(texts)):
        state = engine.create(LORA)
        _, payload = call_of(texts, [unit], units=False, forward_only=False)
        engine.forward_backward(state, request_json_to_forward_backward(payload))
        gradient = accumulated_sum(state)
        rows.append(gradient / np.linalg.norm(gradient))
    return np.stack(rows)


def test_training_without_privacy_gives_the_canaries_away(new_rig: Callable[..., Rig]) -> None:
    found = attack(new_rig(), ADAMW, seed=0)
    assert found.by_loss > 2.5


@pytest.mark.parametrize(("mode", "seed"), [("bounded", 0), ("bounded", 1), ("dealt", 0)])
def test_training_at_epsilon_1_does_not(new_rig: Callable[..., Rig], mode: str, seed: int) -> None:
    found = attack(new_rig(), PRIVATE if mode == "bounded" else DEALT, seed=seed)
    assert 0.99 < found.claimed <= 1.0
    assert found.strongest < 0.5


@pytest.mark.parametrize(
    ("mode", "bug"),
    [("bounded", "no noise"), ("bounded", "batch clipping without noise"), ("dealt", "no noise")],
)
def test_clipping_without_noise_is_detected(
    new_rig: Callable[..., Rig], bug: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It states epsilon 1 all the same."""
    monkeypatch.setattr(release, "gaussian", lambda *_, **__: 0.0)
    if bug != "no noise":
        planted.clip_the_batch(monkeypatch)
    found = attack(new_rig(), PRIVATE if mode == "bounded" else DEALT, seed=0)
    assert found.claimed <= 1.0
    assert found.strongest > 2.5
