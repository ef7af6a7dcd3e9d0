"""What every `Items` adapter must do. A subclass supplies the fixture `items`."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.ports import (
    ITEM_MAX_BYTES,
    TRANSACTION_MAX_BYTES,
    Check,
    ConditionFailed,
    Delete,
    Item,
    Items,
    JsonValue,
    Key,
    Put,
)


def sorts(items: list[Item]) -> list[str]:
    return [item.key.sort for item in items]


class ItemsSuite:
    def test_what_was_put_is_returned_whole(self, items: Items, partition: str) -> None:
        body: dict[str, JsonValue] = {
            "text": "naïve 😀 \u0000 \u2028",
            "numbers": [0, -1, 2**70, 0.1, 1e-300],
            "nested": {"none": None, "flag": True, "empty": {}},
        }
        sealed = bytes(range(256))
        assert items.get(Key(partition, "a")) is None
        items.write([Put(Key(partition, "a"), body, 0, sealed, expires_at_s=4_000_000_000)])
        assert items.get(Key(partition, "a")) == Item(
            Key(partition, "a"), 1, body, sealed, expires_at_s=4_000_000_000
        )

    def test_version_counts_writes_from_one(self, items: Items, partition: str) -> None:
        key = Key(partition, "a")
        for version in range(4):
            items.write([Put(key, {"v": version}, version)])
        item = items.get(key)
        assert item is not None
        assert (item.version, item.body) == (4, {"v": 3})
        items.write([Delete(key, 4)])
        items.write([Put(key, {}, 0)])
        again = items.get(key)
        assert again is not None
        assert again.version == 1

    def test_a_replace_keeps_nothing_of_the_old_item(self, items: Items, partition: str) -> None:
        key = Key(partition, "a")
        items.write([Put(key, {"old": 1}, 0, b"sealed", expires_at_s=4_000_000_000)])
        items.write([Put(key, {"new": 2}, 1)])
        assert items.get(key) == Item(key, 2, {"new": 2}, b"", None)

    @pytest.mark.parametrize("if_version", [0, 1, 3])
    def test_put_at_another_version_fails(self, items: Items, partition: str, if_version: int) -> None:
        key = Key(partition, "a")
        items.write([Put(key, {"v": 1}, 0)])
        items.write([Put(key, {"v": 2}, 1)])
        with pytest.raises(ConditionFailed) as failure:
            items.write([Put(key, {"v": "wrong"}, if_version)])
        assert failure.value.index == 0
        assert items.get(key) == Item(key, 2, {"v": 2})

    def test_put_over_what_is_absent_fails(self, items: Items, partition: str) -> None:
        with pytest.raises(ConditionFailed):
            items.write([Put(Key(partition, "a"), {}, 1)])
        assert items.get(Key(partition, "a")) is None

    def test_delete(self, items: Items, partition: str) -> None:
        key = Key(partition, "a")
        items.write([Delete(key, None)])
        items.write([Delete(key, 0)])
        with pytest.raises(ConditionFailed):
            items.write([Delete(key, 1)])
        items.write([Put(key, {}, 0)])
        for wrong in (0, 2):
            with pytest.raises(ConditionFailed):
                items.write([Delete(key, wrong)])
        items.write([Delete(key, 1)])
        assert items.get(key) is None
        items.write([Put(key, {}, 0)])
        items.write([Delete(key, None)])
        assert items.get(key) is None

    def test_check(self, items: Items, partition: str) -> None:
        present, absent = Key(partition, "present"), Key(partition, "absent")
        items.write([Put(present, {}, 0)])
        items.write([Check(present, 1), Check(absent, 0)])
        for wrong in ([Check(present, 0)], [Check(present, 2)], [Check(absent, 1)]):
            with pytest.raises(ConditionFailed):
                items.write(wrong)
        unchanged = items.get(present)
        assert unchanged is not None
        assert unchanged.version == 1

    def test_a_relaxed_write_is_seen_at_once_and_is_as_conditional(
        self, items: Items, partition: str
    ) -> None:
        a, b = Key(partition, "a"), Key(partition, "b")
        items.write_relaxed([Put(a, {"v": 1}, 0)])
        assert items.get(a) == Item(a, 1, {"v": 1})
        with pytest.raises(ConditionFailed) as failure:
            items.write_relaxed([Put(b, {}, 0), Check(a, 2)])
        assert failure.value.index == 1
        assert items.get(b) is None
        items.write([Put(a, {"v": 2}, 1)])
        with pytest.raises(InvalidRequest):
            items.write_relaxed([])
        assert items.get(a) == Item(a, 2, {"v": 2})

    @pytest.mark.parametrize("failing", [0, 50, 99])
    def test_a_failing_check_in_a_hundred_writes_applies_nothing(
        self, items: Items, partition: str, failing: int
    ) -> None:
        items.write([Put(Key(partition, "old-1"), {"v": 1}, 0), Put(Key(partition, "old-2"), {"v": 1}, 0)])
        writes: list[Put | Delete | Check] = [Put(Key(partition, f"new-{n:02d}"), {}, 0) for n in range(97)]
        writes += [Put(Key(partition, "old-1"), {"v": 2}, 1), Delete(Key(partition, "old-2"), 1)]
        writes.insert(failing, Check(Key(partition, "elsewhere"), 1))
        assert len(writes) == 100
        with pytest.raises(ConditionFailed) as failure:
            items.write(writes)
        assert failure.value.index == failing
        assert [(i.key.sort, i.version, i.body) for i in items.query(partition)] == [
            ("old-1", 1, {"v": 1}),
            ("old-2", 1, {"v": 1}),
        ]
        del writes[failing]
        items.write(writes)
        assert len(items.query(partition)) == 98

    def test_a_transaction_reaches_several_partitions(self, items: Items, partition: str) -> None:
        items.write([Put(Key(f"{partition}/{n}", "a"), {"n": n}, 0) for n in range(100)])
        assert [len(items.query(f"{partition}/{n}")) for n in range(100)] == [1] * 100

    def test_transactions_that_are_refused(self, items: Items, partition: str) -> None:
        key = Key(partition, "a")
        refused: list[list[Put | Delete | Check]] = [
            [],
            [Put(Key(partition, f"{n}"), {}, 0) for n in range(101)],
            [Put(key, {}, 0), Check(key, 0)],
            [Put(key, {"nan": float("nan")}, 0)],
            [Put(key, {"surrogate": "\ud800"}, 0)],
            [Put(key, {"bytes": b"x"}, 0)],  # type: ignore[dict-item]
            [Put(key, {}, -1)],
            [Put(key, {}, 2**64)],
            [Check(key, 2**64)],
            [Put(key, {}, 0, expires_at_s=-1)],
            [Put(key, {}, 0, expires_at_s=2**64)],
        ]
        for writes in refused:
            with pytest.raises(InvalidRequest):
                items.write(writes)
        assert items.query(partition) == []

    @pytest.mark.parametrize("where", ["body", "sealed"])
    def test_item_size_at_the_boundary(self, items: Items, partition: str, where: str) -> None:
        key = Key(partition, "a")
        room = ITEM_MAX_BYTES - len(partition) - len("a")

        def put(size_bytes: int) -> Put:
            if where == "sealed":
                return Put(key, {}, 0, b"s" * (size_bytes - len("{}")))
            odd = size_bytes - len('{"t":""}')
            return Put(key, {"t": "é" * (odd // 2) + "x" * (odd % 2)}, 0)

        with pytest.raises(InvalidRequest):
            items.write([put(room + 1)])
        assert items.get(key) is None
        items.write([put(room)])
        stored = items.get(key)
        assert stored is not None
        assert stored.body == put(room).body
        assert stored.sealed == put(room).sealed

    def test_transaction_size_at_the_boundary(self, items: Items, partition: str) -> None:
        keys = [Key(partition, f"{n:02d}") for n in range(10)]
        each = TRANSACTION_MAX_BYTES // 10 - len(partition) - 2 - len("{}")
        fits = [Put(key, {}, 0, b"s" * each) for key in keys]
        over = [*fits[:-1], Put(keys[-1], {}, 0, b"s" * (each + 1))]
        with pytest.raises(InvalidRequest):
            items.write(over)
        assert items.query(partition) == []
        items.write(fits)
        assert len(items.query(partition)) == 10

    def test_many_are_read_at_once_in_the_order_that_was_asked(self, items: Items, partition: str) -> None:
        past = int(time.time()) - 1
        other = f"{partition}-2"
        items.write([Put(Key(partition, "b"), {"n": 1}, 0, b"sealed"), Put(Key(other, "a"), {"n": 2}, 0)])
        items.write([Put(Key(partition, "old"), {}, 0, expires_at_s=past)])
        keys = [Key(other, "a"), Key(partition, "absent"), Key(partition, "old"), Key(partition, "b")]
        assert items.get_all(keys) == [items.get(key) for key in keys]
        assert [item and item.body.get("n") for item in items.get_all(keys)] == [2, None, None, 1]

    def test_limits_of_reading_many(self, items: Items, partition: str) -> None:
        keys = [Key(partition, f"{n:03d}") for n in range(101)]
        items.write([Put(key, {"n": n}, 0) for n, key in enumerate(keys[:100])])
        assert [item and item.body["n"] for item in items.get_all(keys[:100])] == list(range(100))
        for wrong in ([], keys, [keys[0], keys[0]]):
            with pytest.raises(InvalidRequest):
                items.get_all(wrong)

    def test_more_is_read_at_once_than_an_answer_holds(self, items: Items, partition: str) -> None:
        """DynamoDB's ends at 16 MB; the port's does not."""
        keys = [Key(partition, f"{n:02d}") for n in range(45)]
        for n, key in enumerate(keys):
            items.write([Put(key, {}, 0, bytes([n]) * 380_000)])
        assert [item and item.sealed[0] for item in items.get_all(keys)] == list(range(45))

    def test_query_is_in_byte_order(self, items: Items, partition: str) -> None:
        names = ["Z", "a", "a-", "a/1", "a/10", "a/2", "a0", "aa", "b", "0", "00"]
        items.write([Put(Key(partition, name), {}, 0) for name in names])
        ordered = sorted(names, key=str.encode)
        assert sorts(items.query(partition)) == ordered
        assert sorts(items.query(partition, descending=True)) == ordered[::-1]

    def test_query_bounds_are_inclusive(self, items: Items, partition: str) -> None:
        items.write([Put(Key(partition, f"op/{n:04d}"), {}, 0) for n in range(10)])
        items.write([Put(Key(partition, "meta"), {}, 0), Put(Key(partition, "zz"), {}, 0)])
        ask = items.query
        assert sorts(ask(partition, first="op/0003", last="op/0005")) == ["op/0003", "op/0004", "op/0005"]
        assert sorts(ask(partition, first="op/0008")) == ["op/0008", "op/0009", "zz"]
        assert sorts(ask(partition, last="op/0000")) == ["meta", "op/0000"]
        assert sorts(ask(partition, first="op/", last="op/~", limit=2)) == ["op/0000", "op/0001"]
        assert sorts(ask(partition, first="op/", last="op/~", limit=2, descending=True)) == [
            "op/0009",
            "op/0008",
        ]
        assert len(ask(partition, first="op/", last="op/\U0010ffff")) == 10
        assert ask(partition, first="op/0005", last="op/0003") == []
        assert ask(partition, first="zzz") == []

    def test_query_sees_one_partition(self, items: Items, partition: str) -> None:
        items.write([Put(Key(partition, "a"), {}, 0), Put(Key(f"{partition}x", "b"), {}, 0)])
        assert sorts(items.query(partition)) == ["a"]
        assert items.query(f"{partition}y") == []

    def test_query_limits(self, items: Items, partition: str) -> None:
        for start in (0, 100):
            items.write([Put(Key(partition, f"{n:03d}"), {"n": n}, 0) for n in range(start, start + 100)])
        assert len(items.query(partition)) == 100
        assert sorts(items.query(partition, limit=1)) == ["000"]
        assert len(items.query(partition, limit=1000)) == 200
        with pytest.raises(InvalidRequest):
            items.query(partition, limit=0)
        with pytest.raises(InvalidRequest):
            items.query("not a partition")

    def test_query_returns_more_than_a_megabyte(self, items: Items, partition: str) -> None:
        """DynamoDB pages at 1 MB; the port does not."""
        for n in range(4):
            items.write([Put(Key(partition, f"{n}"), {}, 0, bytes([n]) * 380_000)])
        assert [item.sealed[:1] for item in items.query(partition)] == [b"\0", b"\1", b"\2", b"\3"]

    def test_what_has_expired_is_absent(self, items: Items, partition: str) -> None:
        past = int(time.time()) - 1
        keys = [Key(partition, name) for name in ("a", "b", "c", "d")]
        items.write([Put(key, {"old": True}, 0, expires_at_s=past) for key in keys])
        items.write([Put(Key(partition, "live"), {}, 0, expires_at_s=past + 1000)])
        assert items.get(keys[0]) is None
        assert sorts(items.query(partition)) == ["live"]
        assert sorts(items.query(partition, limit=1)) == ["live"]
        for write in (Put(keys[0], {}, 1), Delete(keys[0], 1), Check(keys[0], 1)):
            with pytest.raises(ConditionFailed):
                items.write([write])
        items.write(
            [Check(keys[0], 0), Put(keys[1], {"new": True}, 0), Delete(keys[2], None), Delete(keys[3], 0)]
        )
        assert items.get(keys[1]) == Item(keys[1], 1, {"new": True})

    def test_an_item_expires_at_its_second(self, items: Items, partition: str) -> None:
        key, expires_at_s = Key(partition, "a"), int(time.time()) + 1
        items.write([Put(key, {}, 0, expires_at_s=expires_at_s)])
        if items.get(key) is None:
            assert time.time() >= expires_at_s
        time.sleep(max(0.0, expires_at_s - time.time()) + 0.01)
        assert items.get(key) is None

    def test_a_read_does_not_share_memory(self, items: Items, partition: str) -> None:
        body: dict[str, JsonValue] = {"list": [1]}
        items.write([Put(Key(partition, "a"), body, 0)])
        body["list"] = "changed after the write"
        first = items.get(Key(partition, "a"))
        assert first is not None
        assert first.body == {"list": [1]}

    def test_of_eight_threads_one_wins_each_version(self, items: Items, partition: str) -> None:
        key = Key(partition, "a")

        def compete(thread: int) -> list[int]:
            won = []
            for version in range(20):
                try:
                    items.write([Put(key, {"by": thread}, version)])
                    won.append(version)
                except ConditionFailed:
                    while (item := items.get(key)) is None or item.version <= version:
                        time.sleep(0.0005)
            return won

        with ThreadPoolExecutor(8) as pool:
            wins = [version for won in pool.map(compete, range(8)) for version in won]
        assert sorted(wins) == list(range(20))
