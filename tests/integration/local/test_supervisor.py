"""The supervisor over real processes: restarts, what the dead held, clean and violent ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tensafe.local.composition import local_services
from tensafe.local.settings import LocalSettings
from tensafe.operations import layout
from tensafe.operations.doorbell import train_queue
from tensafe.operations.records import OpKind, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tests.integration.local.conftest import MODEL, Supervised, until

Supervise = Callable[..., Supervised]
WAIT = {"name": "waiter", "behaviour": ["wait"]}


def test_a_child_that_dies_is_restarted_with_a_new_owner(supervise: Supervise) -> None:
    service = supervise(WAIT)
    service.ready()
    owner, facts = service.announced("waiter")
    os.kill(facts["pid"], signal.SIGKILL)
    killed_at = time.monotonic()
    again, fresh = service.announced("waiter", besides={owner})
    assert time.monotonic() - killed_at < 5
    assert again != owner
    assert fresh["pid"] != facts["pid"]
    assert service.process.stdout is not None
    assert "killed by SIGKILL" in service.process.stdout.readline()


def test_a_death_takes_the_children_of_the_child_along(supervise: Supervise) -> None:
    service = supervise({"name": "family", "behaviour": ["family"]})
    service.ready()
    owner, facts = service.announced("family")
    os.kill(facts["pid"], signal.SIGKILL)
    service.announced("family", besides={owner})
    assert not psutil.pid_exists(facts["group"])
    assert not psutil.pid_exists(facts["own_session"])


def test_leases_and_messages_of_a_dead_worker_come_back_at_once(data_dir: Path, supervise: Supervise) -> None:
    queue = train_queue(MODEL.name)
    with local_services(LocalSettings(data_dir=data_dir, models=(MODEL,), lease_s=600)) as services:
        runs = [submit_noop(services, f"s:train:{number}") for number in range(2)]
        service = supervise({"name": "trainer", "behaviour": ["hold", MODEL.name], "queue": queue})
        owner, facts = service.announced("trainer")
        assert sorted(facts["runs"]) == sorted(runs)
        claimed = facts["runs"][0]
        assert services.leases.held(claimed, margin_s=10)
        os.kill(facts["pid"], signal.SIGKILL)
        killed_at = time.monotonic()
        again, fresh = service.announced("trainer", besides={owner})
        # Both messages were hidden for 600 s, one of them received and not yet claimed.
        assert time.monotonic() - killed_at < 10
        assert sorted(fresh["runs"]) == sorted(runs)
        assert services.ports.items.query(layout.worker_partition(owner)) == []
        until(lambda: [worker.owner for worker in services.workers.list()] == [again])


def test_what_a_killed_supervisor_left_is_given_back_at_the_next_start(
    data_dir: Path, supervise: Supervise
) -> None:
    queue = train_queue(MODEL.name)
    child = {"name": "trainer", "behaviour": ["hold", MODEL.name], "queue": queue}
    with local_services(LocalSettings(data_dir=data_dir, models=(MODEL,), lease_s=600)) as services:
        runs = [submit_noop(services, f"s:train:{number}") for number in range(2)]
        service = supervise(child)
        owner, _ = service.announced("trainer")
        service.process.kill()
        until(lambda: not service.processes())
        again = supervise(child)
        _, facts = again.announced("trainer", besides={owner})
        assert sorted(facts["runs"]) == sorted(runs)
        assert services.ports.items.query(layout.worker_partition(owner)) == []


def test_sigkill_of_the_supervisor_leaves_no_orphan(supervise: Supervise) -> None:
    service = supervise(WAIT, {"name": "deaf", "behaviour": ["deaf"]})
    service.ready()
    assert len(service.processes()) == 2
    service.process.kill()
    until(lambda: not service.processes(), timeout_s=5)


def test_left_over_processes_of_a_killed_supervisor_end_at_the_next_start(supervise: Supervise) -> None:
    service = supervise({"name": "family", "behaviour": ["family"]})
    service.ready()
    owner, facts = service.announced("family")
    service.process.kill()
    service.process.wait(timeout=10)
    until(lambda: not psutil.pid_exists(facts["pid"]))
    assert psutil.pid_exists(facts["own_session"])  # nothing watched it: this is what the start cleans up
    again = supervise({"name": "family", "behaviour": ["family"]})
    again.announced("family", besides={owner})
    assert not psutil.pid_exists(facts["own_session"])


def test_ctrl_c_stops_all_within_seconds(supervise: Supervise) -> None:
    service = supervise(WAIT, {"name": "second", "behaviour": ["family"]})
    service.ready()
    service.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, err = service.end()
    assert (code, err) == (0, "")
    assert time.monotonic() - began < 5
    assert service.processes() == []
    assert (service.data_dir / "owners").read_text() == ""


def test_sigterm_stops_all_and_kills_the_deaf_after_the_grace(supervise: Supervise) -> None:
    service = supervise(WAIT, {"name": "deaf", "behaviour": ["deaf"]}, stop_grace_s=1.0)
    service.ready()
    service.process.terminate()
    began = time.monotonic()
    assert service.end()[0] == 0
    assert 0.9 < time.monotonic() - began < 6
    assert service.processes() == []


def test_a_second_ctrl_c_kills_at_once(supervise: Supervise) -> None:
    service = supervise({"name": "deaf", "behaviour": ["deaf"]}, stop_grace_s=60.0)
    service.ready()
    service.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert service.process.poll() is None
    service.process.send_signal(signal.SIGINT)
    assert service.end(timeout_s=10)[0] == 0
    assert service.processes() == []


def test_a_second_supervisor_on_the_same_directory_is_refused(supervise: Supervise) -> None:
    first = supervise(WAIT)
    first.ready()
    code, _, err = supervise(WAIT).end()
    assert code == 1
    assert f"another supervisor (process {first.process.pid})" in err
    assert first.process.poll() is None
    assert len(first.processes()) == 1


def test_a_crash_loop_before_ready_ends_the_start_and_says_why(supervise: Supervise) -> None:
    service = supervise(WAIT, {"name": "broken", "behaviour": ["fail", "the model cannot be loaded"]})
    code, out, err = service.end()
    assert code == 1
    assert "broken died 3 times before the service was ready (exit code 3)" in err
    assert "ERROR: the model cannot be loaded (OSError)" in err
    assert not any(line.startswith("ready") for line in out.splitlines())
    assert service.processes() == []


def test_a_child_that_cannot_be_started_again_is_tried_until_it_can(supervise: Supervise) -> None:
    service = supervise(WAIT, {"name": "second", "behaviour": ["wait"]})
    service.ready()
    owner, facts = service.announced("waiter")
    log = service.data_dir / "logs" / "waiter.log"
    log.rename(log.with_suffix(".aside"))
    log.mkdir()  # nothing can be appended to a folder
    os.kill(facts["pid"], signal.SIGKILL)
    assert service.process.stdout is not None
    assert "killed by SIGKILL" in service.process.stdout.readline()
    assert "cannot be started" in service.process.stdout.readline()
    log.rmdir()
    service.announced("waiter", besides={owner})
    assert len(service.processes()) == 2


def test_a_worker_that_is_silent_is_killed_and_one_that_announces_itself_is_not(supervise: Supervise) -> None:
    service = supervise(
        {"name": "silent", "behaviour": ["hang"]}, {"name": "busy", "behaviour": ["hang", "again"]}
    )
    service.ready()
    busy, _ = service.announced("busy")
    silent, _ = service.announced("silent")
    assert service.process.stdout is not None
    assert "silent does not respond any more; killing it" in service.process.stdout.readline()
    assert "silent: killed by SIGKILL" in service.process.stdout.readline()
    service.announced("silent", besides={silent})
    assert [path.name for path in (service.data_dir / "announced").glob("busy-*")] == [busy]


def test_the_log_of_a_child_that_lives_on_is_rotated(supervise: Supervise) -> None:
    service = supervise({"name": "chatter", "behaviour": ["chatter", "17"]})
    service.ready()
    owner, _ = service.announced("chatter")
    log = service.data_dir / "logs" / "chatter.log"
    until(lambda: log.with_name("chatter.log.1").exists() and log.stat().st_size < 2**20)
    lines = log.with_name("chatter.log.1").read_text() + log.read_text()
    assert set(lines.splitlines()) == {"x" * 1023}
    assert [path.name for path in (service.data_dir / "announced").glob("chatter-*")] == [owner]


def test_a_death_on_a_full_disk_does_not_end_the_service(supervise: Supervise) -> None:
    service = supervise(WAIT)
    service.ready()
    owner, facts = service.announced("waiter")
    unwritable = service.data_dir / "owners.new"
    unwritable.mkdir()  # the list of owners cannot be written anew
    os.kill(facts["pid"], signal.SIGKILL)
    again, _ = service.announced("waiter", besides={owner})
    assert service.process.poll() is None
    assert (service.data_dir / "owners").read_text().split() == [owner, again]
    unwritable.rmdir()
    until(lambda: (service.data_dir / "owners").read_text().split() == [again])


def test_a_store_that_fails_while_readiness_is_asked_does_not_end_the_start(
    data_dir: Path, supervise: Supervise
) -> None:
    (data_dir / "failing").touch()
    supervise(WAIT).ready()
    assert not (data_dir / "failing").exists()


def test_children_get_settings_and_nothing_else_of_the_environment(supervise: Supervise) -> None:
    service = supervise(WAIT)
    owner, facts = service.announced("waiter")
    environment = facts["environment"]
    assert environment["TENSAFE_OWNER"] == owner
    assert environment["TENSAFE_SUPERVISOR_PID"] == str(service.process.pid)
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    log = service.data_dir / "logs" / "waiter.log"
    assert log.stat().st_mode & 0o777 == 0o600


def submit_noop(services: Services, run_id: str) -> str:
    record, creation = services.streams.creation(run_id, "acme", StreamKind.RUN, MODEL.name)
    services.submissions.create(record, creation, Submission(0, OpKind.NOOP, b"{}"))
    return run_id
