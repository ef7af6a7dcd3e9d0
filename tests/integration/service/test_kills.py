"""SIGKILL under a live, unmodified SDK client: it goes on, to the weights of an undisturbed run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import tinker
from dp_accounting.dp_event import GaussianDpEvent
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tests.support.native import TOKENS, Native, make_key
from tests.support.sdk_data import supervised
from tests.support.service import MODEL_NAME, Service

STEPS = 8
DATA = [supervised([5 + (i * j) % 250 for j in range(1, 200)], unit=None) for i in range(1, 25)]


def new_client(
    service: Service, key: str, monkeypatch: pytest.MonkeyPatch, **more: object
) -> tinker.TrainingClient:
    monkeypatch.setenv("TINKER_BASE_URL", service.url)
    monkeypatch.setenv("TINKER_API_KEY", key)
    client = tinker.ServiceClient()
    return client.create_lora_training_client(MODEL_NAME, rank=8, seed=5, **more).result()  # type: ignore[arg-type]


def train(
    client: tinker.TrainingClient,
    done: Callable[[int], None] = lambda step: None,
    ahead: int = STEPS,
    data: Sequence[types.Datum] = DATA,
) -> tuple[list[float], list[dict[str, float]]]:
    """STEPS steps, `ahead` of them submitted before the first is waited for; losses and metrics of each."""
    pending, losses, metrics = [], [], []
    for step in range(STEPS):
        while len(pending) < min(step + ahead, STEPS):
            forward = client.forward_backward(list(data), "cross_entropy")
            pending.append((forward, client.optim_step(types.AdamParams(learning_rate=1e-3))))
        forward, optim = pending[step]
        losses.append(forward.result(timeout=200).metrics["loss:sum"])
        metrics.append(optim.result(timeout=200).metrics or {})
        done(step)
    return losses, metrics


def final_state(native: Native, client: tinker.TrainingClient) -> bytes:
    """The saved training state, optimizer included, in clear."""
    client.save_state("end").result(timeout=120)
    run = client.get_info().model_id
    artifacts = native.get(f"/v1/training_clients/{run}/artifacts").json()["artifacts"]
    return native.content(next(a["id"] for a in artifacts if a["name"] == "end"))


@pytest.fixture(scope="module")
def undisturbed(service: Service) -> Iterator[tuple[list[float], bytes]]:
    """Losses and final state of a run that nothing happens to."""
    key = make_key(service, "calm")
    with pytest.MonkeyPatch.context() as patch:
        client = new_client(service, key, patch)
        yield train(client)[0], final_state(Native(service, key), client)


@contextmanager
def while_killing(service: Service, role: str, times: int, seed: int) -> Iterator[Callable[[int], None]]:
    """Kill the role at random moments, each soon after another step has been acknowledged.

    The caller has more steps in flight than `times`, so there is always work for the kill to hit.
    """
    rng, steps, stop = random.Random(seed), threading.Semaphore(0), threading.Event()
    killed: list[int] = []

    def kill() -> None:
        for _ in range(times):
            steps.acquire()
            time.sleep(rng.random() * 0.1)
            if stop.is_set():
                return
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                pids = service.role_pids(role)
                if pids and pids[0] not in killed:
                    killed.append(service.kill(role))
                    break
                time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield lambda step: steps.release()
    finally:
        stop.set()
        steps.release()
        killer.join()
    assert len(killed) == times


def test_the_trainer_dies_again_and_again(
    service: Service,
    tenant: str,
    undisturbed: tuple[list[float], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = make_key(service, tenant)
    client = new_client(service, key, monkeypatch)
    with while_killing(service, "trainer", 3, seed=11) as done:
        losses, _ = train(client, done)
    assert losses == undisturbed[0]
    assert final_state(Native(service, key), client) == undisturbed[1]


@pytest.mark.one_machine("on AWS there is no process of the API to kill")
def test_the_api_dies_in_the_middle_of_requests(
    service: Service,
    tenant: str,
    undisturbed: tuple[list[float], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = make_key(service, tenant)
    client = new_client(service, key, monkeypatch)
    with while_killing(service, "api", 2, seed=12) as done:
        losses, _ = train(client, done, ahead=2)
    service.wait_ready()
    assert losses == undisturbed[0]
    assert final_state(Native(service, key), client) == undisturbed[1]


def test_a_private_run_is_charged_once_for_each_step(
    service: Service, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OptimizerConfigBase(
        type="tensafe_dp_adamw",
        clip_norm=1.0,
        noise_multiplier=1.0,
        delta=1e-5,
        batch_size=len(DATA),
        max_participations=STEPS,
        max_epsilon=30.0,
        domain="killed",
    )
    client = new_client(service, make_key(service, tenant), monkeypatch, optimizer=config)
    data = [supervised([5 + (i * j) % 250 for j in range(1, 200)], unit=i) for i in range(1, 25)]
    with while_killing(service, "trainer", 2, seed=13) as done:
        _, metrics = train(client, done, data=data)
    expected = []
    for steps in range(1, STEPS + 1):
        accountant = PLDAccountant().compose(GaussianDpEvent(1.0), steps)
        expected.append(accountant.get_epsilon(1e-5))
    assert [step["dp/epsilon"] for step in metrics] == pytest.approx(expected, rel=1e-4)


def test_the_sampler_dies_in_the_middle_of_a_sample(
    service: Service, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = new_client(service, make_key(service, tenant), monkeypatch)
    sampler = client.save_weights_and_get_sampling_client().result()
    prompt = types.ModelInput.from_ints(TOKENS[:4])
    params = types.SamplingParams(max_tokens=400, seed=3, stop=[])
    expected = sampler.sample(prompt, 4, params).result(timeout=120)
    pending = sampler.sample(prompt, 4, params)
    time.sleep(0.3)
    service.kill("sampler")
    short = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=3, seed=4, stop=[]))
    answer = pending.result(timeout=180)
    assert [s.tokens for s in answer.sequences] == [s.tokens for s in expected.sequences]
    assert len(short.result(timeout=60).sequences[0].tokens) == 3
    service.wait_ready()


@pytest.mark.one_machine("kills one machine's processes at once")
def test_everything_dies_at_once_and_the_client_goes_on(
    own_service: Service, undisturbed: tuple[list[float], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(own_service, "survivor")
    client = new_client(own_service, key, monkeypatch)
    third = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        losses = pool.submit(train, client, lambda step: third.set() if step == 2 else None)
        assert third.wait(120)
        own_service.kill_everything()
        own_service.start()
        assert losses.result(timeout=200)[0] == undisturbed[0]
    assert final_state(Native(own_service, key), client) == undisturbed[1]
