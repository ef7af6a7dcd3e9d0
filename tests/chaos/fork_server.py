"""Loads torch, the tiny model and the Encryption SDK once; forks a process for every job.

`python -m tests.chaos.fork_server MODEL FOLDER`: reads one JSON job per line, answers with one line:
how the process ended, how many calls it made, and what it had acknowledged. Or, of a process that lives
beside others: its pid, and for a later line how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import torch
from tqdm import tqdm

from tensafe.cloud.composition import cloud_services
from tensafe.cloud.settings import read_cloud_settings
from tensafe.privacy import amplified
from tensafe.privacy.accountant import epsilon
from tensafe.services import Services, wire
from tensafe.storage.aws_clients import aws_client
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe_gpu.process import die_with_parent, stop_on_signals
from tensafe_gpu.trainer import dealt_steps, private_steps
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import TrainerWorker, WorkerSettings
from tests.chaos import dealt_script, publishing_script, twenty_runs
from tests.chaos.script import BASE, all_ended, open_folder, rewired, submit_all
from tests.support.killing_ports import Killer

_NEVER = 10**9
_LIFE_S = 60.0
SETTINGS = WorkerSettings(
    idle_snapshot_s=_NEVER,
    idle_release_s=_NEVER,
    snapshot_every_s=_NEVER,
    snapshot_every_operations=4,
    heartbeat_s=_NEVER,
    retry_s=0.0,
)


def train(services: Services, base: BaseModel, owner: str, say: Any) -> None:
    """A trainer's life: until nothing is open, then a release in good order."""
    worker = build_worker(services, BASE, base, owner, SETTINGS)
    ends = time.monotonic() + _LIFE_S
    while not all_ended(services):
        if not worker.step():
            time.sleep(0.005)
            if time.monotonic() > ends:
                raise TimeoutError("operations stay open")
    worker.release_all()
    say("done")


def edge(services: Services, base: BaseModel, owner: str, say: Any) -> None:
    """An API process's life: one acknowledgement for every operation that was submitted."""
    for run_id, seq in submit_all(services):
        say(f"{run_id} {seq}")


def owner_and_trainer(services: Services, base: BaseModel, owner: str, say: Any) -> None:
    """The owner of a dealt run and its trainer in turn: deals depend on what was completed."""
    worker = build_worker(services, BASE, base, owner, SETTINGS)
    ends = time.monotonic() + _LIFE_S
    for step in range(dealt_script.STEPS):
        dealt_script.owner_asks(services, step)
        while not dealt_script.done(services, dealt_script.last_of(step)):
            _work(worker, ends)
    dealt_script.owner_gives_up(services)
    worker.release_all()
    say("done")


def creation(services: Services, base: BaseModel, owner: str, say: Any) -> None:
    """A trainer's life that ends when the dealt run is created."""
    worker = build_worker(services, BASE, base, owner, SETTINGS)
    ends = time.monotonic() + _LIFE_S
    while not dealt_script.done(services, 0):
        _work(worker, ends)
    worker.release_all()
    say("done")


def saved(services: Services, base: BaseModel, owner: str, say: Any) -> None:
    """A trainer's life that ends when the run to publish has saved its weights."""
    worker = build_worker(services, BASE, base, owner, SETTINGS)
    ends = time.monotonic() + _LIFE_S
    while services.outcomes.first_open(publishing_script.RUN) is not None:
        _work(worker, ends)
    worker.release_all()


def _work(worker: TrainerWorker, ends: float) -> None:
    if not worker.step():
        time.sleep(0.005)
        if time.monotonic() > ends:
            raise TimeoutError("operations stay open")


ROLES = {"train": train, "edge": edge, "create": creation, "dealt": owner_and_trainer, "saved": saved}


def until_told(services: Services, base: BaseModel, owner: str, visibility_s: float) -> None:
    """A trainer as the task runs it, with its heartbeats: until SIGTERM."""
    die_with_parent()
    stop = stop_on_signals()
    settings = replace(twenty_runs.SETTINGS, visibility_s=visibility_s, heartbeat_s=visibility_s / 3)
    build_worker(services, BASE, base, owner, settings).run(stop)


def live(job: dict[str, Any], base: BaseModel, output: Path) -> None:
    """What the forked process does."""
    if job["role"] == "until-told":
        until_told(rooms(job), base, job["owner"], job["visibility_s"])
        return
    file = output.open("a", buffering=1)
    killer = Killer(job.get("kill_at"), after=job.get("after", False), stage=job.get("kill_stage"))
    opened = open_folder(Path(job["folder"]))
    ports = opened.ports
    if "table" in job:
        os.environ |= job["environment"]
        ports = replace(ports, items=DynamoDbItems(aws_client("dynamodb"), job["table"]))
    services = rewired(opened, killer.ports(ports))
    private_steps.noisy_mean = dealt_steps.noisy_mean = killer.drawing(private_steps.noisy_mean)
    if job["role"] == "publish":
        publishing_script.publish(services, Path(job["folder"]), killer)
    else:
        ROLES[job["role"]](services, base, job["owner"], lambda line: file.write(f"{line}\n"))
    file.write(f"calls {killer.calls}\n")


def rooms(job: dict[str, Any]) -> Services:
    """Of a data directory, or of the AWS that an environment names; with the job's lease."""
    if "environment" in job:
        os.environ |= job["environment"]
        services = cloud_services(read_cloud_settings())
    else:
        services = open_folder(Path(job["folder"]))
    return wire(services.ports, services.models, lease_s=job["lease_s"])


def forked(job: dict[str, Any], base: BaseModel, output: Path) -> int:
    """The pid of a process that does the job."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            live(job, base, output)
            code = 0
        finally:
            os._exit(code)
    return pid


def serve(base: BaseModel) -> None:
    output = Path(tempfile.mkdtemp()) / "said"
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            status = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
            print(json.dumps({"status": status}), flush=True)  # noqa: T201
            continue
        output.write_text("")
        pid = forked(job, base, output)
        if job["role"] == "until-told":
            print(json.dumps({"pid": pid}), flush=True)  # noqa: T201
            continue
        if "kill_after_s" in job:
            time.sleep(job["kill_after_s"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = output.read_text().splitlines()
        print(json.dumps({"status": status, "said": said}), flush=True)  # noqa: T201


def _warm_up(folder: Path) -> None:
    """What is loaded by its first use is loaded before the fork."""
    services = open_folder(folder)
    wrapped = services.ports.keyring.wrap(b"k" * 32, {"warm": "up"})
    services.ports.keyring.unwrap(wrapped, {"warm": "up"})
    epsilon({"run": (1.0, 1)}, 1e-5)
    boto3.client("dynamodb", region_name="none")  # what the SDK reads of its files stays with its session
    amplified.epsilon(amplified.DealtGaussian(24, 0.25, 24, 4.0), 10, 1e-5)
    for port in (services.ports.bell, services.ports.queues, services.ports.items):
        port.close()  # type: ignore[attr-defined]


def main() -> None:
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread would be lost in a fork
    base = BaseModel.load(sys.argv[1], name=BASE)
    _warm_up(Path(sys.argv[2]))
    assert threading.active_count() == 1, threading.enumerate()
    print("ready", flush=True)  # noqa: T201
    serve(base)


if __name__ == "__main__":
    main()
