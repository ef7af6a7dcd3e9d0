"""What every `Queues` adapter must do.

A subclass supplies the fixture `queues` with the queues of SPECS, empty; `tick_s`, a visibility that
the platform keeps exactly enough to wait for (SQS counts whole seconds); and `depth_lag_s`, how long its
counts may lag behind.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import cast

import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.ports import (
    MESSAGE_MAX_BYTES,
    VISIBILITY_MAX_S,
    JsonValue,
    Message,
    Queues,
    QueueSpec,
    StaleReceipt,
)

FIFO, STANDARD = "jobs", "samples"
SPECS = (QueueSpec(FIFO, fifo=True, max_receives=2), QueueSpec(STANDARD, fifo=False, max_receives=2))
LONG_S = 60.0


def take(queues: Queues, queue: str, *, visibility_s: float = LONG_S, wait_s: float = 2.0) -> Message:
    """The next message, which must be there."""
    (message,) = queues.receive(queue, visibility_s=visibility_s, wait_s=wait_s)
    return message


def take_and_delete(queues: Queues, queue: str) -> JsonValue:
    message = take(queues, queue)
    queues.delete(queue, message.receipt)
    return message.body["n"]


def nothing(queues: Queues, queue: str) -> bool:
    return queues.receive(queue, visibility_s=LONG_S) == []


class QueuesSuite:
    tick_s = 0.15
    depth_lag_s = 0.0

    def settled_depth(self, queues: Queues, queue: str, expected: int) -> int:
        """The depth, once it is what is expected or has had the time to be."""
        deadline = time.monotonic() + self.depth_lag_s
        while (depth := queues.depth(queue)) != expected and time.monotonic() < deadline:
            time.sleep(1)
        return depth

    def group(self, queue: str) -> str | None:
        return "g" if queue == FIFO else None

    def give_up(self, queues: Queues, queue: str) -> None:
        """Receive the message that is there until it has died."""
        for _ in range(2):
            queues.extend(queue, take(queues, queue).receipt, 0)
        assert nothing(queues, queue)

    # Sending and receiving

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_a_message_arrives_whole_and_is_hidden(self, queues: Queues, queue: str) -> None:
        body: dict[str, JsonValue] = {"text": "naïve 😀 \u0000\uffff", "deep": {"list": [1, None, 0.1]}}
        queues.send(queue, body, group=self.group(queue))
        message = take(queues, queue)
        assert (message.queue, message.body, message.receives) == (queue, body, 1)
        assert message.group == self.group(queue)
        assert nothing(queues, queue)
        assert self.settled_depth(queues, queue, 1) == 1

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_a_deleted_message_is_gone(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        message = take(queues, queue, visibility_s=self.tick_s)
        queues.delete(queue, message.receipt)
        queues.delete(queue, message.receipt)
        assert self.settled_depth(queues, queue, 0) == 0
        time.sleep(self.tick_s * 1.2)
        assert nothing(queues, queue)

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_a_message_that_is_not_deleted_comes_again(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        first = take(queues, queue, visibility_s=self.tick_s)
        again = take(queues, queue, wait_s=self.tick_s * 4)
        assert (again.body, again.receives) == ({"n": 1}, 2)
        assert again.receipt != first.receipt

    def test_a_batch_has_ten_messages_at_most(self, queues: Queues) -> None:
        for n in range(12):
            queues.send(STANDARD, {"n": n})
        first = queues.receive(STANDARD, visibility_s=LONG_S, max_messages=10, wait_s=1)
        seen = [message.body["n"] for message in first]
        while batch := queues.receive(STANDARD, visibility_s=LONG_S, max_messages=10, wait_s=self.tick_s):
            assert 1 <= len(batch) <= 10
            seen += [message.body["n"] for message in batch]
        assert sorted(map(str, seen)) == sorted(map(str, range(12)))

    def test_what_receive_refuses(self, queues: Queues) -> None:
        for visibility_s in (0, -1, VISIBILITY_MAX_S + 1, float("nan")):
            with pytest.raises(InvalidRequest):
                queues.receive(FIFO, visibility_s=visibility_s)
        for max_messages in (0, 11):
            with pytest.raises(InvalidRequest):
                queues.receive(FIFO, visibility_s=1, max_messages=max_messages)
        for wait_s in (-1, 20.5):
            with pytest.raises(InvalidRequest):
                queues.receive(FIFO, visibility_s=1, wait_s=wait_s)

    def test_what_send_refuses(self, queues: Queues) -> None:
        with pytest.raises(InvalidRequest):
            queues.send(FIFO, {})
        with pytest.raises(InvalidRequest):
            queues.send(FIFO, {}, group="g", delay_s=1)
        with pytest.raises(InvalidRequest):
            queues.send(STANDARD, {}, group="g")
        for label in ("", "with space", "é", "x" * 129):
            with pytest.raises(InvalidRequest):
                queues.send(FIFO, {}, group=label)
            with pytest.raises(InvalidRequest):
                queues.send(FIFO, {}, group="g", dedup_id=label)
        for delay_s in (-1, 901):
            with pytest.raises(InvalidRequest):
                queues.send(STANDARD, {}, delay_s=delay_s)
        with pytest.raises(InvalidRequest):
            queues.send(STANDARD, {"nan": float("nan")})
        assert nothing(queues, FIFO)
        assert nothing(queues, STANDARD)

    def test_message_size_at_the_boundary(self, queues: Queues) -> None:
        room = MESSAGE_MAX_BYTES - len('{"t":""}')
        with pytest.raises(InvalidRequest):
            queues.send(STANDARD, {"t": "x" * (room + 1)})
        with pytest.raises(InvalidRequest):
            queues.send(STANDARD, {"t": "é" * (room // 6 + 1)})
        queues.send(STANDARD, {"t": "x" * room})
        assert take(queues, STANDARD).body == {"t": "x" * room}

    def test_a_queue_that_was_not_declared(self, queues: Queues) -> None:
        with pytest.raises(InvalidRequest):
            queues.send("unknown", {})
        with pytest.raises(InvalidRequest):
            queues.receive("unknown", visibility_s=1)
        with pytest.raises(InvalidRequest):
            queues.extend("unknown", "receipt", 1)
        with pytest.raises(InvalidRequest):
            queues.delete("unknown", "receipt")
        with pytest.raises(InvalidRequest):
            queues.depth("unknown")
        with pytest.raises(InvalidRequest):
            queues.redrive("unknown")

    # FIFO groups

    def test_a_group_arrives_in_send_order(self, queues: Queues) -> None:
        for n in range(20):
            queues.send(FIFO, {"n": n}, group="g")
        assert [take_and_delete(queues, FIFO) for _ in range(20)] == list(range(20))

    def test_a_group_is_locked_while_a_message_is_in_flight(self, queues: Queues) -> None:
        for n in range(2):
            for group in ("a", "b"):
                queues.send(FIFO, {"n": n}, group=group)
        held = {message.group: message for message in (take(queues, FIFO), take(queues, FIFO))}
        assert {group: message.body for group, message in held.items()} == {"a": {"n": 0}, "b": {"n": 0}}
        assert nothing(queues, FIFO)
        queues.send(FIFO, {"n": 2}, group="a")
        assert nothing(queues, FIFO)
        queues.delete(FIFO, held["b"].receipt)
        after = take(queues, FIFO)
        assert (after.group, after.body) == ("b", {"n": 1})
        assert nothing(queues, FIFO)

    def test_what_comes_again_keeps_its_place(self, queues: Queues) -> None:
        for n in range(3):
            queues.send(FIFO, {"n": n}, group="g")
        queues.extend(FIFO, take(queues, FIFO).receipt, 0)
        assert [take_and_delete(queues, FIFO) for _ in range(3)] == [0, 1, 2]

    def test_a_batch_keeps_the_order_of_each_group(self, queues: Queues) -> None:
        for n in range(6):
            queues.send(FIFO, {"n": n}, group=f"g{n % 3}")
        seen: dict[str | None, list[JsonValue]] = {}
        while batch := queues.receive(FIFO, visibility_s=LONG_S, max_messages=10, wait_s=self.tick_s):
            for message in batch:
                seen.setdefault(message.group, []).append(message.body["n"])
                queues.delete(FIFO, message.receipt)
        assert seen == {"g0": [0, 3], "g1": [1, 4], "g2": [2, 5]}

    def test_a_waiting_group_does_not_hold_up_others(self, queues: Queues) -> None:
        for n in range(30):
            queues.send(FIFO, {"n": n}, group="busy")
        queues.send(FIFO, {"n": 99}, group="late")
        seen = {take(queues, FIFO).group for _ in range(2)}
        assert seen == {"busy", "late"}

    # Visibility and receipts

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_extend_hides_for_longer(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        message = take(queues, queue, visibility_s=self.tick_s * 2)
        queues.extend(queue, message.receipt, LONG_S)
        time.sleep(self.tick_s * 2.4)
        assert nothing(queues, queue)
        queues.extend(queue, message.receipt, LONG_S)

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_extend_by_zero_hands_back_at_once(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        queues.extend(queue, take(queues, queue).receipt, 0)
        assert take(queues, queue).receives == 2

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_whoever_has_a_message_now_can_keep_it_and_finish(self, queues: Queues, queue: str) -> None:
        """Whatever an overtaken receipt does: the platform need not notice that."""
        queues.send(queue, {"n": 1}, group=self.group(queue))
        old = take(queues, queue, visibility_s=self.tick_s)
        new = take(queues, queue, wait_s=self.tick_s * 4)
        assert new.receipt != old.receipt
        with suppress(StaleReceipt):
            queues.extend(queue, old.receipt, LONG_S)
        queues.extend(queue, new.receipt, LONG_S)
        assert nothing(queues, queue)
        queues.delete(queue, old.receipt)
        queues.delete(queue, new.receipt)
        assert self.settled_depth(queues, queue, 0) == 0

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_what_was_handed_back_is_not_held(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        message = take(queues, queue)
        queues.extend(queue, message.receipt, 0)
        with pytest.raises(StaleReceipt):
            queues.extend(queue, message.receipt, LONG_S)
        assert take(queues, queue).receives == 2

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_receipts_of_nothing(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        message = take(queues, queue)
        queues.delete(queue, message.receipt)
        for receipt in (message.receipt, "", "nonsense", "1.nonsense", "9" * 30 + ".x", "\uff11.x"):
            with pytest.raises(StaleReceipt):
                queues.extend(queue, receipt, LONG_S)
            queues.delete(queue, receipt)

    def test_visibility_bounds(self, queues: Queues) -> None:
        queues.send(STANDARD, {"n": 1})
        message = take(queues, STANDARD, visibility_s=VISIBILITY_MAX_S)
        for visibility_s in (-1, VISIBILITY_MAX_S + 1, float("inf")):
            with pytest.raises(InvalidRequest):
                queues.extend(STANDARD, message.receipt, visibility_s)
        queues.extend(STANDARD, message.receipt, VISIBILITY_MAX_S)

    # Deduplication and delay

    def test_a_repeated_dedup_id_is_dropped(self, queues: Queues) -> None:
        queues.send(FIFO, {"n": 1}, group="g", dedup_id="same")
        queues.send(FIFO, {"n": 2}, group="g", dedup_id="same")
        queues.send(FIFO, {"n": 3}, group="g", dedup_id="other")
        assert [take_and_delete(queues, FIFO) for _ in range(2)] == [1, 3]
        queues.send(FIFO, {"n": 4}, group="h", dedup_id="h-1")
        assert take_and_delete(queues, FIFO) == 4
        queues.send(FIFO, {"n": 5}, group="g")
        queues.send(FIFO, {"n": 5}, group="g")
        assert [take_and_delete(queues, FIFO) for _ in range(2)] == [5, 5]

    def test_a_delayed_message_comes_later(self, queues: Queues) -> None:
        begin = time.monotonic()
        queues.send(STANDARD, {"n": 1}, delay_s=self.tick_s * 2)
        queues.send(STANDARD, {"n": 2})
        assert take(queues, STANDARD).body == {"n": 2}
        assert nothing(queues, STANDARD)
        assert take(queues, STANDARD, wait_s=self.tick_s * 8).body == {"n": 1}
        assert time.monotonic() - begin >= self.tick_s * 1.9

    # Dead letters

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_after_max_receives_a_message_dies(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        self.give_up(queues, queue)
        assert self.settled_depth(queues, queue, 0) == 0
        assert self.settled_depth(queues, f"{queue}-dead", 1) == 1
        letter = take(queues, f"{queue}-dead")
        assert letter.body == {"n": 1}
        assert letter.group == self.group(queue)

    def test_nothing_dies_out_of_a_dead_queue(self, queues: Queues) -> None:
        queues.send(STANDARD, {"n": 1})
        self.give_up(queues, STANDARD)
        letters = []
        for _ in range(5):
            letters.append(take(queues, f"{STANDARD}-dead"))
            queues.extend(f"{STANDARD}-dead", letters[-1].receipt, 0)
        receives = [letter.receives for letter in letters]
        assert receives == list(range(receives[0], receives[0] + 5))
        queues.delete(f"{STANDARD}-dead", take(queues, f"{STANDARD}-dead").receipt)
        assert self.settled_depth(queues, f"{STANDARD}-dead", 0) == 0

    def test_the_group_goes_on_without_its_dead(self, queues: Queues) -> None:
        for n in range(2):
            queues.send(FIFO, {"n": n}, group="g")
        for _ in range(2):
            message = take(queues, FIFO)
            assert message.body == {"n": 0}
            queues.extend(FIFO, message.receipt, 0)
        assert take(queues, FIFO).body == {"n": 1}
        assert take(queues, f"{FIFO}-dead").body == {"n": 0}

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_redrive_gives_new_receives(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group=self.group(queue))
        self.give_up(queues, queue)
        assert queues.redrive(queue) == 1
        assert self.settled_depth(queues, f"{queue}-dead", 0) == 0
        message = take(queues, queue)
        assert (message.body, message.receives, message.group) == ({"n": 1}, 1, self.group(queue))
        queues.extend(queue, message.receipt, 0)
        assert take(queues, queue).receives == 2

    def test_redrive_keeps_order_and_goes_behind_what_waits(self, queues: Queues) -> None:
        for n in range(3):
            queues.send(FIFO, {"n": n}, group="g")
            self.give_up(queues, FIFO)
        queues.send(FIFO, {"n": 3}, group="g")
        assert queues.redrive(FIFO, max_messages=2) == 2
        assert self.settled_depth(queues, f"{FIFO}-dead", 1) == 1
        assert [take_and_delete(queues, FIFO) for _ in range(3)] == [3, 0, 1]
        assert queues.redrive(FIFO) == 1
        assert take_and_delete(queues, FIFO) == 2
        assert queues.redrive(FIFO) == 0

    def test_redrive_leaves_letters_that_somebody_reads(self, queues: Queues) -> None:
        for n in range(2):
            queues.send(FIFO, {"n": n}, group="g")
            self.give_up(queues, FIFO)
        letter = take(queues, f"{FIFO}-dead")
        assert queues.redrive(FIFO) == 0
        queues.delete(f"{FIFO}-dead", letter.receipt)
        assert queues.redrive(FIFO) == 1

    def test_a_dead_queue_has_no_dead_queue(self, queues: Queues) -> None:
        with pytest.raises(InvalidRequest):
            queues.redrive(f"{FIFO}-dead")

    # Waiting

    def test_an_empty_receive_waits_no_longer_than_asked(self, queues: Queues) -> None:
        begin = time.monotonic()
        assert nothing(queues, FIFO)
        assert time.monotonic() - begin < self.tick_s * 2
        begin = time.monotonic()
        assert queues.receive(FIFO, visibility_s=1, wait_s=self.tick_s) == []
        assert self.tick_s * 0.9 <= time.monotonic() - begin < self.tick_s * 6

    def test_a_waiting_receive_hears_a_send(self, queues: Queues) -> None:
        sender = threading.Timer(self.tick_s, queues.send, (STANDARD, {"n": 1}))
        sender.start()
        begin = time.monotonic()
        assert take(queues, STANDARD, wait_s=15).body == {"n": 1}
        assert time.monotonic() - begin < self.tick_s + 0.5
        sender.join()

    @pytest.mark.parametrize("freed_by", ["delete", "extend", "visibility"])
    def test_a_waiting_receive_hears_that_a_group_is_free(self, queues: Queues, freed_by: str) -> None:
        for n in range(2):
            queues.send(FIFO, {"n": n}, group="g")
        visibility_s = self.tick_s * 2 if freed_by == "visibility" else LONG_S
        held = take(queues, FIFO, visibility_s=visibility_s)
        free = {
            "delete": lambda: queues.delete(FIFO, held.receipt),
            "extend": lambda: queues.extend(FIFO, held.receipt, 0),
            "visibility": lambda: None,
        }[freed_by]
        timer = threading.Timer(self.tick_s, free)
        timer.start()
        begin = time.monotonic()
        assert take(queues, FIFO, wait_s=15).body == {"n": 1 if freed_by == "delete" else 0}
        assert time.monotonic() - begin < self.tick_s * 2 + 0.5
        timer.join()

    # Many at once

    def test_eight_threads_share_the_work_once_each(self, queues: Queues) -> None:
        for n in range(60):
            queues.send(FIFO, {"n": n}, group=f"g{n % 7}")
        lock = threading.Lock()
        done: list[tuple[str | None, int]] = []
        active: set[str | None] = set()

        def work(_: int) -> None:
            while True:
                batch = queues.receive(FIFO, visibility_s=LONG_S, wait_s=self.tick_s)
                if not batch and len(done) == 60:
                    return
                for message in batch:
                    with lock:
                        assert message.group not in active
                        active.add(message.group)
                        done.append((message.group, cast(int, message.body["n"])))
                    time.sleep(0.001)
                    with lock:
                        active.discard(message.group)
                    queues.delete(FIFO, message.receipt)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert sorted(n for _, n in done) == list(range(60))
        for group in range(7):
            mine = [n for name, n in done if name == f"g{group}"]
            assert mine == sorted(mine)
