"""The drain loop: hears doorbells, takes leases, applies each run's log in order of seq.

One thread computes; a second one extends leases and messages. The order of every step is: the durable
thing first, the acknowledgement after it. The process may be killed at any instruction: what was
acknowledged is in the log, and the next holder restores the last snapshot and replays from there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from tensafe.contracts.errors import InvalidRequest, TensafeError, Unavailable
from tensafe.correlation import correlated
from tensafe.metrics.port import Metric
from tensafe.operations import layout
from tensafe.operations.doorbell import request_id_in, train_queue
from tensafe.operations.leases import LeaseLost
from tensafe.operations.records import Failure, Operation, StreamState
from tensafe.operations.streams import now_ms
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Item, Message, StaleReceipt
from tensafe_gpu.trainer.execute import Executed, Executor
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.hot_runs import HotRuns
from tensafe_gpu.trainer.looks import Looks
from tensafe_gpu.trainer.private_steps import PrivateSteps
from tensafe_gpu.trainer.restoring import Restorer
from tensafe_gpu.trainer.snapshots import Prepared, Snapshots
from tensafe_gpu.trainer.worker_log import log_done, log_failure
from tensafe_gpu.trainer.worker_settings import WorkerSettings

__all__ = ["TrainerWorker", "WorkerSettings"]

log = logging.getLogger(__name__)

_PAGE: Final = 32
_LOOKS_BEHIND: Final = 10
"""Times that what lies behind a missing operation is looked at before that is overdue."""
_BUSY_VISIBILITY_S: Final = 5.0
_STORAGE_PAUSE_S: Final = 1.0


class TrainerWorker:
    """Serves one base model's training queue. `owner` names this process incarnation, never reused."""

    def __init__(
        self,
        services: Services,
        base_model: str,
        executor: Executor,
        snapshots: Snapshots,
        private_steps: PrivateSteps,
        *,
        owner: str,
        settings: WorkerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._queue = train_queue(base_model)
        self._executor = executor
        self._snapshots = snapshots
        self._restorer = Restorer(services, executor, snapshots, private_steps)
        self._owner = owner
        self._settings = (settings or WorkerSettings()).for_lease(services.leases.lease_s)
        self._stop = threading.Event()
        self._busy = False
        self._clock = clock
        topic, every_s = layout.submitted_topic(self._queue), self._settings.look_every_s
        self._looks = Looks(services.ports.bell, topic, every_s, clock)
        self._hot = HotRuns(
            services,
            self._queue,
            visibility_s=self._settings.visibility_s,
            heartbeat_s=self._settings.heartbeat_s,
            clock=clock,
        )

    @property
    def busy(self) -> bool:
        """Whether a run is being restored or an operation applied; for other threads."""
        return self._busy

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set, then snapshot and release everything.

        The operation at hand is the last one that begins.
        """
        self._stop = stop
        bell = self._services.ports.bell
        topic = layout.submitted_topic(self._queue)
        with self._hot.kept():
            try:
                while not stop.is_set():
                    seen = bell.count(topic)
                    try:
                        worked = self.step()
                    except TensafeError:
                        log.exception("storage failed; trying again")
                        worked = stop.wait(_STORAGE_PAUSE_S)
                    if not worked:
                        bell.wait(topic, since=seen, timeout_s=self._settings.look_every_s)
            finally:
                self.release_all()

    def step(self) -> bool:
        """Take new runs, apply some operations of each, retire idle ones; whether any work was done.

        While some runs have work, the queue and those that had none for a while are looked at once a second
        (`Looks`).
        """
        try:
            runs = self._looks.again(self._hot.all())
            if runs is None:
                self._receive()
                runs = self._hot.all()
            return self._looks.worked([run for run in runs if self._guarded(run)])
        finally:
            self._busy = False

    def release_all(self) -> None:
        """Snapshot and release every run; their messages go back for whoever comes next."""
        for run in self._hot.all():
            self._guarded_retire(run)

    # Taking runs

    def _receive(self) -> None:
        held_bytes = sum(run.size_bytes for run in self._hot.all())
        room = self._settings.max_hot_runs - len(self._hot)
        if room <= 0 or held_bytes >= self._settings.max_hot_bytes:
            self._make_room()
            return
        if held_bytes > self._settings.max_hot_bytes // 2:
            room = 1  # how large a run is shows when it has been restored
        asked = min(10, room)
        messages = self._services.ports.queues.receive(
            self._queue, visibility_s=self._settings.visibility_s, max_messages=asked
        )
        if len(messages) == asked:
            self._looks.more_wait()
        for message in messages:
            if self._stop.is_set():  # a restored run may take half a minute
                self._pass_on(message)
                continue
            with correlated(request_id_in(message.body)):
                try:
                    self._adopt(message)
                except Exception as error:  # noqa: BLE001 - one message must not keep the others waiting
                    log_failure("message handed back after %s", error, str(message.body.get("stream")))
                    self._hand_back(message, _BUSY_VISIBILITY_S)

    def _make_room(self) -> None:
        """Retire the run that has been idle longest if another one waits for its place."""
        idlest = min(self._hot.all(), key=lambda run: run.last_worked_s)
        if time.monotonic() - idlest.last_worked_s < self._settings.idle_snapshot_s:
            return
        if self._others_wait():
            self._retire(idlest)

    def _others_wait(self) -> bool:
        """Whether the queue has more messages than those in hand; also where it does not say.

        The runs that are held go on meanwhile: they need no queue.
        """
        try:
            return self._services.ports.queues.depth(self._queue) > len(self._hot)
        except Unavailable:
            log.warning("the queue does not say whether others wait", extra={"queue": self._queue})
            return True

    def _guarded_retire(self, run: HotRun) -> None:
        try:
            self._retire(run)
        except Exception as error:  # noqa: BLE001 - the others are retired all the same
            self._give_up(run, error)

    def _adopt(self, message: Message) -> None:
        """Take the run that the message rings for, unless there is nothing to do, or nothing to be done."""
        services, stream_id = self._services, str(message.body["stream"])
        if stream_id in self._hot:
            self._hot.renew(stream_id, message)
            return
        services.doorbell.heard(stream_id)  # before anything is looked at
        stream = services.streams.find(stream_id)
        if stream is None or stream.state is not StreamState.ACTIVE:
            services.dead_letters.fail_waiting(stream_id)
            services.ports.queues.delete(self._queue, message.receipt)
            return
        waiting = services.outcomes.first_open(stream_id)
        if waiting is None or services.dead_letters.bury_poison(stream, waiting):
            services.ports.queues.delete(self._queue, message.receipt)
            return
        lease = services.leases.claim(stream_id, self._owner, queue=self._queue, receipt=message.receipt)
        if lease is None:
            self._hand_back(message, _BUSY_VISIBILITY_S)
            return
        run = HotRun(stream, lease, message, last_worked_s=time.monotonic())
        self._hot.add(run)
        self._busy = True
        try:
            self._restorer.restore(run)
            services.leases.restored(lease)
        except LeaseLost as error:
            self._drop(run, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is handed back and counted
            self._give_up(run, error)

    # Applying operations

    def _guarded(self, run: HotRun) -> bool:
        """Drain or retire one run; a failure of it never reaches the others."""
        try:
            if run.lost:
                raise LeaseLost("the lease of this run is gone")
            if self._drain(run):
                return True
            self._retire_if_idle(run)
        except (LeaseLost, ConditionFailed) as error:
            self._drop(run, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is handed back and counted
            self._give_up(run, error)
        return False

    def _drain(self, run: HotRun) -> bool:
        found = self._services.outcomes.ahead(run.stream.stream_id, run.next_seq, run.ahead)
        if not found:
            run.ahead = 1
            return self._missing(run)
        # Mostly one comes alone; where more wait, few reads bring them all.
        run.ahead = min(2 * run.ahead, _PAGE) if len(found) == run.ahead else 1
        worked = False
        for operation, payload in found:
            if self._stop.is_set():
                break
            worked = True
            if not operation.state.final and not self._apply(run, operation, payload):
                break  # it was cancelled meanwhile: look at the log again
            run.next_seq = operation.seq + 1
            run.last_worked_s = time.monotonic()
            if run.lost:
                raise LeaseLost("the lease of this run is gone")
            self._snapshot_if_due(run)
        return worked

    def _apply(self, run: HotRun, operation: Operation, stored: Item | None) -> bool:
        """Run one operation and make its outcome durable; False if it was cancelled before it began."""
        span = self._services.tracer.span(
            "train",
            operation.traceparent,
            stream=operation.stream_id,
            seq=operation.seq,
            kind=operation.kind.value,
        )
        with correlated(operation.request_id, operation.traceparent), span:
            return self._applied(run, operation, stored)

    def _applied(self, run: HotRun, operation: Operation, stored: Item | None) -> bool:
        outcomes, began = self._services.outcomes, time.monotonic()
        run.begun = outcomes.begun(operation, owner=self._owner)  # also if the answer to `start` is lost
        try:
            operation = outcomes.start(operation, [run.lease.check], owner=self._owner)
        except ConditionFailed as error:
            if error.index == 0:
                return False
            raise
        self._busy = True
        payload = outcomes.payload(run.stream, operation.seq, operation, stored)
        try:
            executed = self._executor.execute(run, operation, payload)
        except TensafeError as error:
            if error.category != "user":
                raise
            outcomes.fail(run.stream, operation, Failure.of(error), [run.lease.check])
            self._wake_sampler(self._executor.waiting_sampler(operation, payload))
            self._ended(operation, began, error.code)
            return True
        prepared = self._snapshots.prepare(run, operation.seq) if executed.with_snapshot else None
        self._commit(run, operation, executed, prepared)
        if prepared is not None:
            run.next_seq = operation.seq + 1
            self._snapshots.applied(run, prepared)
        self._wake_sampler(executed.wakes_sampler)
        self._ended(operation, began, "completed")
        return True

    def _ended(self, operation: Operation, began: float, outcome: str) -> None:
        log_done(operation, began, outcome)
        self._services.metrics.add(Metric.OPERATIONS_ENDED, kind=operation.kind.value, outcome=outcome)

    def _wake_sampler(self, session_id: str | None) -> None:
        """Ring for a sample that was submitted together with this save of its weights."""
        sampler = self._services.streams.find(session_id) if session_id else None
        waiting = self._services.outcomes.first_open(sampler.stream_id) if sampler else None
        if sampler is not None and waiting is not None:
            self._services.doorbell.ring(sampler, waiting.seq)

    def _commit(
        self, run: HotRun, operation: Operation, executed: Executed, prepared: Prepared | None
    ) -> None:
        writes = [run.lease.check, *executed.writes, *(prepared.writes if prepared else ())]
        try:
            self._services.outcomes.complete(run.stream, operation, executed.result, writes)
        except ConditionFailed:
            # Nothing of the transaction was applied, so nothing refers to these.
            if prepared is not None:
                self._snapshots.discard(prepared)
            if executed.artifact is not None:
                self._services.artifacts.delete(executed.artifact)
            raise

    def _missing(self, run: HotRun) -> bool:
        """The next seq has not arrived. Once one behind it has waited for it too long, fail that one."""
        now_s = self._clock()
        if now_s - run.looked_behind_s < self._settings.missing_seq_s / _LOOKS_BEHIND:
            return False
        run.looked_behind_s = now_s
        behind = self._services.outcomes.operations(run.stream.stream_id, first_seq=run.next_seq, limit=1)
        if not behind:
            return False
        (waiting,) = behind
        if waiting.seq == run.next_seq:
            return self._drain(run)  # it has just arrived
        waited_s = (now_ms() - waiting.created_ms) / 1000
        if waited_s < self._settings.missing_seq_s:
            return False
        error = InvalidRequest(
            f"seq_id {run.next_seq} has not arrived within {self._settings.missing_seq_s:.0f} s, so seq_id "
            f"{waiting.seq} cannot run in order; it was not applied",
            field="seq_id",
        )
        services = self._services
        conditions = [run.lease.check]
        if not services.submissions.close_gap(run.stream, run.next_seq, waiting.seq - 1, error, conditions):
            services.leases.extend(run.lease)  # raises if that is why; else one of them has arrived
            return True
        if not waiting.state.final:
            try:
                services.outcomes.fail(run.stream, waiting, Failure.of(error), conditions)
            except ConditionFailed as lost:
                if lost.index > 0:
                    raise
        return True

    # Snapshots, idleness, release

    def _snapshot_if_due(self, run: HotRun) -> None:
        behind = run.next_seq - 1 - run.snapshot_seq
        age_s = time.monotonic() - run.last_snapshot_s
        if behind >= self._settings.snapshot_every_operations or (
            behind and age_s >= self._settings.snapshot_every_s
        ):
            self._snapshots.save(run)

    def _retire_if_idle(self, run: HotRun) -> None:
        idle_s = time.monotonic() - run.last_worked_s
        if idle_s >= self._settings.idle_snapshot_s and run.dirty:
            self._snapshots.save(run)
        if idle_s >= self._settings.idle_release_s:
            self._retire(run)

    def _retire(self, run: HotRun) -> None:
        """Snapshot, release, look at the log once more, and only then let the message go.

        Whoever writes an operation looks at the lease afterwards (`Doorbell.ring`): so either it is
        seen here, or it finds the lease free and sends a message of its own.
        """
        try:
            self._snapshots.save(run)
            self._hot.forget(run)
            self._services.leases.release(run.lease)
        except (LeaseLost, ConditionFailed) as error:
            self._drop(run, error)
            return
        if self._services.outcomes.first_open(run.stream.stream_id) is not None:
            # A new one: handing this one back would count as a receive, and three end in the dead queue.
            self._services.doorbell.released(run.stream)
        self._services.ports.queues.delete(self._queue, run.message.receipt)

    def _drop(self, run: HotRun, error: TensafeError) -> None:
        """The run is not ours any more, or may not be: forget it, and let it go if it still is."""
        kind = type(error).__name__
        self._services.metrics.add(Metric.LEASE_LOST)
        log.warning("run dropped: %s", kind, extra={"stream": run.stream.stream_id})
        self._let_go(run, kind)
        self._hand_back(run.message, _BUSY_VISIBILITY_S)

    def _give_up(self, run: HotRun, error: Exception) -> None:
        """An unexpected failure: the run is handed back, and the try of its operation stays counted.

        Storage that does not answer is no operation's fault: then the try is not counted.
        """
        log_failure("run handed back after %s", error, run.stream.stream_id)
        if isinstance(error, Unavailable):
            self._let_go_once_possible(run, error)
            self._hand_back(run.message, self._settings.storage_retry_s)
            return
        self._let_go(run, type(error).__name__)
        self._hand_back(run.message, self._settings.retry_s * run.message.receives)

    def _let_go_once_possible(self, run: HotRun, error: Unavailable) -> None:
        """Until storage answers again there is nothing else to do."""
        self._hot.forget(run)
        while True:
            try:
                if run.begun is not None:
                    self._services.outcomes.put_back(run.begun, counted=False)
                self._services.leases.abandon(run.lease, error.code, counted=False)
                return
            except LeaseLost:
                return
            except TensafeError:
                log.warning("storage does not answer", extra={"stream": run.stream.stream_id})
                if self._stop.wait(self._settings.storage_retry_s):
                    return

    def _let_go(self, run: HotRun, reason: str) -> None:
        self._hot.forget(run)
        try:
            self._services.leases.abandon(run.lease, reason)
        except TensafeError:
            log.info("the lease was gone already", extra={"stream": run.stream.stream_id})

    def _pass_on(self, message: Message) -> None:
        """For another trainer, as a new one: handing it back would count as a receive, as in `_retire`."""
        stream_id, queues = message.body.get("stream"), self._services.ports.queues
        try:
            if not isinstance(stream_id, str):
                raise InvalidRequest("not ours")
            queues.send(self._queue, message.body, group=stream_id)
            queues.delete(self._queue, message.receipt)
        except TensafeError:
            self._hand_back(message, 0)

    def _hand_back(self, message: Message, visibility_s: float) -> None:
        try:
            self._services.ports.queues.extend(self._queue, message.receipt, visibility_s)
        except StaleReceipt:
            return  # its visibility ran out: it is waiting, or somebody else has it
        except TensafeError:
            log.exception("message not handed back: it comes back when its time is up")
